//! Checks what live points need, where it lies. Three depths come in; damage, with the items and points that it touches
//! and those that it does not, goes out.
//!
//! *Structure*: every manifest, block-map node, content key and pack that a live point needs is there; a pack's index opens
//! and ends where the object ends, so a pack that was cut is found. *Sample* and *full*: packs are read from
//! end to end; every blob is opened and hashed again, once for all points that share it, and log segments are opened.
//! Memory: marks as in collection, and two packs at a time.

use std::collections::{BTreeMap, BTreeSet};

use farsite_model::{ItemId, PointId};
use futures::stream::{self, StreamExt};
use serde::Serialize;

use super::gc::Progress;
use super::lives::{Lives, chunks};
use super::mark::{LiveSet, MarkOptions, mark, reached};
use super::repair::wanted::Wanted;
use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::ledger::{CommittedPoint, GroupState, Ledger};
use crate::logs::{self, SegmentName, TimelineId};
use crate::manifest::Manifest;
use crate::pack::{self, PackId, object_key};
use crate::read::{ReadStats, Reader};
use crate::seal::BlobKind;
use crate::{Damage, StoreError};

/// Packs in memory at once.
const PACKS: usize = 2;
/// Sealed bytes, and blobs, that are looked at by themselves at once.
const LOOK_BYTES: u64 = 4 << 20;
const LOOK_BLOBS: usize = 64;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Structure,
    /// So many percent of the packs and log segments, chosen by the seed.
    Sample {
        percent: u8,
        seed: u64,
    },
    Full,
}

impl Depth {
    /// Whether an object is looked into. The same seed chooses the same objects.
    fn chooses(self, name: &str) -> bool {
        match self {
            Self::Structure => false,
            Self::Full => true,
            Self::Sample { percent, seed } => {
                let hash = blake3::hash(format!("{seed} {name}").as_bytes());
                let drawn = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"));
                drawn % 100 < u64::from(percent)
            }
        }
    }
}

/// A damaged object and whom it harms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    #[serde(flatten)]
    pub damage: Damage,
    /// Items of live points that need it: the point, and the item in it. Without an item the point itself (its manifest)
    /// is damaged.
    pub touches: Vec<(PointId, Option<ItemId>)>,
}

/// What was looked at in one group, and what was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    pub points: usize,
    pub packs: u64,
    pub blobs_opened: u64,
    pub bytes_opened: u64,
    pub log_segments_opened: u64,
    pub damage: Vec<Found>,
    /// Blobs that cannot be read and that nothing needs any more: what they stood on was left behind by a compaction.
    #[serde(skip_serializing_if = "is_none")]
    pub dead_blobs: u64,
    /// Live points that no damage touches, newest first.
    pub untouched: Vec<PointId>,
    /// Of those, the newest that a failover would take by itself.
    pub newest_good: Option<PointId>,
    /// Packs of which something that is needed cannot be read. Complete behind a full check only.
    #[serde(skip)]
    pub(crate) damaged_packs: BTreeSet<PackId>,
    /// Which packs cannot be read is told by `damaged_packs` to the last one: no content key is missing, with which packs
    /// may be sealed that nobody could look for.
    #[serde(skip)]
    pub(crate) packs_are_told: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Checked {
    pub fn is_ok(&self) -> bool {
        self.damage.is_empty()
    }
}

/// A blob's place: its pack, and its offset there.
type Place = (PackId, u32);
/// Something that is damaged: the object and why, and where in it (`None`: all of it).
type Spot = (Damage, Option<Place>);
/// Object and sentence: what is said once.
type Name = (String, String);
/// What a log lacks, and whom that harms.
type Gap = (Damage, PointId, ItemId);

