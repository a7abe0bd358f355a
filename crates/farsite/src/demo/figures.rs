//! What the demo found out, for people and as JSON: what was predicted, what was reported, what was really lost, how long
//! it took, and how many bytes went over.

use std::collections::BTreeMap;

use farsite_model::quantity::ByteSize;
use farsite_model::status::GroupStatus;
use serde::Serialize;

use super::compare::{Comparison, Loss};
use crate::context::Context;
use crate::output::{Tone, seconds};

/// A range in seconds; its worse end is the headline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    pub at_least_s: f64,
    pub at_most_s: f64,
}

/// One step of the runbook, as the promotion's report has it.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub id: String,
    pub status: String,
    pub seconds: f64,
}

/// What the promotion's own report says.
#[derive(Debug, Clone, Serialize)]
pub struct Reported {
    pub rpo: Range,
    pub rpo_by_kind: BTreeMap<String, Range>,
    pub rpo_target_s: Option<f64>,
    pub rto_s: f64,
    pub rto_target_s: Option<f64>,
    pub steps: Vec<Step>,
}

/// The answer of `farsite demo --json`.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub seed: u64,
    pub database: &'static str,
    pub store: &'static str,
    /// What `farsite status` said a moment before the disaster.
    pub predicted_exposure_s: Option<f64>,
    pub predicted_by_kind_s: BTreeMap<String, f64>,
    pub reported: Reported,
    pub true_loss: Comparison,
    pub points: usize,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
    pub log_bytes: u64,
    pub processes_killed: usize,
    /// Why the demo failed; empty when everything held.
    pub failures: Vec<String>,
    pub report: Option<std::path::PathBuf>,
    pub total_s: f64,
}

/// The word of items and status for a kind of loss.
fn item_kind(kind: &str, database: &str) -> String {
    match kind {
        "database" => database.to_lowercase(),
        "volumes" => "cinder".to_owned(),
        "images" => "glance".to_owned(),
        other => other.to_owned(),
    }
}

/// What must hold between what was reported and what was lost.
pub fn judge(comparison: &Comparison, reported: &Reported, database: &str) -> Vec<String> {
    let mut failures: Vec<String> = comparison.faults.clone();
    for loss in &comparison.losses {
        let own = reported.rpo_by_kind.get(&item_kind(loss.kind, database));
        let limit = own.map_or(reported.rpo.at_most_s, |range| range.at_most_s);
        if loss.true_loss_s > limit {
            failures.push(format!(
                "{}: {:.2}s were lost, and the report says {limit:.2}s at most",
                loss.kind, loss.true_loss_s
            ));
        }
    }
    failures
}

/// Exposure as it was a moment before the disaster.
pub fn predicted(status: &GroupStatus) -> (Option<f64>, BTreeMap<String, f64>) {
    (status.exposure_s, status.exposure_by_kind_s.clone())
}

impl Figures {
    pub fn show(&self, context: &Context) {
        let out = context.out;
        let reported = &self.reported;
        out.line("");
        out.line(out.paint(Tone::Strong, "What was lost, and what Farsite had said about it"));
        let rows: Vec<Vec<String>> = self.true_loss.losses.iter().map(|loss| self.row(loss)).collect();
        out.table(
            &["kind", "predicted exposure", "reported RPO", "true loss", "promises kept", "lost"],
            &rows,
        );
        let target = reported.rpo_target_s.map_or_else(String::new, |target| {
            let word = if reported.rpo.at_most_s > target { "MISSED" } else { "met" };
            format!(", target {} {word}", seconds(target))
        });
        out.line(format!(
            "RPO: {} to {}, headline {}{target}; true loss {}",
            seconds(reported.rpo.at_least_s),
            seconds(reported.rpo.at_most_s),
            seconds(reported.rpo.at_most_s),
            seconds(self.true_loss.worst_s())
        ));
        let instant = if self.true_loss.volumes_of_one_instant {
            "all volumes are of one instant"
        } else {
            "the volumes are of different instants"
        };
        out.line(format!("Volumes: {instant}"));

        out.line("");
        out.line(out.paint(Tone::Strong, "How long the promotion took"));
        let rows: Vec<Vec<String>> = reported
            .steps
            .iter()
            .filter(|step| step.status != "skipped")
            .map(|step| vec![step.id.clone(), step.status.clone(), format!("{:.2}s", step.seconds)])
            .collect();
        out.table(&["step", "result", "took"], &rows);
        let target = reported.rto_target_s.map_or_else(String::new, |target| {
            let word = if reported.rto_s > target { "MISSED" } else { "met" };
            format!(", target {} {word}", seconds(target))
        });
        out.line(format!("RTO: {}{target}", seconds(reported.rto_s)));

        out.line("");
        out.line(format!(
            "{} recovery points: {} changed, {} shipped, and {} of database log",
            self.points,
            ByteSize(self.changed_bytes),
            ByteSize(self.shipped_bytes),
            ByteSize(self.log_bytes)
        ));
        for failure in &self.failures {
            out.line(format!("{} {failure}", out.paint(Tone::Bad, "✗")));
        }
        if self.failures.is_empty() {
            out.line(format!(
                "{} nothing was lost that the report does not account for ({}, seed {})",
                out.paint(Tone::Good, "✓"),
                seconds(self.total_s),
                self.seed
            ));
        } else {
            out.line(format!("{} (seed {})", out.paint(Tone::Bad, "FAILED"), self.seed));
        }
        if let Some(report) = &self.report {
            out.line(format!("Report: {}", report.display()));
        }
    }

    fn row(&self, loss: &Loss) -> Vec<String> {
        let kind = item_kind(loss.kind, self.database);
        let predicted = self.predicted_by_kind_s.get(&kind).map_or_else(|| "-".to_owned(), |s| seconds(*s));
        let reported = self.reported.rpo_by_kind.get(&kind).map_or_else(
            || "-".to_owned(),
            |range| format!("{} to {}", seconds(range.at_least_s), seconds(range.at_most_s)),
        );
        vec![
            loss.kind.to_owned(),
            predicted,
            reported,
            seconds(loss.true_loss_s),
            format!("{} of {} {}", loss.promised - loss.lost, loss.promised, loss.unit),
            loss.lost.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(true_loss_s: f64) -> Comparison {
        let loss = Loss { kind: "volumes", promised: 10, lost: 2, true_loss_s, unit: "pages" };
        Comparison { losses: vec![loss], faults: Vec::new(), volumes_of_one_instant: true }
    }
    fn reported(at_most_s: f64) -> Reported {
        let range = Range { at_least_s: 1.0, at_most_s };
        Reported {
            rpo: range,
            rpo_by_kind: BTreeMap::from([("cinder".to_owned(), range)]),
            rpo_target_s: None,
            rto_s: 1.0,
            rto_target_s: None,
            steps: Vec::new(),
        }
    }

    #[test]
    fn a_loss_beyond_the_reported_rpo_fails_the_demo() {
        assert!(judge(&comparison(4.9), &reported(5.0), "SQLite").is_empty());
        assert!(judge(&comparison(5.1), &reported(5.0), "SQLite")[0].contains("volumes"));
    }
}
