//! `farsite replicate [GROUP]`: one run of each group now, from this site to its standbys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::clock::SystemClock;
use farsite_model::nearest::did_you_mean;
use farsite_model::policy::Policy;
use farsite_model::quantity::ByteSize;
use farsite_model::{GroupName, SiteName};
use farsite_replicate::databases::Logs;
use farsite_replicate::group::Group;
use farsite_replicate::run::{self, RunOptions, RunReport};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, Failure, TARGET_MISSED};
use crate::output::{Tone, seconds};
use crate::progress::RunProgress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only; all of this site where none is given.
    pub group: Option<String>,
    /// To this standby only.
    #[arg(long, value_name = "SITE")]
    pub to: Option<SiteName>,
    /// Trust nothing that was sent before: read and send everything.
    #[arg(long)]
    pub full: bool,
    /// Say what would be captured; freeze and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// One run as `--json` shows it.
#[derive(Debug, Serialize)]
struct Done {
    group: GroupName,
    to: SiteName,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<RunReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    planned: Option<Vec<run::Planned>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let policies = chosen(stores::policies(&config)?, &args, &config.site)?;
    let mut all = Vec::new();
    let mut worst = DONE;
    for policy in &policies {
        for to in policy.to.iter().filter(|to| args.to.as_ref().is_none_or(|only| only == *to)) {
            if context.cancel.is_cancelled() {
                return Err(Failure::interrupted(
                    "interrupted; what is complete counts when it is run again",
                ));
            }
            let group = tokio::select! {
                group = Group::open(&config, policy, to, Arc::new(SystemClock)) => group?,
                () = context.cancel.cancelled() => return Err(Failure::interrupted("interrupted")),
            };
            let mut done = Done {
                group: policy.group.clone(),
                to: to.clone(),
                report: None,
                planned: None,
                error: None,
            };
            if args.dry_run {
                let planned = run::dry_run(&group).await;
                worst =
                    worst.max(if planned.iter().any(|entry| entry.items.is_err()) { FAILED } else { DONE });
                show_planned(&done, &planned, context);
                done.planned = Some(planned);
            } else {
                match one(&group, args.full, context).await {
                    Ok(report) => {
                        let missed = report.exposure_at_commit_s > policy.rpo.duration().as_secs_f64();
                        let code = if !report.whole {
                            FAILED
                        } else if missed {
                            TARGET_MISSED
                        } else {
                            DONE
                        };
                        worst = if worst == FAILED { FAILED } else { worst.max(code) };
                        show(&done, &report, context);
                        done.report = Some(report);
                    }
                    // With several groups one that fails must not keep the others from being protected.
                    Err(failure)
                        if policies.len() + policy.to.len() > 2 && !context.cancel.is_cancelled() =>
                    {
                        context.out.error(&format!("group {} to {to}: {}", policy.group, failure.text));
                        worst = FAILED;
                        done.error = Some(failure.text);
                    }
                    Err(failure) => return Err(failure),
                }
            }
            all.push(done);
        }
    }
    if context.out.json {
        context.out.json(&all);
    }
    Ok(worst)
}

fn chosen(policies: Vec<Policy>, args: &Args, site: &SiteName) -> Result<Vec<Policy>, Failure> {
    let known: Vec<String> = policies.iter().map(|policy| policy.group.to_string()).collect();
    let mut chosen = policies;
    match &args.group {
        Some(name) => {
            chosen.retain(|policy| policy.group.as_str() == name);
            if chosen.is_empty() {
                let near = did_you_mean(name, known.iter().map(String::as_str));
                return Err(Failure::usage(format!("no policy is for a group {name}{near}")));
            }
        }
        None => chosen.retain(|policy| policy.site == *site),
    }
    if chosen.is_empty() {
        return Err(Failure::usage(format!("no policy replicates from {site}"))
            .hint("policies lie in policies/ beside farsite.yaml, or where `policies:` says"));
    }
    if let Some(to) = &args.to
        && !chosen.iter().any(|policy| policy.to.contains(to))
    {
        return Err(Failure::usage(format!("no policy replicates to {to}")));
    }
    Ok(chosen)
}

/// One run that stops between two batches when it is interrupted.
async fn one(group: &Group, full: bool, context: &Context) -> Result<RunReport, Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    let progress = RunProgress::new();
    let options = RunOptions { full, cancel: cancel.clone(), observer: progress.clone() };
    let mut logs = Logs::default();
    let work = run::run(group, &mut logs, &options);
    tokio::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = context.cancel.cancelled() => {
            cancel.store(true, Ordering::Relaxed);
            work.await
        }
    };
    Ok(result?)
}

fn show(done: &Done, report: &RunReport, context: &Context) {
    let out = context.out;
    let (tone, mark, word) =
        if report.whole { (Tone::Good, "✓", "whole") } else { (Tone::Warn, "!", "PARTIAL") };
    out.say(format!(
        "{} group {} to {}: point {} ({word}, {} items, {}), {} old at commit",
        out.paint(tone, mark),
        done.group,
        done.to,
        report.point.short(),
        report.items,
        report.weakest,
        seconds(report.exposure_at_commit_s)
    ));
    out.say(format!(
        "  {} read, {} changed, {} shipped in {} packs, {}{}",
        ByteSize(report.read_bytes),
        ByteSize(report.changed_bytes),
        ByteSize(report.shipped_bytes),
        report.packs,
        seconds(report.seconds),
        if report.resumed { ", went on with an interrupted run" } else { "" }
    ));
    for failed in &report.failed {
        out.say(format!("  {} {}: {}", out.paint(Tone::Bad, "✗"), failed.id, failed.why));
    }
    for words in &report.suspicious {
        out.say(format!("  {} suspicious: {words}", out.paint(Tone::Warn, "!")));
    }
    for gone in &report.absent {
        out.say(format!("  - {gone} is gone at its source"));
    }
}

fn show_planned(done: &Done, planned: &[run::Planned], context: &Context) {
    let out = context.out;
    out.say(format!("group {} to {} would capture:", done.group, done.to));
    for entry in planned {
        match &entry.items {
            Ok(items) => {
                let log = if entry.ships_log { ", and its log between points" } else { "" };
                out.say(format!(
                    "  {} {}: {} items{log}",
                    out.paint(Tone::Good, "✓"),
                    entry.entry,
                    items.len()
                ));
            }
            Err(why) => out.say(format!("  {} {}: {why}", out.paint(Tone::Bad, "✗"), entry.entry)),
        }
    }
}
