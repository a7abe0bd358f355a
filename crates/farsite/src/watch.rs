//! The steps of a promotion as they go: journal entries come in, once they are durable, and lines on stderr go out.

use std::io::Write;
use std::sync::Mutex;

use farsite_model::GroupName;
use farsite_promote::people::Watch;
use farsite_runbook::journal::{JournalEntry, StepStatus, What};
use jiff::Timestamp;

use crate::output::{Output, Tone, seconds};

/// Tells every step's begin and end.
pub struct Steps {
    out: Output,
    group: Mutex<Option<GroupName>>,
}

impl Steps {
    pub fn new(out: Output) -> Self {
        Self { out, group: Mutex::default() }
    }

    fn mark(&self, tone: Tone, mark: &str) -> String {
        self.out.paint_stderr(tone, mark)
    }
}

impl Watch for Steps {
    fn waits(&self, group: &GroupName, step: &str, driver: &str, deadline: Timestamp) {
        line(&format!(
            "  {} group {group}: step {step} was begun by {driver}, who may act until {deadline:.0}; waiting\n      hint: if you know that this process is dead (not merely frozen or cut off), interrupt and say so: --others-are-dead",
            self.mark(Tone::Warn, "!")
        ));
    }

    fn journaled(&self, group: &GroupName, _: u64, entry: &JournalEntry) {
        let mut current = self.group.lock().expect("no holder of this lock panics");
        if current.as_ref() != Some(group) {
            line(&format!("group {group}"));
            *current = Some(group.clone());
        }
        drop(current);
        match entry {
            JournalEntry::Intent { step, what, attempt, .. } => {
                let undo = if *what == What::Undo { "undoing " } else { "" };
                let again = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
                line(&format!("  {} {undo}{step}{again}", self.mark(Tone::Dim, "▸")));
            }
            JournalEntry::Outcome { step, status, detail, started, ended, .. } => {
                let took = seconds(ended.duration_since(*started).as_secs_f64().max(0.0));
                let (tone, mark) = match status {
                    StepStatus::Completed | StepStatus::Undone => (Tone::Good, "✓"),
                    StepStatus::Skipped => (Tone::Dim, "-"),
                    StepStatus::Waiting => (Tone::Warn, "?"),
                    _ => (Tone::Bad, "✗"),
                };
                let detail = detail.replace('\n', "\n      ");
                line(&format!("  {} {step:<24} {took:>7}  {detail}", self.mark(tone, mark)));
            }
            JournalEntry::Takeover { from, reason, .. } => {
                line(&format!("  {} taken over from {from}: {reason}", self.mark(Tone::Warn, "!")));
            }
            JournalEntry::Gate { step, answer, who, .. } => {
                let answer = if *answer { "yes" } else { "no" };
                line(&format!("  {} {step}: {who} says {answer}", self.mark(Tone::Dim, "·")));
            }
            JournalEntry::Skipped { step, who, reason, .. } => {
                line(&format!("  {} {step} skipped by {who}: {reason}", self.mark(Tone::Warn, "-")));
            }
            JournalEntry::CancelRequested { who, .. } => {
                line(&format!("  {} cancelled by {who}", self.mark(Tone::Warn, "!")));
            }
            JournalEntry::Begun { .. } | JournalEntry::Finished { .. } => {}
        }
    }
}

fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
