//! References of blobs come in; their raw bytes go to the caller, each authenticated by its seal. Patches are resolved
//! here: the bases that a batch needs are gathered in waves, one for each depth, each wave with few large requests.
//!
//! What must hold: a blob that cannot be had is named and spoils no other; memory is that of one batch: its sealed bytes
//! once (opened in place), the gaps between them, and its bases.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use super::damage;
use super::encoded::{self, Encoded};
use super::moved::{Whence, whence};
use super::ranges::{self, Request};
use super::{ReadStats, Reader};
use crate::backend::BackendError;
use crate::blob::{BlobRef, MAX_PATCH_DEPTH};
use crate::group::Group;
use crate::keys::BlobId;
use crate::pack::{PackId, object_key};
use crate::seal::{BlobKind, ContentKey, ContentKeyId, GROUP};
use crate::{Damage, StoreError, named};

/// Requests of one batch that are under way at once.
const REQUESTS: usize = 8;

/// Where a blob or a group lies, as far as it names its bytes.
type Place = (PackId, u32, u32);

fn place(blob: &BlobRef) -> Place {
    (blob.at.pack, blob.at.offset, blob.at.len)
}

/// Bytes that one request brought.
struct Slab {
    pack: PackId,
    start: u64,
    bytes: Vec<u8>,
}

/// A blob or a group that was opened in place.
struct Opened {
    /// Of a group: one of its members.
    blob: BlobRef,
    slab: usize,
    plain: Range<usize>,
}

/// What need not be fetched.
#[derive(Default)]
pub(super) struct AtHand {
    /// A whole pack.
    pub(super) pack: Option<(PackId, Bytes)>,
    /// Raw bytes of blocks, hashed: patches may stand on them.
    pub(super) blocks: HashMap<BlobId, Vec<u8>>,
}

/// All that a batch has gathered.
pub(super) struct Batch {
    pub(super) kind: BlobKind,
    at_hand: HashMap<BlobId, Vec<u8>>,
    /// Where blobs are read that are not read where they are named.
    pub(super) moved: HashMap<Whence, BlobRef>,
    /// What was wrong where a blob was moved to, of blobs that are then looked for where they were before.
    at_home: HashMap<Whence, Damage>,
    slabs: Vec<Slab>,
    opened: HashMap<Place, Opened>,
    failed: HashMap<Place, Damage>,
    keys: HashMap<ContentKeyId, Result<Arc<ContentKey>, Damage>>,
}

