//! What becomes of each block: it is the one that was read last, a hole, one that this run has sent, or new, and then it is
//! compressed, against its last version where that can still be read, and sealed. Runs on all cores at once and shares
//! nothing but what has been sent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use farsite_model::content::ReadAt;

use super::reading::Batch;
use super::{Claims, RunStats};
use crate::blob::{self, BlobRef, Location, MAX_PATCH_DEPTH};
use crate::keys::{BlobId, BlockSecret};
use crate::local_map::{Known, KnownChild};
use crate::print::{Print, Printer};
use crate::seal::{BlobKind, Sealer};
use crate::shipped::Copies;
use crate::signals::Meter;

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

/// Memory that begins where a page does, as reading past the page cache asks for.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

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
}

/// What all workers share while an item is read.
pub(super) struct Blocks<'a> {
    pub(super) content: &'a dyn ReadAt,
    pub(super) block_bytes: u32,
    pub(super) secret: &'a BlockSecret,
    pub(super) printer: &'a Printer,
    pub(super) sealer: &'a Sealer,
    pub(super) sent: &'a Sent,
    pub(super) level: &'a AtomicI32,
    pub(super) stats: &'a RunStats,
    pub(super) size_bytes: u64,
    pub(super) claims: Option<&'a Claims>,
    /// The item as it was when `previous` was written, where its source can still read that.
    pub(super) before: Option<&'a dyn ReadAt>,
    pub(super) copies: Option<&'a Copies<'a>>,
    pub(super) meter: Option<&'a Meter>,
}

impl Blocks<'_> {
    /// `buffer` is the worker's own, used again and again: fresh memory must be mapped and cleared by the kernel first.
    pub(super) fn batch(&self, batch: &Batch, buffer: &mut Buffer) -> std::io::Result<Vec<Outcome>> {
        let start = batch.first_block * u64::from(self.block_bytes);
        let end = (start + batch.blocks as u64 * u64::from(self.block_bytes)).min(self.size_bytes);
        let bytes = if batch.is_hole { &mut [] } else { buffer.of(end.saturating_sub(start) as usize) };
        self.content.read_exact_at(bytes, start)?;
        let bytes = &*bytes;
        let mut changed_bytes = 0;
        let outcomes = (0..batch.blocks).map(|i| {
            let number = batch.first_block + i as u64;
            let in_leaf = (number % crate::map::FAN_OUT) as usize;
            let old = batch.old.as_ref().and_then(|leaf| leaf.blocks.get(in_leaf).copied().flatten());
            let start = i * self.block_bytes as usize;
            let raw = &bytes[bytes.len().min(start)..bytes.len().min(start + self.block_bytes as usize)];
            let outcome = if raw.is_empty() { Outcome::Hole } else { self.block(raw, number, old) };
            let changed = match &outcome {
                Outcome::Hole if old.is_some() => u64::from(self.block_bytes),
                Outcome::Sent(_) | Outcome::New { .. } => raw.len() as u64,
                _ => 0,
            };
            if let Some(claims) = self.claims.filter(|_| changed > 0) {
                let start = number * u64::from(self.block_bytes);
                claims.found(start..start + u64::from(self.block_bytes), self.size_bytes);
            }
            changed_bytes += changed;
            if let Some(meter) =
                self.meter.filter(|_| matches!(outcome, Outcome::Sent(_) | Outcome::New { .. }))
            {
                meter.block(raw);
            }
            outcome
        });
        let outcomes = outcomes.collect();
        self.stats.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stats.changed_bytes.fetch_add(changed_bytes, Ordering::Relaxed);
        Ok(outcomes)
    }

    fn block(&self, raw: &[u8], number: u64, old: KnownChild) -> Outcome {
        let print = self.printer.print(raw);
        if let Some(old) = old.filter(|old| old.print == print) {
            return Outcome::Kept(old);
        }
        if is_zero(raw) {
            return Outcome::Hole;
        }
        let id = self.secret.block_id(raw);
        if let Some(old) = old.filter(|old| old.blob.id == id) {
            return Outcome::Kept(Known { print, ..old });
        }
        let outcome = if let Some((at, depth)) = self.sent.get(&id) {
            Outcome::Sent(Known { blob: BlobRef { id, at }, depth, print })
        } else {
            let base = old.filter(|old| old.depth < MAX_PATCH_DEPTH).and_then(|old| self.last(number, &old));
            let base = base.as_ref().map(|(known, bytes)| (&known.blob, &bytes[..], known.depth));
            let (depth, blob) = blob::encode_best(raw, base, self.level.load(Ordering::Relaxed));
            let sealed = self.sealer.seal(BlobKind::Block, &id.0, &blob);
            Outcome::New { id, print, stands_on: old.filter(|_| depth > 0), sealed }
        };
        if let Some(copies) = self.copies
            && let Err(error) = copies.put(number, raw)
        {
            tracing::debug!(block = number, "a copy of a shipped block was not kept: {error}");
        }
        outcome
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
