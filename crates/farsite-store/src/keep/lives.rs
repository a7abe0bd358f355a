//! Which blobs of a pack are live: from a group's live points to places in packs, what patches stand on included. Collection
//! marks whole packs; compaction has to know what is inside.
//!
//! Memory is bounded by [`MarkOptions::memory_bytes`]: places are marked for a range of the packs' folders, and where there
//! are too many the range shrinks and the caller marks again for the rest. A place that is marked although nothing needs it
//! is moved for nothing; one that is not marked although something needs it would be lost, so what cannot be told is marked.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use farsite_model::PointId;

use super::gc::Progress;
use super::mark::{LiveSet, MarkOptions, mark};
use super::walk::{Visited, each_blob};
use crate::blob::{BlobRef, Location};
use crate::ledger::{GroupState, Refusal};
use crate::manifest::Manifest;
use crate::map::MapRoot;
use crate::moves::is_of;
use crate::pack::{self, IndexEntry, PackId, PackIndex, folder_of};
use crate::read::Reader;
use crate::seal::{BlobKind, ContentKeyId};
use crate::{Damage, StoreError};

/// Sealed bytes that are opened at once when it is looked for patches, and blobs.
const LOOK_BYTES: u64 = 8 << 20;
const LOOK_BLOBS: usize = 4096;
/// What a place takes in a hash set, and a patch in the list of them.
const PLACE_BYTES: usize = 24;
const PATCH_BYTES: usize = 56;

/// Where a blob lies in its pack, and the beginning of its id: several may lie in one place.
pub(super) type Spot = (u32, u32);

pub(super) fn spot(offset: u32, id: &crate::keys::BlobId) -> Spot {
    (offset, u32::from_le_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]))
}

/// One live pack of the range.
#[derive(Debug)]
pub(super) struct LivePack {
    pub(super) pack: PackId,
    pub(super) key: ContentKeyId,
    pub(super) size_bytes: u64,
    pub(super) entries: Vec<IndexEntry>,
    /// Numbers of the entries that are live, in order.
    pub(super) live: Vec<u32>,
    /// Of these, the ones that cannot be read here, and where the same is read in their place.
    pub(super) elsewhere: HashMap<u32, BlobRef>,
    /// Something in it cannot be moved: it stays when it is emptied.
    pub(super) stays: bool,
    /// Where it was emptied into before, as the ledger says.
    pub(super) homes: Vec<PackId>,
}

impl LivePack {
    /// Sealed bytes of what is live: of a group the share of its live members.
    pub(super) fn live_bytes(&self) -> u64 {
        let mut members: HashMap<u32, u64> = HashMap::new();
        for entry in &self.entries {
            *members.entry(entry.offset).or_default() += 1;
        }
        let live = self.live.iter().filter_map(|line| self.entries.get(*line as usize));
        live.map(|entry| u64::from(entry.sealed_bytes()) / members[&entry.offset]).sum()
    }

    pub(super) fn blob(&self, line: u32) -> Option<BlobRef> {
        let entry = self.entries.get(line as usize)?;
        let at = Location { pack: self.pack, key: self.key, offset: entry.offset, len: entry.len };
        Some(BlobRef { id: entry.id, at })
    }

    pub(super) fn kind(&self, line: u32) -> Option<BlobKind> {
        let entry = self.entries.get(line as usize)?;
        [BlobKind::Block, BlobKind::Node].into_iter().find(|kind| is_of(entry, *kind))
    }
}

/// Places that are live, of packs in the folders of `range`.
pub(super) struct Lives {
    pub(super) range: RangeInclusive<u8>,
    spots: HashMap<PackId, HashSet<Spot>>,
    /// Patches of these packs, and what they stand on.
    patches: HashMap<PackId, Vec<(Spot, PackId, Spot)>>,
    count: usize,
    patch_count: usize,
    limit_bytes: usize,
    /// What could not be read: nothing may be moved.
    pub(super) damage: Vec<(PointId, Damage)>,
}