impl Reader {
    /// Fetches and opens these blobs, and every base below them. `work` runs on a thread for blocking work, and asks the
    /// batch for the raw bytes of each.
    pub(super) async fn gather<T: Send + 'static>(
        &self,
        kind: BlobKind,
        wanted: Vec<BlobRef>,
        stats: &ReadStats,
        work: impl FnOnce(&Batch) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.gather_with(AtHand::default(), kind, wanted, stats, work).await
    }

    /// The same, with what is at hand already.
    pub(super) async fn gather_with<T: Send + 'static>(
        &self,
        at_hand: AtHand,
        kind: BlobKind,
        wanted: Vec<BlobRef>,
        stats: &ReadStats,
        work: impl FnOnce(&Batch) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut batch = Batch::of(kind);
        batch.at_hand = at_hand.blocks;
        let pack = at_hand.pack.map(|(pack, bytes)| Slab { pack, start: 0, bytes: Vec::from(bytes) });
        batch.slabs.extend(pack);
        let mut wave = wanted;
        let mut work = Some(work);
        // One wave for the blobs themselves, one for each depth of patches.
        for depth in 0..=MAX_PATCH_DEPTH {
            let named = std::mem::take(&mut wave);
            let mut opening = self.follow(&mut batch, named.clone()).await?;
            self.fetch(&mut batch, &opening, stats).await?;
            let last = depth == MAX_PATCH_DEPTH;
            let (mut next, mut named) = (Vec::new(), Some(named));
            loop {
                let this_work = work.take();
                let opened = tokio::task::spawn_blocking(move || {
                    next.extend(batch.open(opening));
                    // What could not be had is looked for elsewhere, once.
                    let broken = named.filter(|named| named.iter().any(|blob| batch.has_failed(blob)));
                    // The last wave's bases are beyond every chain: `raw` says so of the blobs that need them.
                    if broken.is_none() && (next.is_empty() || last) {
                        let done = this_work.map(|work| work(&batch));
                        (batch, next, None, None, done)
                    } else {
                        (batch, next, this_work, broken, None)
                    }
                });
                let (same, bases, unused, broken, done) = opened.await.map_err(|_| StoreError::Cancelled)?;
                if let Some(done) = done {
                    return Ok(done);
                }
                (batch, next, work) = (same, bases, unused);
                let Some(broken) = broken else { break };
                opening = self.other_places(&mut batch, &broken).await?;
                self.fetch(&mut batch, &opening, stats).await?;
                named = None;
            }
            wave = next;
        }
        Err(StoreError::Cancelled)
    }

    /// Brings what is not there yet: bytes and content keys.
    pub(super) async fn fetch(
        &self,
        batch: &mut Batch,
        blobs: &[BlobRef],
        stats: &ReadStats,
    ) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for blob in blobs {
            if !seen.insert(place(blob)) || batch.is_known(blob) {
                continue;
            }
            if !ranges::is_possible(blob) {
                batch.failed.insert(place(blob), damage::impossible(blob));
                continue;
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = batch.keys.entry(blob.at.key) {
                let key = match self.opener.content_key(&self.store, blob.at.key).await {
                    Ok(key) => Ok(key),
                    Err(StoreError::Damaged(mut found)) if !found.is_empty() => Err(found.swap_remove(0)),
                    Err(other) => return Err(other),
                };
                entry.insert(key);
            }
            if batch.slab_of(blob).is_none() {
                missing.push(*blob);
            }
        }
        let requests = ranges::requests(missing, self.limits.request_bytes);
        let cut = self.ask_all(batch, requests, stats).await?;
        // What lies before the cut is still there: each blob is asked for by itself.
        let single = |blob: BlobRef| {
            let (start, len) = (u64::from(blob.at.offset), u64::from(blob.at.sealed_bytes()));
            Request { pack: blob.at.pack, start, end: start + len, blobs: vec![blob] }
        };
        self.ask_all(batch, cut.into_iter().map(single).collect(), stats).await?;
        Ok(())
    }

    /// Returns the blobs of those requests whose object ended before them.
    async fn ask_all(
        &self,
        batch: &mut Batch,
        requests: Vec<Request>,
        stats: &ReadStats,
    ) -> Result<Vec<BlobRef>, StoreError> {
        let mut waiting = requests.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut cut = Vec::new();
        loop {
            while under_way.len() < REQUESTS
                && let Some(request) = waiting.next()
            {
                under_way.push(self.ask(request, stats));
            }
            match under_way.next().await {
                None => return Ok(cut),
                Some((request, Ok(bytes))) => batch.add(request.pack, request.start, bytes),
                Some((request, Err(BackendError::Unreadable { .. }))) if request.blobs.len() > 1 => {
                    cut.extend(request.blobs);
                }
                Some((request, Err(error))) => batch.fail(&request, error)?,
            }
        }
    }

    async fn ask(&self, request: Request, stats: &ReadStats) -> (Request, Result<Bytes, BackendError>) {
        let key = object_key(&request.pack);
        let answer = self.store.backend.get_range(&key, request.start..request.end).await;
        if let Ok(bytes) = &answer {
            stats.requests.fetch_add(1, Ordering::Relaxed);
            stats.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        (request, answer)
    }
}

