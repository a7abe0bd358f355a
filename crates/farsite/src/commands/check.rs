//! `farsite check`: what would fail, before it does. It changes nothing but probe objects of its own at the stores.

mod clouds;
mod coordination;
mod host;
mod store;

use std::sync::Arc;
use std::time::Duration;

use farsite_model::config::Config;
use farsite_model::policy::{Item, Policy};
use farsite_openstack::SiteCloud;
use farsite_replicate::hosts::{self, Hosts};
use farsite_sources::CheckLine;
use serde::Serialize;

use crate::commands::{Ended, runbook};
use crate::context::Context;
use crate::failure::{DONE, FAILED};
use crate::output::Tone;
use crate::progress::Progress;

/// What one source may take to say how it is.
const SOURCE_LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the databases, images and volumes of the policies alone.
    #[arg(long)]
    pub no_sources: bool,
}

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Ok,
    /// A person should know, and nothing fails for it.
    Warning,
    Wrong,
}

#[derive(Debug, Serialize)]
pub struct Line {
    /// `configuration`, `keys`, `store south`, `policy cloud`, `runbooks`.
    pub area: String,
    pub subject: String,
    pub verdict: Verdict,
    pub says: String,
}

/// Everything that was looked at, in order.
#[derive(Debug, Default)]
pub struct Lines(Vec<Line>);

impl Lines {
    pub fn add(&mut self, area: &str, subject: &str, verdict: Verdict, says: impl Into<String>) {
        let says = says.into();
        self.0.push(Line { area: area.to_owned(), subject: subject.to_owned(), verdict, says });
    }
    pub fn ok(&mut self, area: &str, subject: &str, says: impl Into<String>) {
        self.add(area, subject, Verdict::Ok, says);
    }
    pub fn wrong(&mut self, area: &str, subject: &str, says: impl Into<String>) {
        self.add(area, subject, Verdict::Wrong, says);
    }
    pub fn warn(&mut self, area: &str, subject: &str, says: impl Into<String>) {
        self.add(area, subject, Verdict::Warning, says);
    }
}

pub async fn run(args: Args, context: &Context) -> Ended {
    // Without a configuration there is nothing to look at.
    let config = context.config()?;
    let progress = Progress::new();
    let mut lines = Lines::default();
    host::configuration(&config, &mut lines);
    clouds::look(&config, &mut lines).await;
    let policies = policies(&config, &mut lines);
    runbooks(&config, &mut lines);
    for site in config.stores.keys() {
        progress.says(format!("looking at the store at {site}"));
        store::look(&config, site, &mut lines).await;
    }
    let cloud = Arc::new(SiteCloud::of(&config, &config.site));
    for policy in &policies {
        if args.no_sources || policy.site != config.site {
            continue;
        }
        let elsewhere = hosts::not_ours(policy);
        if let Some(why) = &elsewhere {
            progress.says(format!("looking who replicates {}", policy.group));
            coordination::look(&config, policy, why, &mut lines).await;
        }
        let hosts = Hosts::of(&config, policy, &cloud);
        for item in &policy.items {
            let is_here = item.on().map_or(elsewhere.is_none(), |_| !hosts.is_elsewhere(item));
            if elsewhere.is_some() && !is_here {
                continue;
            }
            progress.says(format!("looking at {}", item.id()));
            source(policy, item, &hosts, &mut lines).await;
        }
    }
    progress.clear();
    let wrong = lines.0.iter().filter(|line| line.verdict == Verdict::Wrong).count();
    if context.out.json {
        context.out.json(&serde_json::json!({ "ok": wrong == 0, "lines": lines.0 }));
    } else {
        show(&lines, wrong, context);
    }
    Ok(if wrong == 0 { DONE } else { FAILED })
}

fn policies(config: &Config, lines: &mut Lines) -> Vec<Policy> {
    let found = match config.load_policies() {
        Ok(found) => found,
        Err(error) => {
            lines.wrong("policies", "reading", error.to_string());
            return Vec::new();
        }
    };
    if found.is_empty() {
        let place = config.policies_dir();
        lines.warn(
            "policies",
            "reading",
            format!("none in {}: nothing is replicated, no target is known", place.display()),
        );
    }
    for (path, policy) in &found {
        let area = format!("policy {}", policy.group);
        let next = policy.schedule().next_after(jiff::Timestamp::now());
        let next = next.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
        lines.ok(&area, "reading", format!("{}; next run {next}", path.display()));
        for warning in policy.warnings().iter().chain(&policy.not_yet()) {
            lines.warn(&area, "meaning", warning.clone());
        }
        for site in std::iter::once(&policy.site).chain(&policy.to) {
            if let Err(why) = config.site(site) {
                lines.wrong(&area, "sites", format!("{why}; name it under `sites:` in farsite.yaml"));
            }
        }
        for to in policy.to.iter().filter(|to| !config.stores.contains_key(*to)) {
            lines.wrong(&area, "store", format!("no store at {to} is configured; add it under `stores:`"));
        }
    }
    found.into_iter().map(|(_, policy)| policy).collect()
}

fn runbooks(config: &Config, lines: &mut Lines) {
    for name in runbook::library(Some(config), None).into_keys() {
        let finding = runbook::check(Some(config), &name);
        match finding.error {
            None => lines.ok("runbooks", &name, format!("{} steps", finding.steps)),
            Some(why) => lines.wrong("runbooks", &name, why),
        }
    }
}

async fn source(policy: &Policy, item: &Item, hosts: &Hosts, lines: &mut Lines) {
    let area = format!("policy {}", policy.group);
    let id = item.id().to_string();
    if hosts.is_elsewhere(item) && !item.hooks().before_capture.is_empty() {
        lines.wrong(
            &area,
            &id,
            "it has hooks and is read on another host, where they are not run: it fails in every run",
        );
    }
    let source = match hosts.source(item).await {
        Ok(source) => source,
        Err(error) => return lines.wrong(&area, &id, error.to_string()),
    };
    let said = tokio::time::timeout(SOURCE_LIMIT, source.check()).await;
    match said {
        Err(_) => {
            lines.wrong(&area, &id, format!("did not say how it is within {}s", SOURCE_LIMIT.as_secs()));
        }
        Ok(said) => {
            for CheckLine { subject, result } in said {
                match result {
                    Ok(says) => lines.ok(&area, &subject, says),
                    Err(says) => lines.wrong(&area, &subject, says),
                }
            }
        }
    }
}

fn show(lines: &Lines, wrong: usize, context: &Context) {
    let out = context.out;
    let mut area = "";
    for line in &lines.0 {
        if line.area != area {
            area = &line.area;
            out.line(out.paint(Tone::Strong, area));
        }
        let (tone, mark) = match line.verdict {
            Verdict::Ok => (Tone::Good, "✓"),
            Verdict::Warning => (Tone::Warn, "!"),
            Verdict::Wrong => (Tone::Bad, "✗"),
        };
        let says = line.says.replace('\n', "\n      ");
        out.line(format!("  {} {}: {says}", out.paint(tone, mark), line.subject));
    }
    out.line("");
    let warnings = lines.0.iter().filter(|line| line.verdict == Verdict::Warning).count();
    match wrong {
        0 => out.line(format!("{} nothing is wrong ({warnings} to know about)", out.paint(Tone::Good, "✓"))),
        _ => {
            out.line(format!("{} {wrong} to put right, {warnings} to know about", out.paint(Tone::Bad, "✗")));
        }
    }
}
