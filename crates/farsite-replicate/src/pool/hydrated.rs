//! A hydrated copy in a pool. A version comes in; the copy is that version when this returns, by writing only what differs.
//!
//! What must hold: what the copy is, is proved by the cluster: a snapshot is made when it is whole, and its mark names the
//! point and that snapshot. Where anything was written since, by a killed attempt or by anybody, it is first rolled back to
//! that snapshot. So it is at every instant the version that its mark names, or can be made that again without a look at a
//! single byte.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farsite_model::{ItemId, PointId};
use farsite_sources::rbd::{Found, OpenImage, Writer};
use farsite_store::hex;
use farsite_store::manifest::ManifestItem;
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadStats, Reader};

use super::mark::{Holds, Mark};
use super::names::hydrated_name;
use crate::ReplicateError;
use crate::hydrate::{Applied, How, Version};
use crate::restore::{Guard, over_standing};

/// Our snapshots of copies begin so.
const SNAPSHOT: &str = "farsite-hydrated-";
/// Another process that works on the copy is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether a promotion wants the copy.
const LOOK: Duration = Duration::from_secs(1);

/// Makes the copy what `item` is in `point`. `Ok(None)`: another process works on it. `guard` stops it between two blocks.
pub async fn apply(
    writer: &Arc<Writer>,
    name: &str,
    reader: &Reader,
    item: &ManifestItem,
    point: PointId,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<Option<Applied>, ReplicateError> {
    let hidden = hydrated_name(name);
    let io = |source| ReplicateError::Io { what: format!("hydrating {}", item.id), source };
    guard().map_err(io)?;
    let to = Version { point, map: item.data.clone() };
    let before = written(stats);
    let taken = blocking(|| take(writer, &hidden, item)).map_err(io)?;
    let Some(Taken { mut image, mut mark, stood }) = taken else { return Ok(None) };
    if let Some(Holds { version, snapshot, snapshot_id }) = mark.holds.clone()
        && version.is_same_content(&to.map)
        && !blocking(|| image.has_changed_since(&snapshot)).map_err(io)?
    {
        if version.point != point {
            // The same bytes under a newer point's name: its map may lie elsewhere after a compaction.
            mark.holds = Some(Holds { version: to, snapshot, snapshot_id });
            blocking(|| mark.write(&image)).map_err(io)?;
        }
        return Ok(Some(Applied { how: How::Already, written_bytes: 0 }));
    }
    let known = blocking(|| known(&mut image, &mark, &item.id)).map_err(io)?;
    let empty = MapRoot { size_bytes: 0, block_bytes: to.map.block_bytes, root: None };
    let (how, known) = match (&known, stood) {
        (Some(known), _) => (How::ByMaps, Some(known)),
        // Empty and all holes: known, so nothing of it is read.
        (None, false) => (How::Anew, Some(&empty)),
        (None, true) => (How::ByContents, None),
    };
    blocking(|| image.resize(to.map.size_bytes)).map_err(io)?;
    let image = Arc::new(image);
    let guard = until_wanted(&image, guard);
    over_standing(reader, item, image.clone(), known, &guard, stats).await?;
    blocking(|| {
        let random = hex::Hex::<8>::random();
        let snapshot = format!("{SNAPSHOT}{random}");
        let snapshot_id = image.snapshot(&snapshot)?;
        mark.holds = Some(Holds { version: to, snapshot: snapshot.clone(), snapshot_id });
        mark.write(&image)?;
        remove_snapshots(writer, &hidden, &image, Some(&snapshot))
    })
    .map_err(io)?;
    Ok(Some(Applied { how, written_bytes: written(stats) - before }))
}

/// An image of ours, open, with its mark.
pub(super) struct Taken {
    pub(super) image: OpenImage,
    pub(super) mark: Mark,
    /// It was there before.
    pub(super) stood: bool,
}

/// Opens an image of ours, made where there is none. `None`: another process has it.
fn take(writer: &Arc<Writer>, name: &str, item: &ManifestItem) -> io::Result<Option<Taken>> {
    let stood = writer.look(name)?.is_some();
    if !stood {
        writer.create(name, item.data.size_bytes)?;
    }
    let Some(image) = writer.open(name, PATIENCE)? else { return Ok(None) };
    let taken = Taken::of(writer, name, &item.id, image, stood)?;
    // A promotion waits for it.
    Ok(if taken.image.is_wanted()? { None } else { Some(taken) })
}

impl Taken {
    /// Believes of its mark what it may.
    pub(super) fn of(
        writer: &Writer,
        name: &str,
        item: &ItemId,
        image: OpenImage,
        stood: bool,
    ) -> io::Result<Self> {
        // Looked at once nobody else can change it.
        let found = writer.look(name)?.ok_or_else(|| io::Error::other(format!("{name} went away")))?;
        let mark = believed(&found, item).unwrap_or_else(|| Mark::new(&found.id, item));
        Ok(Self { image, mark, stood })
    }
}

/// The mark of this image for this item, without a snapshot that is not there any more.
fn believed(found: &Found, item: &ItemId) -> Option<Mark> {
    let mut mark = Mark::of(found).filter(|mark| mark.item == *item)?;
    let is_there =
        |holds: &Holds| found.snapshots.iter().any(|s| s.name == holds.snapshot && s.id == holds.snapshot_id);
    if !mark.holds.as_ref().is_some_and(is_there) {
        mark.holds = None;
    }
    Some(mark)
}

/// The map of what the image is, after it was made that again where anything was written since.
pub(super) fn known(image: &mut OpenImage, mark: &Mark, item: &ItemId) -> io::Result<Option<MapRoot>> {
    let Some(Holds { version, snapshot, .. }) = &mark.holds else { return Ok(None) };
    if image.has_changed_since(snapshot)? {
        tracing::warn!(
            "the hydrated copy of {item} was written to since it became point {}: it is rolled back to that",
            version.point.short()
        );
        image.roll_back(snapshot, version.map.size_bytes)?;
    }
    Ok(Some(version.map.clone()))
}

/// Our snapshots of copies, all but one.
pub(super) fn remove_snapshots(
    writer: &Writer,
    name: &str,
    image: &OpenImage,
    but: Option<&str>,
) -> io::Result<()> {
    let found = writer.look(name)?.map(|found| found.snapshots).unwrap_or_default();
    for snapshot in found {
        if snapshot.name.starts_with(SNAPSHOT) && Some(snapshot.name.as_str()) != but {
            image.remove_snapshot(&snapshot.name)?;
        }
    }
    Ok(())
}

/// Stops whoever hydrates as soon as a promotion wants the copy, and whenever `other` says so.
fn until_wanted(image: &Arc<OpenImage>, other: &Guard) -> Guard {
    let (image, other, began, looked) = (image.clone(), other.clone(), Instant::now(), AtomicU64::new(0));
    Arc::new(move || {
        other()?;
        let now = began.elapsed().as_millis() as u64;
        let last = looked.load(Ordering::Relaxed);
        let is_due = now >= last + LOOK.as_millis() as u64;
        if is_due
            && looked.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && image.is_wanted()?
        {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "a promotion wants this copy"));
        }
        Ok(())
    })
}

pub(super) fn written(stats: &ReadStats) -> u64 {
    stats.written_bytes.load(Ordering::Relaxed) + stats.punched_bytes.load(Ordering::Relaxed)
}

/// Requests to the cluster wait for it.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
