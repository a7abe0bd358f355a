//! What lies in the store: collection's own figures, from a dry run that releases nothing.

use std::collections::BTreeMap;

use farsite_model::GroupName;
use serde::Serialize;

use super::gc::{Progress, Removed, count};
use crate::StoreError;
use crate::ledger::Ledger;
use crate::manifest::Manifest;
use crate::read::Reader;

/// What one group has in the store.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Points that have not expired.
    pub points: usize,
    pub expired_points: usize,
    /// Bytes of all items of the newest point, holes included.
    pub newest_bytes: u64,
    /// The same of all live points together.
    pub all_bytes: u64,
    pub live_packs: Removed,
    /// What collection would remove now, without releasing a point.
    pub garbage_packs: Removed,
    pub of_open_runs: Removed,
    pub log_segments: Removed,
    pub manifests: Removed,
    /// `all_bytes` by the bytes of live packs: deduplication, compression and holes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Why the figures are not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsure: Option<String>,
}

/// Counts; changes nothing. The second value: packs that are of nobody.
pub async fn stats(
    reader: &Reader,
    ledgers: Vec<Ledger>,
    progress: &dyn Progress,
) -> Result<(BTreeMap<GroupName, Stats>, Removed), StoreError> {
    let mut all = BTreeMap::new();
    for ledger in &ledgers {
        all.insert(ledger.group().clone(), of_group(reader, ledger).await?);
    }
    let counted = count(reader, ledgers, progress).await?;
    for (name, group) in counted.groups {
        let stats: &mut Stats = all.entry(name).or_default();
        stats.live_packs = group.live_packs;
        stats.garbage_packs = group.packs;
        stats.of_open_runs = group.of_open_runs;
        stats.unsure = group.refused.or(stats.unsure.take());
        let stored = stats.live_packs.bytes;
        stats.ratio = (stored > 0).then(|| stats.all_bytes as f64 / stored as f64);
    }
    Ok((all, counted.of_nobody))
}

async fn of_group(reader: &Reader, ledger: &Ledger) -> Result<Stats, StoreError> {
    let (store, state) = (&reader.store, ledger.state());
    let mut stats = Stats { expired_points: state.points.len(), ..Stats::default() };
    for point in state.live_points() {
        stats.points += 1;
        stats.expired_points -= 1;
        match Manifest::read(store, &state.group, point.id(), &point.said.manifest).await {
            Ok(manifest) => {
                stats.newest_bytes = manifest.items.iter().map(|item| item.data.size_bytes).sum();
                stats.all_bytes += stats.newest_bytes;
            }
            Err(StoreError::Damaged(damage)) => {
                stats.unsure = damage.first().map(ToString::to_string);
            }
            Err(other) => return Err(other),
        }
    }
    let group = &state.group;
    for (prefix, sum) in [
        (format!("logs/{group}/"), &mut stats.log_segments),
        (format!("manifests/{group}/"), &mut stats.manifests),
    ] {
        for object in store.backend.list(&prefix, None).await? {
            sum.add(object.size_bytes);
        }
    }
    Ok(stats)
}
