//! `farsite runbook check|graph|schema`: runbooks, read and checked as a promotion reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farsite_model::config::Config;
use farsite_runbook::plan::{self, Plan};
use farsite_runbook::runbook::Runbook;
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure, USAGE};
use crate::output::Tone;

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Check types, variables, cycles, unknown actions and missing undo, with line and column.
    Check {
        /// Files, or names of built-in runbooks (data, application, business); all of these where none is given.
        #[arg(value_name = "FILE")]
        files: Vec<String>,
    },
    /// Draw a runbook's stages and steps.
    Graph {
        #[arg(value_name = "FILE")]
        file: String,
        /// In Mermaid's language, for documents.
        #[arg(long)]
        mermaid: bool,
    },
    /// Print the JSON Schema of runbooks, for editors.
    Schema,
}

/// What is said about one file.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub runbook: String,
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub steps: usize,
}

pub fn run(action: Action, context: &Context) -> Ended {
    let out = context.out;
    // A runbook can be checked where there is no configuration.
    let config = Config::discover(context.config_path.as_deref()).ok();
    match action {
        Action::Schema => {
            out.json(&Runbook::json_schema());
            Ok(DONE)
        }
        Action::Graph { file, mermaid } => {
            let plan = read(config.as_ref(), &file)?;
            if out.json {
                out.json(&graph(&plan));
            } else if mermaid {
                out.line(plan.mermaid().trim_end());
            } else {
                out.line(format!("{}: {}", plan.name, plan.description.trim()));
                out.line(plan.tree().trim_end());
            }
            Ok(DONE)
        }
        Action::Check { files } => {
            let files =
                if files.is_empty() { library(config.as_ref(), None).into_keys().collect() } else { files };
            let findings: Vec<Finding> = files.iter().map(|file| check(config.as_ref(), file)).collect();
            if out.json {
                out.json(&findings);
            } else {
                for finding in &findings {
                    match &finding.error {
                        None => out.line(format!(
                            "{} {}: {} steps",
                            out.paint(Tone::Good, "✓"),
                            finding.runbook,
                            finding.steps
                        )),
                        Some(error) => out.line(format!("{} {error}", out.paint(Tone::Bad, "✗"))),
                    }
                }
            }
            Ok(if findings.iter().all(|finding| finding.ok) { DONE } else { USAGE })
        }
    }
}

/// Checks one runbook.
pub fn check(config: Option<&Config>, file: &str) -> Finding {
    match read(config, file) {
        Ok(plan) => Finding { runbook: file.to_owned(), ok: true, error: None, steps: plan.steps.len() },
        Err(failure) => Finding { runbook: file.to_owned(), ok: false, error: Some(failure.text), steps: 0 },
    }
}

/// All runbooks by name: the built-in ones, this host's own before them, and what lies beside a file that was named.
pub fn library(config: Option<&Config>, beside: Option<&Path>) -> BTreeMap<String, String> {
    let mut found = farsite_promote::runbooks::built_in();
    let folders = [config.map(Config::runbooks_dir), beside.map(Path::to_owned)];
    for folder in folders.into_iter().flatten() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            if let (true, Some(stem), Ok(text)) = (is_yaml, path.file_stem(), std::fs::read_to_string(&path))
            {
                found.insert(stem.to_string_lossy().into_owned(), text);
            }
        }
    }
    found
}

fn read(config: Option<&Config>, file: &str) -> Result<Plan, Failure> {
    let registry = farsite_promote::registry_for_checks();
    let path = PathBuf::from(file);
    let (name, text, library) = if path.is_file() {
        let text = farsite_model::yaml::read(&path)?;
        let beside = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (file.to_owned(), text, library(config, Some(beside)))
    } else {
        let library = library(config, None);
        let text = library.get(file).cloned().ok_or_else(|| {
            let near = farsite_model::nearest::did_you_mean(file, library.keys().map(String::as_str));
            let known = library.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Failure::usage(format!("{file} is neither a file nor a runbook's name{near} (known: {known})"))
        })?;
        (format!("{file}.yaml"), text, library)
    };
    Ok(plan::plan(&name, &text, &library, &registry)?)
}

fn graph(plan: &Plan) -> serde_json::Value {
    let stages: Vec<_> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(index, (name, parallel))| {
            let steps: Vec<_> = plan
                .steps
                .iter()
                .filter(|step| step.stage == index)
                .map(|step| {
                    serde_json::json!({
                        "id": step.id,
                        "action": step.action,
                        "needs": step.needs,
                        "timeout_s": step.timeout.as_secs(),
                        "gate": step.gate.as_ref().map(|gate| &gate.who),
                    })
                })
                .collect();
            serde_json::json!({ "name": name, "parallel": parallel, "steps": steps })
        })
        .collect();
    serde_json::json!({ "name": plan.name, "description": plan.description, "stages": stages })
}
