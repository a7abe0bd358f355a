//! Begins a failover: an operator's order comes in; the site's promotion entry, each group's epoch and each journal's
//! first entry go out, in this order.
//!
//! What must hold: nothing is written before everything that can be known beforehand was checked; of several operators
//! exactly one wins, and the others are told who; every gap between two writes is closed by [`establish`], on any
//! machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use farsite_model::nearest::did_you_mean;
use farsite_model::{GroupName, Level, Mode, PointId, PromotionId, SiteName, StoreTime};
use farsite_runbook::journal::JournalEntry;
use farsite_store::StoreError;
use farsite_store::keys::Signer;
use farsite_store::ledger::{
    EpochStart, GroupState, Ledger, Refusal, SiteLedger, SitePromotion, SiteStatement, Statement, groups,
};
use farsite_store::read::ReadStats;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choose::{Chosen, NoPoint, PointChoice, Replay, choose};
use crate::group_run::{FACT, GroupRun};
use crate::journal::StoreJournal;
use crate::order::Order;
use crate::place::Targets;
use crate::promises::promises;
use crate::runbooks::{self, Bundle};
use crate::survey::{Survey, accepted_logs, marked, read_manifest};
use crate::{PromoteError, Standby, actions};

/// What the order in the store carries beside its own fields: the runbook's texts, and what `--point` said for each group: a
/// promotion that was interrupted before its epoch began chooses anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    pub bundle: Bundle,
    pub choices: BTreeMap<GroupName, PointChoice>,
}

/// A promotion as its order in the store says it; any machine can go on with it.
#[derive(Debug, Clone)]
pub struct Promotion {
    pub id: PromotionId,
    pub from: SiteName,
    pub to: SiteName,
    pub mode: Mode,
    pub level: Level,
    /// Each group with the point that was chosen when the order was given; its epoch's entry counts.
    pub groups: Vec<(GroupName, PointId)>,
    pub recipe: Recipe,
    pub who: String,
    pub reason: String,
    pub fencing: String,
    pub disaster_at: Option<Timestamp>,
    /// The store's time of the order.
    pub begun: StoreTime,
    /// Result and time, once it has ended.
    pub ended: Option<(String, StoreTime)>,
}

/// A group as an order finds it.
pub(crate) struct Found {
    pub group: GroupName,
    pub choice: PointChoice,
    pub chosen: Chosen,
    pub survey: Survey,
}

/// A choice that finds nothing it may take is unsafe; a person can name a point.
pub(crate) fn refused(none: Box<NoPoint>) -> PromoteError {
    PromoteError::Refused(none.to_string())
}

/// The groups whose primary is `from`, each with the point that the order takes.
pub(crate) async fn find_groups(
    standby: &Standby,
    order: &Order,
    signer: Option<&Arc<Signer>>,
) -> Result<Vec<Found>, PromoteError> {
    standby.config.site(&order.from).map_err(PromoteError::Usage)?;
    if order.from == standby.site {
        return Err(PromoteError::Usage(format!("{} cannot fail over to itself", order.from)));
    }
    let known = groups(&standby.store).await?;
    for wanted in &order.groups {
        if !known.contains(wanted) {
            let near = did_you_mean(wanted.as_str(), known.iter().map(GroupName::as_str));
            return Err(PromoteError::Usage(format!(
                "no group is called {wanted} in the store at {}{near}",
                standby.site
            )));
        }
    }
    let mut surveys = Vec::new();
    let mut elsewhere = Vec::new();
    for group in known {
        if !order.groups.is_empty() && !order.groups.contains(&group) {
            continue;
        }
        let survey = Survey::of(standby, &group, signer).await?;
        match survey.ledger.state().primary() {
            Some(primary) if *primary == order.from => surveys.push((group, survey)),
            Some(primary) => elsewhere.push(format!("{group} (primary {primary})")),
            None => elsewhere.push(format!("{group} (empty ledger)")),
        }
    }
    if surveys.is_empty() || (!order.groups.is_empty() && !elsewhere.is_empty()) {
        let others =
            if elsewhere.is_empty() { String::new() } else { format!("; found {}", elsewhere.join(", ")) };
        return Err(PromoteError::Usage(format!(
            "nothing to fail over: no such group has its primary at {}{others}\n  hint: `farsite status`",
            order.from
        )));
    }
    let mut found = Vec::new();
    // An id names a point of one group; the others take what `latest` takes.
    let owner = match &order.point {
        PointChoice::Id(text) => surveys
            .iter()
            .position(|(_, s)| s.ledger.state().points.iter().any(|p| p.id().to_string().starts_with(text))),
        _ => None,
    };
    for (index, (group, survey)) in surveys.into_iter().enumerate() {
        let choice = match (&order.point, owner) {
            (PointChoice::Id(_), Some(owner)) if owner != index => PointChoice::Latest,
            (choice, _) => choice.clone(),
        };
        let chosen = choose(&survey.state(), &choice, survey.now).map_err(refused)?;
        found.push(Found { group, choice, chosen, survey });
    }
    Ok(found)
}

