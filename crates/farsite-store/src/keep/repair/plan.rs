//! Damaged packs come in; for each what can still be read in it, what can be read elsewhere in its place, and what is lost,
//! goes out. Everything was opened and hashed before it is called good.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::wanted::Wanted;
use crate::StoreError;
use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keep::gc::Progress;
use crate::keep::lives::{LivePack, chunks, index_of};
use crate::keep::mark::{LiveSet, MarkOptions, mark};
use crate::keys::BlobId;
use crate::ledger::GroupState;
use crate::moves::is_of;
use crate::pack::{IndexEntry, PackId, object_key};
use crate::read::{ReadStats, Reader};
use crate::seal::BlobKind;

/// Sealed bytes that are opened at once, and blobs.
const PART_BYTES: u64 = 4 << 20;
const PART_BLOBS: usize = 64;
/// Places that are remembered for one lost blob.
const CANDIDATES: usize = 4;

/// What a round moves, and what it cannot.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) packs: Vec<LivePack>,
    /// Blobs that are read elsewhere, and those that are good where they lie.
    pub(super) healed: u64,
    pub(super) good: u64,
    /// Blobs that block maps name and that cannot be read anywhere.
    pub(super) lost: u64,
}

/// A damaged pack, and which of its blobs cannot be read.
struct Sick {
    pack: LivePack,
    unreadable: Vec<u32>,
    /// It cannot tell what lies in it, and still is there.
    is_mute: bool,
}

type Sought = HashMap<(BlobKind, BlobId), Vec<BlobRef>>;

impl Plan {
    pub(super) async fn of(
        reader: &Reader,
        state: &GroupState,
        damaged: &BTreeSet<PackId>,
        options: &MarkOptions,
        progress: &dyn Progress,
    ) -> Result<Self, StoreError> {
        let mut wanted = Wanted::of(reader, state, damaged, options, progress).await?;
        let mut indexes = BTreeMap::new();
        for pack in damaged {
            match index_of(reader, *pack).await {
                Ok((key, index, size)) => indexes.insert(*pack, Some((key, index.entries, size))),
                Err(StoreError::Damaged(_)) => indexes.insert(*pack, None),
                Err(other) => return Err(other),
            };
        }
        let mute: BTreeSet<PackId> =
            indexes.iter().filter(|(_, index)| index.is_none()).map(|(pack, _)| *pack).collect();
        if !mute.is_empty() {
            progress.says(&format!("{}: what stands on packs without an index", state.group));
            wanted.add_bases_of_named(reader, &mute).await?;
            let mut nothing = Sought::new();
            look_through(reader, state, options, &mut nothing, Some((&mute, &mut wanted))).await?;
        }
        let mut sick = Vec::new();
        let mut sought = Sought::new();
        for (pack, index) in indexes {
            progress.says(&format!("{}: what is good in {}", state.group, object_key(&pack)));
            let Some(one) = sick_one(reader, state, pack, index, &wanted).await? else { continue };
            for line in &one.unreadable {
                if let (Some(kind), Some(blob)) = (one.pack.kind(*line), one.pack.blob(*line)) {
                    sought.entry((kind, blob.id)).or_default();
                }
            }
            sick.push(one);
        }
        if !sought.is_empty() {
            progress.says(&format!("{}: where the same lies once more", state.group));
            look_through(reader, state, options, &mut sought, None).await?;
        }
        let mut plan = Self::default();
        for one in sick {
            plan.add(reader, one, &sought, &wanted).await?;
        }
        Ok(plan)
    }

    async fn add(
        &mut self,
        reader: &Reader,
        sick: Sick,
        sought: &Sought,
        wanted: &Wanted,
    ) -> Result<(), StoreError> {
        let Sick { mut pack, unreadable, is_mute } = sick;
        let (good, mut lost) = (pack.live.len() as u64, 0);
        for line in unreadable {
            let (Some(kind), Some(blob)) = (pack.kind(line), pack.blob(line)) else { continue };
            let elsewhere = sought.get(&(kind, blob.id)).map_or(&[][..], Vec::as_slice);
            let mut found = None;
            for same in elsewhere.iter().filter(|same| **same != blob) {
                let read = reader.wholes(kind, vec![*same], &ReadStats::default()).await?;
                if read.iter().any(|(_, part)| part.is_ok()) {
                    found = Some(*same);
                    break;
                }
            }
            if let Some(same) = found {
                pack.elsewhere.insert(line, same);
                pack.live.push(line);
            } else {
                let named = wanted.named.get(&pack.pack);
                lost += u64::from(named.is_some_and(|named| named.contains(&(kind, blob))));
            }
        }
        pack.live.sort_unstable();
        self.lost += lost;
        // What is lost may come back, from a copy of the pack that somebody has.
        pack.stays = lost > 0 || !wanted.is_complete && is_mute;
        if pack.live.is_empty() && (pack.stays || pack.homes.is_empty()) {
            return Ok(());
        }
        self.good += good;
        self.healed += pack.elsewhere.len() as u64;
        self.packs.push(pack);
        Ok(())
    }
}

