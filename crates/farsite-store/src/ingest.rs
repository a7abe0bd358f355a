//! From frozen bytes to durable packs: read → hash → compare → compress → seal → pack → upload.
//!
//! A reader thread stays a few batches ahead; hashing, compressing and sealing run on the rayon pool; uploads run
//! beside all of it. Every channel is bounded, so memory is what [`IngestOptions`] says and not what the volume is.

mod reading;
mod upload;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

use farsite_model::content::ReadAt;
use rayon::prelude::*;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::reading::{Batch, read_batches};
use self::upload::{Upload, open_resume_log, upload_packs};
use crate::blob::{self, BlobRef, Location};
use crate::hex::Hex;
use crate::keys::{BlobId, BlockSecret, HOLE};
use crate::local_map::{LeafRecord, LocalMap, LocalMapWriter};
use crate::map::{Child, FAN_OUT, MapRoot, Node, root_level};
use crate::pack::{FinishedPack, PackBuilder};
use crate::seal::{BlobKind, Sealer};
use crate::{Store, StoreError};

/// Limits of a run. Peak memory is about `pack_bytes × (uploads + 2)`, `batch_bytes × 4` and 120 bytes for each
/// of `known_blocks`.
#[derive(Debug, Clone, Copy)]
pub struct IngestOptions {
    pub pack_bytes: usize,
    /// Packs uploaded at the same time.
    pub uploads: usize,
    pub batch_bytes: usize,
    /// Blocks that this run remembers having sent, for deduplication within the run.
    pub known_blocks: usize,
    /// zstd level.
    pub level: i32,
}

impl IngestOptions {
    /// Fits a run into `memory_bytes`.
    pub fn within(memory_bytes: u64) -> Self {
        let memory = memory_bytes.max(64 << 20) as usize;
        // A quarter is left for the process itself, its buffers and the S3 client.
        let pack_bytes = (memory / 8).clamp(4 << 20, 32 << 20);
        Self {
            pack_bytes,
            uploads: 2,
            batch_bytes: 4 << 20,
            known_blocks: (memory / 8 / 120).max(1024),
            level: 3,
        }
    }
}

/// What a run has done so far; updated while it runs, so that progress can be shown.
#[derive(Debug, Default)]
pub struct RunStats {
    pub read_bytes: AtomicU64,
    pub changed_bytes: AtomicU64,
    /// Bytes of packs made durable by this process.
    pub shipped_bytes: AtomicU64,
    pub packs: AtomicU64,
    /// Bytes that were found in packs sent by this run before it was interrupted.
    pub resumed_bytes: AtomicU64,
}

/// Writes one run's packs.
pub struct RunWriter {
    store: Hex<16>,
    sealer: Arc<Sealer>,
    secret: BlockSecret,
    options: IngestOptions,
    known: HashMap<BlobId, Location>,
    pack: PackBuilder,
    uploads: mpsc::Sender<Upload>,
    uploader: Option<JoinHandle<Result<(), StoreError>>>,
    pub stats: Arc<RunStats>,
    cancel: Arc<AtomicBool>,
}

/// The levels above the leaves while an item is read: of each only the node that is being filled is kept.
struct Growing {
    /// From level 1 up: its children so far, and its index within the level.
    levels: Vec<(Vec<Child>, u64)>,
    root: Child,
}

impl Growing {
    fn new(root_level: u8) -> Self {
        Self { levels: vec![(Vec::new(), 0); usize::from(root_level)], root: None }
    }
}

