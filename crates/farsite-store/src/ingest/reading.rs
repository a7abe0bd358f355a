//! Reads an item's blocks that may hold data, in order, a few batches ahead of those who hash them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use farsite_model::content::ReadAt;

use crate::map::FAN_OUT;

/// Consecutive blocks of one leaf.
pub(super) struct Batch {
    pub(super) first_block: u64,
    pub(super) block_bytes: usize,
    /// The last block of the item may be short.
    pub(super) bytes: Vec<u8>,
}

impl Batch {
    pub(super) fn block(&self, index: usize) -> &[u8] {
        let start = index * self.block_bytes;
        &self.bytes[start..self.bytes.len().min(start + self.block_bytes)]
    }
}

/// Reads all blocks that may hold data, in order.
pub(super) fn read_batches(
    content: &dyn ReadAt,
    block_bytes: u32,
    batch_blocks: u64,
    sender: &SyncSender<std::io::Result<Batch>>,
    cancel: &AtomicBool,
) {
    let result = (|| {
        let block = u64::from(block_bytes);
        let size = content.size_bytes();
        let mut offset = 0;
        while let Some(range) = content.next_data(offset)? {
            // Going on here would take data for a hole, or never end.
            if range.is_empty() || range.end <= offset {
                return Err(std::io::Error::other(format!(
                    "asked for data from {offset} on, its source said {}..{}",
                    range.start, range.end
                )));
            }
            // Whole blocks, and nothing that was read already.
            let mut first = (range.start / block).max(offset.div_ceil(block));
            let end = range.end.min(size).div_ceil(block);
            while first < end {
                let leaf_end = (first / FAN_OUT + 1) * FAN_OUT;
                let last = end.min(first + batch_blocks).min(leaf_end);
                let start_byte = first * block;
                let mut bytes = vec![0; ((last * block).min(size) - start_byte) as usize];
                content.read_exact_at(&mut bytes, start_byte)?;
                let batch = Batch { first_block: first, block_bytes: block_bytes as usize, bytes };
                // The receiver is gone when the run was cancelled or failed.
                if cancel.load(Ordering::Relaxed) || sender.send(Ok(batch)).is_err() {
                    return Ok(());
                }
                first = last;
            }
            offset = end * block;
            if offset >= size {
                break;
            }
        }
        Ok(())
    })();
    if let Err(error) = result {
        let _ = sender.send(Err(error));
    }
}
