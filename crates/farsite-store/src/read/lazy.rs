//! An item that is read where it lies, at any offset, without a restore: ranges come in, bytes go out, each block opened
//! and hashed like in a restore. What must hold: memory is the cache's limit and what is being read at the moment; two
//! readers of the same place fetch it once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};

use super::gather::Room;
use super::{ReadStats, Reader, damage, refuse_impossible};
use crate::blob::BlobRef;
use crate::map::{FAN_OUT, MapRoot, Node};
use crate::seal::BlobKind;
use crate::{Damage, StoreError};

/// Who reads in order gets this much ahead of what is asked for.
const AHEAD_BYTES: u64 = 1 << 20;
/// Readers wait for one another only where they read the same place.
const LANES: usize = 64;
/// A node with 1024 children takes about this much.
const NODE_BYTES: usize = 80 << 10;

/// An item of one point.
pub struct LazyItem {
    reader: Reader,
    map: MapRoot,
    pub stats: ReadStats,
    blocks: Mutex<Cache<Bytes>>,
    nodes: Mutex<Cache<Arc<Node>>>,
    lanes: Vec<tokio::sync::Mutex<()>>,
}

impl LazyItem {
    /// Keeps up to `cache_bytes` of what was read.
    pub fn new(reader: Reader, map: MapRoot, cache_bytes: u64) -> Result<Self, StoreError> {
        refuse_impossible(&map)?;
        let cache_bytes = cache_bytes.max(16 << 20) as usize;
        Ok(Self {
            reader,
            map,
            stats: ReadStats::default(),
            blocks: Mutex::new(Cache::new(cache_bytes - cache_bytes / 4)),
            nodes: Mutex::new(Cache::new(cache_bytes / 4)),
            lanes: (0..LANES).map(|_| tokio::sync::Mutex::new(())).collect(),
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.map.size_bytes
    }
    pub fn block_bytes(&self) -> u32 {
        self.map.block_bytes
    }

    /// Exactly these bytes. A range that is not within the item is an error.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check(&range)?;
        let block_bytes = u64::from(self.map.block_bytes);
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut offset = range.start;
        while offset < range.end {
            let number = offset / block_bytes;
            let end = ((number + 1) * block_bytes).min(range.end);
            let inside = (offset - number * block_bytes) as usize..(end - number * block_bytes) as usize;
            match self.block(number, range.end.div_ceil(block_bytes)).await? {
                Some(bytes) => match bytes.get(inside) {
                    Some(part) => out.extend_from_slice(part),
                    None => return Err(StoreError::Cancelled),
                },
                None => out.resize(out.len() + inside.len(), 0),
            }
            offset = end;
        }
        Ok(out.freeze())
    }

    /// Where the first stretch of `range` ends, and whether it is a hole. A hole may be followed by another.
    pub async fn extent(&self, range: Range<u64>) -> Result<(u64, bool), StoreError> {
        self.check(&range)?;
        let block_bytes = u64::from(self.map.block_bytes);
        let number = range.start / block_bytes;
        let (first, node) = match self.leaf(number).await? {
            Found::Leaf(node) => (number / FAN_OUT * FAN_OUT, node),
            Found::Hole { end_block } => {
                return Ok((end_block.saturating_mul(block_bytes).min(range.end), true));
            }
        };
        let within = &node.children[((number - first) as usize).min(node.children.len())..];
        let is_hole = within.first().is_none_or(Option::is_none);
        let alike = within.iter().take_while(|child| child.is_none() == is_hole).count() as u64;
        let end = (number + alike.max(1)).saturating_mul(block_bytes);
        Ok((end.min(range.end), is_hole))
    }

    fn check(&self, range: &Range<u64>) -> Result<(), StoreError> {
        if range.start < range.end && range.end <= self.map.size_bytes {
            return Ok(());
        }
        Err(StoreError::Content {
            what: format!("bytes {} to {} of {}", range.start, range.end, self.map.size_bytes),
            source: std::io::ErrorKind::UnexpectedEof.into(),
        })
    }

    /// One block; `None` is a hole. `wanted_end` is the block behind the last one that the caller will ask for.
    async fn block(&self, number: u64, wanted_end: u64) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = lock(&self.blocks).get(number) {
            return Ok(Some(bytes));
        }
        let ahead = (AHEAD_BYTES / u64::from(self.map.block_bytes)).max(1);
        let _lane = self.lanes[(number / ahead % LANES as u64) as usize].lock().await;
        if let Some(bytes) = lock(&self.blocks).get(number) {
            return Ok(Some(bytes));
        }
        let Found::Leaf(node) = self.leaf(number).await? else { return Ok(None) };
        let first = number / FAN_OUT * FAN_OUT;
        let Some(Some(_)) = node.children.get((number - first) as usize) else { return Ok(None) };
        // Read ahead of a reader who comes along in order; not past this lane's place, nor this leaf.
        let in_order = number > 0 && lock(&self.blocks).holds(number - 1);
        let place_end = (number / ahead + 1) * ahead;
        let end = if in_order { place_end } else { wanted_end.clamp(number + 1, place_end) };
        let wanted: Vec<(u64, BlobRef)> = {
            let blocks = lock(&self.blocks);
            let children = node.children.iter().enumerate();
            children
                .filter_map(|(i, child)| child.map(|blob| (first + i as u64, blob)))
                .filter(|(n, _)| (number..end).contains(n) && !blocks.holds(*n))
                .collect()
        };
        let mut found = None;
        for (n, result) in self.fetch(wanted).await? {
            match result {
                Ok(bytes) => {
                    if n == number {
                        found = Some(bytes.clone());
                    }
                    let len = bytes.len();
                    lock(&self.blocks).put(n, bytes, len);
                }
                // What was only read ahead may be damaged: whoever asks for it is told.
                Err(damage) if n == number => return Err(StoreError::Damaged(vec![damage])),
                Err(_) => {}
            }
        }
        found.map(Some).ok_or(StoreError::Cancelled)
    }