/// Checks one group's live points.
pub async fn check(
    reader: &Reader,
    ledger: &Ledger,
    depth: Depth,
    options: &MarkOptions,
    progress: &dyn Progress,
) -> Result<Checked, StoreError> {
    let state = ledger.state();
    let mut checked = Checked { points: state.live_points().count(), ..Checked::default() };
    let mut spots: Vec<Spot> = state.damage.iter().map(|damage| (damage.clone(), None)).collect();
    let mut timelines = BTreeSet::new();
    let mut packs_as_such = BTreeSet::new();
    let mut from = 0;
    loop {
        progress.says(&format!("{}: reading block maps", state.group));
        let mut live = LiveSet::from(from);
        let marked = mark(reader, state, 0, &mut live, options).await?;
        timelines.extend(marked.timelines);
        spots.extend(marked.damage.into_iter().map(|(_, damage)| (damage, None)));
        let mut packs: Vec<PackId> = live.packs.into_keys().collect();
        packs.sort_unstable();
        let count = packs.len();
        checked.packs += count as u64;
        let mut read = stream::iter(packs.into_iter().enumerate())
            .filter(|(_, pack)| std::future::ready(depth.chooses(&object_key(pack))))
            .map(|(number, pack)| async move { (number, pack, whole_pack(reader, pack).await) })
            .buffered(PACKS);
        while let Some((number, pack, result)) = read.next().await {
            progress.says(&format!("{}: pack {} of {count}", state.group, number + 1));
            let result = result?;
            if result.damage.iter().any(|(_, place)| place.is_none()) {
                packs_as_such.insert(pack);
            }
            checked.blobs_opened += result.blobs;
            checked.bytes_opened += result.bytes;
            spots.extend(result.damage);
        }
        match live.range.end().checked_add(1) {
            Some(next) => from = next,
            None => break,
        }
    }
    let gaps = log_gaps(reader, state).await?;
    if depth != Depth::Structure {
        for timeline in timelines {
            progress.says(&format!("{}: log timeline {timeline}", state.group));
            for segment in logs::list(&reader.store, &state.group, &timeline, None).await? {
                if !depth.chooses(&segment.key) {
                    continue;
                }
                checked.log_segments_opened += 1;
                match logs::read(&reader.store, &reader.opener, &segment).await {
                    Ok((_, bytes)) => checked.bytes_opened += bytes.len() as u64,
                    Err(StoreError::Damaged(found)) => spots.extend(found.into_iter().map(|d| (d, None))),
                    Err(other) => return Err(other),
                }
            }
        }
    }
    if !spots.is_empty() || !gaps.is_empty() {
        progress.says(&format!("{}: whom the damage touches", state.group));
    }
    let mut as_such = Vec::new();
    if depth == Depth::Full {
        let unsure = spots.iter().filter(|(_, place)| place.is_none());
        let mut unsure: BTreeSet<PackId> =
            unsure.filter_map(|(damage, _)| pack::id_of(&damage.object)).collect();
        unsure.extend(&packs_as_such);
        unsure.extend(state.emptied_into(&unsure));
        let exact = unreadable_in(reader, state, &unsure, options, progress).await?;
        let is_as_such = |(damage, place): &Spot| {
            place.is_none() && (damage.object.starts_with("packs/") || damage.object.starts_with("keys/"))
        };
        as_such = spots.extract_if(.., |spot| is_as_such(spot)).map(|(damage, _)| damage).collect();
        spots.extend(exact);
    }
    if state.moves() > 0 {
        checked.dead_blobs = leave_out_dead(reader, state, &mut spots, options, progress).await?;
    }
    checked.damaged_packs = spots.iter().filter_map(|(_, place)| place.map(|(pack, _)| pack)).collect();
    checked.damaged_packs.extend(packs_as_such);
    checked.packs_are_told = !spots.iter().any(|(damage, _)| damage.object.starts_with("keys/"));
    let found = FoundFirst { spots, as_such, gaps };
    whom(reader, state, found, depth == Depth::Full, options, &mut checked).await?;
    Ok(checked)
}

/// A compaction moves what is live. A patch that is dead, in a pack that stays, may then stand on nothing: that is no damage.
/// Leaves out of `spots` the places in which nothing live lies; returns how many those are.
async fn leave_out_dead(
    reader: &Reader,
    state: &GroupState,
    spots: &mut Vec<Spot>,
    options: &MarkOptions,
    progress: &dyn Progress,
) -> Result<u64, StoreError> {
    let mut dead: BTreeSet<Place> = spots.iter().filter_map(|(_, place)| *place).collect();
    let mut from = 0;
    while !dead.is_empty() {
        let lives = Lives::of(reader, state, from, options, progress).await?;
        // Where not all is told, nothing is called dead.
        if !lives.damage.is_empty() {
            return Ok(0);
        }
        dead.retain(|(pack, offset)| !lives.holds(*pack, *offset));
        match lives.range.end().checked_add(1) {
            Some(next) => from = next,
            None => break,
        }
    }
    let before = spots.len();
    spots.retain(|(_, place)| place.is_none_or(|place| !dead.contains(&place)));
    Ok((before - spots.len()) as u64)
}

