//! Places that block maps and patches name come in; where those blobs are since compaction goes out. Nothing is asked of
//! anybody as long as the named packs are there; only when one is missing or damaged, the ledgers are read for where its
//! blobs went.
//!
//! What must hold: a blob is looked for where it is now, and where it was before, before it is called damaged; what a store
//! without compactions costs more is nothing; memory is one list of compacted packs and a bounded cache of their indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farsite_model::GroupName;

use super::Reader;
use super::encoded;
use super::gather::Batch;
use crate::blob::BlobRef;
use crate::keys::BlobId;
use crate::ledger::{self, GroupState, Ledger};
use crate::moves::{self, MovedIndex};
use crate::pack::{self, PackId};
use crate::seal::{BlobKind, ContentKeyObject};
use crate::{Damage, StoreError};

/// Indexes of compacted packs that are kept: enough for about 20 GiB of an item in blocks of 64 KiB.
const CACHE_BYTES: usize = 16 << 20;
/// Whether a pack was compacted is not asked more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const ASKED: usize = 10_000;
/// Who needs the same index waits for the other one's reading of it.
const LANES: usize = 16;

/// A blob's place with its id: several blobs may share a place.
pub(super) type Whence = (PackId, u32, BlobId);

pub(super) fn whence(blob: &BlobRef) -> Whence {
    (blob.at.pack, blob.at.offset, blob.id)
}

/// What a reader knows of compactions; shared by its clones.
#[derive(Default)]
pub(crate) struct Moves {
    known: Mutex<Known>,
    indexes: Mutex<Cache>,
    lanes: [tokio::sync::Mutex<()>; LANES],
    ledgers: tokio::sync::Mutex<HashMap<GroupName, Ledger>>,
}

#[derive(Default)]
struct Known {
    to: BTreeMap<PackId, Vec<PackId>>,
    /// Of these, the ones that stay.
    kept: BTreeSet<PackId>,
    /// How many compactions of each group are in it.
    learned: HashMap<GroupName, usize>,
    /// Packs that were asked about.
    asked: HashMap<PackId, Instant>,
}

#[derive(Default)]
struct Cache {
    entries: HashMap<PackId, (Arc<MovedIndex>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    fn get(&mut self, pack: &PackId) -> Option<Arc<MovedIndex>> {
        self.clock += 1;
        let (index, used) = self.entries.get_mut(pack)?;
        *used = self.clock;
        Some(index.clone())
    }

    /// What was not used for longest makes room, half of all at once.
    fn put(&mut self, pack: PackId, index: &Arc<MovedIndex>) {
        if self.bytes + index.bytes() > CACHE_BYTES {
            let mut used: Vec<(u64, PackId)> =
                self.entries.iter().map(|(id, (_, used))| (*used, *id)).collect();
            used.sort_unstable();
            for (_, pack) in used {
                if self.bytes + index.bytes() <= CACHE_BYTES / 2 {
                    break;
                }
                if let Some((gone, _)) = self.entries.remove(&pack) {
                    self.bytes -= gone.bytes();
                }
            }
        }
        self.clock += 1;
        if self.entries.insert(pack, (index.clone(), self.clock)).is_none() {
            self.bytes += index.bytes();
        }
    }
}

impl Moves {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of this lock panics")
    }
    fn indexes(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.indexes.lock().expect("no holder of this lock panics")
    }
    fn learn(&self, state: &GroupState) {
        let mut known = self.known();
        if known.learned.get(&state.group).copied().unwrap_or_default() < state.moves() {
            for (from, to) in &state.remapped {
                known.to.insert(*from, to.clone());
                if state.stays(*from) {
                    known.kept.insert(*from);
                } else {
                    known.kept.remove(from);
                }
            }
            known.learned.insert(state.group.clone(), state.moves());
        }
    }
    /// Where the blobs of this pack went; empty: nowhere, as far as is known.
    fn homes(&self, pack: PackId) -> Vec<PackId> {
        let known = self.known();
        if known.to.contains_key(&pack) { ledger::resolve(&known.to, &known.kept, pack) } else { Vec::new() }
    }
}

impl Reader {
    /// Tells this reader and its clones what a ledger says of compactions, so that it need not find out.
    pub fn learn(&self, state: &GroupState) {
        self.moves.learn(state);
    }

