//! From a block map back to bytes. Every byte is authenticated twice before it is used: by the seal, and by its
//! keyed hash. What is damaged or missing is named by its object.
//!
//! The way back: [`walk`] says which blocks belong where, [`gather`] fetches and opens them (patches with their bases) in
//! batches, and each batch is decompressed, checked and written by one thread; several batches are under way at once.
//! What must hold: memory is what [`ReadLimits`] says and not what the item is.

mod damage;
pub(crate) mod encoded;
mod gather;
mod lazy;
mod moved;
mod over;
mod parts;
mod ranges;
mod small;
mod walk;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farsite_model::content::WriteAt;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};

use self::damage::Found;
use self::gather::{AtHand, Room};
use self::walk::{Block, Part, Walk};
use crate::blob::BlobRef;
use crate::keys::BlobId;
use crate::map::{MapRoot, Node};
use crate::pack::{PackId, object_key};
use crate::seal::{BlobKind, Opener};
use crate::{Damage, Store, StoreError};

pub use lazy::LazyItem;
pub use over::Standing;

/// Limits of reading. Peak memory is about `batch_bytes × batches × 2`; where small blobs lie far apart, or nearly all
/// blocks are patches, up to twice that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Raw bytes that one thread decompresses, checks and writes in one go.
    pub batch_bytes: u64,
    /// Batches under way at once.
    pub batches: usize,
    /// The longest request.
    pub request_bytes: u64,
}

impl ReadLimits {
    /// Fits reading into `memory_bytes`.
    pub fn within(memory_bytes: u64) -> Self {
        let batch_bytes = (memory_bytes / 16).clamp(1 << 20, 4 << 20);
        // Eight hide the latency of a far store; more would only wait for the cores.
        let batches = (memory_bytes / (batch_bytes * 4)).clamp(2, 8) as usize;
        Self { batch_bytes, batches, request_bytes: 2 * batch_bytes }
    }
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self::within(64 << 20)
    }
}

/// Reads items of one store.
#[derive(Clone)]
pub struct Reader {
    pub store: Store,
    pub opener: Arc<Opener>,
    pub limits: ReadLimits,
    moves: Arc<moved::Moves>,
}

/// How far a restore or a verification has come.
#[derive(Debug, Default)]
pub struct ReadStats {
    /// Requests to the store for parts of packs, and what they brought.
    pub requests: AtomicU64,
    pub fetched_bytes: AtomicU64,
    /// Checked, and written where there is a destination.
    pub written_bytes: AtomicU64,
    /// What stood at the destination as it should, as far as it was compared by reading.
    pub unchanged_bytes: AtomicU64,
    /// What was made to read as zeros.
    pub punched_bytes: AtomicU64,
}

impl Reader {
    pub fn new(store: Store, opener: Arc<Opener>) -> Self {
        Self { store, opener, limits: ReadLimits::default(), moves: Arc::default() }
    }

    /// Writes an item to an empty target and makes it durable.
    pub async fn restore(
        &self,
        map: &MapRoot,
        target: Arc<dyn WriteAt>,
        stats: &ReadStats,
    ) -> Result<(), StoreError> {
        let damage = self.each_block(map, Some(target.clone()), stats).await?;
        if !damage.is_empty() {
            return Err(StoreError::Damaged(damage));
        }
        finish(target, map.size_bytes).await
    }

    /// Opens and re-hashes every block of an item. Returns what is damaged; other errors (a store that cannot be
    /// reached) are errors.
    pub async fn verify(&self, map: &MapRoot, stats: &ReadStats) -> Result<Vec<Damage>, StoreError> {
        self.each_block(map, None, stats).await
    }

    async fn each_block(
        &self,
        map: &MapRoot,
        target: Option<Arc<dyn WriteAt>>,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        if map.root.is_none() {
            return Ok(Vec::new());
        }
        refuse_impossible(map)?;
        let to = target.map_or(Destination::Nowhere, Destination::Empty);
        self.run(map, Walk::whole(self, map, stats), &to, stats).await
    }

