//! A run's state: always a fold over its journal.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::journal::{JournalEntry, RunResult, StepStatus, What};

/// One step as the journal knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    pub status: StepStatus,
    pub attempts: u32,
    pub detail: String,
    pub evidence: BTreeMap<String, String>,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    /// An intent without outcome: who holds it, until when, for what.
    pub open: Option<OpenIntent>,
    /// A takeover found an intent without outcome: nobody knows whether the effect is there.
    pub unknown_outcome: bool,
    pub gate: Option<(bool, String)>,
}

impl Default for StepState {
    fn default() -> Self {
        Self {
            status: StepStatus::NotStarted,
            attempts: 0,
            detail: String::new(),
            evidence: BTreeMap::new(),
            started: None,
            ended: None,
            open: None,
            unknown_outcome: false,
            gate: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct OpenIntent {
    pub driver: String,
    pub deadline: Timestamp,
    pub what: What,
}

/// Everything that a journal says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunState {
    pub begun: Option<JournalEntry>,
    pub steps: BTreeMap<String, StepState>,
    /// Order in which steps completed: undo goes backwards.
    pub completed: Vec<String>,
    /// Whoever wrote last.
    pub driver: Option<String>,
    pub cancelled: Option<String>,
    pub finished: Option<(RunResult, Timestamp)>,
    /// Number of the next entry.
    pub next: u64,
}

impl RunState {
    pub fn fold<'e>(entries: impl IntoIterator<Item = &'e (u64, JournalEntry)>) -> Self {
        let mut state = Self::default();
        for (number, entry) in entries {
            state.apply(*number, entry);
        }
        state
    }

    pub fn step(&self, id: &str) -> StepState {
        self.steps.get(id).cloned().unwrap_or_default()
    }

    /// Intents that have no outcome.
    pub fn open_intents(&self) -> impl Iterator<Item = (&String, &OpenIntent)> {
        self.steps.iter().filter_map(|(id, step)| Some((id, step.open.as_ref()?)))
    }

    pub fn apply(&mut self, number: u64, entry: &JournalEntry) {
        self.next = number + 1;
        match entry {
            JournalEntry::Begun { .. } => self.begun = Some(entry.clone()),
            JournalEntry::Intent { step, what, attempt, driver, deadline } => {
                self.driver = Some(driver.clone());
                let state = self.steps.entry(step.clone()).or_default();
                state.status = StepStatus::Executing;
                state.attempts = (*attempt).max(state.attempts);
                state.open = Some(OpenIntent { driver: driver.clone(), deadline: *deadline, what: *what });
                // A retry after a rollback or a failure begins anew.
                if *what == What::Do {
                    self.finished = None;
                }
            }
            JournalEntry::Outcome {
                step, what, driver, status, detail, evidence, started, ended, ..
            } => {
                self.driver = Some(driver.clone());
                let state = self.steps.entry(step.clone()).or_default();
                state.open = None;
                state.unknown_outcome = false;
                state.status = *status;
                state.detail.clone_from(detail);
                if *what == What::Do {
                    state.evidence.clone_from(evidence);
                    state.started = Some(*started);
                    state.ended = Some(*ended);
                }
                match status {
                    StepStatus::Completed => self.completed.push(step.clone()),
                    StepStatus::Undone => self.completed.retain(|done| done != step),
                    _ => {}
                }
            }
            JournalEntry::Takeover { driver, .. } => {
                self.driver = Some(driver.clone());
                for state in self.steps.values_mut() {
                    if state.open.take().is_some() {
                        state.unknown_outcome = true;
                    }
                }
            }
            JournalEntry::Gate { step, answer, who, .. } => {
                self.steps.entry(step.clone()).or_default().gate = Some((*answer, who.clone()));
            }
            JournalEntry::Skipped { step, who, reason, .. } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = StepStatus::Skipped;
                state.open = None;
                state.unknown_outcome = false;
                state.detail = format!("skipped by {who}: {reason}");
            }
            JournalEntry::CancelRequested { who, .. } => self.cancelled = Some(who.clone()),
            JournalEntry::Finished { result, at, .. } => self.finished = Some((*result, *at)),
        }
    }
}
