//! What becomes of each block: it is the one that was read last, a hole, one that this run has sent, or new, and then it is
//! compressed, against its last version where that can still be read, else together with its neighbours, and sealed. Runs on
//! all cores at once and shares nothing but what has been sent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use farsite_model::content::ReadAt;

use super::reading::Batch;
use super::{Claims, Press, RunStats};
use crate::blob::{self, BlobRef, Location, MAX_PATCH_DEPTH, Tried};
use crate::keys::{BlobId, BlockSecret};
use crate::local_map::{Known, KnownChild};
use crate::print::{Print, Printer};
use crate::seal::{BlobKind, GROUP, Sealer};
use crate::shipped::Copies;
use crate::signals::{self, Meter};

/// Where each block lies, and how many patches deep.
pub(super) type Places = HashMap<BlobId, (Location, u8)>;

/// Blocks that this run has sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    blocks: Mutex<Places>,
    limit: usize,
}

impl Sent {
    pub(super) fn new(blocks: Places, limit: usize) -> Self {
        Self { blocks: Mutex::new(blocks), limit }
    }
    pub(super) fn get(&self, id: &BlobId) -> Option<(Location, u8)> {
        self.blocks.lock().expect("no holder of this lock panics").get(id).copied()
    }
    pub(super) fn add(&self, id: BlobId, at: Location, depth: u8) {
        let mut blocks = self.blocks.lock().expect("no holder of this lock panics");
        if blocks.len() < self.limit {
            blocks.insert(id, (at, depth));
        }
    }
}

/// Blocks of this many bytes together make a group. Of 64 MiB of files 512 KiB at a time come within 3 % of what one
/// frame for all makes of them, 64 KiB at a time within 18 %; but whoever wants one block has to fetch its whole group.
const GROUP_BYTES: usize = 512 << 10;

/// A worker's own memory, used again and again: fresh memory must be mapped and cleared by the kernel first.
#[derive(Default)]
pub(super) struct Desk {
    buffer: Buffer,
    /// The members of a group, one after the other.
    together: Vec<u8>,
}

/// Memory that begins where a page does, as reading past the page cache asks for.
#[derive(Default)]
struct Buffer(Vec<u8>);

impl Buffer {
    const PAGE_BYTES: usize = 4096;

    fn of(&mut self, bytes: usize) -> &mut [u8] {
        if self.0.len() < bytes + Self::PAGE_BYTES {
            self.0.resize(bytes + Self::PAGE_BYTES, 0);
        }
        let start = self.0.as_ptr().align_offset(Self::PAGE_BYTES).min(Self::PAGE_BYTES);
        &mut self.0[start..start + bytes]
    }
}

/// What a block turned out to be.
pub(super) enum Outcome {
    Hole,
    /// Where it was; its fingerprint may be new.
    Kept(Known),
    /// This run has sent it.
    Sent(Known),
    New {
        id: BlobId,
        print: Print,
        /// Set when it is sealed as a patch against this.
        stands_on: Option<Known>,
        sealed: Vec<u8>,
    },
    /// New, and a member of the batch's group with this number.
    Grouped {
        id: BlobId,
        print: Print,
        group: usize,
    },
}

/// Blocks that are sealed as one.
pub(super) struct SealedGroup {
    pub(super) members: Vec<BlobId>,
    pub(super) sealed: Vec<u8>,
}

/// What the blocks of a batch turned out to be.
#[derive(Default)]
pub(super) struct Outcomes {
    pub(super) blocks: Vec<Outcome>,
    pub(super) groups: Vec<SealedGroup>,
}

/// A new block that waits for its neighbours.
struct Waiting {
    /// Its number within the batch.
    index: usize,
    id: BlobId,
    print: Print,
}

/// What is known of a block that was looked at.
enum Looked {
    Is(Outcome),
    New { id: BlobId, print: Print },
}

