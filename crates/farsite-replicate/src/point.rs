//! What a point says: a run's captures come in; its manifest, its ledger entry and the report of the run go out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Epoch, PointId};
use farsite_store::hex::Hex;
use farsite_store::ingest::RunStats;
use farsite_store::ledger::Committed;
use farsite_store::manifest::{FailedItem, MANIFEST_VERSION, Manifest, ManifestItem};

use crate::basis::Basis;
use crate::capture::{EntryOutcome, Taken};
use crate::group::Group;
use crate::run::RunReport;

#[allow(clippy::too_many_arguments, reason = "everything that a manifest says comes together here")]
pub(crate) fn manifest(
    group: &Group,
    run: farsite_model::RunId,
    epoch: Epoch,
    started: CaptureTime,
    skews: Vec<farsite_model::rpo::ClockSkew>,
    store_now: farsite_model::StoreTime,
    basis: &Basis,
    captured: EntryOutcome,
    stats: &RunStats,
) -> Manifest {
    let parent = basis.newest();
    let mut items: Vec<ManifestItem> = captured
        .taken
        .into_iter()
        .map(|Taken { id, kind, captured, consistency, data, directory, ancestor, details, log, signals }| {
            ManifestItem {
                id,
                kind,
                stamp: CaptureStamp::at_commit(captured, &skews, store_now),
                consistency,
                data,
                directory,
                ancestor,
                details,
                carried_from: None,
                log,
                signals,
            }
        })
        .collect();
    let mut failed = Vec::new();
    for (id, why) in captured.failed {
        tracing::error!(group = %group.policy.group, item = %id, "not captured: {why}");
        // The version of the newest point stands in, with its own capture time.
        if let Some(old) = parent.and_then(|p| Some((p.point, p.item(&id)?))) {
            let (point, old) = old;
            let carried_from = Some(old.carried_from.unwrap_or(point));
            items.push(ManifestItem { carried_from, ..old.clone() });
        }
        failed.push(FailedItem { id, why });
    }
    items.sort_by(|a, b| a.id.cmp(&b.id));
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    Manifest {
        version: MANIFEST_VERSION,
        point: PointId::from_random(u64::from_le_bytes(Hex::<8>::random().0)),
        group: group.policy.group.clone(),
        site: group.config.site.clone(),
        epoch,
        run,
        parent: parent.map(|p| p.point),
        started,
        skews,
        items,
        absent: captured.absent,
        failed,
        read_bytes: load(&stats.read_bytes),
        changed_bytes: load(&stats.changed_bytes),
        shipped_bytes: load(&stats.shipped_bytes),
    }
}

pub(crate) fn committed(manifest: &Manifest, hash: Hex<32>, suspicious: Vec<String>) -> Committed {
    Committed {
        point: manifest.point,
        epoch: manifest.epoch,
        run: manifest.run,
        manifest: hash,
        by_kind: manifest.by_kind(),
        whole: manifest.is_whole(),
        items: manifest.items.len() as u64,
        weakest: manifest.weakest(),
        changed_bytes: manifest.changed_bytes,
        shipped_bytes: manifest.shipped_bytes,
        suspicious,
        timelines: manifest.items.iter().filter_map(|i| Some(i.log.as_ref()?.timeline)).collect(),
    }
}

pub(crate) fn report(
    manifest: &Manifest,
    suspicious: &[String],
    written: farsite_model::StoreTime,
    stats: &RunStats,
    resumed: bool,
    took: Duration,
) -> RunReport {
    let oldest = manifest.items.iter().map(|i| i.stamp.exposure(written)).max().unwrap_or_default();
    RunReport {
        point: manifest.point,
        whole: manifest.is_whole(),
        items: manifest.items.len(),
        weakest: manifest.weakest(),
        failed: manifest.failed.clone(),
        absent: manifest.absent.clone(),
        suspicious: suspicious.to_vec(),
        exposure_at_commit_s: oldest.as_secs_f64(),
        read_bytes: manifest.read_bytes,
        changed_bytes: manifest.changed_bytes,
        shipped_bytes: manifest.shipped_bytes,
        packs: stats.packs.load(Ordering::Relaxed),
        resumed,
        seconds: took.as_secs_f64(),
    }
}
