//! Our snapshots of an image, as a capture's change tracking: made, compared, kept until the next point stands on another one.
//!
//! What must hold: one that is not kept goes with its capture; none of a capture under way is taken for left over.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use farsite_model::content::ReadAt;

use super::image::Image;
use super::reader::{Reader, SnapshotContent};
use super::remove_others;
use crate::SourceError;
use crate::claim::Claim;
use crate::tracking::{ChangeTracking, Changed};
use crate::volume::blocking;

/// The snapshot of one capture, and its tracking.
pub(super) struct Snapshots {
    image: Image,
    prefix: String,
    token: String,
    /// Of this capture's snapshot.
    name: String,
    reader: Mutex<Option<Arc<Reader>>>,
    is_kept: AtomicBool,
    /// Of its token: no run, of whatever process, takes the snapshot for left over.
    claim: Arc<Claim>,
}

impl Snapshots {
    /// Dropped before it is kept, it removes its snapshot, if that was made.
    pub(super) fn new(image: &Image, prefix: &str, token: &str, claim: &Arc<Claim>) -> Self {
        Self {
            image: image.clone(),
            name: format!("{prefix}{token}"),
            prefix: prefix.to_owned(),
            token: token.to_owned(),
            reader: Mutex::new(None),
            is_kept: AtomicBool::new(false),
            claim: claim.clone(),
        }
    }

    pub(super) fn make(self) -> Result<Self, SourceError> {
        self.image.add_snapshot(&self.name)?;
        Ok(self)
    }

    /// Its bytes.
    pub(super) async fn open(self) -> Result<(SnapshotContent, Self), SourceError> {
        let reader = Arc::new(Reader::start(&self.image).await?);
        self.reader.lock().expect("no holder of this lock panics").replace(reader.clone());
        blocking(move || {
            let content = SnapshotContent::open(reader, self.name.clone()).map_err(|error| {
                SourceError::new(format!("reading {}", self.image), error).hint(
                    "reading needs Ceph's module for the system's Python (Debian: `apt install python3-rbd`)",
                )
            })?;
            Ok((content, self))
        })
        .await
    }

    fn reader(&self) -> io::Result<Arc<Reader>> {
        let reader = self.reader.lock().expect("no holder of this lock panics").clone();
        reader.ok_or_else(|| io::Error::other("nothing is read of it any more"))
    }

    /// Only what can be ours is put into a request.
    fn name_of(&self, token: &str) -> Option<String> {
        let is_ours = token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_ours.then(|| format!("{}{token}", self.prefix))
    }
}

impl ChangeTracking for Snapshots {
    fn kind(&self) -> &'static str {
        "rbd diff"
    }

    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        let Some(before) = self.name_of(token) else { return Ok(None) };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut changed = Changed::default();
        // Objects answer in whatever order they please; within memory's bounds that is put right.
        let told = self.reader()?.differing(&self.name, &before, &mut |range| {
            ranges.push(range);
            if ranges.len() >= EXTENTS_AT_ONCE {
                changed = joined(std::mem::take(&mut changed), &mut ranges);
            }
        })?;
        Ok(told.map(|()| joined(changed, &mut ranges).into_ranges()))
    }

    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>> {
        let content = SnapshotContent::open(self.reader().ok()?, self.name_of(token)?).ok()?;
        Some(Arc::new(content))
    }

    fn token(&self) -> Option<&str> {
        Some(&self.token)
    }

    fn keep(&self) -> io::Result<String> {
        self.reader.lock().expect("no holder of this lock panics").take();
        self.is_kept.store(true, Ordering::Release);
        Ok(self.token.clone())
    }

    fn forget_others(&self, tokens: &[String]) {
        if let Err(error) = remove_others(&self.image, &self.prefix, tokens, self.claim.folder()) {
            tracing::warn!("an old snapshot stays, and a later run removes it: {error}");
        }
    }
}

const EXTENTS_AT_ONCE: usize = 1 << 17;

/// All of both, in order.
fn joined(changed: Changed, more: &mut Vec<Range<u64>>) -> Changed {
    more.extend(changed.into_ranges());
    more.sort_unstable_by_key(|range| range.start);
    let mut all = Changed::default();
    more.drain(..).for_each(|range| all.add(range));
    all
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        if *self.is_kept.get_mut() {
            return;
        }
        match self.image.snapshots() {
            Ok(there) if there.contains(&self.name) => {
                if let Err(error) = self.image.remove_snapshot(&self.name) {
                    tracing::warn!("the snapshot stays, and a later run removes it: {error}");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("a snapshot may stay, and a later run removes it: {error}"),
        }
    }
}