/// What all workers share while an item is read.
pub(super) struct Blocks<'a> {
    pub(super) content: &'a dyn ReadAt,
    pub(super) block_bytes: u32,
    pub(super) secret: &'a BlockSecret,
    pub(super) printer: &'a Printer,
    pub(super) sealer: &'a Sealer,
    pub(super) sent: &'a Sent,
    pub(super) press: &'a Press,
    pub(super) stats: &'a RunStats,
    pub(super) size_bytes: u64,
    pub(super) claims: Option<&'a Claims>,
    /// The item as it was when `previous` was written, where its source can still read that.
    pub(super) before: Option<&'a dyn ReadAt>,
    pub(super) copies: Option<&'a Copies<'a>>,
    pub(super) meter: Option<&'a Meter>,
}

impl Blocks<'_> {
    pub(super) fn batch(&self, batch: &Batch, desk: &mut Desk) -> std::io::Result<Outcomes> {
        let Desk { buffer, together } = desk;
        let start = batch.first_block * u64::from(self.block_bytes);
        let end = (start + batch.blocks as u64 * u64::from(self.block_bytes)).min(self.size_bytes);
        let bytes = if batch.is_hole { &mut [] } else { buffer.of(end.saturating_sub(start) as usize) };
        self.content.read_exact_at(bytes, start)?;
        let bytes = &*bytes;
        let mut changed_bytes = 0;
        let mut by_itself = None;
        let mut found = Outcomes { blocks: Vec::with_capacity(batch.blocks), groups: Vec::new() };
        let mut waiting: Vec<Waiting> = Vec::new();
        let raw_of = |i: usize| {
            let start = i * self.block_bytes as usize;
            &bytes[bytes.len().min(start)..bytes.len().min(start + self.block_bytes as usize)]
        };
        for i in 0..batch.blocks {
            let number = batch.first_block + i as u64;
            let in_leaf = (number % crate::map::FAN_OUT) as usize;
            let old = batch.old.as_ref().and_then(|leaf| leaf.blocks.get(in_leaf).copied().flatten());
            let raw = raw_of(i);
            let looked = if raw.is_empty() {
                Looked::Is(Outcome::Hole)
            } else {
                self.block(raw, number, old, &mut by_itself)
            };
            let changed = match &looked {
                // What was cleared is counted with its leaf: most of it is never read.
                Looked::Is(Outcome::Hole | Outcome::Kept(_)) => 0,
                Looked::Is(_) | Looked::New { .. } => raw.len() as u64,
            };
            if let Some(claims) = self.claims.filter(|_| changed > 0) {
                let start = number * u64::from(self.block_bytes);
                claims.found(start..start + u64::from(self.block_bytes), self.size_bytes);
            }
            changed_bytes += changed;
            let is_new =
                matches!(looked, Looked::New { .. } | Looked::Is(Outcome::Sent(_) | Outcome::New { .. }));
            if let Some(meter) = self.meter.filter(|_| is_new) {
                meter.block(raw);
            }
            match looked {
                Looked::Is(outcome) => found.blocks.push(outcome),
                Looked::New { id, print } => {
                    // Only its place: what became of it is said when it is sealed.
                    found.blocks.push(Outcome::Hole);
                    waiting.push(Waiting { index: i, id, print });
                    if waiting.len() * self.block_bytes as usize >= GROUP_BYTES {
                        self.seal_together(&mut waiting, &raw_of, together, &mut found);
                    }
                }
            }
        }
        self.seal_together(&mut waiting, &raw_of, together, &mut found);
        self.stats.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stats.changed_bytes.fetch_add(changed_bytes, Ordering::Relaxed);
        Ok(found)
    }

    /// Seals new blocks, as one where that makes them smaller, and says so in their places.
    fn seal_together<'b>(
        &self,
        waiting: &mut Vec<Waiting>,
        raw_of: &impl Fn(usize) -> &'b [u8],
        together: &mut Vec<u8>,
        found: &mut Outcomes,
    ) {
        let group = (waiting.len() > 1).then(|| {
            together.clear();
            let mut members: Vec<(BlobId, u32)> = Vec::with_capacity(waiting.len());
            for one in &*waiting {
                let raw = raw_of(one.index);
                if !members.iter().any(|(id, _)| *id == one.id) {
                    members.push((one.id, raw.len() as u32));
                    together.extend_from_slice(raw);
                }
            }
            let plain = self.press.group(&members, together, self.stats)?;
            let sealed = self.sealer.seal(BlobKind::Group, &GROUP, &plain);
            Some(SealedGroup { members: members.into_iter().map(|(id, _)| id).collect(), sealed })
        });
        let group = group.flatten();
        for Waiting { index, id, print } in waiting.drain(..) {
            found.blocks[index] = if group.is_some() {
                Outcome::Grouped { id, print, group: found.groups.len() }
            } else {
                let blob = self.press.whole(&id, raw_of(index), self.stats);
                Outcome::New {
                    id,
                    print,
                    stands_on: None,
                    sealed: self.sealer.seal(BlobKind::Block, &id.0, &blob),
                }
            };
        }
        found.groups.extend(group);
    }

    fn block(&self, raw: &[u8], number: u64, old: KnownChild, by_itself: &mut Option<usize>) -> Looked {
        let print = self.printer.print(raw);
        if let Some(old) = old.filter(|old| old.print == print) {
            return Looked::Is(Outcome::Kept(old));
        }
        if is_zero(raw) {
            return Looked::Is(Outcome::Hole);
        }
        let id = self.secret.block_id(raw);
        if let Some(old) = old.filter(|old| old.blob.id == id) {
            return Looked::Is(Outcome::Kept(Known { print, ..old }));
        }
        let looked = if let Some((at, depth)) = self.sent.get(&id) {
            Looked::Is(Outcome::Sent(Known { blob: BlobRef { id, at }, depth, print }))
        } else {
            self.new_block(raw, number, old, (id, print), by_itself)
        };
        if let Some(copies) = self.copies
            && let Err(error) = copies.put(number, raw)
        {
            tracing::debug!(block = number, "a copy of a shipped block was not kept: {error}");
        }
        looked
    }

    /// `by_itself` is what the last block of this batch came to that was smaller so than as a patch.
    fn new_block(
        &self,
        raw: &[u8],
        number: u64,
        old: KnownChild,
        (id, print): (BlobId, Print),
        by_itself: &mut Option<usize>,
    ) -> Looked {
        let whole = || self.press.whole(&id, raw, self.stats);
        let sealed = |blob: &[u8], stands_on| {
            let sealed = self.sealer.seal(BlobKind::Block, &id.0, blob);
            Looked::Is(Outcome::New { id, print, stands_on, sealed })
        };
        let base = old.filter(|old| old.depth < MAX_PATCH_DEPTH);
        let mut tried = None;
        if let Some((known, bytes)) = base.and_then(|old| self.last(number, &old)) {
            let patch = |depth| self.press.patch(&id, raw, (&known.blob, &bytes), depth, self.stats);
            match blob::patch_or_whole(raw, known.depth, *by_itself, patch, whole) {
                Tried::Patch { blob, .. } => return sealed(&blob, Some(known)),
                Tried::PatchIsLarger => {}
                Tried::Whole(blob) => {
                    *by_itself = Some(blob.len());
                    tried = Some(blob);
                }
            }
        }
        let tried = tried.or_else(|| signals::looks_incompressible(raw).then(whole));
        if let Some(blob) = tried.filter(|blob| !blob::is_compressed(blob)) {
            return sealed(&blob, None);
        }
        Looked::New { id, print }
    }

    /// The block's last version, when it can be read and is what the map says.
    fn last(&self, number: u64, old: &Known) -> Option<(Known, Vec<u8>)> {
        let is_it = |bytes: &Vec<u8>| self.secret.block_id(bytes) == old.blob.id;
        let from_source = || {
            let before = self.before?;
            let offset = number * u64::from(self.block_bytes);
            let size = before.size_bytes().checked_sub(offset)?.min(u64::from(self.block_bytes));
            let mut bytes = vec![0; size as usize];
            before.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let copy = || self.copies?.get(number, self.block_bytes as usize);
        let bytes = from_source().filter(is_it).or_else(|| copy().filter(is_it))?;
        Some((*old, bytes))
    }
}

fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    block.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
