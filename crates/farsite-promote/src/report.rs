//! The report of a promotion or drill: built from the ledger and the journals alone, so that anybody with the store can build it
//! again and compare.
//!
//! What must hold: no figure is better than the record; what is not known is said to be not known; nothing in it is a
//! secret. HTML for people, JSON for machines, JUnit XML for CI.

mod junit;
mod page;
mod steps;

use std::collections::BTreeMap;

use farsite_model::{GroupName, Level, Mode, PointId, PromotionId, SiteName, StoreTime};
use farsite_runbook::journal::{JournalEntry, StepStatus};
use farsite_store::ledger::Ledger;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::accept::find;
use crate::choose::{Replay, flaws};
use crate::drill;
use crate::failover::{Promotion, epoch_of, fact};
use crate::journal::{Recorded, StoreJournal, groups_of};
use crate::list::standing;
use crate::rpo::{self, Achieved};
use crate::runbooks::Bundle;
use crate::survey::read_manifest;
use crate::{PromoteError, Standby};

pub use steps::{Attempt, Said, StepReport};

/// Version of the JSON shape; fields are only ever added.
pub const REPORT_VERSION: u32 = 1;

/// Everything about one promotion or drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub promotion: PromotionId,
    pub mode: Mode,
    pub level: Level,
    pub runbook: String,
    pub from: String,
    pub to: SiteName,
    /// The operator.
    pub who: String,
    pub reason: String,
    /// How the old site was kept from serving, or the waiver in the operator's words.
    pub fencing: String,
    pub begun: StoreTime,
    pub ended: Option<StoreTime>,
    /// `open`, `completed`, `accepted`, `rolled-back`, `cancelled`; a drill's `passed` or `failed`.
    pub result: String,
    pub groups: Vec<GroupReport>,
    /// Of the store that it was built from.
    pub store: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    pub group: GroupName,
    pub point: Option<PointReport>,
    /// How far databases went beyond the point.
    pub replay: Replay,
    pub rpo: Option<Achieved>,
    pub rpo_target_s: Option<f64>,
    pub rpo_met: Option<bool>,
    pub rto: Option<Rto>,
    /// The same, as a plain number.
    pub rto_s: Option<f64>,
    pub rto_target_s: Option<f64>,
    pub rto_met: Option<bool>,
    pub steps: Vec<StepReport>,
    /// What a drill says of its clean-up.
    pub clean_up: Option<Said>,
    pub verdict: Option<Said>,
    /// Sentences that a reader must know.
    pub notes: Vec<String>,
    pub record: Record,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointReport {
    pub id: PointId,
    /// Earliest moment, in store time, that its oldest item can stand for.
    pub stands_for: StoreTime,
    pub committed: StoreTime,
    pub items: u64,
    pub weakest: String,
    pub proven: Option<String>,
    pub flaws: Vec<String>,
}

/// Time to recovery, with the clock's start and stop named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rto {
    pub seconds: f64,
    pub start: Timestamp,
    pub started_by: String,
    pub stop: Timestamp,
    pub stopped_by: String,
    /// Whose clock.
    pub clock: String,
}

/// What makes the record evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `journal/<promotion>/<group>`
    pub journal: String,
    pub entries: u64,
    /// Hash of its last entry, which holds that of the one before, and so on.
    pub head: String,
    /// Entries without effect: number and why.
    pub void: Vec<(u64, String)>,
    pub drivers: Vec<String>,
    pub signers: Vec<String>,
}

