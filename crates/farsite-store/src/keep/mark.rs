//! Marking: from a group's live points to the packs, content keys and log timelines that they need, block-map nodes,
//! trees' directories and patch bases included. A pack is live as soon as one live thing lies in it.
//!
//! Memory is bounded by [`MarkOptions::memory_bytes`], not by the store. Shared subtrees are visited once while the set of
//! visited nodes fits; beyond that some are read again, which costs time and nothing else. Packs are marked for a range
//! of their folders: where they are too many, the range shrinks, and the caller marks again for the rest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use farsite_model::{GroupName, PointId};
use futures::stream::{self, StreamExt};

use crate::blob::{BlobRef, MAX_PATCH_DEPTH};
use crate::ledger::{GroupState, Refusal};
use crate::logs::TimelineId;
use crate::manifest::{Manifest, ManifestItem};
use crate::map::MapRoot;
use crate::pack::{self, PackId, folder_of};
use crate::read::Reader;
use crate::seal::{BlobKind, ContentKeyId};
use crate::{Damage, StoreError};

/// Nodes and indexes read at once.
const READS: usize = 16;
/// Bytes that an entry of a hash set of this module takes, its share of empty room included.
const ENTRY_BYTES: usize = 64;
/// However little memory is allowed.
const FEWEST_ENTRIES: usize = 1024;

/// Limits of marking.
#[derive(Debug, Clone, Copy)]
pub struct MarkOptions {
    /// For marks, visited nodes and packs whose bases are known: a third each. Enough for about 500 packs (16 GiB) and as
    /// many leaves (32 GiB) in each 100 KB.
    pub memory_bytes: usize,
    /// So many entries in each set in place of what the memory allows: for tests of what happens when it is short.
    #[doc(hidden)]
    pub entries_for_tests: Option<usize>,
}

impl MarkOptions {
    pub fn within(memory_bytes: usize) -> Self {
        Self { memory_bytes, entries_for_tests: None }
    }
    /// The most entries of each set.
    fn entries(&self) -> usize {
        self.entries_for_tests.unwrap_or((self.memory_bytes / 3 / ENTRY_BYTES).max(FEWEST_ENTRIES))
    }
}

impl Default for MarkOptions {
    fn default() -> Self {
        Self::within(96 << 20)
    }
}

/// What live points need, complete for packs in the folders of `range`.
#[derive(Debug)]
pub struct LiveSet {
    pub range: RangeInclusive<u8>,
    /// Each with the number of a group that needs it.
    pub packs: HashMap<PackId, u16>,
    /// Content keys of all that is reached, whatever the range.
    pub keys: HashSet<ContentKeyId>,
}

impl LiveSet {
    pub(crate) fn from(first: u8) -> Self {
        Self { range: first..=u8::MAX, packs: HashMap::new(), keys: HashSet::new() }
    }
}

/// What marking one group found beside packs.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub timelines: BTreeSet<TimelineId>,
    /// What could not be read: the marks are not complete, so nothing of this group may be removed.
    pub damage: Vec<(PointId, Damage)>,
}

/// Adds to `live` what all live points of a group need.
pub(crate) async fn mark(
    reader: &Reader,
    state: &GroupState,
    group: u16,
    live: &mut LiveSet,
    options: &MarkOptions,
) -> Result<Marked, StoreError> {
    reader.learn(state);
    let entries = options.entries();
    let mut marker = Marker::new(reader, state, group, entries, live);
    // Newest first: what older points share with it is visited already.
    let points: Vec<_> = state.live_points().map(|point| (point.id(), point.said.manifest)).collect();
    for (point, hash) in points.into_iter().rev() {
        match Manifest::read(&reader.store, &state.group, point, &hash).await {
            Ok(manifest) => marker.point(point, &manifest).await?,
            Err(StoreError::Damaged(found)) => marker.damaged(point, found),
            Err(other) => return Err(other),
        }
    }
    Ok(marker.found)
}

struct Marker<'a> {
    reader: &'a Reader,
    state: &'a GroupState,
    group: u16,
    /// The most entries of each set.
    entries: usize,
    live: &'a mut LiveSet,
    found: Marked,
    /// Visited nodes by where they lie: a node that compaction moved is another one here, and that is right.
    nodes: HashSet<(PackId, u32)>,
    /// Packs whose bases are marked or pending, and up to which depth of patches.
    known: HashMap<PackId, u8>,
    /// Packs whose index has to be asked for bases.
    pending: Vec<Pending>,
    /// Children mostly lie in the pack of their neighbour.
    last: Option<(PackId, ContentKeyId)>,
    /// Places that somebody wants to know of, and those of them that were met.
    asked: HashSet<(PackId, u32)>,
    met: BTreeSet<(PackId, u32)>,
}

#[derive(Clone, Copy)]
struct Pending {
    pack: PackId,
    /// `None`: its header tells.
    key: Option<ContentKeyId>,
    /// Patches of this depth and below are needed.
    depth: u8,
}

