//! Steps out of a journal: every attempt with its times and evidence, skips, answers and undos; and the time to recovery.

use std::collections::BTreeMap;

use farsite_model::StoreTime;
use farsite_runbook::journal::{JournalEntry, StepStatus, What};
use farsite_runbook::plan::Plan;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Rto;
use crate::journal::Recorded;
use crate::rpo::seconds;

/// Telling people of it is no part of bringing service back.
const TELLS: &str = "notify";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub stage: String,
    pub id: String,
    pub action: String,
    /// After doing; undoing is said apart.
    pub status: StepStatus,
    pub detail: String,
    /// From the first attempt's start to the last one's end.
    pub seconds: Option<f64>,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub attempts: Vec<Attempt>,
    pub evidence: BTreeMap<String, String>,
    /// Who answered its gate, and whether yes.
    pub gate: Option<(String, bool)>,
    /// A person's skip, with the reason.
    pub skipped: Option<String>,
    pub undo: Option<Said>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub number: u32,
    pub driver: String,
    pub status: StepStatus,
    pub started: Timestamp,
    pub ended: Timestamp,
    pub detail: String,
}

/// One outcome, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    pub well: bool,
    pub detail: String,
    pub evidence: BTreeMap<String, String>,
    pub at: Timestamp,
}

fn entries(record: &[Recorded]) -> impl Iterator<Item = &JournalEntry> {
    record.iter().filter_map(|one| one.said.as_ref().ok().map(|(entry, _)| entry))
}

pub(super) fn steps(plan: &Plan, record: &[Recorded]) -> Vec<StepReport> {
    plan.steps
        .iter()
        .map(|step| {
            let mut report = StepReport {
                stage: plan.stages.get(step.stage).map(|(name, _)| name.clone()).unwrap_or_default(),
                id: step.id.clone(),
                action: step.action.clone(),
                status: StepStatus::NotStarted,
                detail: String::new(),
                seconds: None,
                started: None,
                ended: None,
                attempts: Vec::new(),
                evidence: BTreeMap::new(),
                gate: None,
                skipped: None,
                undo: None,
            };
            for entry in entries(record) {
                take_in(&mut report, entry);
            }
            report.seconds = report
                .started
                .zip(report.ended)
                .map(|(started, ended)| seconds(ended.duration_since(started)).max(0.0));
            report
        })
        .collect()
}

fn take_in(report: &mut StepReport, entry: &JournalEntry) {
    match entry {
        JournalEntry::Intent { step, what: What::Do, .. } if *step == report.id => {
            report.status = StepStatus::Executing;
        }
        JournalEntry::Outcome {
            step,
            what: What::Do,
            attempt,
            driver,
            status,
            detail,
            evidence,
            started,
            ended,
        } if *step == report.id => {
            report.status = *status;
            report.detail.clone_from(detail);
            report.evidence.clone_from(evidence);
            if *status != StepStatus::Skipped {
                report.started = Some(report.started.unwrap_or(*started));
                report.ended = Some(*ended);
                report.attempts.push(Attempt {
                    number: *attempt,
                    driver: driver.clone(),
                    status: *status,
                    started: *started,
                    ended: *ended,
                    detail: detail.clone(),
                });
            }
        }
        JournalEntry::Outcome { step, what: What::Undo, status, detail, evidence, ended, .. }
            if *step == report.id =>
        {
            report.undo = Some(Said {
                well: *status == StepStatus::Undone,
                detail: detail.clone(),
                evidence: evidence.clone(),
                at: *ended,
            });
        }
        JournalEntry::Gate { step, answer, who, .. } if *step == report.id => {
            report.gate = Some((who.clone(), *answer));
        }
        JournalEntry::Skipped { step, who, reason, .. } if *step == report.id => {
            report.status = StepStatus::Skipped;
            report.skipped = Some(format!("{who}: {reason}"));
        }
        _ => {}
    }
}

/// What a drill says about itself.
pub(super) fn said(record: &[Recorded], name: &str) -> Option<Said> {
    entries(record)
        .filter_map(|entry| match entry {
            JournalEntry::Outcome { step, status, detail, evidence, ended, .. } if step == name => {
                Some(Said {
                    well: *status == StepStatus::Completed,
                    detail: detail.clone(),
                    evidence: evidence.clone(),
                    at: *ended,
                })
            }
            _ => None,
        })
        .last()
}

/// From the first entry to the end of the last step: what runs behind the last check was needed too, or it would not be in the
/// runbook. One clock for both ends: the driver's own where a single driver ran everything, else the store's, because two
/// machines' clocks do not compare.
pub(super) fn rto(plan: &Plan, record: &[Recorded], start: StoreTime, started_by: &str) -> Option<Rto> {
    let counts = |id: &str| plan.steps.iter().any(|step| step.id == id && step.action != TELLS);
    let last = record.iter().rfind(|one| match &one.said {
        Ok((JournalEntry::Outcome { step, what: What::Do, status: StepStatus::Completed, .. }, _)) => {
            counts(step)
        }
        _ => false,
    })?;
    let Ok((JournalEntry::Outcome { step, ended, .. }, _)) = &last.said else { return None };
    let mut drivers: Vec<&str> = entries(record)
        .filter_map(|entry| match entry {
            JournalEntry::Intent { driver, .. } => Some(driver.as_str()),
            _ => None,
        })
        .collect();
    drivers.sort_unstable();
    drivers.dedup();
    let first = record.first()?;
    let stopped_by = format!("the end of step {step}");
    if drivers.len() == 1 {
        // The order came before the journal: that stretch is known by the store's clock.
        let before = first.written.since(start);
        return Some(Rto {
            seconds: seconds(ended.duration_since(first.at).max(SignedDuration::ZERO) + before),
            start: start.0,
            started_by: started_by.to_owned(),
            stop: *ended,
            stopped_by,
            clock: "the driver's".into(),
        });
    }
    Some(Rto {
        seconds: seconds(last.written.since(start)),
        start: start.0,
        started_by: started_by.to_owned(),
        stop: last.written.0,
        stopped_by,
        clock: "the store's, as several drivers took part".into(),
    })
}
