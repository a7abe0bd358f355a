//! Images that are complete are never written again: as long as what an image is known by stays the same, none of it has changed.

use std::fs::Metadata;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use farsite_model::content::ReadAt;

use crate::tracking::ChangeTracking;

/// What an image is known by.
pub(super) struct Immutable {
    kind: &'static str,
    token: String,
}

impl Immutable {
    /// Its hash and length, of which there is one version for ever.
    pub(super) fn by_hash(hash: &str, size_bytes: u64) -> Self {
        Self { kind: "Glance's hash", token: format!("{hash}-{size_bytes}") }
    }

    /// The stamp of its file, which the kernel changes with every write. One that is replaced or moved counts as another.
    pub(super) fn by_stamp(file: &Metadata) -> Self {
        let token = format!(
            "{:x}-{:x}-{:x}-{:x}.{:09}-{:x}.{:09}",
            file.dev(),
            file.ino(),
            file.len(),
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec()
        );
        Self { kind: "its file's stamp", token }
    }
}

impl ChangeTracking for Immutable {
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        Ok((token == self.token).then(Vec::new))
    }
    /// Volumes that are made from it are sent as patches against copies of what was shipped.
    fn keeps_versions(&self) -> bool {
        false
    }
    fn version(&self, _: &str) -> Option<Arc<dyn ReadAt>> {
        None
    }
    fn keep(&self) -> io::Result<String> {
        Ok(self.token.clone())
    }
    fn forget_others(&self, _: &[String]) {}
}
