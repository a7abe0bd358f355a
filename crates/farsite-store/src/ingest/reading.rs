//! Plans what is read of an item: its blocks that may be new, in order, in batches for those who read and hash them. With the
//! extents that a source says have changed, nothing else is read. A batch never crosses from one leaf into the next.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::content::ReadAt;

use crate::local_map::{Leaf, LocalMap};
use crate::map::FAN_OUT;

/// Consecutive blocks of one leaf.
pub(super) struct Batch {
    pub(super) first_block: u64,
    pub(super) blocks: usize,
    /// All of it lies in a hole: there is nothing to read.
    pub(super) is_hole: bool,
    /// The leaf as it was.
    pub(super) old: Option<Arc<Leaf>>,
}

/// What is read of an item.
pub(super) struct Reading<'a> {
    pub(super) content: &'a dyn ReadAt,
    pub(super) block_bytes: u32,
    pub(super) batch_blocks: u64,
    pub(super) previous: Option<&'a LocalMap>,
    /// Only these bytes may differ from what `previous` describes; `None`: all of them may.
    pub(super) changed: Option<&'a [Range<u64>]>,
    pub(super) cancel: &'a AtomicBool,
}

impl Reading<'_> {
    /// Hands over batch after batch until the end, or until `hand_over` says that nobody wants more.
    pub(super) fn plan(&self, hand_over: &mut dyn FnMut(Batch) -> bool) -> std::io::Result<()> {
        let block = u64::from(self.block_bytes);
        let size = self.content.size_bytes();
        let mut leaf = CurrentLeaf { previous: self.previous, index: None, old: None };
        let Some(changed) = self.changed else {
            return self.data(&mut leaf, 0..size.div_ceil(block), false, hand_over).map(|_| ());
        };
        for blocks in self.changed_blocks(changed)? {
            if !self.data(&mut leaf, blocks, true, hand_over)? {
                break;
            }
        }
        Ok(())
    }

    /// The changed extents as ranges of whole blocks, in order and apart from each other: with what a change of the size adds,
    /// and with the whole of every leaf whose old record this disk has lost.
    fn changed_blocks(&self, changed: &[Range<u64>]) -> std::io::Result<Vec<Range<u64>>> {
        let block = u64::from(self.block_bytes);
        let size = self.content.size_bytes();
        let blocks = size.div_ceil(block);
        let mut ranges: Vec<Range<u64>> = changed
            .iter()
            .filter(|range| range.start < range.end.min(size))
            .map(|range| range.start / block..range.end.min(size).div_ceil(block))
            .collect();
        if let Some(previous) = self.previous {
            let old_size = previous.map().size_bytes;
            if old_size != size && blocks > 0 {
                // The block at the shorter end has another length now, or a leaf has.
                let end = old_size.min(size) / block;
                ranges.push(end.min(blocks - 1)..blocks.max(end));
            }
        }
        ranges.sort_unstable_by_key(|range| range.start);
        let mut apart: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match apart.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        let Some(previous) = self.previous else { return Ok(apart) };
        let mut lost = Vec::new();
        let mut looked_at = None;
        for range in &apart {
            for index in range.start / FAN_OUT..=(range.end.max(range.start + 1) - 1) / FAN_OUT {
                if looked_at != Some(index) && previous.has_leaf(index) && previous.leaf(index)?.is_none() {
                    lost.push(index * FAN_OUT..((index + 1) * FAN_OUT).min(blocks));
                }
                looked_at = Some(index);
            }
        }
        if lost.is_empty() {
            return Ok(apart);
        }
        apart.extend(lost);
        apart.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in apart {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }

    /// Hands over what is data in a range of blocks, and says what is a hole where that matters. False: nobody wants more.
    fn data(
        &self,
        leaf: &mut CurrentLeaf<'_>,
        blocks: Range<u64>,
        say_holes: bool,
        hand_over: &mut dyn FnMut(Batch) -> bool,
    ) -> std::io::Result<bool> {
        let block = u64::from(self.block_bytes);
        let size = self.content.size_bytes();
        let mut next = blocks.start;
        while next < blocks.end {
            let offset = next * block;
            let found = if offset < size { self.content.next_data(offset)? } else { None };
            let data = match found {
                Some(range) if range.start < blocks.end * block => {
                    // Going on here would take data for a hole, or never end.
                    if range.is_empty() || range.end <= offset {
                        return Err(std::io::Error::other(format!(
                            "asked for data from {offset} on, its source said {}..{}",
                            range.start, range.end
                        )));
                    }
                    // Whole blocks, and nothing that was read already.
                    (range.start / block).max(next)..range.end.min(size).div_ceil(block).min(blocks.end)
                }
                _ => blocks.end..blocks.end,
            };
            if say_holes
                && !self.pieces(next..data.start, |piece| {
                    let old = leaf.at(piece.start / FAN_OUT)?;
                    let blocks = (piece.end - piece.start) as usize;
                    Ok(hand_over(Batch { first_block: piece.start, blocks, is_hole: true, old }))
                })?
            {
                return Ok(false);
            }
            let goes_on = self.pieces(data.clone(), |piece| {
                if self.cancel.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let old = leaf.at(piece.start / FAN_OUT)?;
                let blocks = (piece.end - piece.start) as usize;
                Ok(hand_over(Batch { first_block: piece.start, blocks, is_hole: false, old }))
            })?;
            if !goes_on {
                return Ok(false);
            }
            next = data.end;
        }
        Ok(true)
    }

    /// Cuts a range into batches.
    fn pieces(
        &self,
        blocks: Range<u64>,
        mut each: impl FnMut(Range<u64>) -> std::io::Result<bool>,
    ) -> std::io::Result<bool> {
        let mut first = blocks.start;
        while first < blocks.end {
            let leaf_end = (first / FAN_OUT + 1) * FAN_OUT;
            let last = blocks.end.min(first + self.batch_blocks).min(leaf_end);
            if !each(first..last)? {
                return Ok(false);
            }
            first = last;
        }
        Ok(true)
    }
}

/// The old record of the leaf that is being read.
struct CurrentLeaf<'a> {
    previous: Option<&'a LocalMap>,
    index: Option<u64>,
    old: Option<Arc<Leaf>>,
}

impl CurrentLeaf<'_> {
    fn at(&mut self, index: u64) -> std::io::Result<Option<Arc<Leaf>>> {
        if self.index != Some(index) {
            let old = match self.previous {
                Some(previous) => previous.leaf(index)?,
                None => None,
            };
            (self.index, self.old) = (Some(index), old.map(Arc::new));
        }
        Ok(self.old.clone())
    }
}