/// Logs that do not reach from a point's base to its second position without a gap.
async fn log_gaps(reader: &Reader, state: &GroupState) -> Result<Vec<Gap>, StoreError> {
    let mut gaps = Vec::new();
    // Points that follow each other mostly share a timeline.
    let mut last: Option<(TimelineId, Vec<SegmentName>)> = None;
    for point in state.live_points() {
        let manifest =
            match Manifest::read(&reader.store, &state.group, point.id(), &point.said.manifest).await {
                Ok(manifest) => manifest,
                // It is named by whoever marks.
                Err(StoreError::Damaged(_)) => continue,
                Err(other) => return Err(other),
            };
        for item in &manifest.items {
            let Some(log) = &item.log else { continue };
            if last.as_ref().is_none_or(|(timeline, _)| *timeline != log.timeline) {
                let (group, site) = (&state.group, &manifest.site);
                let segments = logs::list_of_site(&reader.store, group, &log.timeline, None, site).await?;
                last = Some((log.timeline, segments));
            }
            let segments = last.as_ref().map_or(&[][..], |(_, segments)| segments.as_slice());
            if !logs::covers(segments, &log.base, &log.p2) {
                let why = format!(
                    "the log does not reach from {}:{} to {}:{} without a gap",
                    log.base.file, log.base.offset, log.p2.file, log.p2.offset
                );
                let object = format!("logs/{}/{}/", state.group, log.timeline);
                gaps.push((Damage::new(object, why), point.id(), item.id.clone()));
            }
        }
    }
    Ok(gaps)
}

#[derive(Default)]
struct PackRead {
    blobs: u64,
    bytes: u64,
    damage: Vec<Spot>,
}

/// Reads a pack from end to end, and opens and hashes everything in it.
async fn whole_pack(reader: &Reader, id: PackId) -> Result<PackRead, StoreError> {
    let name = object_key(&id);
    let mut read = PackRead::default();
    let object = match reader.store.get(&name).await {
        Ok(object) => object,
        Err(StoreError::Damaged(found)) => {
            read.damage.extend(found.into_iter().map(|damage| (damage, None)));
            return Ok(read);
        }
        Err(other) => return Err(other),
    };
    if let Err(why) = pack::check_whole(&id, &object.bytes) {
        // Which blobs are hit is told below, if the index still opens; the hash alone says that something is.
        read.damage.push((Damage::new(&name, why), None));
    }
    let key: Option<[u8; 16]> = object.bytes.get(32..48).and_then(|key| key.try_into().ok());
    let Some(key) = key.map(Hex) else { return Ok(read) };
    let index = match pack::fetch_index(&reader.store, &reader.opener, &id, key).await {
        Ok((index, _)) => index,
        Err(StoreError::Damaged(found)) => {
            read.damage.extend(found.into_iter().map(|damage| (damage, None)));
            return Ok(read);
        }
        Err(other) => return Err(other),
    };
    if index.entries.iter().any(|entry| entry.kind == BlobKind::Moves as u8) {
        match reader.moved_index(id).await {
            Ok(_) => {}
            Err(StoreError::Damaged(found)) => read.damage.extend(found.into_iter().map(|d| (d, None))),
            Err(other) => return Err(other),
        }
    }
    let mut hit = Vec::new();
    for kind in [BlobKind::Block, BlobKind::Node] {
        let of_kind = index.entries.iter().filter(|entry| match kind {
            BlobKind::Block => entry.is_block(),
            _ => entry.kind == kind as u8,
        });
        let blobs = of_kind.map(|entry| {
            let at = Location { pack: id, key, offset: entry.offset, len: entry.len };
            BlobRef { id: entry.id, at }
        });
        for (blob, looked) in reader.verify_blobs(kind, id, object.bytes.clone(), blobs.collect()).await? {
            match looked {
                Ok(raw_bytes) => {
                    read.blobs += 1;
                    read.bytes += raw_bytes;
                }
                Err(damage) => hit.push((damage, Some((id, blob.at.offset)))),
            }
        }
    }
    if !hit.is_empty() {
        // Now it is known exactly where.
        read.damage = hit;
    }
    Ok(read)
}

/// What was found, before it is known whom it touches.
struct FoundFirst {
    spots: Vec<Spot>,
    /// Damage of objects of which every blob was looked at by itself.
    as_such: Vec<Damage>,
    gaps: Vec<Gap>,
}

