//! `farsite docs --out DIR`: the reference pages and JSON Schemas of `docs/`, written out of the code: nothing in them is typed
//! by hand, so nothing in them can be out of date. A test compares them with what is checked in.

mod command_line;
mod reference;
mod runbooks;
mod words;

use std::path::PathBuf;

use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_runbook::runbook::Runbook;
use serde_json::Value;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};

/// Stands at the head of each page.
pub const GENERATED: &str =
    "<!-- Made out of the code by `cargo run -- docs --out docs`. Change the code, and run that again. -->";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the documents.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

pub fn run(args: Args, context: &Context) -> Ended {
    let pages = pages()?;
    for (name, text) in &pages {
        let path = args.out.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Failure::io(format!("creating {}", folder.display())))?;
        }
        std::fs::write(&path, text).map_err(Failure::io(format!("writing {}", path.display())))?;
    }
    context.out.say(format!("{} pages and schemas are in {}", pages.len(), args.out.display()));
    Ok(DONE)
}

/// Every file by its path below `docs/`.
fn pages() -> Result<Vec<(&'static str, String)>, Failure> {
    let policy = Policy::json_schema();
    let runbook = Value::from(Runbook::json_schema());
    let config = Value::from(Config::json_schema());
    Ok(vec![
        ("cli.md", command_line::page()),
        ("policy-reference.md", page(&policy, words::POLICY, words::POLICY_END)),
        ("runbook-reference.md", page(&runbook, words::RUNBOOK, &runbooks::sections()?)),
        ("config-reference.md", page(&config, words::CONFIG, words::CONFIG_END)),
        ("schemas/policy.json", json(&policy)),
        ("schemas/runbook.json", json(&runbook)),
        ("schemas/config.json", json(&config)),
    ])
}

/// A page about one file: words before, all keys, words behind.
fn page(schema: &Value, before: &str, behind: &str) -> String {
    format!("{GENERATED}\n{}\n\n{}\n{}\n", before.trim(), reference::keys(schema), behind.trim())
}

fn json(schema: &Value) -> String {
    format!("{schema:#}\n")
}