/// Checks everything, then takes the site's promotion entry, each group's epoch and each journal's first entry.
pub async fn begin(
    standby: &Standby,
    signer: &Arc<Signer>,
    order: &Order,
) -> Result<Promotion, PromoteError> {
    let fencing = order.fencing()?;
    // Somebody else's promotion is said before anything about points.
    let mut site = SiteLedger::open(&standby.store, &order.from).await?;
    refuse_open(&order.from, &site)?;
    let found = find_groups(standby, order, Some(signer)).await?;
    let bundle = runbooks::find(&standby.config, order.level, order.runbook.as_deref())?;
    let plan = bundle.plan(&actions::registry(None))?;
    let choices = found.iter().map(|f| (f.group.clone(), f.choice.clone())).collect();
    let recipe = Recipe { bundle, choices };
    for f in &found {
        if !f.chosen.flaws.is_empty() && !order.take_flawed {
            return Err(PromoteError::Refused(format!(
                "group {}: point {} is not one to take unasked: {}; nothing was changed\n  hint: answer yes (`--yes`) if you accept that",
                f.group,
                f.chosen.point,
                f.chosen.flaws.join("; ")
            )));
        }
        let manifest = f.survey.manifest(standby, f.chosen.point).await?;
        let missing = Targets::real(&standby.config, &f.group, order.promotion)?.missing(&manifest);
        if !missing.is_empty() {
            return Err(PromoteError::Usage(format!(
                "group {}: {}; nothing was changed\n  hint: add it under `places.{}:` in farsite.yaml",
                f.group,
                missing.join("; "),
                f.group
            )));
        }
    }
    let begun = SiteStatement::PromotionBegun {
        promotion: order.promotion,
        from: order.from.clone(),
        to: standby.site.clone(),
        mode: Mode::Failover,
        level: order.level,
        groups: found.iter().map(|f| (f.group.clone(), f.chosen.point)).collect(),
        runbook: plan.name,
        runbook_text: serde_json::to_string(&recipe).expect("a recipe is valid JSON"),
        who: order.who.clone(),
        reason: order.reason.clone(),
        fencing,
        disaster_at: order.disaster_at,
    };
    site.begin(signer, begun).await?;
    let promotion = open(standby, &order.from).await?;
    establish(standby, signer, &promotion).await?;
    Ok(promotion)
}

fn refuse_open(from: &SiteName, site: &SiteLedger) -> Result<(), PromoteError> {
    let Some(open) = site.state().open_promotion() else { return Ok(()) };
    let SiteStatement::PromotionBegun { promotion, to, who, .. } = &open.begun else { return Ok(()) };
    Err(Refusal::PromotionOpen {
        site: from.clone(),
        promotion: *promotion,
        to: to.clone(),
        who: who.clone(),
        at: open.at,
    }
    .into())
}

