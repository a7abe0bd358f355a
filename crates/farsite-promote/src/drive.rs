//! Drives an open promotion to its end: group after group, each by the engine with its journal in the store.
//!
//! What must hold: a group is `promoted` in its ledger only after its last step; the site's promotion ends only when
//! all groups are; a failure leaves everything open, so that a person can resume, skip or roll back.

use std::sync::Arc;

use farsite_model::{GroupName, PromotionId};
use farsite_runbook::action::People;
use farsite_runbook::engine::{Decider, EngineError, Observer, Run};
use farsite_runbook::journal::{JournalEntry, RunResult, StepStatus};
use farsite_runbook::plan::Plan;
use farsite_runbook::state::RunState;
use farsite_store::StoreError;
use farsite_store::keys::Signer;
use farsite_store::ledger::{Ledger, Refusal, SiteLedger, Statement};
use tokio_util::sync::CancellationToken;

use crate::failover::{Promotion, epoch_of, establish, load};
use crate::group_run::GroupRun;
use crate::journal::StoreJournal;
use crate::people::Watch;
use crate::runbooks::Bundle;
use crate::{PromoteError, Standby};

/// Who drives, and how.
#[derive(Clone)]
pub struct Driving {
    /// This driver, in words, different for every process: [`crate::driver::this_driver`].
    pub driver: String,
    /// A person's word that no other driver of this promotion lives: nobody waits for a deadline of theirs.
    pub others_are_dead: bool,
    pub decider: Arc<dyn Decider>,
    pub people: Arc<dyn People>,
    pub watch: Arc<dyn Watch>,
    pub cancel: CancellationToken,
}

/// How a promotion stands after it was driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub promotion: PromotionId,
    pub groups: Vec<GroupEnded>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupEnded {
    pub group: GroupName,
    pub result: RunResult,
    /// Steps that failed, with why.
    pub failed: Vec<(String, String)>,
}

impl Ended {
    pub fn is_completed(&self) -> bool {
        self.groups.iter().all(|g| g.result == RunResult::Completed)
    }

    /// What can be done now, in words.
    pub fn hint(&self) -> String {
        let id = self.promotion.to_string();
        if self.is_completed() {
            return format!("`farsite accept {id}` when users can work, or `farsite rollback {id}`");
        }
        let step = self.groups.iter().flat_map(|g| &g.failed).map(|(step, _)| step.as_str()).next();
        format!(
            "mend what failed and `farsite failover --resume`; or go on without it: `farsite promotion skip {id} --step {}`; or `farsite rollback {id}`",
            step.unwrap_or("STEP")
        )
    }
}

struct Watched {
    watch: Arc<dyn Watch>,
    group: GroupName,
}
impl Observer for Watched {
    fn journaled(&self, number: u64, entry: &JournalEntry) {
        self.watch.journaled(&self.group, number, entry);
    }
    fn waits(&self, step: &str, driver: &str, deadline: jiff::Timestamp) {
        self.watch.waits(&self.group, step, driver, deadline);
    }
}

/// The engine's run of one group, and its plan.
pub(crate) struct Prepared {
    pub run: Run,
    pub plan: Plan,
    /// What the journal said before.
    pub before: RunState,
}

