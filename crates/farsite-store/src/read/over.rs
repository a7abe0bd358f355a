//! An item and an older copy of it come in; only what differs is fetched and written. What stands at the destination is
//! either known, by the block map of the point that was written there, or found out by reading and hashing it.
//!
//! What must hold: nothing is believed of a destination that its caller does not vouch for; holes are made where the
//! item has them; the copy is durable when this returns.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use farsite_model::content::{ReadAt, WriteAt};

use super::gather::AtHand;
use super::walk::{Block, Hole, Walk};
use super::{Destination, Job, ReadStats, Reader, finish, refuse_impossible};
use crate::keys::BlobId;
use crate::map::MapRoot;
use crate::{Damage, StoreError};

/// Holes are looked through in pieces of this size.
const LOOK_BYTES: u64 = 1 << 20;

/// A copy that can be read and written.
pub trait Standing: ReadAt + WriteAt {}
impl<T: ReadAt + WriteAt> Standing for T {}

impl Reader {
    /// Makes `copy`, which must have the item's size already, what the item is. `known` is the map of what stands there,
    /// vouched for by the caller, with zeros behind its end; without it everything is compared by reading.
    pub async fn restore_over(
        &self,
        map: &MapRoot,
        copy: Arc<dyn Standing>,
        known: Option<&MapRoot>,
        stats: &ReadStats,
    ) -> Result<(), StoreError> {
        refuse_impossible(map)?;
        let walk = Walk::difference(self, map, known, stats).await?;
        let damage = self.run(map, walk, &Destination::Copy(copy.clone()), stats).await?;
        if !damage.is_empty() {
            return Err(StoreError::Damaged(damage));
        }
        finish(copy, map.size_bytes).await
    }

    pub(super) async fn put_right(
        &self,
        map: &MapRoot,
        job: Job,
        copy: Arc<dyn Standing>,
        stats: &ReadStats,
    ) -> Result<Vec<Damage>, StoreError> {
        let Job { blocks, holes, .. } = job;
        let compare = (copy.clone(), self.opener.clone(), map.clone());
        let (blocks, at_hand, unchanged, punched) = tokio::task::spawn_blocking(move || {
            let (copy, opener, map) = compare;
            let mut punched = 0;
            for hole in &holes {
                punched += punch(&*copy, hole)?;
            }
            let all = blocks.len() as u64;
            let same = |bytes: &[u8], block: &Block| opener.block_id(bytes) == block.blob.id;
            let blocks = differing(&*copy, &map, blocks, same)?;
            let at_hand = last_versions(&*copy, &map, &blocks, |bytes| opener.block_id(bytes));
            Ok((blocks, at_hand, all, punched))
        })
        .await
        .map_err(|_| StoreError::Cancelled)?
        .map_err(|source: io::Error| StoreError::Destination {
            what: "the copy that stands there".into(),
            source,
        })?;
        let same = (unchanged - blocks.len() as u64) * u64::from(map.block_bytes);
        stats.unchanged_bytes.fetch_add(same, Ordering::Relaxed);
        stats.punched_bytes.fetch_add(punched, Ordering::Relaxed);
        let at_hand = AtHand { blocks: at_hand, ..AtHand::default() };
        self.write(map, blocks, at_hand, Some(copy), stats).await
    }
}

/// What stands in the places of blocks that may be patches of just that: then it need not be fetched. It is hashed, so
/// whatever the map says of the copy, only the right bytes are used.
fn last_versions(
    copy: &dyn Standing,
    map: &MapRoot,
    blocks: &[Block],
    id: impl Fn(&[u8]) -> BlobId,
) -> HashMap<BlobId, Vec<u8>> {
    let block_bytes = u64::from(map.block_bytes);
    let may_be_patch =
        |block: &&Block| !block.blob.at.is_grouped() && u64::from(block.blob.at.sealed_bytes()) < block_bytes;
    let last_version = |block: &Block| {
        let start = block.number * block_bytes;
        let mut bytes = vec![0; block_bytes.min(copy.size_bytes().checked_sub(start)?) as usize];
        copy.read_exact_at(&mut bytes, start).ok()?;
        let stands = id(&bytes);
        (Some(stands) == block.stands).then_some((stands, bytes))
    };
    blocks.iter().filter(may_be_patch).filter_map(last_version).collect()
}

/// Those of the blocks that the copy does not hold.
fn differing(
    copy: &dyn Standing,
    map: &MapRoot,
    mut blocks: Vec<Block>,
    same: impl Fn(&[u8], &Block) -> bool,
) -> io::Result<Vec<Block>> {
    let block_bytes = u64::from(map.block_bytes);
    let mut buffer = vec![0; block_bytes as usize];
    let mut data = 0..0;
    let mut failed = None;
    blocks.retain(|block| {
        if block.differs || failed.is_some() {
            return true;
        }
        let start = block.number * block_bytes;
        let end = (start + block_bytes).min(map.size_bytes);
        let mut is_same = || -> io::Result<bool> {
            if start >= data.end {
                data = copy.next_data(start)?.unwrap_or(u64::MAX..u64::MAX);
            }
            // A hole is no block: those are holes in the map as well.
            if data.start >= end {
                return Ok(false);
            }
            let buffer = &mut buffer[..(end - start) as usize];
            copy.read_exact_at(buffer, start)?;
            Ok(same(buffer, block))
        };
        match is_same() {
            Ok(is_same) => !is_same,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    failed.map_or(Ok(blocks), Err)
}

/// Makes a range read as zeros; what does already is left alone. Returns the bytes that were punched.
fn punch(copy: &dyn Standing, hole: &Hole) -> io::Result<u64> {
    let mut punched = 0;
    let mut buffer = Vec::new();
    let mut offset = hole.bytes.start;
    while let Some(data) = copy.next_data(offset)?.filter(|data| data.start < hole.bytes.end) {
        let (start, end) = (data.start.max(offset), data.end.min(hole.bytes.end));
        if hole.differs {
            copy.punch_hole(start..end)?;
            punched += end - start;
        } else {
            punched += punch_what_is_not_zero(copy, start..end, &mut buffer)?;
        }
        offset = end;
    }
    Ok(punched)
}

fn punch_what_is_not_zero(copy: &dyn Standing, range: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<u64> {
    let mut punched = 0;
    let mut offset = range.start;
    while offset < range.end {
        let end = (offset + LOOK_BYTES).min(range.end);
        buffer.resize((end - offset) as usize, 0);
        copy.read_exact_at(buffer, offset)?;
        if buffer.iter().any(|byte| *byte != 0) {
            copy.punch_hole(offset..end)?;
            punched += end - offset;
        }
        offset = end;
    }
    Ok(punched)
}
