//! Change tracking: what an item's source knows of the extents that changed since an earlier capture. What must hold: a
//! source that cannot tell says so; what it says is believed only while its tracking is unbroken, and is compared with a
//! full read from time to time by whoever uses it (invariant 10).

use std::io;
use std::ops::Range;
use std::sync::Arc;

use farsite_model::content::ReadAt;

/// The tracking of one capture. A version that a point was made of is known by its token.
pub trait ChangeTracking: Send + Sync {
    /// In a few words, for messages: `reflink extents`.
    fn kind(&self) -> &str;
    /// Extents, in bytes, that may differ between the version called `token` and this capture; all else is the same. `None`:
    /// that version is not there any more, or cannot be compared.
    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>>;
    /// Whether versions can be read from later; where not, copies of what was shipped last stand in for them.
    fn keeps_versions(&self) -> bool {
        true
    }
    /// That version, to read from, where it is still there.
    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>>;
    /// The token that [`ChangeTracking::keep`] will tell, where the version lies at its source from the capture on: other runs
    /// of the group leave it there.
    fn token(&self) -> Option<&str> {
        None
    }
    /// Keeps this capture beside the versions that are kept already, and tells its token; before any point of it is
    /// committed. A group's standbys share what is kept: each stands on the version of its own last point.
    fn keep(&self) -> io::Result<String>;
    /// Versions other than these are let go.
    fn forget_others(&self, tokens: &[String]);
}

/// Extents are told no more finely than memory allows: of more than this many, near ones are joined.
const EXTENTS: usize = 1 << 17;

/// Gathers extents that come in order.
#[derive(Debug)]
pub(crate) struct Changed {
    ranges: Vec<Range<u64>>,
    /// Extents that are no further apart are one.
    gap: u64,
    most: usize,
}

impl Default for Changed {
    fn default() -> Self {
        Self { ranges: Vec::new(), gap: 0, most: EXTENTS }
    }
}

impl Changed {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(self.gap) => {
                last.end = last.end.max(range.end);
            }
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > self.most {
            self.gap = (self.gap * 2).max(64 << 10);
            for range in std::mem::take(&mut self.ranges) {
                match self.ranges.last_mut() {
                    Some(last) if range.start <= last.end.saturating_add(self.gap) => last.end = range.end,
                    _ => self.ranges.push(range),
                }
            }
        }
    }

    pub(crate) fn into_ranges(self) -> Vec<Range<u64>> {
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_extents_are_told_as_fewer_that_cover_them_all() {
        let mut changed = Changed { most: 10, ..Changed::default() };
        let told: Vec<Range<u64>> = (0..1000).map(|i| i * i * 4096..i * i * 4096 + 100).collect();
        for range in &told {
            changed.add(range.clone());
        }
        let ranges = changed.into_ranges();
        assert!(ranges.len() <= 10, "{}", ranges.len());
        for range in told {
            assert!(ranges.iter().any(|r| r.start <= range.start && range.end <= r.end), "{range:?}");
        }
        assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
    }
}