/// What block maps name in these packs and what cannot be read. A pack may be damaged where nobody needs it, or its blobs
/// may have been moved since.
async fn unreadable_in(
    reader: &Reader,
    state: &GroupState,
    packs: &BTreeSet<PackId>,
    options: &MarkOptions,
    progress: &dyn Progress,
) -> Result<Vec<Spot>, StoreError> {
    let mut spots = Vec::new();
    if packs.is_empty() {
        return Ok(spots);
    }
    let wanted = Wanted::of(reader, state, packs, options, progress).await?;
    for kind in [BlobKind::Block, BlobKind::Node] {
        let of_kind = wanted.named.values().flatten().filter(|(is, _)| *is == kind);
        let mut blobs: Vec<BlobRef> = of_kind.map(|(_, blob)| *blob).collect();
        blobs.sort_unstable_by_key(|blob| (blob.at.pack, blob.at.offset));
        for some in chunks(&blobs, LOOK_BYTES, LOOK_BLOBS) {
            for (blob, part) in reader.parts(kind, some.to_vec(), &ReadStats::default()).await? {
                let place = Some((blob.at.pack, blob.at.offset));
                spots.extend(part.err().map(|damage| (damage, place)));
            }
        }
    }
    Ok(spots)
}

/// Attributes damage to the points and items that reach it: each item is walked once more, by itself.
async fn whom(
    reader: &Reader,
    state: &GroupState,
    FoundFirst { spots, as_such, gaps }: FoundFirst,
    all_read: bool,
    options: &MarkOptions,
    checked: &mut Checked,
) -> Result<(), StoreError> {
    let mut found: BTreeMap<Name, Found> = BTreeMap::new();
    let mut places: BTreeMap<Name, BTreeSet<Option<Place>>> = BTreeMap::new();
    for (damage, place) in spots {
        let name = (damage.object.clone(), damage.why.clone());
        places.entry(name.clone()).or_default().insert(place);
        found.entry(name).or_insert(Found { damage, touches: Vec::new() });
    }
    for damage in as_such {
        let name = (damage.object.clone(), damage.why.clone());
        places.entry(name.clone()).or_default();
        found.entry(name).or_insert(Found { damage, touches: Vec::new() });
    }
    let mut touched: BTreeSet<PointId> = BTreeSet::new();
    if !found.is_empty() {
        let points: Vec<&CommittedPoint> = state.live_points().collect();
        for point in points {
            let manifest =
                match Manifest::read(&reader.store, &state.group, point.id(), &point.said.manifest).await {
                    Ok(manifest) => manifest,
                    Err(StoreError::Damaged(damage)) => {
                        touched.insert(point.id());
                        for damage in damage {
                            let name = (damage.object.clone(), damage.why.clone());
                            let one = found.entry(name).or_insert(Found { damage, touches: Vec::new() });
                            one.touches.push((point.id(), None));
                        }
                        continue;
                    }
                    Err(other) => return Err(other),
                };
            for item in &manifest.items {
                let whose: Vec<Option<Place>> = places.values().flatten().copied().collect();
                let reach = reached(reader, state, item, &whose, all_read, options).await?;
                let log = item.log.as_ref().map(|log| format!("logs/{}/{}/", state.group, log.timeline));
                for (name, one) in &mut found {
                    let is_met = |place: &Option<Place>| match place {
                        // A place that is known exactly has to be reached exactly.
                        Some(place) => reach.places.contains(place),
                        None => reach.objects.contains(&name.0),
                    };
                    let hit = match places.get(name) {
                        Some(places) => places.iter().any(is_met),
                        None => is_met(&None),
                    };
                    if hit || log.as_ref().is_some_and(|log| name.0.starts_with(log)) {
                        one.touches.push((point.id(), Some(item.id.clone())));
                        touched.insert(point.id());
                    }
                }
            }
        }
    }
    for (damage, point, item) in gaps {
        let name = (damage.object.clone(), damage.why.clone());
        let one = found.entry(name).or_insert(Found { damage, touches: Vec::new() });
        one.touches.push((point, Some(item)));
        touched.insert(point);
    }
    checked.damage = found.into_values().collect();
    checked.untouched =
        state.live_points().map(CommittedPoint::id).filter(|id| !touched.contains(id)).collect::<Vec<_>>();
    checked.untouched.reverse();
    checked.newest_good = state.default_points().map(CommittedPoint::id).find(|id| !touched.contains(id));
    Ok(())
}
