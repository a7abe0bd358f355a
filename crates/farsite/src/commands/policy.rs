//! `farsite policy check|schema`: policies, read as the agent reads them.

use std::path::PathBuf;

use farsite_model::policy::Policy;
use jiff::Timestamp;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{DONE, USAGE};
use crate::output::Tone;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Say what is wrong with a policy, with line and column, and what it means.
    Check {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print the JSON Schema of policies, for editors.
    Schema,
}

/// What is said about one file.
#[derive(Debug, Serialize)]
struct Finding {
    file: PathBuf,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// What it asks for and this version does not do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_yet: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    next_runs: Vec<Timestamp>,
}

pub fn run(action: Action, context: &Context) -> u8 {
    let Action::Check { files } = action else {
        context.out.json(&Policy::json_schema());
        return DONE;
    };
    let findings: Vec<Finding> = files.into_iter().map(look_at).collect();
    if context.out.json {
        context.out.json(&findings);
    } else {
        for finding in &findings {
            show(finding, context);
        }
    }
    if findings.iter().all(|finding| finding.ok) { DONE } else { USAGE }
}

fn look_at(file: PathBuf) -> Finding {
    match Policy::load(&file) {
        Err(error) => Finding {
            file,
            ok: false,
            error: Some(error.to_string()),
            warnings: Vec::new(),
            not_yet: Vec::new(),
            group: None,
            next_runs: Vec::new(),
        },
        Ok(policy) => {
            let schedule = policy.schedule();
            let next =
                std::iter::successors(schedule.next_after(Timestamp::now()), |due| schedule.next_after(*due));
            Finding {
                file,
                ok: true,
                error: None,
                warnings: policy.warnings().to_vec(),
                not_yet: policy.not_yet(),
                group: Some(policy.group.to_string()),
                next_runs: next.take(3).collect(),
            }
        }
    }
}

fn show(finding: &Finding, context: &Context) {
    let out = context.out;
    if let Some(error) = &finding.error {
        out.line(format!("{} {error}", out.paint(Tone::Bad, "✗")));
        return;
    }
    let group = finding.group.as_deref().unwrap_or("");
    out.line(format!("{} {}: group {group}", out.paint(Tone::Good, "✓"), finding.file.display()));
    if !finding.next_runs.is_empty() {
        let next: Vec<String> = finding.next_runs.iter().map(|at| format!("{at:.0}")).collect();
        out.line(format!("  next runs: {}", next.join(", ")));
    }
    for warning in finding.warnings.iter().chain(&finding.not_yet) {
        out.line(format!("  {} {warning}", out.paint(Tone::Warn, "!")));
    }
}
