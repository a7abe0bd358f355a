//! `farsite store gc`: retention, then collection. Runs at the standby, with a standby agent's or an operator's key and the
//! identity that opens block maps; a copy of the policies says what to keep. A group without a policy here keeps all
//! its points.

use std::collections::BTreeMap;

use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::quantity::{ByteSize, Span};
use farsite_model::retention::{Verdict, judge};
use farsite_model::{GroupName, PointId, SiteName};
use farsite_replicate::connect;
use farsite_store::keep::{Collected, GcOptions, MarkOptions, collect};
use farsite_store::ledger::{GroupState, Patience};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure, UNSAFE};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only.
    group: Option<String>,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
    /// Show what would go; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// A run that began longer ago and has not committed is given up; say more than the longest first copy takes.
    #[arg(long, value_name = "TIME", default_value = "30d")]
    give_up_after: Span,
    /// Where the store locks objects: lengthen the lock of every pack that a point needs to this long from now, once less
    /// than a third of it is left.
    #[arg(long, value_name = "TIME")]
    extend_locks: Option<Span>,
    /// The most memory for marking; with less it takes longer.
    #[arg(long, value_name = "SIZE", default_value = "96MiB")]
    memory: ByteSize,
}

/// The plan and what came of it.
#[derive(Debug, Serialize)]
struct Report {
    /// By group; absent for a group without a policy here.
    retention: BTreeMap<GroupName, Vec<Verdict>>,
    /// Groups that have no policy here: all their points stay.
    without_policy: Vec<GroupName>,
    #[serde(flatten)]
    collected: Collected,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.as_ref()).await?;
    let policies = policies(&config)?;
    let names = stores::groups(&store, args.group.as_deref()).await?;
    let reader = connect::reader(&config, &site, &store).await?;
    let signer = connect::standby_agent(&config).or_else(|_| connect::operator(&config))?;
    let mut report = Report {
        retention: BTreeMap::new(),
        without_policy: names.iter().filter(|name| !policies.contains_key(*name)).cloned().collect(),
        collected: Collected::default(),
    };
    for ledger in stores::ledgers(&store, &names).await? {
        if let Some(policy) = policies.get(ledger.group()) {
            report.retention.insert(ledger.group().clone(), verdicts(policy, ledger.state()));
        }
    }
    let mut options = GcOptions {
        dry_run: args.dry_run,
        mark: MarkOptions::within(args.memory.0 as usize),
        give_up: Patience { runs: args.give_up_after.to_signed(), ..Patience::default() },
        extend_locks: args.extend_locks.map(Span::to_signed),
    };
    let retention = |state: &GroupState| -> Vec<PointId> {
        let Some(policy) = policies.get(&state.group) else { return Vec::new() };
        verdicts(policy, state).into_iter().filter(Verdict::is_released).map(|v| v.point).collect()
    };
    let progress = Progress::new();
    if !args.dry_run && !context.yes {
        let planned = GcOptions { dry_run: true, ..options };
        let ledgers = stores::ledgers(&store, &names).await?;
        report.collected = collect(&reader, ledgers, &signer, &retention, &planned, &progress).await?;
        progress.clear();
        let plan = &report.collected;
        let released: usize = plan.groups.values().map(|group| group.released.len()).sum();
        let removed = plan.removed();
        if released == 0 && removed.objects == 0 {
            options.dry_run = true;
        } else {
            context.confirm(&format!(
                "Release {released} points and remove {} objects ({}) of {} for good?",
                removed.objects,
                ByteSize(removed.bytes),
                store.backend.describe()
            ))?;
        }
    }
    if args.dry_run || context.yes || !options.dry_run {
        let ledgers = stores::ledgers(&store, &names).await?;
        report.collected = collect(&reader, ledgers, &signer, &retention, &options, &progress).await?;
        progress.clear();
    }
    report.collected.dry_run = args.dry_run;
    if context.out.json {
        context.out.json(&report);
    } else {
        show(&report, context);
    }
    let refused = report.collected.groups.values().any(|group| group.refused.is_some());
    Ok(if refused { UNSAFE } else { DONE })
}

fn policies(config: &Config) -> Result<BTreeMap<GroupName, Policy>, Failure> {
    Ok(stores::policies(config)?.into_iter().map(|policy| (policy.group.clone(), policy)).collect())
}

/// What the policy's retention says about a group's live points.
fn verdicts(policy: &Policy, state: &GroupState) -> Vec<Verdict> {
    judge(&state.facts(), &policy.retention, policy.schedule().zone())
}

fn show(report: &Report, context: &Context) {
    let (out, done) = (context.out, &report.collected);
    let verb = if done.dry_run { "would be" } else { "is" };
    for (name, verdicts) in &report.retention {
        let rows: Vec<Vec<String>> = verdicts
            .iter()
            .rev()
            .map(|verdict| {
                let kept: Vec<String> = verdict.kept.iter().map(ToString::to_string).collect();
                let why = if kept.is_empty() { format!("{verb} released") } else { kept.join(", ") };
                vec![verdict.point.short(), name.to_string(), format!("{:.0}", verdict.committed.0), why]
            })
            .collect();
        if !rows.is_empty() {
            out.table(&["point", "group", "committed", "kept as"], &rows);
        }
    }
    for name in &report.without_policy {
        out.warn(&format!(
            "no policy for {name} is here: all its points stay\n  hint: copy its policy beside this farsite.yaml, under policies/"
        ));
    }
    for (name, group) in &done.groups {
        if let Some(why) = &group.refused {
            out.error(why);
            continue;
        }
        let good = out.paint(Tone::Good, "✓");
        out.line(format!(
            "{good} {name}: {} points stay, {} {verb} released; removed: {} packs ({}), {} manifests, {} log segments ({}), {} keys",
            group.live_points,
            group.released.len(),
            group.packs.objects,
            ByteSize(group.packs.bytes),
            group.manifests.objects,
            group.log_segments.objects,
            ByteSize(group.log_segments.bytes),
            group.keys.objects,
        ));
        for run in &group.given_up {
            out.line(format!("  run {run} {verb} given up: it can commit no more"));
        }
        if group.relocked.objects > 0 {
            out.line(format!("  the locks of {} packs are lengthened", group.relocked.objects));
        }
        if group.of_open_runs.objects > 0 {
            out.line(format!(
                "  {} packs ({}) are of runs under way, and stay",
                group.of_open_runs.objects,
                ByteSize(group.of_open_runs.bytes)
            ));
        }
        if group.locked.objects > 0 {
            let why = done.locked_because.as_deref().unwrap_or("the store did not let them go");
            out.warn(&format!("{} objects of {name} stay for now: {why}", group.locked.objects));
        }
    }
    if let Some(why) = &done.unlocked_because {
        out.warn(&format!("the lock of a pack that points need was not lengthened: {why}"));
    }
    if done.ended_uploads > 0 {
        out.line(format!("  {} uploads that were left half-done are ended", done.ended_uploads));
    }
    if done.of_nobody.objects > 0 {
        out.warn(&format!(
            "{} packs ({}) have no content key: nobody can open them, and they stay\n  hint: `farsite store check --depth structure` says whether a point needs them",
            done.of_nobody.objects,
            ByteSize(done.of_nobody.bytes)
        ));
    }
}