impl Report {
    /// Builds the report of a promotion or drill, ended or not.
    pub async fn of(standby: &Standby, id: PromotionId) -> Result<Self, PromoteError> {
        let groups = groups_of(&standby.store, id).await?;
        let mut report: Option<Self> = None;
        let mut order: Option<Promotion> = None;
        for group in groups {
            let record = StoreJournal::reading(&standby.store, id, &group).record().await?;
            let Some(Begun { runbook, bundle, mode, level, variables, who, written }) = Begun::of(&record)?
            else {
                continue;
            };
            if report.is_none() {
                if mode != Mode::Drill {
                    order = Some(find(standby, id).await?);
                }
                report = Some(Self {
                    version: REPORT_VERSION,
                    promotion: id,
                    mode,
                    level,
                    runbook,
                    from: fact(&variables, "from").unwrap_or_default(),
                    to: standby.site.clone(),
                    who,
                    reason: order.as_ref().map_or_else(|| "drill".into(), |o| o.reason.clone()),
                    fencing: order.as_ref().map_or_else(
                        || "not needed: a drill touches no production".into(),
                        |o| o.fencing.clone(),
                    ),
                    begun: order.as_ref().map_or(written, |o| o.begun),
                    ended: order.as_ref().and_then(|o| o.ended.as_ref()).map(|(_, at)| *at),
                    result: match &order {
                        Some(order) => standing(standby, order).await?,
                        None => "open".into(),
                    },
                    groups: Vec::new(),
                    store: standby.store.backend.describe(),
                });
            }
            let one =
                group_report(standby, &group, &record, &variables, &bundle, order.as_ref(), written).await?;
            if let Some(report) = &mut report {
                if let Some(verdict) = &one.verdict {
                    report.result = if verdict.well { "passed".into() } else { "failed".into() };
                    report.ended = record.last().map(|last| last.written);
                }
                report.groups.push(one);
            }
        }
        report.ok_or_else(|| {
            PromoteError::Usage(format!(
                "no promotion or drill {id} is in the store at {}\n  hint: `farsite promotion list`, `farsite drill list`",
                standby.site
            ))
        })
    }

    /// A target that is known was missed.
    pub fn missed_a_target(&self) -> bool {
        self.groups.iter().any(|g| g.rpo_met == Some(false) || g.rto_met == Some(false))
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is valid JSON")
    }
    /// One self-contained page.
    pub fn html(&self) -> String {
        page::html(self)
    }
    pub fn junit(&self) -> String {
        junit::xml(self)
    }
}

/// A journal's first entry.
struct Begun {
    runbook: String,
    bundle: Bundle,
    mode: Mode,
    level: Level,
    variables: BTreeMap<String, String>,
    who: String,
    written: StoreTime,
}

impl Begun {
    fn of(record: &[Recorded]) -> Result<Option<Self>, PromoteError> {
        let Some(first) = record.first() else { return Ok(None) };
        let Ok((JournalEntry::Begun { runbook, runbook_text, mode, level, variables, who, .. }, _)) =
            &first.said
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            runbook: runbook.clone(),
            bundle: Bundle::from_json(runbook_text)?,
            mode: *mode,
            level: *level,
            variables: variables.clone(),
            who: who.clone(),
            written: first.written,
        }))
    }
}

