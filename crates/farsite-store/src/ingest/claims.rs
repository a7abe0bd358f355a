//! What a source says of its changes, held against a full read: extents come in; what changed outside of them is counted.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Claims {
    /// In order and apart from each other.
    extents: Vec<Range<u64>>,
    untold_bytes: AtomicU64,
}

impl Claims {
    pub fn new(mut extents: Vec<Range<u64>>) -> Self {
        extents.sort_unstable_by_key(|extent| extent.start);
        let mut apart: Vec<Range<u64>> = Vec::new();
        for extent in extents {
            match apart.last_mut() {
                Some(last) if extent.start <= last.end => last.end = last.end.max(extent.end),
                _ => apart.push(extent),
            }
        }
        Self { extents: apart, untold_bytes: AtomicU64::new(0) }
    }

    /// A block has changed. What lies beyond the end of an item that became shorter is not the source's to tell.
    pub(super) fn found(&self, block: Range<u64>, size_bytes: u64) {
        let after = self.extents.partition_point(|extent| extent.end <= block.start);
        let told = self.extents.get(after).is_some_and(|extent| extent.start < block.end);
        if !told && block.start < size_bytes {
            self.untold_bytes.fetch_add(block.end.min(size_bytes) - block.start, Ordering::Relaxed);
        }
    }

    /// Bytes of blocks that changed and that the source did not name.
    pub fn untold_bytes(&self) -> u64 {
        self.untold_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_outside_of_what_was_told_is_counted() {
        let claims = Claims::new(vec![200..300, 0..10, 250..400]);
        for told in [0..100, 150..201, 399..500] {
            claims.found(told, 1000);
        }
        assert_eq!(claims.untold_bytes(), 0);
        claims.found(10..110, 1000);
        claims.found(400..500, 1000);
        claims.found(950..1050, 1000);
        claims.found(1000..1100, 1000);
        assert_eq!(claims.untold_bytes(), 250);
        assert_eq!(Claims::default().untold_bytes(), 0);
    }
}
