//! `farsite store check`: whether the store can be trusted with what is asked of it, and with `--depth`, whether all that
//! live points need is there and is what was written.

use std::collections::BTreeMap;

use farsite_model::quantity::ByteSize;
use farsite_model::{GroupName, PointId, SiteName};
use farsite_replicate::connect;
use farsite_store::backend::race::{self, TamperProbe};
use farsite_store::hex::Hex;
use farsite_store::keep::{Checked, Depth, MarkOptions, check};
use farsite_store::{StoreError, ledger};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, FAILED};
use crate::output::Tone;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
    /// Rounds of the race.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Also look at what live points need: that all of it is there (structure), a part of it opened and hashed (sample), or
    /// every byte (full). Needs the identity.
    #[arg(long, value_enum)]
    depth: Option<How>,
    /// Chooses what a sample looks into; the same seed chooses the same. Drawn where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Percent of the packs and log segments that a sample looks into.
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: u8,
    /// With --depth, this group only; may be given more than once.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    Structure,
    Sample,
    Full,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    id: Hex<16>,
    version: u32,
    groups: usize,
    damaged_entries: usize,
    race_rounds: usize,
    can_overwrite: bool,
    can_delete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<How>,
    /// Of a sample, so that it can be repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// With `depth`, by group.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    contents: BTreeMap<GroupName, Checked>,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.as_ref()).await?;
    let tag = Hex::<8>::random().to_string();
    race::race(&store.backend, &tag, args.rounds, 8).await.map_err(StoreError::from)?;
    let probe: TamperProbe = race::probe_tampering(&store.backend, &tag).await?;
    let groups = ledger::groups(&store).await?;
    let mut damage = Vec::new();
    for group in &groups {
        damage.extend(ledger::Ledger::open(&store, group).await?.state().damage.clone());
    }
    let seed = args.seed.unwrap_or_else(|| u64::from(u32::from_le_bytes(Hex::<4>::random().0)));
    let mut report = Report {
        store: store.backend.describe(),
        id: store.id,
        version: store.format().version,
        groups: groups.len(),
        damaged_entries: damage.len(),
        race_rounds: args.rounds,
        can_overwrite: probe.can_overwrite,
        can_delete: probe.can_delete,
        depth: args.depth,
        seed: (args.depth == Some(How::Sample)).then_some(seed),
        contents: BTreeMap::new(),
    };
    if let Some(how) = args.depth {
        let depth = match how {
            How::Structure => Depth::Structure,
            How::Sample => Depth::Sample { percent: args.sample, seed },
            How::Full => Depth::Full,
        };
        let reader = connect::reader(&config, &site, &store).await?;
        let named: Vec<GroupName> = if args.groups.is_empty() {
            groups
        } else {
            let mut named = Vec::new();
            for name in &args.groups {
                named.push(stores::group(&store, Some(name)).await?);
            }
            named
        };
        let progress = Progress::new();
        for name in named {
            let ledger = ledger::Ledger::open(&store, &name).await?;
            let checked = check(&reader, &ledger, depth, &MarkOptions::default(), &progress).await?;
            report.contents.insert(name, checked);
        }
        progress.clear();
    }
    if context.out.json {
        context.out.json(&report);
    } else {
        show(&report, probe, damage.is_empty(), context);
    }
    if !report.contents.values().all(Checked::is_ok) {
        return Ok(FAILED);
    }
    if damage.is_empty() { Ok(DONE) } else { Err(StoreError::Damaged(damage).into()) }
}

fn show(report: &Report, probe: TamperProbe, unbroken: bool, context: &Context) {
    let out = context.out;
    let good = out.paint(Tone::Good, "✓");
    out.line(format!("{good} {} (id {}, format version {})", report.store, report.id, report.version));
    out.line(format!(
        "{good} create-only writes: exactly one winner in {} rounds of 8 writers",
        report.race_rounds
    ));
    let (tone, mark) = if probe.is_tamper_resistant() { (Tone::Good, "✓") } else { (Tone::Warn, "!") };
    out.line(format!("{} {}", out.paint(tone, mark), probe.in_words()));
    if unbroken {
        out.line(format!("{good} every ledger is unbroken (groups: {})", report.groups));
    }
    for (name, checked) in &report.contents {
        contents(name, checked, report, context);
    }
}

fn contents(name: &GroupName, checked: &Checked, report: &Report, context: &Context) {
    let out = context.out;
    let looked = match (report.depth, report.seed) {
        (Some(How::Sample), Some(seed)) => format!(
            "{} of them opened and hashed (sample with --seed {seed})",
            ByteSize(checked.bytes_opened)
        ),
        (Some(How::Full), _) => format!("every byte opened and hashed ({})", ByteSize(checked.bytes_opened)),
        _ => "all there".to_owned(),
    };
    if checked.is_ok() {
        out.line(format!(
            "{} {name}: {} points in {} packs, {looked}",
            out.paint(Tone::Good, "✓"),
            checked.points,
            checked.packs
        ));
        return;
    }
    out.line(format!("{} {name} is damaged:", out.paint(Tone::Bad, "✗")));
    for found in &checked.damage {
        out.line(format!("    {}", found.damage));
        let mut items: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (point, item) in &found.touches {
            let item = item.as_ref().map_or_else(|| "the point itself".to_owned(), ToString::to_string);
            items.entry(item).or_default().push(point.short());
        }
        for (item, points) in items {
            out.line(format!("        needed by {item} of {}", points.join(", ")));
        }
    }
    let untouched: Vec<String> = checked.untouched.iter().map(PointId::short).collect();
    if untouched.is_empty() {
        out.line("  No point is untouched.");
    } else {
        out.line(format!("  Untouched points: {}", untouched.join(", ")));
    }
    if let Some(good) = checked.newest_good {
        out.line(format!(
            "  The newest undamaged whole point is {}: `farsite failover --point {}` takes it.",
            good.short(),
            good.short()
        ));
    }
    out.line(
        "  `farsite store repair` notes it, so that the source's next run sends it again and no failover takes it.",
    );
}
