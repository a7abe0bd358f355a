//! From a block map back to bytes. Every byte is authenticated twice before it is used: by the seal, and by its
//! keyed hash. What is damaged or missing is named by its object.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use farsite_model::content::WriteAt;
use futures::stream::{self, StreamExt};

use crate::blob::{self, BlobRef, Decoded};
use crate::keys::BlobId;
use crate::map::{FAN_OUT, MapRoot, Node};
use crate::pack::object_key;
use crate::seal::{BlobKind, Opener, SEAL_OVERHEAD};
use crate::{Damage, Store, StoreError};

/// Neighbouring blobs of one pack are fetched with one request, up to this size.
const FETCH_BYTES: u64 = 8 << 20;
/// Requests under way at once. Peak memory is about `FETCHES × FETCH_BYTES × 2`.
const FETCHES: usize = 4;

/// Reads items of one store.
#[derive(Clone)]
pub struct Reader {
    pub store: Store,
    pub opener: Arc<Opener>,
}

/// How far a restore or a verification has come.
#[derive(Debug, Default)]
pub struct ReadStats {
    pub fetched_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
}

/// What is damaged, one line for each object: an item of millions of blocks in one lost pack must not fill the memory
/// with as many lines.
#[derive(Default)]
struct Found(BTreeMap<String, BTreeSet<String>>);

/// Different sentences that are kept for one object.
const SENTENCES: usize = 8;

impl Found {
    fn extend(&mut self, damage: impl IntoIterator<Item = Damage>) {
        for one in damage {
            let whys = self.0.entry(one.object).or_default();
            if whys.len() < SENTENCES {
                whys.insert(one.why);
            }
        }
    }
    fn into_vec(self) -> Vec<Damage> {
        let lines = |(object, whys): (String, BTreeSet<String>)| {
            whys.into_iter().map(move |why| Damage { object: object.clone(), why }).collect::<Vec<_>>()
        };
        self.0.into_iter().flat_map(lines).collect()
    }
}

/// One request: blobs that lie next to each other in one pack.
struct Fetch {
    blobs: Vec<(u64, BlobRef)>,
}

impl Reader {
    /// Writes an item to an empty target and makes it durable.
    pub async fn restore(
        &self,
        map: &MapRoot,
        target: Arc<dyn WriteAt>,
        stats: &ReadStats,
    ) -> Result<(), StoreError> {
        let damage = self.walk(map, Some(target.clone()), stats).await?;
        if !damage.is_empty() {
            return Err(StoreError::Damaged(damage));
        }
        let size = map.size_bytes;
        tokio::task::spawn_blocking(move || target.finish(size))
            .await
            .map_err(|_| StoreError::Cancelled)?
            .map_err(|source| StoreError::Destination { what: "the restored item".into(), source })
    }

    /// Opens and re-hashes every block of an item. Returns what is damaged; other errors (a store that cannot be
    /// reached) are errors.
    pub async fn verify(&self, map: &MapRoot, stats: &ReadStats) -> Result<Vec<Damage>, StoreError> {
        self.walk(map, None, stats).await
    }

    /// A small item in memory (a tree's directory).
    pub async fn read_small(&self, map: &MapRoot, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        if map.size_bytes > limit_bytes {
            return Err(StoreError::Content {
                what: format!("an item of {} bytes into memory", map.size_bytes),
                source: std::io::ErrorKind::FileTooLarge.into(),
            });
        }
        let target = Arc::new(MemoryTarget(std::sync::Mutex::new(vec![0; map.size_bytes as usize])));
        self.restore(map, target.clone(), &ReadStats::default()).await?;
        let bytes = std::mem::take(&mut *target.0.lock().expect("no holder of this lock panics"));
        Ok(bytes)
    }

    async fn walk(
        &self,
        map: &MapRoot,
        target: Option<Arc<dyn WriteAt>>,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        let Some(root) = map.root else { return Ok(Vec::new()) };
        if !map.is_possible() {
            return Err(StoreError::Damaged(vec![Damage::new(
                object_key(&root.at.pack),
                "the size or block size of its block map is not possible",
            )]));
        }
        let mut damage = Found::default();
        // Depth first, in order of offset; the stack holds at most one node's children for each level.
        let mut stack = vec![(root, map.root_level(), 0u64)];
        while let Some((node_ref, level, index)) = stack.pop() {
            let node = match self.node(&node_ref, level).await {
                Ok(node) => node,
                Err(StoreError::Damaged(found)) => {
                    damage.extend(found);
                    continue;
                }
                Err(other) => return Err(other),
            };
            stats.fetched_bytes.fetch_add(u64::from(node_ref.at.len), Ordering::Relaxed);
            // A node that is right by itself, and stands where it does not belong: what it leaves out would read as zeros.
            if node.children.len() as u64 != map.children_at(level, index) {
                damage.extend([Damage::new(
                    object_key(&node_ref.at.pack),
                    "a block-map node does not fit the size of its item",
                )]);
                continue;
            }
            if level > 0 {
                let children = node.children.iter().enumerate().rev();
                stack.extend(
                    children.filter_map(|(i, c)| c.map(|c| (c, level - 1, index * FAN_OUT + i as u64))),
                );
            } else {
                self.leaf(map, &node, index, target.as_ref(), stats, &mut damage).await?;
            }
        }
        Ok(damage.into_vec())
    }