    async fn fetch(
        &self,
        wanted: Vec<(u64, BlobRef)>,
    ) -> Result<Vec<(u64, Result<Bytes, Damage>)>, StoreError> {
        let blobs = wanted.iter().map(|(_, blob)| *blob).collect();
        let (secret, map) = (self.reader.opener.secret.clone(), self.map.clone());
        self.reader
            .gather(BlobKind::Block, blobs, &self.stats, move |batch| {
                let mut room = Room::default();
                let mut one = |number: u64, blob: &BlobRef| {
                    let raw = batch.raw(blob, &mut room)?;
                    let offset = number * u64::from(map.block_bytes);
                    let expected = u64::from(map.block_bytes).min(map.size_bytes - offset);
                    if secret.block_id(raw) != blob.id {
                        Err(damage::wrong_hash(blob))
                    } else if raw.len() as u64 != expected {
                        let why =
                            format!("a block at offset {offset} has {} bytes, not {expected}", raw.len());
                        Err(damage::of(blob, why))
                    } else {
                        Ok(Bytes::copy_from_slice(raw))
                    }
                };
                wanted.iter().map(|(number, blob)| (*number, one(*number, blob))).collect()
            })
            .await
    }

    /// The leaf that a block belongs to.
    async fn leaf(&self, number: u64) -> Result<Found, StoreError> {
        let leaf = number / FAN_OUT;
        if let Some(node) = lock(&self.nodes).get(leaf) {
            return Ok(Found::Leaf(node));
        }
        let top = self.map.root_level();
        let Some(mut at) = self.map.root else { return Ok(Found::Hole { end_block: u64::MAX }) };
        for level in (0..=top).rev() {
            let span = FAN_OUT.saturating_pow(u32::from(level));
            let node = self.reader.node(&at, level).await?;
            let index = number / span / FAN_OUT;
            if node.children.len() as u64 != self.map.children_at(level, index) {
                let why = "a block-map node does not fit the size of its item";
                return Err(StoreError::Damaged(vec![damage::of(&at, why)]));
            }
            if level == 0 {
                let node = Arc::new(node);
                lock(&self.nodes).put(leaf, node.clone(), NODE_BYTES);
                return Ok(Found::Leaf(node));
            }
            let child = number / span % FAN_OUT;
            let Some(next) = node.children.get(child as usize).copied().flatten() else {
                let alike = node.children.iter().skip(child as usize).take_while(|c| c.is_none()).count();
                let end_block = (index * FAN_OUT + child + alike.max(1) as u64).saturating_mul(span);
                return Ok(Found::Hole { end_block });
            };
            at = next;
        }
        Err(StoreError::Cancelled)
    }
}

enum Found {
    Leaf(Arc<Node>),
    /// Zeros up to this block at least.
    Hole {
        end_block: u64,
    },
}

fn lock<T>(cache: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    cache.lock().expect("no holder of this lock panics")
}

/// Keeps what was used last. When it is full the eighth that was not used for longest goes at once.
struct Cache<T> {
    limit_bytes: usize,
    bytes: usize,
    clock: u64,
    entries: HashMap<u64, Entry<T>>,
}

struct Entry<T> {
    value: T,
    bytes: usize,
    used: u64,
}

impl<T: Clone> Cache<T> {
    fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, bytes: 0, clock: 0, entries: HashMap::new() }
    }
    fn holds(&self, key: u64) -> bool {
        self.entries.contains_key(&key)
    }
    fn get(&mut self, key: u64) -> Option<T> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        Some(entry.value.clone())
    }
    fn put(&mut self, key: u64, value: T, bytes: usize) {
        self.clock += 1;
        if let Some(old) = self.entries.insert(key, Entry { value, bytes, used: self.clock }) {
            self.bytes -= old.bytes;
        }
        self.bytes += bytes;
        if self.bytes > self.limit_bytes {
            let mut used: Vec<(u64, u64)> = self.entries.iter().map(|(k, e)| (e.used, *k)).collect();
            used.sort_unstable();
            for (_, key) in used {
                if self.bytes <= self.limit_bytes - self.limit_bytes / 8 {
                    break;
                }
                if let Some(gone) = self.entries.remove(&key) {
                    self.bytes -= gone.bytes;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_limit_and_keeps_what_was_used_last() {
        let mut cache = Cache::new(100);
        for key in 0..50 {
            cache.put(key, key, 10);
            assert!(cache.bytes <= 100);
            assert_eq!(cache.get(0).is_some(), key < 50, "what is used all the time stays");
        }
        assert!(cache.holds(49) && !cache.holds(1));
        cache.put(49, 7, 20);
        assert_eq!((cache.get(49), cache.bytes <= 100), (Some(7), true));
    }
}