impl RunWriter {
    /// `resume_log` is this run's own file: packs that an interrupted process of the same run made durable are
    /// read from it and count. `cancel` stops the work between two batches.
    pub fn begin(
        store: &Store,
        sealer: Sealer,
        secret: BlockSecret,
        options: IngestOptions,
        resume_log: &Path,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, StoreError> {
        let stats = Arc::new(RunStats::default());
        let (known, log) = open_resume_log(resume_log, options.known_blocks, &store.format.store)
            .map_err(|source| StoreError::Destination { what: resume_log.display().to_string(), source })?;
        let (uploads, queue) = mpsc::channel(1);
        let uploader = tokio::spawn(upload_packs(
            store.clone(),
            queue,
            options.uploads,
            log,
            resume_log.to_owned(),
            stats.clone(),
        ));
        let sealer = Arc::new(sealer);
        let pack = PackBuilder::new(sealer.content_key(), options.pack_bytes);
        let store = store.format.store;
        Ok(Self {
            store,
            sealer,
            secret,
            options,
            known,
            pack,
            uploads,
            uploader: Some(uploader),
            stats,
            cancel,
        })
    }

    /// Reads an item and puts what is new into packs. Its blocks are durable only after [`RunWriter::flush`].
    ///
    /// Must be called on a multi-threaded runtime: it blocks its thread while it hashes and compresses.
    pub fn ingest(
        &mut self,
        what: &str,
        content: &Arc<dyn ReadAt>,
        block_bytes: u32,
        previous: Option<&LocalMap>,
        out: &mut LocalMapWriter,
    ) -> Result<MapRoot, StoreError> {
        tokio::task::block_in_place(|| self.ingest_blocking(what, content, block_bytes, previous, out))
    }

    fn ingest_blocking(
        &mut self,
        what: &str,
        content: &Arc<dyn ReadAt>,
        block_bytes: u32,
        previous: Option<&LocalMap>,
        out: &mut LocalMapWriter,
    ) -> Result<MapRoot, StoreError> {
        let reading = |source| StoreError::Content { what: what.to_owned(), source };
        let local = |source| StoreError::Destination { what: format!("local block map of {what}"), source };
        let size_bytes = content.size_bytes();
        let blocks = size_bytes.div_ceil(u64::from(block_bytes));
        // A map of another store names packs that this one does not hold.
        let previous = previous.filter(|p| p.map().block_bytes == block_bytes && *p.store() == self.store);
        let batch_blocks = (self.options.batch_bytes as u64 / u64::from(block_bytes)).max(1);

        let (sender, batches) = sync_channel(2);
        let reader = {
            let (content, cancel) = (content.clone(), self.cancel.clone());
            std::thread::spawn(move || read_batches(&*content, block_bytes, batch_blocks, &sender, &cancel))
        };

        let leaves = blocks.div_ceil(FAN_OUT);
        let mut tree = Growing::new(root_level(blocks));
        let mut next = batches.recv().ok();
        for leaf_index in 0..leaves {
            let first_block = leaf_index * FAN_OUT;
            let count = FAN_OUT.min(blocks - first_block);
            let before = match previous {
                Some(previous) => previous.leaf(leaf_index).map_err(local)?,
                None => None,
            };
            let mut leaf = Node { level: 0, children: vec![None; count as usize] };
            while let Some(batch) =
                next.take_if(|b| b.as_ref().map_or(true, |b| b.first_block < first_block + count))
            {
                let batch = batch.map_err(reading)?;
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(StoreError::Cancelled);
                }
                self.blocks(&batch, first_block, &before, &mut leaf)?;
                next = batches.recv().ok();
            }
            self.count_cleared(&before, &leaf, block_bytes);
            let node = self.node(&leaf, before.as_ref().map(|(node, _)| *node))?;
            if let Some(node) = node {
                out.leaf(leaf_index, node, &leaf.children).map_err(local)?;
            }
            self.grow(&mut tree, node, previous, out, leaf_index + 1 == leaves)?;
        }
        drop(batches);
        reader.join().map_err(|_| reading(std::io::Error::other("the reader thread panicked")))?;
        if self.cancel.load(Ordering::Relaxed) {
            return Err(StoreError::Cancelled);
        }

        let map = MapRoot { size_bytes, block_bytes, root: tree.root };
        out.finish(map.clone(), self.store);
        Ok(map)
    }

    /// Adds the next leaf to the tree above it, and stores every inner node that is full, or the last of its level.
    fn grow(
        &mut self,
        tree: &mut Growing,
        leaf: Child,
        previous: Option<&LocalMap>,
        out: &mut LocalMapWriter,
        last: bool,
    ) -> Result<(), StoreError> {
        let mut node = leaf;
        for level in 1..=tree.levels.len() as u8 {
            let (children, index) = &mut tree.levels[usize::from(level) - 1];
            children.push(node);
            if children.len() as u64 != FAN_OUT && !last {
                return Ok(());
            }
            let (inner, here) = (Node { level, children: std::mem::take(children) }, *index);
            *index += 1;
            node = self.node(&inner, previous.and_then(|p| p.inner(level, here)))?;
            if let Some(node) = node {
                out.inner(level, here, node);
            }
        }
        tree.root = node;
        Ok(())
    }