impl Batch {
    pub(super) fn of(kind: BlobKind) -> Self {
        Self {
            kind,
            at_hand: HashMap::new(),
            moved: HashMap::new(),
            at_home: HashMap::new(),
            slabs: Vec::new(),
            opened: HashMap::new(),
            failed: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    fn add(&mut self, pack: PackId, start: u64, bytes: Bytes) {
        // No copy where these bytes are nobody else's.
        self.slabs.push(Slab { pack, start, bytes: Vec::from(bytes) });
    }

    /// Damage is kept with the blobs that it touches; a store that cannot be reached is an error.
    fn fail(&mut self, request: &Request, error: BackendError) -> Result<(), StoreError> {
        match named(&object_key(&request.pack), error) {
            StoreError::Damaged(found) => {
                for (blob, why) in request.blobs.iter().zip(found.iter().cycle()) {
                    self.failed.insert(place(blob), why.clone());
                }
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The place that is read for a blob.
    pub(super) fn now(&self, blob: &BlobRef) -> BlobRef {
        self.moved.get(&whence(blob)).copied().unwrap_or(*blob)
    }

    pub(super) fn has_failed(&self, blob: &BlobRef) -> bool {
        self.failed.contains_key(&place(&self.now(blob)))
    }

    /// A blob that could not be had is looked for in another place.
    pub(super) fn try_instead(&mut self, blob: &BlobRef, other: BlobRef) {
        let now = self.now(blob);
        if now != *blob
            && let Some(damage) = self.failed.get(&place(&now))
        {
            self.at_home.insert(whence(blob), damage.clone());
        }
        self.moved.insert(whence(blob), other);
    }

    fn is_known(&self, blob: &BlobRef) -> bool {
        self.opened.contains_key(&place(blob)) || self.failed.contains_key(&place(blob))
    }

    fn slab_of(&self, blob: &BlobRef) -> Option<usize> {
        let (start, len) = (u64::from(blob.at.offset), u64::from(blob.at.sealed_bytes()));
        self.slabs.iter().position(|slab| {
            slab.pack == blob.at.pack
                && slab.start <= start
                && start + len <= slab.start + slab.bytes.len() as u64
        })
    }

    /// Opens blobs in place. Returns the bases that they need and that are not open yet.
    pub(super) fn open(&mut self, blobs: Vec<BlobRef>) -> Vec<BlobRef> {
        let mut bases = Vec::new();
        for blob in blobs {
            if self.is_known(&blob) {
                continue;
            }
            match self.open_one(&blob) {
                Err(damage) => {
                    self.failed.insert(place(&blob), damage);
                }
                Ok(opened) => {
                    let plain = &self.slabs[opened.slab].bytes[opened.plain.clone()];
                    // No patch is in a group.
                    if !blob.at.is_grouped()
                        && let Some(Encoded::Patch { base, .. }) = Encoded::parse(plain)
                    {
                        bases.push(base);
                    }
                    self.opened.insert(place(&blob), opened);
                }
            }
        }
        bases.retain(|base| !self.is_known(base) && !self.at_hand.contains_key(&base.id));
        bases
    }

    fn open_one(&mut self, blob: &BlobRef) -> Result<Opened, Damage> {
        let key = match self.keys.get(&blob.at.key) {
            Some(Ok(key)) => key.clone(),
            Some(Err(damage)) => return Err(damage.clone()),
            None => return Err(damage::of(blob, "the content key of a blob was not read")),
        };
        let Some(slab) = self.slab_of(blob) else {
            return Err(damage::of(blob, "the bytes of a blob were not read"));
        };
        let start = (u64::from(blob.at.offset) - self.slabs[slab].start) as usize;
        let sealed = &mut self.slabs[slab].bytes[start..start + blob.at.sealed_bytes() as usize];
        let (kind, id) = match (self.kind, blob.at.is_grouped()) {
            (BlobKind::Block, true) => (BlobKind::Group, &GROUP),
            (_, true) => return Err(damage::of(blob, format!("{} is no block", at(blob)))),
            (kind, false) => (kind, &blob.id.0),
        };
        match key.open_in_place(kind, id, sealed) {
            Some(plain) => Ok(Opened { blob: *blob, slab, plain: start + plain.start..start + plain.end }),
            None => Err(damage::of(blob, format!("{} does not open: its bytes were changed", at(blob)))),
        }
    }

    /// What stands inside the seal at this very place.
    pub(super) fn plain(&self, blob: &BlobRef) -> Result<&[u8], Damage> {
        if let Some(damage) = self.failed.get(&place(blob)) {
            return Err(self.at_home.get(&whence(blob)).unwrap_or(damage).clone());
        }
        match self.opened.get(&place(blob)) {
            // The same place under another id: opened as that one, which this is not.
            Some(opened)
                if opened.blob.at.key != blob.at.key
                    || (opened.blob.id != blob.id && !blob.at.is_grouped()) =>
            {
                Err(damage::of(blob, format!("{} does not open: it is another blob", at(blob))))
            }
            Some(opened) => Ok(&self.slabs[opened.slab].bytes[opened.plain.clone()]),
            None => Err(damage::of(blob, format!("{}: its patch chain is too long", at(blob)))),
        }
    }

    /// The raw bytes of a blob of this batch, through its patch bases if it has any. `room` is where they are
    /// decompressed to, and can be used again for the next.
    pub(super) fn raw<'a>(&'a self, blob: &BlobRef, room: &'a mut Room) -> Result<&'a [u8], Damage> {
        let nonsense = |blob: &BlobRef| damage::of(blob, format!("{} opens, but makes no sense", at(blob)));
        // From the blob down to what stands by itself.
        let mut patches: Vec<(BlobRef, usize, &[u8])> = Vec::new();
        let mut below = self.now(blob);
        let mut depth_left = MAX_PATCH_DEPTH;
        let Room { frame, group, now, next } = room;
        let whole = loop {
            if let Some(bytes) = self.at_hand.get(&below.id) {
                break &bytes[..];
            }
            if below.at.is_grouped() {
                break self.member(&below, group)?;
            }
            match Encoded::parse(self.plain(&below)?).ok_or_else(|| nonsense(&below))? {
                Encoded::Patch { base, depth, raw_len, payload } => {
                    if depth > depth_left {
                        let why = format!("{}: its patch chain is too long", at(&below));
                        return Err(damage::of(&below, why));
                    }
                    depth_left = depth - 1;
                    patches.push((below, raw_len, payload));
                    below = self.now(&base);
                }
                Encoded::Raw(bytes) => break bytes,
                Encoded::Zstd { raw_len, payload } => {
                    if !encoded::inflate(payload, raw_len, frame) {
                        return Err(nonsense(&below));
                    }
                    break &frame[..];
                }
            }
        };
        if patches.is_empty() {
            return Ok(whole);
        }
        now.clear();
        now.extend_from_slice(whole);
        for (patch, raw_len, payload) in patches.into_iter().rev() {
            if !encoded::patch(now, payload, raw_len, next) {
                return Err(damage::of(&patch, format!("{}: its patch does not apply", at(&patch))));
            }
            std::mem::swap(now, next);
        }
        Ok(now)
    }

    /// The raw bytes of a block that is in a group.
    fn member<'a>(&self, blob: &BlobRef, last: &'a mut OneGroup) -> Result<&'a [u8], Damage> {
        let nonsense = || damage::of(blob, format!("{} opens, but makes no sense", at(blob)));
        let group = Group::parse(self.plain(blob)?).ok_or_else(nonsense)?;
        let this = Some((place(blob), blob.at.key));
        if last.place != this {
            last.place = None;
            if !group.inflate(&mut last.raw) {
                return Err(nonsense());
            }
            last.place = this;
        }
        let member = group.place_of(&blob.id).and_then(|place| last.raw.get(place));
        member.ok_or_else(|| damage::of(blob, format!("{} does not hold {}", at(blob), blob.id)))
    }
}

/// Room for a blob's bytes, for a patch's base and what it makes of it, and for the group that was opened last: its
/// members mostly come one after the other.
#[derive(Default)]
pub(super) struct Room {
    frame: Vec<u8>,
    group: OneGroup,
    now: Vec<u8>,
    next: Vec<u8>,
}

#[derive(Default)]
struct OneGroup {
    place: Option<(Place, ContentKeyId)>,
    raw: Vec<u8>,
}

fn at(blob: &BlobRef) -> String {
    let what = if blob.at.is_grouped() { "group" } else { "blob" };
    format!("the {what} at {}+{}", blob.at.offset, blob.at.sealed_bytes())
}
