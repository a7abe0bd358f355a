//! `farsite store repair`: notes in the ledger what is damaged, so that the source's next run sends it again and no failover
//! takes it, and mends points from what lies in the store once more. Runs at the standby, with a standby agent's or an
//! operator's key and the identity that opens what is stored.

use std::collections::BTreeMap;

use farsite_model::quantity::ByteSize;
use farsite_model::{PointId, SiteName};
use farsite_replicate::connect;
use farsite_store::keep::{Found, GroupRepaired, MarkOptions, RepairOptions, Repaired, repair};

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED, UNSAFE};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
    /// Read everything and show what would be noted, mended and left; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The most memory for telling what is live; with less it takes longer.
    #[arg(long, value_name = "SIZE", default_value = "96MiB")]
    memory: ByteSize,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.as_ref()).await?;
    let names = stores::groups(&store, args.group.as_deref()).await?;
    let reader = connect::reader(&config, &site, &store).await?;
    let signer = connect::standby_agent(&config).or_else(|_| connect::operator(&config))?;
    let ledgers = stores::ledgers(&store, &names).await?;
    let options = RepairOptions { dry_run: args.dry_run, mark: MarkOptions::within(args.memory.0 as usize) };
    let progress = Progress::new();
    let done = repair(&reader, ledgers, &signer, &config.site, &options, &progress).await?;
    progress.clear();
    if context.out.json {
        context.out.json(&done);
    } else {
        show(&done, context);
    }
    let mut groups = done.groups.values();
    if groups.clone().any(|group| group.refused.is_some()) {
        return Ok(UNSAFE);
    }
    Ok(if groups.all(GroupRepaired::is_whole) { DONE } else { FAILED })
}

fn show(done: &Repaired, context: &Context) {
    let out = context.out;
    for (name, group) in &done.groups {
        if let Some(why) = &group.refused {
            out.error(why);
        }
        if group.found.is_empty() && group.mended.is_empty() && group.refused.is_none() {
            out.line(format!(
                "{} {name}: nothing is damaged ({} points, every byte opened and hashed)",
                out.paint(Tone::Good, "✓"),
                group.live_points
            ));
            continue;
        }
        let (tone, mark) = if group.is_whole() { (Tone::Good, "✓") } else { (Tone::Bad, "✗") };
        out.line(format!("{} {name}: packs with damage: {}", out.paint(tone, mark), group.damaged_packs));
        if !done.dry_run || group.healed_blobs + group.moved_blobs + group.lost_blobs > 0 {
            let would = if done.dry_run { "would be " } else { "" };
            out.line(format!(
                "  {} blobs {would}read elsewhere in the store and written anew, {} good ones {would}moved with them, {} lost for now",
                group.healed_blobs, group.moved_blobs, group.lost_blobs
            ));
        }
        points("noted as damaged, no failover takes them by itself", &group.noted, done.dry_run, context);
        points("mended, every byte of them was read again", &group.mended, done.dry_run, context);
        left(&group.left, context);
        if let Some(good) = group.newest_good {
            out.line(format!("  The newest undamaged whole point is {}.", good.short()));
        }
        if !group.is_whole() && group.refused.is_none() {
            next(group, done.dry_run, context);
        }
    }
}

fn points(what: &str, points: &[PointId], dry_run: bool, context: &Context) {
    if points.is_empty() {
        return;
    }
    let points: Vec<String> = points.iter().map(PointId::short).collect();
    let would = if dry_run { "would be " } else { "" };
    context.out.line(format!("  {would}{what}: {}", points.join(", ")));
}

fn left(left: &[Found], context: &Context) {
    for found in left.iter().take(20) {
        context.out.line(format!("    {}", found.damage));
        let mut items: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (point, item) in &found.touches {
            let item = item.as_ref().map_or_else(|| "the point itself".to_owned(), ToString::to_string);
            items.entry(item).or_default().push(point.short());
        }
        for (item, points) in items {
            context.out.line(format!("        needed by {item} of {}", points.join(", ")));
        }
    }
    if left.len() > 20 {
        context.out.line(format!("    and {} more; --json lists all", left.len() - 20));
    }
}

/// What is to be done now.
fn next(group: &GroupRepaired, dry_run: bool, context: &Context) {
    let out = context.out;
    if dry_run {
        out.line("  Dry run, nothing was changed. `farsite store repair` does it.");
    } else if group.damaged_packs > 0 {
        out.line(
            "  Next: `farsite replicate` at the source sends again what it still has of it; then `farsite store repair` mends older points.",
        );
        out.line("  What the source has no more stays lost: `farsite points expire` lets its points go.");
    } else {
        out.line("  No pack is damaged: this cannot be mended. `farsite replicate --full` sends everything anew; `farsite points expire` lets a point go.");
    }
}