    /// Hashes a batch, and packs the blocks that neither the item's last map nor this run has.
    fn blocks(
        &mut self,
        batch: &Batch,
        first_block: u64,
        before: &LeafRecord,
        leaf: &mut Node,
    ) -> Result<(), StoreError> {
        let secret = &self.secret;
        let ids: Vec<BlobId> = batch
            .bytes
            .par_chunks(batch.block_bytes)
            .map(|block| if is_zero(block) { HOLE } else { secret.block_id(block) })
            .collect();
        let base = (batch.first_block - first_block) as usize;
        let mut new: Vec<(usize, BlobId)> = Vec::new();
        let mut changed_bytes = 0;
        for (i, id) in ids.iter().enumerate() {
            // (What was data and is zeros now is counted with what lies in a hole now.)
            if *id == HOLE {
                continue;
            }
            let old = before.as_ref().and_then(|(_, children)| children.get(base + i).copied().flatten());
            if old.map_or(HOLE, |old| old.id) != *id {
                changed_bytes += batch.block(i).len() as u64;
            }
            if let Some(old) = old.filter(|old| old.id == *id) {
                leaf.children[base + i] = Some(old);
            } else if let Some(at) = self.known.get(id) {
                leaf.children[base + i] = Some(BlobRef { id: *id, at: *at });
            } else {
                new.push((i, *id));
            }
        }
        let (sealer, level) = (&self.sealer, self.options.level);
        let sealed: Vec<Vec<u8>> = new
            .par_iter()
            .map(|(i, id)| sealer.seal(BlobKind::Block, &id.0, &blob::encode(batch.block(*i), level)))
            .collect();
        for ((i, id), sealed) in new.iter().zip(sealed) {
            // Twice in one batch: the first copy serves both.
            let at = match self.known.get(id) {
                Some(at) => *at,
                None => self.push(BlobKind::Block, *id, &sealed)?,
            };
            leaf.children[base + i] = Some(BlobRef { id: *id, at });
        }
        self.stats.read_bytes.fetch_add(batch.bytes.len() as u64, Ordering::Relaxed);
        self.stats.changed_bytes.fetch_add(changed_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Blocks that were data and are zeros or lie in a hole now: they may never have been read, but they did change.
    fn count_cleared(&self, before: &LeafRecord, leaf: &Node, block_bytes: u32) {
        let Some((_, old)) = before else { return };
        let cleared =
            old.iter().zip(leaf.children.iter()).filter(|(old, new)| old.is_some() && new.is_none()).count();
        self.stats.changed_bytes.fetch_add(cleared as u64 * u64::from(block_bytes), Ordering::Relaxed);
    }

    /// Stores a node unless it is a hole or the same as before.
    fn node(&mut self, node: &Node, before: Option<BlobRef>) -> Result<Child, StoreError> {
        if node.is_hole() {
            return Ok(None);
        }
        let logical = node.logical();
        let id = self.secret.node_id(&logical);
        if let Some(before) = before.filter(|b| b.id == id) {
            return Ok(Some(before));
        }
        if let Some(at) = self.known.get(&id) {
            return Ok(Some(BlobRef { id, at: *at }));
        }
        let sealed =
            self.sealer.seal(BlobKind::Node, &id.0, &blob::encode(&node.raw(&logical), self.options.level));
        Ok(Some(BlobRef { id, at: self.push(BlobKind::Node, id, &sealed)? }))
    }

    fn push(&mut self, kind: BlobKind, id: BlobId, sealed: &[u8]) -> Result<Location, StoreError> {
        if self.pack.len_bytes() + sealed.len() > self.options.pack_bytes && !self.pack.is_empty() {
            let pack = self.take_pack();
            if self.uploads.blocking_send(Upload::Pack(pack)).is_err() {
                return Err(self.upload_error());
            }
        }
        let at = self.pack.push(kind, id, sealed, None);
        if self.known.len() < self.options.known_blocks {
            self.known.insert(id, at);
        }
        Ok(at)
    }

    fn take_pack(&mut self) -> FinishedPack {
        let fresh = PackBuilder::new(self.sealer.content_key(), self.options.pack_bytes);
        std::mem::replace(&mut self.pack, fresh).finish(&self.sealer)
    }

    /// The uploader has stopped: its error is the reason.
    fn upload_error(&mut self) -> StoreError {
        match self.uploader.take() {
            Some(uploader) => match tokio::runtime::Handle::current().block_on(uploader) {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => StoreError::Cancelled,
            },
            None => StoreError::Cancelled,
        }
    }

    /// Everything handed over so far is durable at the store when this returns.
    pub async fn flush(&mut self) -> Result<(), StoreError> {
        if !self.pack.is_empty() {
            let pack = self.take_pack();
            if self.uploads.send(Upload::Pack(pack)).await.is_err() {
                return Err(self.uploader_failed().await);
            }
        }
        let (done, wait) = oneshot::channel();
        if self.uploads.send(Upload::Barrier(done)).await.is_err() || wait.await.is_err() {
            return Err(self.uploader_failed().await);
        }
        Ok(())
    }

    async fn uploader_failed(&mut self) -> StoreError {
        match self.uploader.take() {
            Some(uploader) => match uploader.await {
                Ok(Err(error)) => error,
                _ => StoreError::Cancelled,
            },
            None => StoreError::Cancelled,
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    block.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