    /// Does all jobs of a walk, several at once, while the walk goes on ahead. Returns what is damaged.
    async fn run(
        &self,
        map: &MapRoot,
        mut walk: Walk<'_>,
        to: &Destination,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        let blocks = (self.limits.batch_bytes / u64::from(map.block_bytes)).max(1) as usize;
        // One part waits while another is worked on.
        let (ahead, mut parts) = tokio::sync::mpsc::channel(1);
        let walking = async move {
            while let Some(part) = walk.next().await? {
                if ahead.send(part).await.is_err() {
                    break;
                }
            }
            Ok::<_, StoreError>(())
        };
        let working = async {
            let mut found = Found::default();
            let mut waiting: VecDeque<Job> = VecDeque::new();
            let mut under_way = FuturesUnordered::new();
            let mut ended = false;
            loop {
                while under_way.len() < self.limits.batches
                    && let Some(job) = waiting.pop_front()
                {
                    under_way.push(self.job(map, job, to, stats).boxed());
                }
                let is_idle = under_way.len() < self.limits.batches;
                tokio::select! {
                    part = parts.recv(), if is_idle && !ended => match part {
                        Some(part) => waiting.extend(jobs(part, blocks, self.limits.batch_bytes)),
                        None => ended = true,
                    },
                    Some(done) = under_way.next() => found.extend(found_in(done)?),
                    else => return Ok(found.into_vec()),
                }
            }
        };
        let ((), damage) = futures::future::try_join(walking, working).await?;
        Ok(damage)
    }

    async fn job(
        &self,
        map: &MapRoot,
        mut job: Job,
        to: &Destination,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        let mut damage = std::mem::take(&mut job.damage);
        damage.extend(match to {
            Destination::Nowhere => self.write(map, job.blocks, AtHand::default(), None, stats).await?,
            Destination::Empty(target) => {
                self.write(map, job.blocks, AtHand::default(), Some(target.clone()), stats).await?
            }
            Destination::Copy(copy) => self.put_right(map, job, copy.clone(), stats).await?,
        });
        Ok(damage)
    }

    /// Fetches, checks and writes these blocks. Returns what is damaged.
    async fn write(
        &self,
        map: &MapRoot,
        blocks: Vec<Block>,
        at_hand: AtHand,
        target: Option<Arc<dyn WriteAt>>,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let blobs = blocks.iter().map(|block| block.blob).collect();
        let (secret, map) = (self.opener.secret.clone(), map.clone());
        let (written, damage) = self
            .gather_with(at_hand, BlobKind::Block, blobs, stats, move |batch| {
                let (mut room, mut damage, mut written) = (Room::default(), Vec::new(), 0);
                for Block { number, blob, .. } in blocks {
                    let offset = number * u64::from(map.block_bytes);
                    let expected = u64::from(map.block_bytes).min(map.size_bytes.saturating_sub(offset));
                    let raw = match batch.raw(&blob, &mut room) {
                        Ok(raw) => raw,
                        Err(why) => {
                            damage.push(why);
                            continue;
                        }
                    };
                    if secret.block_id(raw) != blob.id {
                        damage.push(damage::wrong_hash(&blob));
                    } else if raw.len() as u64 != expected {
                        let why =
                            format!("a block at offset {offset} has {} bytes, not {expected}", raw.len());
                        damage.push(damage::of(&blob, why));
                    } else {
                        if let Some(target) = &target {
                            target.write_all_at(raw, offset).map_err(|source| {
                                let what = format!("the restored item at {offset}");
                                StoreError::Destination { what, source }
                            })?;
                        }
                        written += expected;
                    }
                }
                Ok::<_, StoreError>((written, damage))
            })
            .await??;
        stats.written_bytes.fetch_add(written, Ordering::Relaxed);
        Ok(damage)
    }

