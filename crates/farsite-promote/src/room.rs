//! Whether what a point holds fits where it is to be restored: by file system, because places share them, and by pool. What must hold: what is
//! surely too much is a problem; what depends on holes that could not be counted in time is a note.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use farsite_model::ItemKind;
use farsite_model::quantity::ByteSize;
use farsite_replicate::hydrate::Copy;
use farsite_replicate::spot::Spot;
use farsite_store::manifest::ManifestItem;
use farsite_store::read::LazyItem;
use tokio::time::Instant;

use crate::group_run::GroupRun;
use crate::own::Findings;

/// Holes are counted no longer than this, and only where an item's whole size would not fit.
const COUNT_LIMIT: Duration = Duration::from_secs(20);
/// Nodes of an item's map that are kept while holes are counted.
const NODES_BYTES: u64 = 16 << 20;
/// The store's own file system needs this for the journal of a promotion and its entries.
const JOURNAL_BYTES: u64 = 32 << 20;

/// A file system or a pool, and what is to come to it.
pub(crate) struct Room<'r> {
    /// In words.
    pub(crate) at: String,
    pub(crate) free_bytes: u64,
    pub(crate) coming: Coming<'r>,
}

/// What is to be written to one place.
#[derive(Default)]
pub(crate) struct Coming<'r> {
    items: Vec<(&'r ManifestItem, u64)>,
    /// Of those whose place holds something of their size: it may be the very same, and then stays.
    standing_bytes: u64,
}

impl<'r> Coming<'r> {
    /// A hydrated copy of another version has `copied_bytes`: the restore takes it and writes what differs.
    pub(crate) fn add(&mut self, item: &'r ManifestItem, copied_bytes: u64) {
        self.items.push((item, copied_bytes));
    }
    pub(crate) fn may_stand(&mut self, item: &ManifestItem) {
        self.standing_bytes += item.data.size_bytes;
    }
}

/// The nearest folder that is there.
fn there(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

fn free_bytes(path: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(there(path)?).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

/// What a file has without its holes.
fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |there| there.blocks() * 512)
}

/// Looks at every place that is a file or a folder.
pub(crate) async fn look(run: &GroupRun) -> Findings {
    let mut findings = Findings::default();
    let mut rooms: BTreeMap<u64, Room<'_>> = BTreeMap::new();
    for item in &run.manifest.items {
        let Ok(Spot::File(place)) = run.targets.item(&run.manifest, item) else { continue };
        let is_image = matches!(item.kind, ItemKind::Glance | ItemKind::Cinder | ItemKind::Volume);
        let copy = Copy::of(&item.id, &place);
        let version = if is_image { copy.untouched().ok().flatten() } else { None };
        // A hydrated copy is moved; a device has its own room.
        if version.as_ref().is_some_and(|version| version.is_same_content(&item.data)) {
            continue;
        }
        let Some(at) = there(&place) else { continue };
        let Ok(metadata) = std::fs::metadata(at) else { continue };
        if !(metadata.is_dir() || metadata.is_file()) {
            continue;
        }
        let Some(free_bytes) = free_bytes(at) else {
            findings.notes.push(format!("how much is free at {} is not known", at.display()));
            continue;
        };
        let room = rooms.entry(metadata.dev()).or_insert_with(|| Room {
            at: at.display().to_string(),
            free_bytes,
            coming: Coming::default(),
        });
        if is_image && std::fs::metadata(&place).is_ok_and(|there| there.len() == item.data.size_bytes) {
            room.coming.may_stand(item);
        } else {
            room.coming.add(item, if version.is_some() { allocated_bytes(copy.path()) } else { 0 });
        }
    }
    let until = Instant::now() + COUNT_LIMIT;
    for room in rooms.into_values() {
        room.look(run, until, &mut findings).await;
    }
    findings
}

impl Room<'_> {
    /// The same for one of them.
    pub(crate) async fn findings(self, run: &GroupRun) -> Findings {
        let mut findings = Findings::default();
        self.look(run, Instant::now() + COUNT_LIMIT, &mut findings).await;
        findings
    }

    async fn look(self, run: &GroupRun, until: Instant, findings: &mut Findings) {
        let Self { at, free_bytes, coming: Coming { mut items, standing_bytes } } = self;
        let whole: u64 = items.iter().map(|(item, _)| item.data.size_bytes).sum::<u64>() + standing_bytes;
        if whole <= free_bytes {
            return;
        }
        let free = ByteSize(free_bytes);
        // What counts is the data; from the smallest on, so that as much as can be is counted in time.
        items.sort_by_key(|(item, _)| item.data.size_bytes);
        let (mut sure, mut uncounted, mut standing) = (0, 0, standing_bytes);
        for (item, copied_bytes) in items {
            let counted = tokio::time::timeout_at(until, data_bytes(run, item)).await;
            let (kind, whole) = match counted.ok().and_then(Result::ok) {
                Some(bytes) => (&mut sure, bytes),
                None => (&mut uncounted, item.data.size_bytes),
            };
            *kind += whole.saturating_sub(copied_bytes);
            standing += copied_bytes.min(whole);
        }
        if sure > free_bytes {
            findings.problems.push(format!(
                "at {at} {free} are free, and {} of data come there{}: the restore would fill it and stop\n  hint: make room there, or give the group's places another one; what stands in the places now is kept beside them and frees nothing",
                ByteSize(sure),
                if uncounted > 0 { " at least" } else { "" },
            ));
            return;
        }
        if uncounted > 0 {
            findings.notes.push(format!(
                "at {at} {free} are free, which is enough only if {} of what comes there are mostly holes: they could not be counted in time",
                ByteSize(uncounted)
            ));
        }
        if standing > 0 && sure + standing > free_bytes {
            findings.notes.push(format!(
                "at {at} {free} are free, which is enough only if most of what stands there with the right size, or is hydrated to an older point ({}), is what the point holds: what differs is written",
                ByteSize(standing)
            ));
        }
    }
}

async fn data_bytes(run: &GroupRun, item: &ManifestItem) -> Result<u64, String> {
    let fail = |error: farsite_store::StoreError| error.to_string();
    let size = item.data.size_bytes;
    let lazy = LazyItem::new(run.standby.reader.clone(), item.data.clone(), NODES_BYTES).map_err(fail)?;
    let (mut at, mut data) = (0, 0);
    while at < size {
        let (end, is_hole) = lazy.extent(at..size).await.map_err(fail)?;
        data += if is_hole { 0 } else { end - at };
        at = end;
    }
    Ok(data)
}

/// The store writes each step of a promotion down: where it is a folder, that needs room.
pub(crate) fn of_store(url: &str) -> Option<String> {
    if url.contains("://") {
        return None;
    }
    let free = free_bytes(Path::new(url))?;
    (free < JOURNAL_BYTES).then(|| {
        format!(
            "the store's folder {url} has {} free: a promotion writes its journal there and would stop in the middle\n  hint: make room there (`farsite store gc`, or more disk)",
            ByteSize(free)
        )
    })
}