/// What can be read in a damaged pack. `None`: nobody needs anything of it.
async fn sick_one(
    reader: &Reader,
    state: &GroupState,
    id: PackId,
    index: Option<(crate::seal::ContentKeyId, Vec<IndexEntry>, u64)>,
    wanted: &Wanted,
) -> Result<Option<Sick>, StoreError> {
    let homes = state.remapped.get(&id).cloned().unwrap_or_default();
    let is_mute = index.is_none();
    let (key, mut entries, size_bytes) = if let Some(index) = index {
        index
    } else {
        let (mut key, mut entries, mut seen) = (None, Vec::new(), HashSet::new());
        let all = [&wanted.named, &wanted.bases].into_iter().filter_map(|of| of.get(&id)).flatten();
        for (kind, BlobRef { id, at: Location { key: with, offset, len, .. } }) in all {
            let kind = if len & Location::GROUPED == 0 { *kind } else { BlobKind::Group };
            if seen.insert((*offset, *id)) {
                entries.push(IndexEntry { kind: kind as u8, id: *id, offset: *offset, len: *len });
            }
            key = Some(*with);
        }
        entries.sort_unstable_by_key(|entry| (entry.offset, entry.id));
        // One that was emptied and that nothing is needed of need not stay any more.
        let key = if homes.is_empty() { key } else { key.or(Some(Hex([0; 16]))) };
        let Some(key) = key else { return Ok(None) };
        (key, entries, 0)
    };
    // Without its table of former places it hands none on: they are looked for one by one.
    if matches!(reader.moved_index(id).await, Err(StoreError::Damaged(_))) {
        entries.retain(|entry| entry.kind != BlobKind::Moves as u8);
    }
    let (elsewhere, live) = (HashMap::new(), Vec::new());
    let mut pack = LivePack { pack: id, key, size_bytes, entries, live, elsewhere, stays: false, homes };
    let mut lines: HashMap<(BlobKind, BlobRef), u32> = HashMap::new();
    for line in 0..pack.entries.len() as u32 {
        if let (Some(kind), Some(blob)) = (pack.kind(line), pack.blob(line)) {
            lines.insert((kind, blob), line);
        }
    }
    let mut unreadable = Vec::new();
    for kind in [BlobKind::Block, BlobKind::Node] {
        let blobs: Vec<BlobRef> = pack
            .entries
            .iter()
            .filter(|entry| is_of(entry, kind))
            .map(|e| BlobRef { id: e.id, at: Location { pack: id, key, offset: e.offset, len: e.len } })
            .collect();
        // What was moved before is not moved again.
        let now = reader.now_at(kind, &blobs).await?;
        let here: Vec<BlobRef> =
            blobs.into_iter().zip(now).filter(|(blob, now)| blob == now).map(|(blob, _)| blob).collect();
        for some in chunks(&here, PART_BYTES, PART_BLOBS) {
            for (blob, part) in reader.parts(kind, some.to_vec(), &ReadStats::default()).await? {
                let Some(line) = lines.get(&(kind, blob)).copied() else { continue };
                if part.is_ok() { pack.live.push(line) } else { unreadable.push(line) }
            }
        }
    }
    Ok(Some(Sick { pack, unreadable, is_mute }))
}

/// Looks through the indexes of all live packs: where what is sought lies once more, and what patches stand on.
async fn look_through(
    reader: &Reader,
    state: &GroupState,
    options: &MarkOptions,
    sought: &mut Sought,
    mut bases: Option<(&BTreeSet<PackId>, &mut Wanted)>,
) -> Result<(), StoreError> {
    let mut from = 0;
    loop {
        let mut live = LiveSet::from(from);
        mark(reader, state, 0, &mut live, options).await?;
        for pack in live.packs.into_keys() {
            let (key, index, _) = match index_of(reader, pack).await {
                Ok(read) => read,
                Err(StoreError::Damaged(_)) => continue,
                Err(other) => return Err(other),
            };
            let mut blobs = Vec::new();
            for e in &index.entries {
                let Some(kind) = [BlobKind::Block, BlobKind::Node].into_iter().find(|kind| is_of(e, *kind))
                else {
                    continue;
                };
                let blob = BlobRef { id: e.id, at: Location { pack, key, offset: e.offset, len: e.len } };
                if let Some(places) = sought.get_mut(&(kind, e.id))
                    && places.len() < CANDIDATES
                {
                    places.push(blob);
                }
                if bases.is_some() {
                    blobs.push((kind, blob));
                }
            }
            if let Some((packs, wanted)) = &mut bases {
                wanted.add_bases_of_pack(reader, packs, &blobs, &index).await?;
            }
        }
        match live.range.end().checked_add(1) {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}