/// The open promotion of a site: what `--resume` goes on with.
pub async fn open(standby: &Standby, from: &SiteName) -> Result<Promotion, PromoteError> {
    standby.config.site(from).map_err(PromoteError::Usage)?;
    let site = SiteLedger::open(&standby.store, from).await?;
    match site.state().open_promotion() {
        Some(open) => read(open),
        None => Err(PromoteError::Usage(format!(
            "no promotion of {from} is open in the store at {}\n  hint: `farsite promotion list`; begin one with `farsite failover --site {from}`",
            standby.site
        ))),
    }
}

/// Reads an order out of the site's ledger.
pub(crate) fn read(entry: &SitePromotion) -> Result<Promotion, PromoteError> {
    let SiteStatement::PromotionBegun {
        promotion,
        from,
        to,
        mode,
        level,
        groups,
        runbook: _,
        runbook_text,
        who,
        reason,
        fencing,
        disaster_at,
    } = entry.begun.clone()
    else {
        return Err(PromoteError::Failed("the site's ledger holds no order".into()));
    };
    Ok(Promotion {
        id: promotion,
        from,
        to,
        mode,
        level,
        groups,
        recipe: serde_json::from_str(&runbook_text).map_err(|error| {
            PromoteError::Failed(format!("the order of promotion {promotion} makes no sense: {error}"))
        })?,
        who,
        reason,
        fencing,
        disaster_at,
        begun: entry.at,
        ended: entry.ended.clone(),
    })
}

/// Closes every gap that a killed `begin` left: each group has its epoch, each journal its first entry.
pub async fn establish(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
) -> Result<(), PromoteError> {
    if promotion.to != standby.site {
        return Err(PromoteError::Usage(format!(
            "promotion {} goes to {}, and this command works at {}\n  hint: `--to {}`",
            promotion.id, promotion.to, standby.site, promotion.to
        )));
    }
    // All epochs first: the old primary is fenced before anything else happens.
    for (group, ordered) in &promotion.groups {
        begin_epoch(standby, signer, promotion, group, *ordered).await?;
    }
    for (group, _) in &promotion.groups {
        begin_journal(standby, signer, promotion, group).await?;
    }
    Ok(())
}

/// The epoch that a promotion began in a group.
pub(crate) fn epoch_of<'s>(state: &'s GroupState, promotion: &Promotion) -> Option<&'s EpochStart> {
    state.epochs.iter().find(|e| e.promotion == Some(promotion.id) && e.primary == promotion.to)
}

