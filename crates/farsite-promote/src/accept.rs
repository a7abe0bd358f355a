//! What people say to a promotion: accept, roll back, cancel, confirm, skip.
//!
//! What must hold: a cancelled or rolled-back promotion ends with an epoch that gives the old primary its place back,
//! so that it is never left fenced and silently unprotected; and never before every effect here was undone.

use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::nearest::did_you_mean;
use farsite_model::{GroupName, PromotionId, SiteName};
use farsite_runbook::journal::{JournalEntry, RunResult};
use farsite_runbook::state::RunState;
use farsite_store::StoreError;
use farsite_store::keys::Signer;
use farsite_store::ledger::{GroupState, Ledger, Refusal, SiteLedger, Statement};
use jiff::Timestamp;

use crate::drive::{Driving, Prepared, failed_steps, prepare};
use crate::failover::{Promotion, epoch_of, load, read};
use crate::journal::{StoreJournal, groups_of};
use crate::runbooks::Bundle;
use crate::{PromoteError, Standby};

/// A promotion by its id, open or ended, of any site that the configuration knows.
pub async fn find(standby: &Standby, id: PromotionId) -> Result<Promotion, PromoteError> {
    for site in sites(&standby.config) {
        let ledger = SiteLedger::open(&standby.store, site).await?;
        if let Some(found) = ledger.state().promotions.iter().find(|p| p.id() == id) {
            return read(found);
        }
    }
    Err(PromoteError::Usage(format!(
        "no promotion {id} is in the store at {}\n  hint: `farsite promotion list`",
        standby.site
    )))
}

fn sites(config: &Config) -> impl Iterator<Item = &SiteName> {
    config.sites.keys()
}

/// Ends the window in which a promotion can be rolled back. Doing it twice is as good as once.
pub async fn accept(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    who: &str,
) -> Result<(), PromoteError> {
    let promotion = find(standby, id).await?;
    for (group, _) in &promotion.groups {
        let ledger = Ledger::open(&standby.store, group).await?;
        if !epoch_of(ledger.state(), &promotion).is_some_and(|epoch| epoch.promoted) {
            return Err(PromoteError::Refused(format!(
                "group {group} is not promoted yet by {id}; nothing was changed\n  hint: `farsite promotion show {id}`, then `farsite failover --site {} --resume`",
                promotion.from
            )));
        }
    }
    for (group, _) in &promotion.groups {
        let says = || Statement::PromotionAccepted { promotion: id, who: who.to_owned() };
        append_once(standby, signer, group, |state| current(state, &promotion, |e| e.accepted), says).await?;
    }
    Ok(())
}

/// True when the promotion's own epoch is the current one and `done` says yes; an error when another came after it.
fn current(
    state: &GroupState,
    promotion: &Promotion,
    done: impl Fn(&farsite_store::ledger::EpochStart) -> bool,
) -> Result<bool, Refusal> {
    match state.current() {
        Some(epoch) if epoch.promotion == Some(promotion.id) && epoch.primary == promotion.to => {
            Ok(done(epoch))
        }
        other => Err(Refusal::Other(format!(
            "group {} is in epoch {} now (primary {}), which promotion {} did not begin",
            state.group,
            state.epoch(),
            other.map_or("none", |e| e.primary.as_str()),
            promotion.id
        ))),
    }
}

/// Appends unless `done` says that it is there already.
async fn append_once(
    standby: &Standby,
    signer: &Arc<Signer>,
    group: &GroupName,
    done: impl Fn(&GroupState) -> Result<bool, Refusal> + Send + Sync,
    says: impl Fn() -> Statement + Send + Sync,
) -> Result<(), PromoteError> {
    append_deciding(standby, signer, group, |state| Ok(if done(state)? { None } else { Some(says()) })).await
}