impl<'a> Marker<'a> {
    fn new(
        reader: &'a Reader,
        state: &'a GroupState,
        group: u16,
        entries: usize,
        live: &'a mut LiveSet,
    ) -> Self {
        Self {
            reader,
            state,
            group,
            entries,
            live,
            found: Marked::default(),
            nodes: HashSet::new(),
            known: HashMap::new(),
            pending: Vec::new(),
            last: None,
            asked: HashSet::new(),
            met: BTreeSet::new(),
        }
    }

    async fn point(&mut self, point: PointId, manifest: &Manifest) -> Result<(), StoreError> {
        for item in &manifest.items {
            self.found.timelines.extend(item.log.as_ref().map(|log| log.timeline));
            for map in std::iter::once(&item.data).chain(&item.directory) {
                self.map(point, map).await?;
            }
        }
        self.bases(point, 0).await
    }

    async fn map(&mut self, point: PointId, map: &MapRoot) -> Result<(), StoreError> {
        let mut open: Vec<(BlobRef, u8)> = map.root.iter().map(|root| (*root, map.root_level())).collect();
        let roots: Vec<BlobRef> = map.root.into_iter().collect();
        self.meet(BlobKind::Node, &roots).await?;
        while !open.is_empty() {
            let mut batch = Vec::with_capacity(READS);
            while batch.len() < READS
                && let Some((node, level)) = open.pop()
            {
                self.reach(&node);
                if self.visit(&node) {
                    batch.push((node, level));
                }
            }
            let reader = self.reader;
            let nodes: Vec<_> = stream::iter(batch)
                .map(|(node, level)| async move { (level, reader.node(&node, level).await) })
                .buffered(READS)
                .collect()
                .await;
            for (level, node) in nodes {
                let node = match node {
                    Ok(node) => node,
                    Err(StoreError::Damaged(found)) => {
                        self.damaged(point, found);
                        continue;
                    }
                    Err(other) => return Err(other),
                };
                let children: Vec<BlobRef> = node.children.iter().flatten().copied().collect();
                let kind = if level > 0 { BlobKind::Node } else { BlobKind::Block };
                self.meet(kind, &children).await?;
                for child in &children {
                    if level > 0 {
                        open.push((*child, level - 1));
                    } else {
                        self.reach(child);
                    }
                }
            }
            self.bases(point, READS * 4).await?;
        }
        Ok(())
    }

    /// Notes which of these lie in a place that was asked for. What compaction has moved lies where it is now.
    async fn meet(&mut self, kind: BlobKind, blobs: &[BlobRef]) -> Result<(), StoreError> {
        if self.asked.is_empty() {
            return Ok(());
        }
        let now = self.reader.now_at(kind, blobs).await?;
        let places = blobs.iter().chain(&now).map(|blob| (blob.at.pack, blob.at.offset));
        self.met.extend(places.filter(|place| self.asked.contains(place)));
        Ok(())
    }

    /// True for a node that was not visited yet, as far as is remembered.
    fn visit(&mut self, node: &BlobRef) -> bool {
        if self.nodes.len() >= self.entries {
            self.nodes.clear();
        }
        self.nodes.insert((node.at.pack, node.at.offset))
    }

    /// Something live lies here.
    fn reach(&mut self, blob: &BlobRef) {
        let here = (blob.at.pack, blob.at.key);
        if self.last == Some(here) {
            return;
        }
        self.last = Some(here);
        self.pack(blob.at.pack, Some(blob.at.key), MAX_PATCH_DEPTH);
    }

    fn pack(&mut self, pack: PackId, key: Option<ContentKeyId>, depth: u8) {
        let moved = self.state.remapped.contains_key(&pack);
        if !moved || self.state.stays(pack) {
            self.live.keys.extend(key);
        }
        if self.known.get(&pack).is_some_and(|known| *known >= depth) {
            return;
        }
        if self.known.len() >= self.entries {
            self.known.clear();
            self.last = None;
        }
        self.known.insert(pack, depth);
        if moved {
            // Compaction has copied what is live in it: that is read in its place.
            for home in self.state.now_in(pack) {
                self.home(home, depth);
            }
            if !self.state.stays(pack) {
                return;
            }
        }
        self.insert(pack);
        if depth > 0 {
            self.pending.push(Pending { pack, key, depth });
        }
    }

    /// A pack that compaction wrote. Nobody has said which key it is sealed with, so it is always asked.
    fn home(&mut self, pack: PackId, depth: u8) {
        if self.known.get(&pack).is_some_and(|known| *known >= depth) {
            return;
        }
        self.known.insert(pack, depth);
        self.insert(pack);
        self.pending.push(Pending { pack, key: None, depth });
    }