impl Lives {
    /// Marks what the live points of a state need, in packs of folders from `first` on, as many as memory allows.
    pub(super) async fn of(
        reader: &Reader,
        state: &GroupState,
        first: u8,
        options: &MarkOptions,
        progress: &dyn Progress,
    ) -> Result<Self, StoreError> {
        reader.learn(state);
        let mut lives = Self {
            range: first..=u8::MAX,
            spots: HashMap::new(),
            patches: HashMap::new(),
            count: 0,
            patch_count: 0,
            limit_bytes: options
                .entries_for_tests
                .map_or(options.memory_bytes.max(1 << 20), |n| n * 2 * PLACE_BYTES),
            damage: Vec::new(),
        };
        let mut visited = Visited::within(lives.limit_bytes / 4);
        let points: Vec<_> = state.live_points().map(|point| (point.id(), point.said.manifest)).collect();
        for (point, hash) in points.into_iter().rev() {
            let manifest = match Manifest::read(&reader.store, &state.group, point, &hash).await {
                Ok(manifest) => manifest,
                Err(StoreError::Damaged(found)) => {
                    lives.damage.extend(found.into_iter().map(|damage| (point, damage)));
                    continue;
                }
                Err(other) => return Err(other),
            };
            for item in &manifest.items {
                for map in std::iter::once(&item.data).chain(&item.directory) {
                    lives.map(reader, point, map, &mut visited).await?;
                }
            }
        }
        progress.says(&format!("{}: what patches stand on", state.group));
        lives.all_patches(reader, state, options).await?;
        lives.close();
        Ok(lives)
    }

    async fn map(
        &mut self,
        reader: &Reader,
        point: PointId,
        map: &MapRoot,
        visited: &mut Visited,
    ) -> Result<(), StoreError> {
        let damage = each_blob(reader, map, visited, &mut |_, blobs| self.reach(blobs)).await?;
        self.damage.extend(damage.into_iter().map(|damage| (point, damage)));
        Ok(())
    }

    fn reach(&mut self, blobs: &[BlobRef]) -> Result<(), StoreError> {
        for blob in blobs {
            self.insert(blob.at.pack, spot(blob.at.offset, &blob.id));
        }
        self.shrink()
    }

    fn insert(&mut self, pack: PackId, spot: Spot) {
        if self.range.contains(&folder_of(&pack)) && self.spots.entry(pack).or_default().insert(spot) {
            self.count += 1;
        }
    }

    /// Gives up the upper half of the range while there is too much of it.
    fn shrink(&mut self) -> Result<(), StoreError> {
        while self.count * PLACE_BYTES + self.patch_count * PATCH_BYTES > self.limit_bytes / 4 * 3 {
            let (start, end) = (*self.range.start(), *self.range.end());
            if start == end {
                return Err(Refusal::Other(format!(
                    "what is live in packs {start:02x}… does not fit into {} MiB; nothing was moved\n  hint: --memory gives compaction more",
                    self.limit_bytes >> 20
                ))
                .into());
            }
            self.range = start..=start + (end - start) / 2;
            let range = self.range.clone();
            self.spots.retain(|pack, _| range.contains(&folder_of(pack)));
            let outside: Vec<PackId> =
                self.patches.keys().filter(|pack| !range.contains(&folder_of(pack))).copied().collect();
            for pack in outside {
                // Which of its patches are live is not known any more, so all of them count.
                for (_, base, at) in self.patches.remove(&pack).unwrap_or_default() {
                    self.insert(base, at);
                }
            }
            self.count = self.spots.values().map(HashSet::len).sum();
            self.patch_count = self.patches.values().map(Vec::len).sum();
        }
        Ok(())
    }