async fn begin_epoch(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    group: &GroupName,
    ordered: PointId,
) -> Result<(), PromoteError> {
    let by_order = PointChoice::Id(ordered.to_string());
    let choice = promotion.recipe.choices.get(group).unwrap_or(&by_order);
    loop {
        let survey = Survey::of(standby, group, Some(signer)).await?;
        let state = survey.state();
        if epoch_of(&state, promotion).is_some() {
            return Ok(());
        }
        // A late commit may be newer than what the order names; damage found since may have taken it away.
        let pick =
            |state: &GroupState, now| choose(state, choice, now).or_else(|_| choose(state, &by_order, now));
        let chosen = pick(&state, survey.now).map_err(refused)?;
        let logs = accepted_logs(standby, group, &survey.point(chosen.point)?, &promotion.from).await?;
        let Survey { mut ledger, damaged, now } = survey;
        let mut moved = false;
        let result = ledger
            .append(signer, |state| {
                let seen = marked(state, &damaged);
                let same = pick(&seen, now).is_ok_and(|again| again.point == chosen.point);
                if !same || epoch_of(&seen, promotion).is_some() {
                    moved = true;
                    return Err(Refusal::Other("the ledger has moved on".into()));
                }
                if state.primary() != Some(&promotion.from) {
                    return Err(Refusal::Other(format!(
                        "group {group} has its primary at {} now, not at {}: promotion {} comes too late\n  hint: `farsite promotion cancel {}`",
                        state.primary().map_or("no site", SiteName::as_str),
                        promotion.from,
                        promotion.id,
                        promotion.id
                    )));
                }
                Ok(Statement::EpochBegun {
                    epoch: state.epoch().next(),
                    primary: promotion.to.clone(),
                    promotion: promotion.id,
                    point: Some(chosen.point),
                    logs: logs.clone(),
                    who: promotion.who.clone(),
                    reason: promotion.reason.clone(),
                })
            })
            .await;
        match result {
            Ok(_) => return Ok(()),
            Err(StoreError::Refused(_)) if moved => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The facts of a run that its report needs and that stand nowhere else.
pub(crate) fn facts(values: &[(&str, String)]) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| (format!("{FACT}{name}"), value.clone())).collect()
}

/// One of the facts of a run.
pub(crate) fn fact(variables: &BTreeMap<String, String>, name: &str) -> Option<String> {
    variables.get(&format!("{FACT}{name}")).filter(|value| !value.is_empty()).cloned()
}

async fn begin_journal(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    group: &GroupName,
) -> Result<(), PromoteError> {
    let journal = StoreJournal::writing(&standby.store, promotion.id, group, signer);
    if !journal.record().await?.is_empty() {
        return Ok(());
    }
    let run = load(standby, promotion, group).await?;
    let (_, plan) = run.plan(&promotion.recipe.bundle)?;
    let mut variables = run.targets.variables.clone();
    // What cannot be rendered is said now, not in the middle of the promotion.
    run.variables(&plan, &variables)?;
    let promises = promises(&standby.config, group);
    let seconds = |value: Option<f64>| value.map(|s| s.to_string()).unwrap_or_default();
    variables.extend(facts(&[
        ("from", promotion.from.to_string()),
        ("to", promotion.to.to_string()),
        ("point", run.point.to_string()),
        ("replay", serde_json::to_string(&run.replay).unwrap_or_default()),
        ("rpo-target-s", seconds(promises.rpo_s)),
        ("rto-target-s", seconds(promises.rto_s)),
    ]));
    let begun = JournalEntry::Begun {
        promotion: promotion.id,
        runbook: plan.name,
        runbook_text: promotion.recipe.bundle.to_json(),
        mode: promotion.mode,
        level: promotion.level,
        variables,
        who: promotion.who.clone(),
    };
    journal.say(|so_far| Ok(so_far.is_empty().then(|| begun.clone()))).await?;
    Ok(())
}

/// A group's part of a promotion whose epoch has begun, ready to run.
pub(crate) async fn load(
    standby: &Standby,
    promotion: &Promotion,
    group: &GroupName,
) -> Result<Arc<GroupRun>, PromoteError> {
    let ledger = Ledger::open(&standby.store, group).await?;
    let state = ledger.state();
    let epoch = epoch_of(state, promotion).ok_or_else(|| {
        PromoteError::Failed(format!("promotion {} has begun no epoch of group {group}", promotion.id))
    })?;
    let point = epoch.point.and_then(|id| state.point(id)).ok_or_else(|| {
        PromoteError::Failed(format!("the epoch of group {group} names no point that its ledger knows"))
    })?;
    let manifest = read_manifest(standby, group, point).await?;
    Ok(Arc::new(GroupRun {
        standby: standby.clone(),
        promotion: promotion.id,
        group: group.clone(),
        from: promotion.from.clone(),
        mode: promotion.mode,
        level: promotion.level,
        stats: ReadStats::default(),
        term: epoch.epoch,
        point: point.id(),
        manifest,
        logs: epoch.logs.clone(),
        replay: promotion.recipe.choices.get(group).map_or(Replay::Point, PointChoice::replay),
        targets: Targets::real(&standby.config, group, promotion.id)?,
    }))
}