    async fn leaf(
        &self,
        map: &MapRoot,
        node: &Node,
        leaf_index: u64,
        target: Option<&Arc<dyn WriteAt>>,
        stats: &ReadStats,
        damage: &mut Found,
    ) -> Result<(), StoreError> {
        let first_block = leaf_index * FAN_OUT;
        let (blobs, odd): (Vec<_>, Vec<_>) = node
            .children
            .iter()
            .enumerate()
            .filter_map(|(i, c)| c.map(|c| (first_block + i as u64, c)))
            .partition(|(_, blob)| is_possible(blob));
        for (_, blob) in odd {
            if let StoreError::Damaged(found) = impossible(&blob) {
                damage.extend(found);
            }
        }
        let blobs = blobs.into_iter();
        let mut fetches = stream::iter(coalesce(blobs))
            .map(|fetch| self.fetch(map, fetch, target.cloned(), stats))
            .buffer_unordered(FETCHES);
        while let Some(result) = fetches.next().await {
            match result {
                Ok(()) => {}
                Err(StoreError::Damaged(found)) => damage.extend(found),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    async fn fetch(
        &self,
        map: &MapRoot,
        fetch: Fetch,
        target: Option<Arc<dyn WriteAt>>,
        stats: &ReadStats,
    ) -> Result<(), StoreError> {
        let at = fetch.blobs[0].1.at;
        let end = fetch.blobs.last().map_or(0, |(_, b)| u64::from(b.at.offset) + u64::from(b.at.len));
        let name = object_key(&at.pack);
        let bytes = self.store.get_range(&name, u64::from(at.offset)..end).await?;
        stats.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut damage = Vec::new();
        for (block, blob) in fetch.blobs {
            let start = (blob.at.offset - at.offset) as usize;
            let sealed = bytes.slice(start..start + blob.at.len as usize);
            let raw = match self.open_block(&blob, sealed).await {
                Ok(raw) => raw,
                Err(StoreError::Damaged(found)) => {
                    damage.extend(found);
                    continue;
                }
                Err(other) => return Err(other),
            };
            let offset = block * u64::from(map.block_bytes);
            let expected = u64::from(map.block_bytes).min(map.size_bytes.saturating_sub(offset));
            if raw.len() as u64 != expected {
                damage.push(Damage::new(
                    &name,
                    format!("a block at offset {offset} has {} bytes, not {expected}", raw.len()),
                ));
                continue;
            }
            stats.written_bytes.fetch_add(expected, Ordering::Relaxed);
            if let Some(target) = target.clone() {
                tokio::task::spawn_blocking(move || target.write_all_at(&raw, offset))
                    .await
                    .map_err(|_| StoreError::Cancelled)?
                    .map_err(|source| StoreError::Destination {
                        what: format!("the restored item at {offset}"),
                        source,
                    })?;
            }
        }
        if damage.is_empty() { Ok(()) } else { Err(StoreError::Damaged(damage)) }
    }

    async fn open_block(&self, blob: &BlobRef, sealed: Bytes) -> Result<Vec<u8>, StoreError> {
        let raw = self.open_blob(BlobKind::Block, blob, Some(sealed), blob::MAX_PATCH_DEPTH).await?;
        let secret = self.opener.secret.clone();
        let (raw, id) = tokio::task::spawn_blocking(move || {
            let id = secret.block_id(&raw);
            (raw, id)
        })
        .await
        .map_err(|_| StoreError::Cancelled)?;
        if id == blob.id { Ok(raw) } else { Err(wrong_hash(blob)) }
    }

    /// A block-map node, checked against its id.
    pub async fn node(&self, node: &BlobRef, level: u8) -> Result<Node, StoreError> {
        let raw = self.open_blob(BlobKind::Node, node, None, blob::MAX_PATCH_DEPTH).await?;
        let unreadable = || {
            StoreError::Damaged(vec![Damage::new(
                object_key(&node.at.pack),
                "a block-map node makes no sense",
            )])
        };
        let (logical, parsed) = Node::parse(&raw).ok_or_else(unreadable)?;
        if self.opener.secret.node_id(logical) != node.id || parsed.level != level {
            return Err(wrong_hash(node));
        }
        Ok(parsed)
    }

    /// Opens a blob whose sealed bytes may be at hand, and hashes it again; returns its raw length.
    pub(crate) async fn verify_blob(
        &self,
        kind: BlobKind,
        blob: &BlobRef,
        sealed: Option<Bytes>,
    ) -> Result<u64, StoreError> {
        if kind == BlobKind::Block {
            if let Some(sealed) = sealed {
                return Ok(self.open_block(blob, sealed).await?.len() as u64);
            }
            return Err(wrong_hash(blob));
        }
        let raw = self.open_blob(kind, blob, sealed, blob::MAX_PATCH_DEPTH).await?;
        match Node::parse(&raw) {
            Some((logical, _)) if self.opener.secret.node_id(logical) == blob.id => Ok(raw.len() as u64),
            _ => Err(wrong_hash(blob)),
        }
    }

    /// Opens a blob, through its patch bases if it has any.
    async fn open_blob(
        &self,
        kind: BlobKind,
        blob: &BlobRef,
        sealed: Option<Bytes>,
        depth_left: u8,
    ) -> Result<Vec<u8>, StoreError> {
        let name = object_key(&blob.at.pack);
        if !is_possible(blob) {
            return Err(impossible(blob));
        }
        let sealed = if let Some(sealed) = sealed {
            sealed
        } else {
            let start = u64::from(blob.at.offset);
            self.store.get_range(&name, start..start + u64::from(blob.at.len)).await?
        };
        let key = self.opener.content_key(&self.store, blob.at.key).await?;
        let id = blob.id.0;
        let decoded = tokio::task::spawn_blocking(move || {
            key.open(kind, &id, &sealed).map(|plain| blob::decode(&plain))
        })
        .await
        .map_err(|_| StoreError::Cancelled)?;
        let place = format!("the blob at {}+{}", blob.at.offset, blob.at.len);
        match decoded {
            None => Err(StoreError::Damaged(vec![Damage::new(
                name,
                format!("{place} does not open: its bytes were changed"),
            )])),
            Some(None) => Err(StoreError::Damaged(vec![Damage::new(
                name,
                format!("{place} opens, but makes no sense"),
            )])),
            Some(Some(Decoded::Whole(raw))) => Ok(raw),
            Some(Some(Decoded::Patch { base, depth, raw_len, payload })) => {
                if depth > depth_left {
                    return Err(StoreError::Damaged(vec![Damage::new(
                        name,
                        format!("{place}: its patch chain is too long"),
                    )]));
                }
                let base = Box::pin(self.open_blob(kind, &base, None, depth - 1)).await?;
                blob::apply_patch(&base, &payload, raw_len).ok_or_else(|| {
                    StoreError::Damaged(vec![Damage::new(name, format!("{place}: its patch does not apply"))])
                })
            }
        }
    }

    /// The packs that an item's map reaches, with the number of its blobs in each.
    pub async fn packs_of(&self, map: &MapRoot) -> Result<BTreeMap<crate::pack::PackId, u64>, StoreError> {
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

/// No blob is shorter than its seal or much longer than the largest block: a length is checked before memory is taken.
fn is_possible(blob: &BlobRef) -> bool {
    (SEAL_OVERHEAD as u64..=FETCH_BYTES).contains(&u64::from(blob.at.len))
}

fn impossible(blob: &BlobRef) -> StoreError {
    StoreError::Damaged(vec![Damage::new(
        object_key(&blob.at.pack),
        format!("a block map says that a blob at {} has {} bytes", blob.at.offset, blob.at.len),
    )])
}

fn wrong_hash(blob: &BlobRef) -> StoreError {
    StoreError::Damaged(vec![Damage::new(
        object_key(&blob.at.pack),
        format!("the blob at {}+{} is not {}", blob.at.offset, blob.at.len, blob.id),
    )])
}

fn coalesce(blobs: impl Iterator<Item = (u64, BlobRef)>) -> Vec<Fetch> {
    let mut fetches: Vec<Fetch> = Vec::new();
    for (block, blob) in blobs {
        if let Some(last) = fetches.last_mut() {
            let (first_at, last_at) = (last.blobs[0].1.at, last.blobs[last.blobs.len() - 1].1.at);
            let end = u64::from(last_at.offset) + u64::from(last_at.len);
            let total = u64::from(blob.at.offset) + u64::from(blob.at.len)
                - u64::from(first_at.offset.min(blob.at.offset));
            if blob.at.pack == first_at.pack && u64::from(blob.at.offset) == end && total <= FETCH_BYTES {
                last.blobs.push((block, blob));
                continue;
            }
        }
        fetches.push(Fetch { blobs: vec![(block, blob)] });
    }
    fetches
}

struct MemoryTarget(std::sync::Mutex<Vec<u8>>);

impl WriteAt for MemoryTarget {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        let start = offset as usize;
        memory
            .get_mut(start..start + bytes.len())
            .ok_or(std::io::ErrorKind::WriteZero)?
            .copy_from_slice(bytes);
        Ok(())
    }
    fn punch_hole(&self, range: std::ops::Range<u64>) -> std::io::Result<()> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        memory
            .get_mut(range.start as usize..range.end as usize)
            .ok_or(std::io::ErrorKind::WriteZero)?
            .fill(0);
        Ok(())
    }
    fn finish(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}
