//! `farsite store stats`: what lies in the store, for each group: points, packs, bytes, how much of it is garbage, and
//! how much smaller the store is than what its points stand for. Reads block maps, so it needs the identity.

use std::collections::BTreeMap;

use farsite_model::quantity::ByteSize;
use farsite_model::{GroupName, SiteName};
use farsite_replicate::connect;
use farsite_store::keep::{Removed, Stats, stats};
use serde::Serialize;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::DONE;
use crate::progress::Progress;
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// This group only.
    group: Option<String>,
    /// The store at this site.
    #[arg(long, value_name = "SITE")]
    store: Option<SiteName>,
}

#[derive(Debug, Serialize)]
struct Report {
    store: String,
    groups: BTreeMap<GroupName, Stats>,
    /// Packs whose content key is missing: of no group that can be told.
    of_nobody: Removed,
}

pub async fn run(args: Args, context: &Context) -> Ended {
    let config = context.config()?;
    let (site, store) = stores::open(&config, args.store.as_ref()).await?;
    let reader = connect::reader(&config, &site, &store).await?;
    let names = stores::groups(&store, args.group.as_deref()).await?;
    let ledgers = stores::ledgers(&store, &names).await?;
    let progress = Progress::new();
    let (groups, of_nobody) = stats(&reader, ledgers, &progress).await?;
    progress.clear();
    let report = Report { store: store.backend.describe(), groups, of_nobody };
    let out = context.out;
    if out.json {
        out.json(&report);
        return Ok(DONE);
    }
    let rows: Vec<Vec<String>> = report
        .groups
        .iter()
        .map(|(name, group)| {
            vec![
                name.to_string(),
                group.points.to_string(),
                ByteSize(group.newest_bytes).to_string(),
                ByteSize(group.all_bytes).to_string(),
                format!("{} in {}", ByteSize(group.live_packs.bytes), group.live_packs.objects),
                format!("{} in {}", ByteSize(group.garbage_packs.bytes), group.garbage_packs.objects),
                ByteSize(group.log_segments.bytes).to_string(),
                group.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}")),
            ]
        })
        .collect();
    out.line(&report.store);
    out.table(&["group", "points", "newest", "all points", "live packs", "garbage", "logs", "ratio"], &rows);
    for (name, group) in &report.groups {
        if let Some(why) = &group.unsure {
            out.warn(&format!("the figures of {name} are not complete: {why}"));
        }
    }
    if report.of_nobody.objects > 0 {
        out.warn(&format!("{} packs have no content key", report.of_nobody.objects));
    }
    Ok(DONE)
}
