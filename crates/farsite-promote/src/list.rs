//! What the store remembers of promotions and drills: journals and ledgers come in, summaries go out.

use std::collections::BTreeMap;

use farsite_model::{GroupName, Level, Mode, PromotionId, StoreTime};
use farsite_runbook::journal::{JournalEntry, RunResult, StepStatus, What};
use farsite_runbook::state::RunState;
use farsite_store::journal::promotions;
use farsite_store::ledger::Ledger;
use serde::Serialize;

use crate::accept::find;
use crate::failover::{Promotion, epoch_of};
use crate::journal::{StoreJournal, groups_of};
use crate::{PromoteError, Standby};

/// One line of `farsite promotion list` or `farsite drill list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub promotion: PromotionId,
    pub mode: Mode,
    pub level: Level,
    pub runbook: String,
    pub who: String,
    pub begun: StoreTime,
    pub groups: Vec<GroupSummary>,
    /// Of the order as a whole: `open`, `completed`, `accepted`, `rolled-back`, `cancelled`; a drill's `passed` or `failed`.
    pub result: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupSummary {
    pub group: GroupName,
    /// The step that runs or waits now, or the result.
    pub progression: String,
    pub done: usize,
    pub steps: Vec<StepSummary>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepSummary {
    pub id: String,
    pub status: StepStatus,
    pub attempts: u32,
    pub detail: String,
}

/// All promotions and drills in the store, newest first; `mode` restricts.
pub async fn list(standby: &Standby, only: Option<Mode>) -> Result<Vec<Summary>, PromoteError> {
    let mut found = Vec::new();
    for id in promotions(&standby.store).await? {
        match show(standby, id).await {
            Ok(summary) if only.is_none_or(|mode| mode == summary.mode) => found.push(summary),
            Ok(_) => {}
            // One damaged journal does not hide the others.
            Err(error) => tracing::warn!("promotion {id}: {error}"),
        }
    }
    found.sort_by_key(|summary| std::cmp::Reverse(summary.begun));
    Ok(found)
}

/// One promotion or drill, from its journals and the site's ledger.
pub async fn show(standby: &Standby, id: PromotionId) -> Result<Summary, PromoteError> {
    let mut summary: Option<Summary> = None;
    for group in groups_of(&standby.store, id).await? {
        let record = StoreJournal::reading(&standby.store, id, &group).record().await?;
        let Some(first) = record.first() else { continue };
        let Ok((JournalEntry::Begun { runbook, mode, level, who, .. }, _)) = &first.said else { continue };
        let mut state = RunState::default();
        for one in &record {
            if let Ok((entry, _)) = &one.said {
                state.apply(one.number, entry);
            }
        }
        let one = summary.get_or_insert_with(|| Summary {
            promotion: id,
            mode: *mode,
            level: *level,
            runbook: runbook.clone(),
            who: who.clone(),
            begun: first.written,
            groups: Vec::new(),
            result: "open".into(),
        });
        if *mode == Mode::Drill {
            one.result = crate::drill::result_of(&state);
        }
        one.groups.push(group_summary(group, &state));
    }
    let mut summary = summary.ok_or_else(|| {
        PromoteError::Usage(format!(
            "no promotion or drill {id} is in the store at {}\n  hint: `farsite promotion list`, `farsite drill list`",
            standby.site
        ))
    })?;
    if summary.mode != Mode::Drill {
        let promotion = find(standby, id).await?;
        summary.begun = promotion.begun;
        summary.result = standing(standby, &promotion).await?;
    }
    Ok(summary)
}

/// Where a promotion stands: what its site's entry says, and what came after: rolled back, cancelled, accepted.
pub(crate) async fn standing(standby: &Standby, promotion: &Promotion) -> Result<String, PromoteError> {
    let mut taken_back: Option<RunResult> = None;
    let mut accepted = !promotion.groups.is_empty();
    for (group, _) in &promotion.groups {
        let entries = StoreJournal::reading(&standby.store, promotion.id, group).entries().await?;
        if let Some((result @ (RunResult::RolledBack | RunResult::Cancelled), _)) =
            RunState::fold(&entries).finished
        {
            taken_back = Some(result);
        }
        let ledger = Ledger::open(&standby.store, group).await?;
        accepted &= epoch_of(ledger.state(), promotion).is_some_and(|epoch| epoch.accepted);
    }
    Ok(match (taken_back, &promotion.ended) {
        (Some(result), _) => result.to_string(),
        (None, _) if accepted => "accepted".into(),
        (None, Some((result, _))) => result.clone(),
        (None, None) => "open".into(),
    })
}

fn group_summary(group: GroupName, state: &RunState) -> GroupSummary {
    let busy = state.steps.iter().find(|(_, s)| {
        matches!(
            s.status,
            StepStatus::Executing | StepStatus::Waiting | StepStatus::Failed | StepStatus::TimedOut
        )
    });
    let progression = match (&state.finished, busy) {
        (Some((result, _)), _) => result.to_string(),
        (None, Some((id, step))) => format!("{}: {id}", step.status),
        (None, None) => "between two steps".into(),
    };
    let steps = state.steps.iter().filter(|(id, _)| !id.starts_with('(')).map(|(id, step)| StepSummary {
        id: id.clone(),
        status: step.status,
        attempts: step.attempts,
        detail: step.detail.clone(),
    });
    GroupSummary { group, progression, done: state.completed.len(), steps: steps.collect() }
}

/// How long each step took in earlier runs of this group, drills included: the median, in seconds.
pub(crate) async fn past_durations(
    standby: &Standby,
    group: &GroupName,
) -> Result<BTreeMap<String, f64>, PromoteError> {
    let mut seen: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for id in promotions(&standby.store).await? {
        if !groups_of(&standby.store, id).await?.contains(group) {
            continue;
        }
        let Ok(entries) = StoreJournal::reading(&standby.store, id, group).entries().await else { continue };
        for (_, entry) in entries {
            if let JournalEntry::Outcome {
                step,
                what: What::Do,
                status: StepStatus::Completed,
                started,
                ended,
                ..
            } = entry
            {
                seen.entry(step).or_default().push(ended.duration_since(started).as_secs_f64());
            }
        }
    }
    Ok(seen
        .into_iter()
        .map(|(step, mut times)| {
            times.sort_by(f64::total_cmp);
            (step, times[times.len() / 2])
        })
        .collect())
}
