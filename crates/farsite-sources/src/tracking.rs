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
    fn kind(&self) -> &'static str;
    /// Extents, in bytes, that may differ between the version called `token` and this capture; all else is the same. `None`:
    /// that version is not there any more, or cannot be compared.
    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>>;
    /// That version, to read from, where it is still there.
    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>>;
    /// Keeps this capture beside the version that is kept already, and tells its token; before the point is committed.
    fn keep(&self) -> io::Result<String>;
    /// The point exists: versions other than this one are let go.
    fn forget_others(&self, token: &str);
}