/// Appends what `decide` says about the newest state, or nothing.
async fn append_deciding(
    standby: &Standby,
    signer: &Arc<Signer>,
    group: &GroupName,
    decide: impl Fn(&GroupState) -> Result<Option<Statement>, Refusal> + Send + Sync,
) -> Result<(), PromoteError> {
    let mut ledger = Ledger::open(&standby.store, group).await?;
    let mut already = false;
    let result = ledger
        .append(signer, |state| {
            if let Some(statement) = decide(state)? {
                Ok(statement)
            } else {
                already = true;
                Err(Refusal::Other("it is there already".into()))
            }
        })
        .await;
    match result {
        Ok(_) => Ok(()),
        Err(StoreError::Refused(_)) if already => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How to roll back.
#[derive(Clone)]
pub struct Rollback {
    pub driving: Driving,
    pub who: String,
    pub reason: String,
    /// Gives the primary back even though a step could not be undone; the record says so.
    pub despite_failed_undo: bool,
}

/// Undoes every step, last first, then gives each group back to its old primary. Resumable like a promotion.
pub async fn rollback(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    how: &Rollback,
) -> Result<(), PromoteError> {
    undo(standby, signer, id, how, RunResult::RolledBack).await
}

/// Asks whoever drives it to stop, then rolls back.
pub async fn cancel(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    how: &Rollback,
) -> Result<(), PromoteError> {
    let promotion = find(standby, id).await?;
    for (group, _) in &promotion.groups {
        let journal = StoreJournal::writing(&standby.store, id, group, signer);
        let wish = JournalEntry::CancelRequested { who: how.who.clone(), at: Timestamp::now() };
        journal
            .say(|so_far| {
                let state = RunState::fold(so_far);
                let is_open = state.begun.is_some() && state.cancelled.is_none() && state.finished.is_none();
                Ok(is_open.then(|| wish.clone()))
            })
            .await?;
    }
    undo(standby, signer, id, how, RunResult::Cancelled).await
}

async fn undo(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    how: &Rollback,
    result: RunResult,
) -> Result<(), PromoteError> {
    let promotion = find(standby, id).await?;
    let mut stuck = Vec::new();
    for (group, _) in &promotion.groups {
        let ledger = Ledger::open(&standby.store, group).await?;
        let Some(epoch) = epoch_of(ledger.state(), &promotion) else { continue };
        if epoch.accepted {
            return Err(PromoteError::Refused(format!(
                "promotion {id} of group {group} was accepted: it can no longer be rolled back; nothing was changed\n  hint: to go back, replicate {} to a store at {} by a policy of its own, then fail over to it",
                promotion.to, promotion.from
            )));
        }
        if !ours_or_returned(ledger.state(), &promotion) {
            current(ledger.state(), &promotion, |_| false)?;
        }
    }
    // The reverse of the order in which groups were promoted.
    for (group, _) in promotion.groups.iter().rev() {
        let ledger = Ledger::open(&standby.store, group).await?;
        if epoch_of(ledger.state(), &promotion).is_none() {
            continue;
        }
        for (step, why) in undo_group(standby, signer, &promotion, group, how, result).await? {
            stuck.push(format!("{group}: step {step}: {why}"));
        }
    }
    if !stuck.is_empty() && !how.despite_failed_undo {
        return Err(PromoteError::Failed(format!(
            "not everything could be undone, so {} stays primary and {} stays fenced: {}\n  hint: mend it and repeat; or, when nothing serves at {} any more, repeat with --despite-failed-undo",
            promotion.to,
            promotion.from,
            stuck.join("; "),
            promotion.to
        )));
    }
    for (group, _) in &promotion.groups {
        give_back(standby, signer, &promotion, group, how, &stuck).await?;
    }
    let mut site = SiteLedger::open(&standby.store, &promotion.from).await?;
    site.end(signer, id, &result.to_string(), &how.who).await?;
    Ok(())
}

fn ours_or_returned(state: &GroupState, promotion: &Promotion) -> bool {
    state.current().is_some_and(|epoch| epoch.promotion == Some(promotion.id))
}

/// Undoes a group's steps; returns those that could not be undone.
async fn undo_group(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    group: &GroupName,
    how: &Rollback,
    result: RunResult,
) -> Result<Vec<(String, String)>, PromoteError> {
    let entries = StoreJournal::reading(&standby.store, promotion.id, group).entries().await?;
    let before = RunState::fold(&entries);
    let is_undone = matches!(before.finished, Some((RunResult::RolledBack | RunResult::Cancelled, _)));
    if before.begun.is_none() || (is_undone && before.completed.is_empty()) {
        return Ok(Vec::new());
    }
    let group_run = load(standby, promotion, group).await?;
    let Prepared { run, plan, .. } = prepare(&group_run, signer, &how.driving).await?;
    let state = run
        .roll_back(&plan, result)
        .await
        .map_err(|source| PromoteError::Engine { group: group.clone(), source })?;
    Ok(match state.finished {
        Some((RunResult::Failed, _)) => failed_steps(&plan, &state),
        _ => Vec::new(),
    })
}

/// `epoch begun` with the old site as primary, and its end in the same breath: nothing is restored there.
async fn give_back(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    group: &GroupName,
    how: &Rollback,
    stuck: &[String],
) -> Result<(), PromoteError> {
    let mut reason = how.reason.clone();
    if !stuck.is_empty() {
        reason = format!("{reason} (not undone: {})", stuck.join("; "));
    }
    let is_back = |state: &GroupState| {
        state.current().is_some_and(|e| e.promotion == Some(promotion.id) && e.primary == promotion.from)
    };
    append_deciding(standby, signer, group, |state| {
        if is_back(state) || epoch_of(state, promotion).is_none() {
            return Ok(None);
        }
        current(state, promotion, |_| false)?;
        Ok(Some(Statement::EpochBegun {
            epoch: state.epoch().next(),
            primary: promotion.from.clone(),
            promotion: promotion.id,
            point: None,
            logs: Vec::new(),
            who: how.who.clone(),
            reason: reason.clone(),
        }))
    })
    .await?;
    append_deciding(standby, signer, group, |state| {
        let open = is_back(state) && !state.current().is_some_and(|e| e.promoted);
        Ok(open.then_some(Statement::Promoted { promotion: promotion.id }))
    })
    .await?;
    append_deciding(standby, signer, group, |state| {
        let open = is_back(state) && !state.current().is_some_and(|e| e.accepted);
        Ok(open.then(|| Statement::PromotionAccepted { promotion: promotion.id, who: how.who.clone() }))
    })
    .await
}

/// A person's answer to a gate; `group` where the promotion has several with such a step.
pub async fn confirm(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    group: Option<&GroupName>,
    step: &str,
    answer: bool,
    who: &str,
) -> Result<(), PromoteError> {
    let (step, who) = (step.to_owned(), who.to_owned());
    say(
        standby,
        signer,
        id,
        group,
        &step,
        JournalEntry::Gate { step: step.clone(), answer, who, at: Timestamp::now() },
    )
    .await
}

/// A person's decision to go on without a step.
pub async fn skip(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    group: Option<&GroupName>,
    step: &str,
    who: &str,
    reason: &str,
) -> Result<(), PromoteError> {
    if reason.trim().is_empty() {
        return Err(PromoteError::Usage("skipping a step needs a reason: it stays in the record".into()));
    }
    let entry = JournalEntry::Skipped {
        step: step.to_owned(),
        who: who.to_owned(),
        reason: reason.to_owned(),
        at: Timestamp::now(),
    };
    say(standby, signer, id, group, step, entry).await
}

/// Writes a person's entry into the journals whose runbook has the step.
async fn say(
    standby: &Standby,
    signer: &Arc<Signer>,
    id: PromotionId,
    group: Option<&GroupName>,
    step: &str,
    entry: JournalEntry,
) -> Result<(), PromoteError> {
    let mut known = Vec::new();
    let mut said = false;
    for name in groups_of(&standby.store, id).await? {
        if group.is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let journal = StoreJournal::writing(&standby.store, id, &name, signer);
        let entries = journal.entries().await?;
        let Some((_, JournalEntry::Begun { runbook_text, .. })) = entries.first() else { continue };
        let plan = Bundle::from_json(runbook_text)?.plan(&crate::registry_for_checks())?;
        if plan.steps.iter().any(|s| s.id == step) {
            said |= journal.say(|_| Ok(Some(entry.clone()))).await?;
        }
        known.extend(plan.steps.into_iter().map(|s| s.id));
    }
    if said {
        return Ok(());
    }
    let near = did_you_mean(step, known.iter().map(String::as_str));
    Err(PromoteError::Usage(format!("promotion {id} has no step {step:?}{near}; nothing was written")))
}
