//! From frozen bytes to durable packs: read → compare → compress → seal → pack → upload.
//!
//! One thread plans what is read; some more than there are cores read, compare, compress and seal whole batches; one puts what
//! is new into packs, in the order of the item; uploads run beside all of it. Every channel is bounded, so memory is what
//! [`IngestOptions`] says and not what the volume is.

mod blocks;
mod claims;
mod press;
mod reading;
mod tree;
mod upload;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use farsite_model::content::ReadAt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::blocks::{Blocks, Desk, Outcome, Outcomes, SealedGroup, Sent};
pub use self::claims::Claims;
pub use self::press::Press;
use self::press::Seat;
use self::reading::{Batch, Reading};
use self::tree::{Tree, TreeError};
use self::upload::{Upload, open_resume_log, upload_packs};
use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keys::{BlobId, BlockSecret};
use crate::local_map::{Known, KnownChild, Leaf, LocalMap, LocalMapWriter};
use crate::map::{FAN_OUT, MapRoot};
use crate::pack::{PackBuilder, PatchBase};
use crate::print::Printer;
use crate::seal::{BlobKind, Sealer};
use crate::shipped::Copies;
use crate::signals::Meter;
use crate::{Store, StoreError};

/// Limits of a run. Peak memory is about `pack_bytes × (uploads + 2)`, `batch_bytes × 4 × (cores + 2)` and 120 bytes for
/// each of `known_blocks`.
#[derive(Debug, Clone, Copy)]
pub struct IngestOptions {
    pub pack_bytes: usize,
    /// Packs uploaded at the same time.
    pub uploads: usize,
    pub batch_bytes: usize,
    /// Blocks that this run remembers having sent, for deduplication within the run.
    pub known_blocks: usize,
    /// Lightest and hardest level of zstd: harder while uploads are what the run waits for.
    pub levels: (i32, i32),
}

/// Workers beyond the number of cores.
const WAITING_WORKERS: usize = 2;
/// Where a run that may choose begins.
const START_LEVEL: i32 = 3;

impl IngestOptions {
    /// Fits a run into `memory_bytes`.
    pub fn within(memory_bytes: u64, levels: (i32, i32)) -> Self {
        let memory = memory_bytes.max(64 << 20) as usize;
        // A quarter is left for the process itself, its buffers and the S3 client.
        let pack_bytes = (memory / 8).clamp(4 << 20, 32 << 20);
        Self {
            pack_bytes,
            uploads: 2,
            batch_bytes: 1 << 20,
            known_blocks: (memory / 8 / 120).max(1024),
            levels,
        }
    }
}

/// What a run has done so far; updated while it runs, so that progress can be shown.
#[derive(Debug, Default)]
pub struct RunStats {
    pub read_bytes: AtomicU64,
    pub changed_bytes: AtomicU64,
    /// Bytes of blocks that this writer compressed itself; what it took from another one's work is not among them.
    pub pressed_bytes: AtomicU64,
    /// Bytes that were fetched from the source by whoever reads for this writer; what lay there from another one is not among
    /// them. Counted by the reader, where there is one that shares.
    pub source_bytes: AtomicU64,
    /// Bytes of packs made durable by this process.
    pub shipped_bytes: AtomicU64,
    pub packs: AtomicU64,
}

/// One item as a run reads it.
pub struct Input<'a> {
    /// For messages.
    pub what: &'a str,
    pub content: &'a dyn ReadAt,
    pub block_bytes: u32,
    /// The map of the version that a pinned point holds.
    pub previous: Option<&'a LocalMap>,
    /// The only bytes that may differ from `previous`, when the source can tell.
    pub changed: Option<&'a [Range<u64>]>,
    /// What the source says has changed, when everything is read all the same to see whether it is true.
    pub claims: Option<&'a Claims>,
    /// That version itself, where the source can still read it.
    pub before: Option<&'a dyn ReadAt>,
    pub copies: Option<&'a Copies<'a>>,
    /// Counts what is unusual.
    pub meter: Option<&'a Meter>,
}