    /// A compacted pack's former places.
    pub(crate) async fn moved_index(&self, pack: PackId) -> Result<Arc<MovedIndex>, StoreError> {
        if let Some(index) = self.moves.indexes().get(&pack) {
            return Ok(index);
        }
        let _lane = self.moves.lanes[usize::from(pack.0[15]) % LANES].lock().await;
        if let Some(index) = self.moves.indexes().get(&pack) {
            return Ok(index);
        }
        let key = pack::read_header(&self.store, &pack).await?;
        let (index, _) = pack::fetch_index(&self.store, &self.opener, &pack, key).await?;
        let name = pack::object_key(&pack);
        let damaged = |why: &str| StoreError::Damaged(vec![Damage::new(&name, why)]);
        let content_key = self.opener.content_key(&self.store, key).await?;
        let (mut rows, mut number) = (Vec::new(), 0);
        for line in index.entries.iter().filter(|line| line.kind == BlobKind::Moves as u8) {
            let range = u64::from(line.offset)..u64::from(line.offset) + u64::from(line.len);
            let sealed = self.store.get_range(&name, range).await?;
            let plain = content_key
                .open(BlobKind::Moves, &moves::table_id(&pack, number).0, &sealed)
                .ok_or_else(|| damaged("its table of former places does not open: its bytes were changed"))?;
            let table = encoded::whole(&plain).and_then(|raw| moves::decode(&raw));
            rows.extend(table.ok_or_else(|| damaged("its table of former places makes no sense"))?);
            number += 1;
        }
        let index = Arc::new(MovedIndex::new(pack, key, index.entries, rows));
        self.moves.indexes().put(pack, &index);
        Ok(index)
    }

    /// Where a blob is now, if its pack was compacted and it was moved; damage in an index only hides it.
    async fn moved_to(&self, kind: BlobKind, blob: &BlobRef) -> Result<Option<BlobRef>, StoreError> {
        for home in self.moves.homes(blob.at.pack) {
            match self.moved_index(home).await {
                Ok(index) => {
                    if let Some(found) = index.find(kind, blob) {
                        return Ok(Some(found));
                    }
                }
                Err(StoreError::Damaged(found)) => {
                    for damage in found {
                        tracing::warn!(
                            "looking for what lay in {}: {damage}",
                            pack::object_key(&blob.at.pack)
                        );
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    /// Each blob as it lies now.
    pub(crate) async fn now_at(&self, kind: BlobKind, blobs: &[BlobRef]) -> Result<Vec<BlobRef>, StoreError> {
        let mut now = Vec::with_capacity(blobs.len());
        for blob in blobs {
            now.push(self.moved_to(kind, blob).await?.unwrap_or(*blob));
        }
        Ok(now)
    }

    /// The places to read for these blobs; the batch remembers which is whose.
    pub(super) async fn follow(
        &self,
        batch: &mut Batch,
        blobs: Vec<BlobRef>,
    ) -> Result<Vec<BlobRef>, StoreError> {
        if self.moves.known().to.is_empty() {
            return Ok(blobs);
        }
        let mut now = Vec::with_capacity(blobs.len());
        for blob in blobs {
            let moved = match batch.moved.get(&whence(&blob)) {
                Some(moved) => Some(*moved),
                None => self.moved_to(batch.kind, &blob).await?,
            };
            if let Some(moved) = moved {
                batch.moved.insert(whence(&blob), moved);
            }
            now.push(moved.unwrap_or(blob));
        }
        Ok(now)
    }

    /// Of blobs that could not be had: the places where they may be had all the same. A blob is offered here once.
    pub(super) async fn other_places(
        &self,
        batch: &mut Batch,
        blobs: &[BlobRef],
    ) -> Result<Vec<BlobRef>, StoreError> {
        let failed: Vec<BlobRef> = blobs.iter().filter(|blob| batch.has_failed(blob)).copied().collect();
        let strange: HashSet<PackId> = failed
            .iter()
            .map(|blob| blob.at.pack)
            .filter(|pack| self.moves.homes(*pack).is_empty())
            .collect();
        for pack in strange {
            if let Some(blob) = failed.iter().find(|blob| blob.at.pack == pack) {
                self.ask_ledgers(blob).await?;
            }
        }
        let mut others = Vec::new();
        for blob in failed {
            let other = match batch.moved.get(&whence(&blob)) {
                // It is damaged where it was moved to: what was left behind may still be there.
                Some(moved) if *moved != blob => Some(blob),
                Some(_) => None,
                None => self.moved_to(batch.kind, &blob).await?,
            };
            if let Some(other) = other {
                batch.try_instead(&blob, other);
                others.push(other);
            }
        }
        Ok(others)
    }

    /// Reads on in the ledger of the group that this blob is of, or in all, when that cannot be told.
    async fn ask_ledgers(&self, blob: &BlobRef) -> Result<(), StoreError> {
        // Whoever asks meanwhile waits here, and finds the answer.
        let mut ledgers = self.moves.ledgers.lock().await;
        if self.moves.known().asked.get(&blob.at.pack).is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return Ok(());
        }
        let groups = match ContentKeyObject::read(&self.store, blob.at.key).await {
            Ok(body) => vec![body.group],
            Err(StoreError::Damaged(_)) => ledger::groups(&self.store).await?,
            Err(other) => return Err(other),
        };
        for group in groups {
            if let Some(ledger) = ledgers.get_mut(&group) {
                ledger.refresh_state().await?;
            } else {
                let mut ledger = Ledger::open(&self.store, &group).await?;
                ledger.refresh_state().await?;
                ledgers.insert(group.clone(), ledger);
            }
            if let Some(ledger) = ledgers.get(&group) {
                self.moves.learn(ledger.state());
            }
        }
        let mut known = self.moves.known();
        if known.asked.len() >= ASKED {
            known.asked.clear();
        }
        known.asked.insert(blob.at.pack, Instant::now());
        Ok(())
    }
}