    /// Looks into every live pack, of the range or not, that has patches.
    async fn all_patches(
        &mut self,
        reader: &Reader,
        state: &GroupState,
        options: &MarkOptions,
    ) -> Result<(), StoreError> {
        let mut from = 0;
        loop {
            let mut live = LiveSet::from(from);
            let marked = mark(reader, state, 0, &mut live, options).await?;
            self.damage.extend(marked.damage);
            for pack in live.packs.into_keys() {
                match index_of(reader, pack).await {
                    Ok((_, index, _)) if index.bases.is_empty() => {}
                    Ok((key, index, _)) => self.patches_of(reader, pack, key, index).await?,
                    Err(StoreError::Damaged(found)) => {
                        self.damage.extend(found.into_iter().map(|damage| (PointId::from_random(0), damage)));
                    }
                    Err(other) => return Err(other),
                }
            }
            match live.range.end().checked_add(1) {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    async fn patches_of(
        &mut self,
        reader: &Reader,
        pack: PackId,
        key: ContentKeyId,
        index: PackIndex,
    ) -> Result<(), StoreError> {
        for kind in [BlobKind::Block, BlobKind::Node] {
            let of_kind = index.entries.iter().filter(|entry| is_of(entry, kind));
            let blobs: Vec<BlobRef> = of_kind
                .map(|entry| BlobRef {
                    id: entry.id,
                    at: Location { pack, key, offset: entry.offset, len: entry.len },
                })
                .collect();
            for some in chunks(&blobs, LOOK_BYTES, LOOK_BLOBS) {
                let mut patches = Vec::new();
                let mut bases = Vec::new();
                for (blob, base) in reader.bases_of(kind, some.to_vec()).await? {
                    match base {
                        Ok(Some(base)) => {
                            patches.push(spot(blob.at.offset, &blob.id));
                            bases.push(base);
                        }
                        Ok(None) => {}
                        // What it stands on cannot be told, and might be had again with it.
                        Err(damage) => self.damage.push((PointId::from_random(0), damage)),
                    }
                }
                let bases = reader.now_at(kind, &bases).await?;
                let inside = self.range.contains(&folder_of(&pack));
                for (patch, base) in patches.into_iter().zip(bases) {
                    let at = spot(base.at.offset, &base.id);
                    if inside {
                        self.patches.entry(pack).or_default().push((patch, base.at.pack, at));
                        self.patch_count += 1;
                    } else {
                        self.insert(base.at.pack, at);
                    }
                }
                self.shrink()?;
            }
        }
        Ok(())
    }

    /// Marks what live patches stand on, and so on down their chains.
    fn close(&mut self) {
        loop {
            let mut more = Vec::new();
            for (pack, patches) in &mut self.patches {
                let Some(live) = self.spots.get(pack) else { continue };
                patches.retain(|(patch, base, at)| {
                    let is_live = live.contains(patch);
                    if is_live {
                        more.push((*base, *at));
                    }
                    !is_live
                });
            }
            if more.is_empty() {
                return;
            }
            for (pack, at) in more {
                self.insert(pack, at);
            }
        }
    }

    /// Whether anything live lies there.
    pub(super) fn holds(&self, pack: PackId, offset: u32) -> bool {
        self.spots.get(&pack).is_some_and(|spots| spots.iter().any(|(at, _)| *at == offset))
    }

    /// The live packs of the range, each with its index, in order of age.
    pub(super) fn packs(&self) -> Vec<PackId> {
        let mut packs: Vec<PackId> = self.spots.keys().copied().collect();
        packs.sort_unstable();
        packs
    }

    pub(super) async fn pack(&self, reader: &Reader, pack: PackId) -> Result<LivePack, StoreError> {
        let (key, index, size_bytes) = index_of(reader, pack).await?;
        let spots = self.spots.get(&pack);
        let is_live = |entry: &IndexEntry| spots.is_some_and(|s| s.contains(&spot(entry.offset, &entry.id)));
        let lines = index.entries.iter().enumerate().filter(|(_, entry)| is_live(entry));
        let live = lines.map(|(line, _)| line as u32).collect();
        let (elsewhere, stays, homes) = (HashMap::new(), false, Vec::new());
        Ok(LivePack { pack, key, size_bytes, entries: index.entries, live, elsewhere, stays, homes })
    }
}

pub(super) async fn index_of(
    reader: &Reader,
    pack: PackId,
) -> Result<(ContentKeyId, PackIndex, u64), StoreError> {
    let key = pack::read_header(&reader.store, &pack).await?;
    let (index, size) = pack::fetch_index(&reader.store, &reader.opener, &pack, key).await?;
    Ok((key, index, size))
}

/// Consecutive pieces of at most so many sealed bytes and so many blobs.
pub(super) fn chunks(blobs: &[BlobRef], most_bytes: u64, most: usize) -> Vec<&[BlobRef]> {
    let (mut pieces, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, blob) in blobs.iter().enumerate() {
        let len = u64::from(blob.at.sealed_bytes());
        if i > start && (bytes + len > most_bytes || i - start >= most) {
            pieces.push(&blobs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += len;
    }
    if start < blobs.len() {
        pieces.push(&blobs[start..]);
    }
    pieces
}