    fn insert(&mut self, pack: PackId) {
        if !self.live.range.contains(&folder_of(&pack)) {
            return;
        }
        self.live.packs.entry(pack).or_insert(self.group);
        while self.live.packs.len() > self.entries && self.live.range.start() < self.live.range.end() {
            // Too many: this pass gives up the upper half of its range.
            let (start, end) = (*self.live.range.start(), *self.live.range.end());
            self.live.range = start..=start + (end - start) / 2;
            let range = self.live.range.clone();
            self.live.packs.retain(|pack, _| range.contains(&folder_of(pack)));
        }
    }

    /// Asks the indexes of pending packs which packs their patches stand on, until at most `most` are left. Depths fall
    /// with each step, so this ends.
    async fn bases(&mut self, point: PointId, most: usize) -> Result<(), StoreError> {
        while self.pending.len() > most {
            let batch: Vec<Pending> =
                self.pending.drain(self.pending.len().saturating_sub(READS)..).collect();
            let reader = self.reader;
            let read: Vec<_> = stream::iter(batch)
                .map(|pending| async move { (pending, index(reader, &pending).await) })
                .buffered(READS)
                .collect()
                .await;
            for (pending, index) in read {
                let (key, index) = match index {
                    Ok(read) => read,
                    Err(StoreError::Damaged(found)) => {
                        self.damaged(point, found);
                        continue;
                    }
                    Err(other) => return Err(other),
                };
                self.live.keys.insert(key);
                for base in index.bases {
                    // Bit d - 1 is a patch of depth d; only those of depth `pending.depth` and less are needed.
                    let needed =
                        base.depths & u8::MAX.checked_shr(8 - u32::from(pending.depth.min(8))).unwrap_or(0);
                    if needed != 0 {
                        let deepest = 8 - needed.leading_zeros() as u8;
                        self.pack(base.pack, Some(base.key), deepest - 1);
                    }
                }
            }
        }
        Ok(())
    }

    fn damaged(&mut self, point: PointId, found: Vec<Damage>) {
        for damage in found {
            if self.found.damage.len() < 100 && self.found.damage.iter().all(|(_, known)| *known != damage) {
                self.found.damage.push((point, damage));
            }
        }
    }
}

async fn index(reader: &Reader, pending: &Pending) -> Result<(ContentKeyId, pack::PackIndex), StoreError> {
    let key = if let Some(key) = pending.key {
        key
    } else {
        // What it was moved for must be found again before the packs that it replaces may go.
        reader.moved_index(pending.pack).await?;
        pack::read_header(&reader.store, &pending.pack).await?
    };
    let (index, _) = pack::fetch_index(&reader.store, &reader.opener, &pending.pack, key).await?;
    Ok((key, index))
}

/// Why nothing of a group is removed when its marks are not complete.
pub(crate) fn incomplete(group: &GroupName, damage: &[(PointId, Damage)]) -> Refusal {
    let points: BTreeSet<PointId> = damage.iter().map(|(point, _)| *point).collect();
    let points: Vec<String> = points.iter().map(PointId::short).collect();
    let what: Vec<String> = damage.iter().take(3).map(|(_, damage)| damage.to_string()).collect();
    Refusal::Incomplete { group: group.clone(), points: points.join(", "), damage: what.join("; ") }
}

/// What one item reaches, of what is asked for.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Keys of objects: packs (through patch bases), and content keys.
    pub objects: BTreeSet<String>,
    /// Of the places that were asked for, those that its map names, or, where not all was read, that lie in a pack that its
    /// patches stand on.
    pub places: BTreeSet<(PackId, u32)>,
}

/// Walks one item by itself. What is damaged on the way is reached as well. `all_read`: every pack was looked into, so a
/// patch that stands on something damaged is among `places` itself.
pub(crate) async fn reached(
    reader: &Reader,
    state: &GroupState,
    item: &ManifestItem,
    places: &[Option<(PackId, u32)>],
    all_read: bool,
    options: &MarkOptions,
) -> Result<Reach, StoreError> {
    let mut live = LiveSet::from(0);
    let entries = options.entries();
    let mut marker = Marker::new(reader, state, 0, entries, &mut live);
    marker.asked = places.iter().flatten().copied().collect();
    for map in std::iter::once(&item.data).chain(&item.directory) {
        marker.map(PointId::from_random(0), map).await?;
    }
    let direct: HashSet<PackId> = marker.live.packs.keys().copied().collect();
    marker.bases(PointId::from_random(0), 0).await?;
    let mut reach = Reach { objects: BTreeSet::new(), places: std::mem::take(&mut marker.met) };
    reach.objects.extend(marker.found.damage.iter().map(|(_, damage)| damage.object.clone()));
    if !all_read {
        // Which blobs patches stand on is not told here: all of a base pack counts.
        let asked = std::mem::take(&mut marker.asked);
        reach.places.extend(
            asked.into_iter().filter(|(pack, _)| live.packs.contains_key(pack) && !direct.contains(pack)),
        );
    }
    reach.objects.extend(live.packs.keys().map(pack::object_key));
    reach.objects.extend(live.keys.iter().map(crate::seal::object_key));
    Ok(reach)
}
