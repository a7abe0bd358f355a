//! The durable record of a promotion: intent before effect, outcome after. The promote crate keeps it in the
//! replica store, as numbered, signed, create-only entries.

use std::collections::BTreeMap;

use async_trait::async_trait;
use farsite_model::{Level, Mode, PromotionId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One entry; `entry` names it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum JournalEntry {
    /// Number 0: everything that a resuming machine must run the same way.
    Begun {
        promotion: PromotionId,
        runbook: String,
        runbook_text: String,
        mode: Mode,
        level: Level,
        /// Values of the runbook's variables; no secrets.
        variables: BTreeMap<String, String>,
        who: String,
    },
    /// A driver is about to act on a step; until `deadline` nobody else may.
    Intent {
        step: String,
        what: What,
        attempt: u32,
        driver: String,
        deadline: Timestamp,
    },
    Outcome {
        step: String,
        what: What,
        attempt: u32,
        driver: String,
        status: StepStatus,
        detail: String,
        /// What was seen, for the report: tails of output, figures.
        evidence: BTreeMap<String, String>,
        started: Timestamp,
        ended: Timestamp,
    },
    /// Another driver goes on; intents without outcome before this entry are of unknown outcome.
    Takeover {
        driver: String,
        from: String,
        reason: String,
        at: Timestamp,
    },
    /// A person's answer to a gate.
    Gate {
        step: String,
        answer: bool,
        who: String,
        at: Timestamp,
    },
    /// A person's decision to go on without a step.
    Skipped {
        step: String,
        who: String,
        reason: String,
        at: Timestamp,
    },
    CancelRequested {
        who: String,
        at: Timestamp,
    },
    Finished {
        result: RunResult,
        driver: String,
        at: Timestamp,
    },
}

/// What an intent is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    Do,
    Undo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepStatus {
    NotStarted,
    Executing,
    Waiting,
    Completed,
    Failed,
    TimedOut,
    Skipped,
    Undone,
}
impl std::fmt::Display for StepStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::NotStarted => "not-started",
            Self::Executing => "executing",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Skipped => "skipped",
            Self::Undone => "undone",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunResult {
    Completed,
    Failed,
    RolledBack,
    Cancelled,
}
impl std::fmt::Display for RunResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Why the journal did not take an entry.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else wrote this number; nothing was written.
    #[error("journal entry {number} was written by somebody else")]
    Taken { number: u64 },
    #[error("the journal cannot be written or read: {0}")]
    Store(String),
}

/// Where entries are kept.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Creates the entry at exactly `number`. Durable when this returns; of several callers exactly one succeeds.
    async fn append(&self, number: u64, entry: &JournalEntry) -> Result<(), JournalError>;
    /// All entries from `number` on, in order.
    async fn read_from(&self, number: u64) -> Result<Vec<(u64, JournalEntry)>, JournalError>;
}

/// A journal in memory, shared by clones: for tests and for `--dry-run`.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal(std::sync::Arc<std::sync::Mutex<Vec<JournalEntry>>>);

impl MemoryJournal {
    pub fn entries(&self) -> Vec<JournalEntry> {
        self.0.lock().expect("no holder of this lock panics").clone()
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn append(&self, number: u64, entry: &JournalEntry) -> Result<(), JournalError> {
        let mut entries = self.0.lock().expect("no holder of this lock panics");
        if entries.len() as u64 != number {
            return Err(JournalError::Taken { number });
        }
        entries.push(entry.clone());
        Ok(())
    }
    async fn read_from(&self, number: u64) -> Result<Vec<(u64, JournalEntry)>, JournalError> {
        let entries = self.0.lock().expect("no holder of this lock panics");
        Ok(entries.iter().cloned().enumerate().map(|(n, e)| (n as u64, e)).skip(number as usize).collect())
    }
}