    /// Opens blobs of one pack, whose bytes are at hand, and hashes them again; of each its raw length, or what is wrong.
    pub(crate) async fn verify_blobs(
        &self,
        kind: BlobKind,
        pack: PackId,
        bytes: bytes::Bytes,
        blobs: Vec<BlobRef>,
    ) -> Result<Vec<(BlobRef, Result<u64, Damage>)>, StoreError> {
        let secret = self.opener.secret.clone();
        let wanted = blobs.clone();
        let at_hand = AtHand { pack: Some((pack, bytes)), ..AtHand::default() };
        self.gather_with(at_hand, kind, wanted, &ReadStats::default(), move |batch| {
            let mut room = Room::default();
            let looked = blobs.into_iter().map(|blob| {
                let raw = batch.raw(&blob, &mut room);
                let result = raw.and_then(|raw| {
                    let id = match kind {
                        BlobKind::Node => Node::parse(raw).map(|(logical, _)| secret.node_id(logical)),
                        _ => Some(secret.block_id(raw)),
                    };
                    if id == Some(blob.id) { Ok(raw.len() as u64) } else { Err(damage::wrong_hash(&blob)) }
                });
                (blob, result)
            });
            looked.collect()
        })
        .await
    }

    /// The packs that an item's map reaches, with the number of its blobs in each.
    pub async fn packs_of(&self, map: &MapRoot) -> Result<BTreeMap<PackId, u64>, StoreError> {
        let mut packs = BTreeMap::new();
        let mut seen: HashSet<BlobId> = HashSet::new();
        let mut stack: Vec<(BlobRef, u8)> = map.root.iter().map(|r| (*r, map.root_level())).collect();
        while let Some((node_ref, level)) = stack.pop() {
            if !seen.insert(node_ref.id) {
                continue;
            }
            *packs.entry(node_ref.at.pack).or_default() += 1;
            for child in self.node(&node_ref, level).await?.children.iter().flatten() {
                if level > 0 {
                    stack.push((*child, level - 1));
                } else {
                    *packs.entry(child.at.pack).or_default() += 1;
                }
            }
        }
        Ok(packs)
    }
}

/// Where the bytes go.
enum Destination {
    /// They are only checked.
    Nowhere,
    Empty(Arc<dyn WriteAt>),
    /// Something stands there.
    Copy(Arc<dyn Standing>),
}

/// What one thread does in one go.
#[derive(Default)]
struct Job {
    blocks: Vec<Block>,
    holes: Vec<walk::Hole>,
    damage: Vec<Damage>,
}

/// A job has at most so many blocks, and they are not in more groups than can be fetched at once: of each a whole group
/// may be needed.
fn jobs(part: Part, most_blocks: usize, batch_bytes: u64) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    let (mut bytes, mut last) = (0, None);
    for block in part.blocks {
        let at = block.blob.at;
        let place = Some((at.pack, at.offset));
        let more = if place == last { 0 } else { u64::from(at.sealed_bytes()) };
        last = place;
        match jobs.last_mut() {
            Some(job) if job.blocks.len() < most_blocks && bytes + more <= batch_bytes => {
                bytes += more;
                job.blocks.push(block);
            }
            _ => {
                bytes = u64::from(at.sealed_bytes());
                jobs.push(Job { blocks: vec![block], ..Job::default() });
            }
        }
    }
    let damage = part.damage.into_vec();
    if !part.holes.is_empty() || !damage.is_empty() {
        jobs.push(Job { holes: part.holes, damage, blocks: Vec::new() });
    }
    jobs
}

fn found_in(result: Result<Vec<Damage>, StoreError>) -> Result<Vec<Damage>, StoreError> {
    match result {
        Err(StoreError::Damaged(found)) => Ok(found),
        other => other,
    }
}

fn refuse_impossible(map: &MapRoot) -> Result<(), StoreError> {
    match map.root {
        Some(root) if !map.is_possible() => Err(StoreError::Damaged(vec![Damage::new(
            object_key(&root.at.pack),
            "the size or block size of its block map is not possible",
        )])),
        _ => Ok(()),
    }
}

async fn finish(target: Arc<dyn WriteAt>, size_bytes: u64) -> Result<(), StoreError> {
    tokio::task::spawn_blocking(move || target.finish(size_bytes))
        .await
        .map_err(|_| StoreError::Cancelled)?
        .map_err(|source| StoreError::Destination { what: "the restored item".into(), source })
}