async fn group_report(
    standby: &Standby,
    group: &GroupName,
    record: &[Recorded],
    variables: &BTreeMap<String, String>,
    bundle: &Bundle,
    order: Option<&Promotion>,
    begun: StoreTime,
) -> Result<GroupReport, PromoteError> {
    let mut notes = Vec::new();
    let plan = bundle.plan(&crate::registry_for_checks())?;
    let steps = steps::steps(&plan, record);
    let ledger = Ledger::open(&standby.store, group).await?;
    let point = fact(variables, "point").and_then(|id| ledger.state().point(id.parse().ok()?)).map(|point| {
        PointReport {
            id: point.id(),
            stands_for: point.stands_for(),
            committed: point.committed,
            items: point.said.items,
            weakest: point.said.weakest.to_string(),
            proven: point.proven.clone(),
            // That its epoch has ended is this promotion's own doing.
            flaws: match fact(variables, "flaws") {
                Some(said) => vec![said],
                None => flaws(point).into_iter().filter(|flaw| !flaw.starts_with("of epoch")).collect(),
            },
        }
    });
    let rpo = match order {
        Some(order) => lost(standby, &ledger, order).await,
        None => drill::lost(standby, group, variables, begun).await,
    };
    let rpo = rpo.unwrap_or_else(|error| {
        notes.push(format!("the achieved RPO cannot be computed: {error}"));
        None
    });
    let start = order.map_or((begun, "the drill's first entry"), |o| (o.begun, "the site's promotion entry"));
    let rto = steps::rto(&plan, record, start.0, start.1);
    let target = |name: &str| fact(variables, name).and_then(|value| value.parse::<f64>().ok());
    let (rpo_target_s, rto_target_s) = (target("rpo-target-s"), target("rto-target-s"));
    for (what, known) in [("RPO", rpo_target_s), ("RTO", rto_target_s)] {
        if known.is_none() {
            notes.push(format!("the {what} target is not known at {}", standby.site));
        }
    }
    if let Some(rpo) = &rpo {
        notes.extend(rpo.notes.iter().cloned());
    }
    let met = |target: Option<f64>, got: Option<f64>| Some(got? <= target?);
    Ok(GroupReport {
        group: group.clone(),
        point,
        replay: fact(variables, "replay")
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(Replay::Point),
        rpo_met: met(rpo_target_s, rpo.as_ref().map(|r| r.total.at_most_s)),
        rpo,
        rpo_target_s,
        rto_s: rto.as_ref().map(|r| r.seconds),
        rto_met: met(rto_target_s, rto.as_ref().map(|r| r.seconds)),
        rto,
        rto_target_s,
        clean_up: steps::said(record, drill::CLEAN_UP),
        verdict: steps::said(record, drill::VERDICT),
        steps,
        notes,
        record: evidence(group, record),
    })
}

fn evidence(group: &GroupName, record: &[Recorded]) -> Record {
    let mut drivers: Vec<String> = Vec::new();
    let mut signers: Vec<String> = Vec::new();
    let mut void = Vec::new();
    let add = |list: &mut Vec<String>, name: &str| {
        if !list.iter().any(|known| known == name) {
            list.push(name.to_owned());
        }
    };
    let mut id = String::new();
    for one in record {
        match &one.said {
            Ok((entry, signer)) => {
                add(&mut signers, signer);
                match entry {
                    JournalEntry::Begun { promotion, .. } => id = promotion.to_string(),
                    JournalEntry::Intent { driver, .. } => add(&mut drivers, driver),
                    _ => {}
                }
            }
            Err(why) => void.push((one.number, why.clone())),
        }
    }
    Record {
        journal: format!("journal/{id}/{group}"),
        entries: record.len() as u64,
        head: record.last().map(|last| last.hash.to_string()).unwrap_or_default(),
        void,
        drivers,
        signers,
    }
}

/// What the promotion lost.
async fn lost(
    standby: &Standby,
    ledger: &Ledger,
    order: &Promotion,
) -> Result<Option<Achieved>, PromoteError> {
    let state = ledger.state();
    let Some(epoch) = epoch_of(state, order) else { return Ok(None) };
    let Some(point) = epoch.point.and_then(|id| state.point(id)) else { return Ok(None) };
    let manifest = read_manifest(standby, ledger.group(), point).await?;
    let replay =
        order.recipe.choices.get(ledger.group()).map_or(Replay::Point, crate::choose::PointChoice::replay);
    let stamps = rpo::stamps(&standby.store, &manifest, &epoch.logs, replay).await?;
    let number = ledger
        .entries()
        .iter()
        .find(|entry| {
            entry.said.as_ref().is_ok_and(|(envelope, _)| {
                matches!(&envelope.says, farsite_store::ledger::Statement::EpochBegun { epoch: begun, promotion, .. }
                    if *promotion == order.id && *begun == epoch.epoch)
            })
        })
        .map_or(u64::MAX, |entry| entry.number);
    let seen = rpo::last_sign_of_life(&standby.store, ledger, number, &epoch.logs).await?;
    let begun = standby.store.latest(epoch.begun);
    Ok(Some(rpo::achieved(&stamps, seen.unwrap_or(point.committed), begun, order.disaster_at)))
}

/// Whether a status counts as a failure in a report.
pub(crate) fn is_failure(status: StepStatus) -> bool {
    matches!(status, StepStatus::Failed | StepStatus::TimedOut)
}
