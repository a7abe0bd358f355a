//! `farsite replicate [GROUP]`: one round of each group now, from this site to its standbys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::clock::SystemClock;
use farsite_model::nearest::did_you_mean;
use farsite_model::policy::Policy;
use farsite_model::quantity::ByteSize;
use farsite_model::{GroupName, SiteName};
use farsite_replicate::group::Group;
use farsite_replicate::round::{self, Ended, Member};
use farsite_replicate::run::{self, RunOptions, RunReport};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::commands;
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

pub async fn run(args: Args, context: &Context) -> commands::Ended {
    let config = context.config()?;
    let policies = chosen(stores::policies(&config)?, &args, &config.site)?;
    let mut all = Vec::new();
    for policy in &policies {
        if context.cancel.is_cancelled() {
            return Err(Failure::interrupted("interrupted; what is complete counts when it is run again"));
        }
        let standbys = policy.to.iter().filter(|to| args.to.as_ref().is_none_or(|only| only == *to));
        let mut groups = Vec::new();
        let mut done = BTreeMap::new();
        for to in standbys {
            let group = tokio::select! {
                group = Group::open(&config, policy, to, Arc::new(SystemClock)) => group,
                () = context.cancel.cancelled() => return Err(Failure::interrupted("interrupted")),
            };
            match group {
                Ok(group) => groups.push(Arc::new(group)),
                Err(error) => {
                    done.insert(to.clone(), What::Failed(error.into()));
                }
            }
        }
        if args.dry_run {
            if let Some(first) = groups.first() {
                let planned = run::dry_run(first).await;
                done.extend(groups.iter().map(|group| (group.to.clone(), What::Planned(planned.clone()))));
            }
        } else {
            done.extend(one_round(&groups, args.full, context).await);
        }
        all.extend(policy.to.iter().filter_map(|to| Some((policy, to.clone(), done.remove(to)?))));
    }
    // With several runs one that fails must not keep the others from being told of.
    let alone = all.len() == 1;
    let mut worst = DONE;
    let mut told = Vec::new();
    for (policy, to, what) in all {
        let mut one = Done { group: policy.group.clone(), to, report: None, planned: None, error: None };
        let code = match what {
            What::Failed(failure) if alone || context.cancel.is_cancelled() => return Err(failure),
            What::Failed(failure) => {
                context.out.error(&format!("group {} to {}: {}", one.group, one.to, failure.text));
                one.error = Some(failure.text);
                FAILED
            }
            What::Planned(planned) => {
                show_planned(&one, &planned, context);
                let failed = planned.iter().any(|entry| entry.items.is_err());
                one.planned = Some(planned);
                if failed { FAILED } else { DONE }
            }
            What::Made(report) => {
                show(&one, &report, context);
                let missed = report.exposure_at_commit_s > policy.rpo.duration().as_secs_f64();
                let code = match (report.whole, missed) {
                    (false, _) => FAILED,
                    (true, true) => TARGET_MISSED,
                    (true, false) => DONE,
                };
                one.report = Some(report);
                code
            }
        };
        worst = if worst == FAILED { FAILED } else { worst.max(code) };
        told.push(one);
    }
    if context.out.json {
        context.out.json(&told);
    }
    Ok(worst)
}

/// What came of one standby.
enum What {
    Made(RunReport),
    Planned(Vec<run::Planned>),
    Failed(Failure),
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

/// One round of these standbys; one that held the others up goes on by itself after it. All stop between two batches when they
/// are interrupted.
async fn one_round(groups: &[Arc<Group>], full: bool, context: &Context) -> BTreeMap<SiteName, What> {
    let mut done = BTreeMap::new();
    let mut rounds = vec![groups.to_vec()];
    while let Some(groups) = rounds.pop() {
        let cancels: Vec<Arc<AtomicBool>> = groups.iter().map(|_| Arc::default()).collect();
        let members = groups.iter().zip(&cancels).map(|(group, cancel)| {
            let observer = RunProgress::of(groups.len(), group.to.as_str());
            Member { group: group.clone(), options: RunOptions { full, cancel: cancel.clone(), observer } }
        });
        let (ended, mut ends) = mpsc::unbounded_channel();
        let round = round::round(members.collect(), ended);
        let all = async {
            let mut all = Vec::new();
            while let Some(end) = ends.recv().await {
                all.push(end);
            }
            all
        };
        let both = async { tokio::join!(round, all).1 };
        tokio::pin!(both);
        let all = tokio::select! {
            all = &mut both => all,
            () = context.cancel.cancelled() => {
                for cancel in &cancels {
                    cancel.store(true, Ordering::Relaxed);
                }
                both.await
            }
        };
        for Ended { to, result, was_cut } in all {
            let group = groups.iter().find(|group| group.to == to);
            match (result, group) {
                (Err(_), Some(group)) if was_cut && !context.cancel.is_cancelled() => {
                    rounds.push(vec![group.clone()]);
                }
                (Ok(report), _) => {
                    done.insert(to, What::Made(report));
                }
                (Err(error), _) => {
                    done.insert(to, What::Failed(error.into()));
                }
            }
        }
    }
    done
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