/// Sets the engine up for a group; what the journal's first entry says goes before this machine's configuration.
pub(crate) async fn prepare(
    group_run: &Arc<GroupRun>,
    signer: &Arc<Signer>,
    driving: &Driving,
) -> Result<Prepared, PromoteError> {
    let store = &group_run.standby.store;
    let journal = StoreJournal::writing(store, group_run.promotion, &group_run.group, signer)
        .driven_by(&driving.driver, driving.others_are_dead);
    let journal = Arc::new(journal);
    let entries = journal.entries().await?;
    let Some((_, JournalEntry::Begun { variables, runbook_text, level, .. })) = entries.first() else {
        return Err(PromoteError::Failed(format!(
            "the journal of promotion {} of group {} has no beginning\n  hint: `farsite failover --resume` writes it",
            group_run.promotion, group_run.group
        )));
    };
    let (registry, plan) = group_run.plan(&Bundle::from_json(runbook_text)?)?;
    let (variables, plain_variables) = group_run.variables(&plan, variables)?;
    let run = Run {
        registry,
        journal: journal.clone(),
        observer: Arc::new(Watched { watch: driving.watch.clone(), group: group_run.group.clone() }),
        decider: driving.decider.clone(),
        people: driving.people.clone(),
        mode: group_run.mode,
        level: *level,
        variables,
        plain_variables,
        driver: driving.driver.clone(),
        // A group that was cancelled does not cancel its siblings.
        cancel: driving.cancel.child_token(),
    };
    let before = RunState::fold(&entries);
    Ok(Prepared { run, plan, before })
}

/// Steps that failed and were neither repeated well nor skipped.
pub(crate) fn failed_steps(plan: &Plan, state: &RunState) -> Vec<(String, String)> {
    plan.steps
        .iter()
        .map(|step| (step.id.clone(), state.step(&step.id)))
        .filter(|(_, s)| matches!(s.status, StepStatus::Failed | StepStatus::TimedOut))
        .map(|(id, s)| (id, s.detail))
        .collect()
}

/// Runs what is left of a promotion. Safe to call again, here or elsewhere, after any interruption.
pub async fn drive(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    driving: &Driving,
) -> Result<Ended, PromoteError> {
    establish(standby, signer, promotion).await?;
    let mut ended = Ended { promotion: promotion.id, groups: Vec::new() };
    for (group, _) in &promotion.groups {
        let group_run = load(standby, promotion, group).await?;
        let Prepared { run, plan, before } = prepare(&group_run, signer, driving).await?;
        if let Some(who) = before.cancelled {
            return Err(PromoteError::Refused(format!(
                "promotion {} was cancelled by {who}\n  hint: `farsite rollback {}` ends it",
                promotion.id, promotion.id
            )));
        }
        let (result, state) = match before.finished {
            Some((RunResult::Completed, _)) => (RunResult::Completed, before),
            Some((result @ (RunResult::RolledBack | RunResult::Cancelled), _)) => {
                return Err(PromoteError::Refused(format!(
                    "promotion {} of group {group} is {result}; nothing is left to drive",
                    promotion.id
                )));
            }
            _ => run
                .execute(&plan)
                .await
                .map_err(|source| PromoteError::Engine { group: group.clone(), source })?,
        };
        if result == RunResult::Completed {
            promoted(standby, signer, promotion, group).await?;
        }
        ended.groups.push(GroupEnded { group: group.clone(), result, failed: failed_steps(&plan, &state) });
        if result != RunResult::Completed {
            // Later groups wait: a person looks at this one first.
            return Ok(ended);
        }
        if driving.cancel.is_cancelled() {
            return Err(PromoteError::Engine { group: group.clone(), source: EngineError::Interrupted });
        }
    }
    let mut site = SiteLedger::open(&standby.store, &promotion.from).await?;
    site.end(signer, promotion.id, "completed", &promotion.who).await?;
    Ok(ended)
}

/// Says in the group's ledger that the last step is done.
async fn promoted(
    standby: &Standby,
    signer: &Arc<Signer>,
    promotion: &Promotion,
    group: &GroupName,
) -> Result<(), PromoteError> {
    let mut ledger = Ledger::open(&standby.store, group).await?;
    let mut already = false;
    let result = ledger
        .append(signer, |state| {
            already = epoch_of(state, promotion).is_some_and(|epoch| epoch.promoted);
            if already {
                return Err(Refusal::Other("promoted already".into()));
            }
            Ok(Statement::Promoted { promotion: promotion.id })
        })
        .await;
    match result {
        Ok(_) => Ok(()),
        Err(StoreError::Refused(_)) if already => Ok(()),
        Err(error) => Err(error.into()),
    }
}