impl<'a> Input<'a> {
    /// An item of which nothing is known yet.
    pub fn first(what: &'a str, content: &'a dyn ReadAt, block_bytes: u32) -> Self {
        Self {
            what,
            content,
            block_bytes,
            previous: None,
            changed: None,
            claims: None,
            before: None,
            copies: None,
            meter: None,
        }
    }
    pub fn since(self, previous: Option<&'a LocalMap>) -> Self {
        Self { previous, ..self }
    }
}

/// Writes one run's packs.
pub struct RunWriter {
    store: Hex<16>,
    sealer: Arc<Sealer>,
    secret: BlockSecret,
    printer: Arc<Printer>,
    options: IngestOptions,
    seat: Seat,
    sent: Arc<Sent>,
    pack: PackBuilder,
    /// How many patches deep each block of the pack is.
    depths: Vec<u8>,
    uploads: mpsc::Sender<Upload>,
    uploader: Option<JoinHandle<Result<(), StoreError>>>,
    pub stats: Arc<RunStats>,
    cancel: Arc<AtomicBool>,
}

fn seat(press: &Arc<Press>, (lightest, hardest): (i32, i32)) -> Seat {
    Seat::take(press, START_LEVEL.clamp(lightest, hardest))
}

/// A batch on its way to a worker, and where its outcome is waited for.
type Job = (Batch, std::sync::mpsc::SyncSender<Done>);
type Done = std::io::Result<(Batch, Outcomes)>;

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
        let (known, log) = open_resume_log(resume_log, options.known_blocks, &store.format().store)
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
        let pack = PackBuilder::new(sealer.content_key(), options.pack_bytes);
        Ok(Self {
            store: store.format().store,
            sealer: Arc::new(sealer),
            printer: Arc::new(Printer::new(&secret)),
            secret,
            options,
            seat: seat(&Press::new(0), options.levels),
            sent: Arc::new(Sent::new(known, options.known_blocks)),
            pack,
            depths: Vec::new(),
            uploads,
            uploader: Some(uploader),
            stats,
            cancel,
        })
    }

    /// Compresses beside the writers of other stores, each block once for all of them.
    pub fn beside(self, press: &Arc<Press>) -> Self {
        Self { seat: seat(press, self.options.levels), ..self }
    }

    /// Reads an item and puts what is new into packs. Its blocks are durable only after [`RunWriter::flush`].
    ///
    /// Must be called on a multi-threaded runtime: it blocks its thread while it hashes and compresses.
    pub fn ingest(&mut self, input: &Input<'_>, out: &mut LocalMapWriter) -> Result<MapRoot, StoreError> {
        // A map of another store names packs that this one does not hold.
        let previous =
            input.previous.filter(|p| p.map().block_bytes == input.block_bytes && *p.store() == self.store);
        // Where something has to be sent again it does not matter what has changed.
        let changed = input.changed.filter(|_| previous.is_some_and(|previous| !previous.is_hit()));
        tokio::task::block_in_place(|| {
            let attempt = self.read_all(&Input { previous, changed, ..*input }, out);
            match attempt {
                Err(TreeError::Lost) => {
                    tracing::warn!(
                        item = input.what,
                        "the local block map is damaged: the item is read in full"
                    );
                    out.clear();
                    self.read_all(&Input { previous: None, changed: None, ..*input }, out)
                }
                other => other,
            }
        })
        .map_err(|error| match error {
            TreeError::Store(error) => error,
            TreeError::Local(source) => {
                StoreError::Destination { what: format!("local block map of {}", input.what), source }
            }
            TreeError::Lost => StoreError::Destination {
                what: format!("local block map of {}", input.what),
                source: std::io::Error::other("damaged"),
            },
        })
    }

    fn read_all(&mut self, input: &Input<'_>, out: &mut LocalMapWriter) -> Result<MapRoot, TreeError> {
        let content_error =
            |source| TreeError::Store(StoreError::Content { what: input.what.to_owned(), source });
        let size_bytes = input.content.size_bytes();
        if let Some(meter) = input.meter {
            meter.begin(input.previous.is_some());
        }
        let map = MapRoot { size_bytes, block_bytes: input.block_bytes, root: None };
        let batch_blocks = (self.options.batch_bytes as u64 / u64::from(input.block_bytes)).max(1);
        // While some wait for the disk the others compute.
        let workers = std::thread::available_parallelism().map_or(1, usize::from) + WAITING_WORKERS;
        // An item of one or two batches is not worth a thread for each core.
        let workers = workers.min(map.blocks().div_ceil(batch_blocks) as usize).max(1);

        let (secret, printer, sealer) = (self.secret.clone(), self.printer.clone(), self.sealer.clone());
        let (sent, press, stats) = (self.sent.clone(), self.seat.press.clone(), self.stats.clone());
        let cancel = self.cancel.clone();
        let blocks = Blocks {
            content: input.content,
            block_bytes: input.block_bytes,
            secret: &secret,
            printer: &printer,
            sealer: &sealer,
            sent: &sent,
            press: &press,
            stats: &stats,
            size_bytes,
            claims: input.claims.filter(|_| input.previous.is_some()),
            before: input.before,
            copies: input.copies,
            meter: input.meter,
        };
        let reading = Reading {
            content: input.content,
            block_bytes: input.block_bytes,
            batch_blocks,
            previous: input.previous,
            changed: input.changed,
            cancel: &cancel,
        };
        std::thread::scope(|scope| {
            let (jobs, queue) = sync_channel::<Job>(workers);
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..workers {
                let (queue, blocks) = (queue.clone(), &blocks);
                scope.spawn(move || {
                    let mut desk = Desk::default();
                    loop {
                        let next = queue.lock().expect("no holder of this lock panics").recv();
                        let Ok((batch, reply)) = next else { return };
                        let outcomes = blocks.batch(&batch, &mut desk);
                        let _ = reply.send(outcomes.map(|outcomes| (batch, outcomes)));
                    }
                });
            }
            drop(queue);
            let (order, results) = sync_channel(2 * workers);
            let planner = scope.spawn(move || {
                reading.plan(&mut |batch| {
                    let (reply, result) = sync_channel(1);
                    order.send(result).is_ok() && jobs.send((batch, reply)).is_ok()
                })
            });
            let mut assembly = Assembly::new(&map, input, out);
            let mut assembled = Ok(());
            for result in results {
                let done = result.recv();
                let done =
                    done.unwrap_or_else(|_| Err(std::io::Error::other("a worker ended in the middle")));
                assembled = match done {
                    Ok((batch, outcomes)) => assembly.batch(self, out, &batch, outcomes),
                    Err(error) => Err(content_error(error)),
                };
                if assembled.is_err() {
                    break;
                }
            }
            let planned = planner
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("the planner ended in the middle")));
            assembled?;
            planned.map_err(content_error)?;
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StoreError::Cancelled.into());
            }
            let root = assembly.finish(self, out)?;
            let map = MapRoot { root, ..map.clone() };
            out.finish(map.clone(), self.store);
            Ok(map)
        })
    }

    fn push_block(
        &mut self,
        id: BlobId,
        sealed: &[u8],
        stands_on: Option<Known>,
    ) -> Result<Location, StoreError> {
        let at = self.push(BlobKind::Block, id, sealed, stands_on)?;
        self.sent.add(id, at, stands_on.map_or(0, |base| base.depth + 1));
        Ok(at)
    }

    fn push_group(&mut self, group: &SealedGroup) -> Result<Location, StoreError> {
        self.make_room(group.sealed.len())?;
        self.depths.extend(std::iter::repeat_n(0, group.members.len()));
        let at = self.pack.push_group(&group.members, &group.sealed);
        for id in &group.members {
            self.sent.add(*id, at, 0);
        }
        Ok(at)
    }

    /// `stands_on` is what a patch was made against.
    fn push(
        &mut self,
        kind: BlobKind,
        id: BlobId,
        sealed: &[u8],
        stands_on: Option<Known>,
    ) -> Result<Location, StoreError> {
        self.make_room(sealed.len())?;
        if kind == BlobKind::Block {
            self.depths.push(stands_on.map_or(0, |base| base.depth + 1));
        }
        let base = stands_on.map(|base| PatchBase::new(&base.blob, base.depth + 1));
        Ok(self.pack.push(kind, id, sealed, base))
    }

    /// Hands over the pack when this many bytes more would be too much for it.
    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        if self.pack.len_bytes() + bytes > self.options.pack_bytes && !self.pack.is_empty() {
            let upload = self.take_pack();
            self.choose_level();
            if self.uploads.blocking_send(upload).is_err() {
                return Err(self.upload_error());
            }
        }
        Ok(())
    }

    /// A pack that finds the queue full waits for the line: the next ones are pressed harder. One that finds it empty was
    /// waited for itself.
    fn choose_level(&self) {
        let step = if self.uploads.capacity() == 0 { 1 } else { -1 };
        self.seat.step(step, self.options.levels);
    }

    fn take_pack(&mut self) -> Upload {
        let fresh = PackBuilder::new(self.sealer.content_key(), self.options.pack_bytes);
        let pack = std::mem::replace(&mut self.pack, fresh).finish(&self.sealer);
        Upload::Pack(pack, std::mem::take(&mut self.depths))
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
            let upload = self.take_pack();
            if self.uploads.send(upload).await.is_err() {
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

/// The outcomes of an item's batches, put together leaf by leaf.
struct Assembly<'a> {
    tree: Tree<'a>,
    map: &'a MapRoot,
    previous: Option<&'a LocalMap>,
    claims: Option<&'a Claims>,
    meter: Option<&'a Meter>,
    /// Only what changed is read; all else stays.
    tracked: bool,
    /// What is not read stays in the tree by itself, without being put there.
    keeps: bool,
    leaf: Option<Filling>,
    /// Leaves before this one are done.
    next_leaf: u64,
}

struct Filling {
    index: u64,
    old: Option<Arc<Leaf>>,
    blocks: Vec<KnownChild>,
}

impl<'a> Assembly<'a> {
    fn new(map: &'a MapRoot, input: &Input<'a>, out: &mut LocalMapWriter) -> Self {
        let previous = input.previous;
        let tracked = input.changed.is_some();
        let keeps = tracked && previous.is_some_and(|p| p.map().blocks() == map.blocks());
        let tree = Tree::new(map, previous, keeps, out);
        let (claims, meter) = (input.claims, input.meter);
        Self { tree, map, previous, claims, meter, tracked, keeps, leaf: None, next_leaf: 0 }
    }

    fn batch(
        &mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
        batch: &Batch,
        outcomes: Outcomes,
    ) -> Result<(), TreeError> {
        let index = batch.first_block / FAN_OUT;
        if self.leaf.as_ref().is_none_or(|leaf| leaf.index != index) {
            self.end_leaf(writer, out)?;
            self.skip_to(writer, out, index)?;
            let mut blocks = match &batch.old {
                Some(old) if self.tracked => old.blocks.clone(),
                _ => Vec::new(),
            };
            blocks.resize(self.map.children_at(0, index) as usize, None);
            self.leaf = Some(Filling { index, old: batch.old.clone(), blocks });
            self.next_leaf = index + 1;
        }
        let first = (batch.first_block % FAN_OUT) as usize;
        let Outcomes { blocks, groups } = outcomes;
        let mut groups_at = vec![None; groups.len()];
        for (i, outcome) in blocks.into_iter().enumerate() {
            let known = match outcome {
                Outcome::Hole => None,
                Outcome::Kept(known) | Outcome::Sent(known) => Some(known),
                Outcome::New { id, print, stands_on, sealed } => {
                    // Twice in two batches that were worked on at once: the first copy serves both.
                    let (at, depth) = match writer.sent.get(&id) {
                        Some(sent) => sent,
                        None => (
                            writer.push_block(id, &sealed, stands_on)?,
                            stands_on.map_or(0, |base| base.depth + 1),
                        ),
                    };
                    Some(Known { blob: BlobRef { id, at }, depth, print })
                }
                Outcome::Grouped { id, print, group } => {
                    let (at, depth) = match (groups_at[group], writer.sent.get(&id)) {
                        (Some(at), _) => (at, 0),
                        (None, Some(sent)) => sent,
                        (None, None) => {
                            let at = writer.push_group(&groups[group])?;
                            groups_at[group] = Some(at);
                            (at, 0)
                        }
                    };
                    Some(Known { blob: BlobRef { id, at }, depth, print })
                }
            };
            if let Some(leaf) = &mut self.leaf
                && let Some(place) = leaf.blocks.get_mut(first + i)
            {
                *place = known;
            }
        }
        Ok(())
    }

    /// The leaf that was being filled is complete.
    fn end_leaf(&mut self, writer: &mut RunWriter, out: &mut LocalMapWriter) -> Result<(), TreeError> {
        let Some(Filling { index, old, blocks }) = self.leaf.take() else { return Ok(()) };
        if let Some(old) = &old {
            self.count_cleared(writer, index, old, &blocks);
        }
        if let Some(meter) = self.meter {
            meter.leaf(old.as_ref().map(|old| &old.blocks[..]), &blocks);
        }
        match (&old, self.previous) {
            (Some(old), Some(previous)) if old.node.is_some() && old.blocks == blocks => {
                keep_leaf(out, previous, index)?;
                self.tree.put(writer, out, 0, index, old.node)
            }
            _ => {
                let before = old.as_ref().and_then(|old| Some((old.node?, &old.blocks[..])));
                let node = writer.store_node(0, &blocks, before)?;
                match node {
                    Some(_) => out.leaf(index, &Leaf { node, blocks })?,
                    None => out.drop_leaf(index),
                }
                self.tree.put(writer, out, 0, index, node)
            }
        }
    }

    /// Blocks that were data and are holes now, read or not.
    fn count_cleared(&self, writer: &RunWriter, index: u64, old: &Leaf, blocks: &[KnownChild]) {
        let block_bytes = u64::from(self.map.block_bytes);
        for (i, old) in old.blocks.iter().enumerate() {
            if old.is_some() && blocks.get(i).is_none_or(Option::is_none) {
                writer.stats.changed_bytes.fetch_add(block_bytes, Ordering::Relaxed);
                if let Some(claims) = self.claims {
                    let start = (index * FAN_OUT + i as u64) * block_bytes;
                    claims.found(start..start + block_bytes, self.map.size_bytes);
                }
            }
        }
    }

    /// Leaves that were not read: as they were where the source says so, else all holes.
    fn skip_to(
        &mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
        index: u64,
    ) -> Result<(), TreeError> {
        let Some(previous) = self.previous else { return Ok(()) };
        for skipped in self.next_leaf..index {
            if !previous.has_leaf(skipped) {
                continue;
            }
            if self.keeps {
                keep_leaf(out, previous, skipped)?;
                continue;
            }
            let Some(old) = previous.leaf(skipped)? else { return Err(TreeError::Lost) };
            if self.tracked {
                keep_leaf(out, previous, skipped)?;
                self.tree.put(writer, out, 0, skipped, old.node)?;
            } else {
                self.count_cleared(writer, skipped, &old, &[]);
                if let Some(meter) = self.meter {
                    meter.leaf(Some(&old.blocks), &[]);
                }
            }
        }
        Ok(())
    }

    fn finish(
        mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
    ) -> Result<Option<BlobRef>, TreeError> {
        self.end_leaf(writer, out)?;
        let leaves = self.map.blocks().div_ceil(FAN_OUT);
        self.skip_to(writer, out, leaves)?;
        self.tree.finish(writer, out)
    }
}

/// A leaf of another item's map is copied; one that cannot be read there is lost, and costs a full read.
fn keep_leaf(out: &mut LocalMapWriter, previous: &LocalMap, index: u64) -> Result<(), TreeError> {
    out.keep_leaf(previous, index).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => TreeError::Lost,
        _ => TreeError::Local(error),
    })
}
