//! Volumes in a Ceph pool: an image comes in; a snapshot of it goes out, and what differs from the snapshot of the last
//! point, as RBD itself knows it (`rbd diff` without whole objects). The snapshot of the committed point is kept until the
//! next point is committed, to be compared with and to make patches against.
//!
//! What must hold: a snapshot carries the owner's name, and only such are removed; one that a killed run left behind is
//! removed by the next run that comes to its end.

mod image;
mod reader;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farsite_model::content::ReadAt;
use farsite_model::policy::Rbd;
use farsite_model::{Consistency, ItemId, ItemKind};

use crate::tracking::{ChangeTracking, Changed};
use crate::volume::blocking;
use crate::{Capture, CaptureContext, Content, KeptSpace, SourceError, random};
use image::{Image, Pool, Used};
use reader::{Reader, SnapshotContent};

/// Longest time that one `rbd` command may take: a removal waits for the image's owner.
const LIMIT: Duration = Duration::from_mins(5);

fn pool(rbd: &Rbd) -> Pool {
    Pool { rbd: rbd.clone(), limit: LIMIT }
}

/// The names of a pool's images. Those that Cinder has given up and cannot delete yet are nobody's volumes.
pub(crate) async fn list(rbd: &Rbd) -> Result<Vec<String>, SourceError> {
    let pool = pool(rbd);
    let mut names = blocking(move || pool.images()).await?;
    names.retain(|name| !name.ends_with(".deleted"));
    Ok(names)
}

/// Snapshots one image.
pub(crate) async fn capture(
    rbd: &Rbd,
    name: &str,
    item: &ItemId,
    context: &CaptureContext,
) -> Result<Capture, SourceError> {
    let image = Image { pool: pool(rbd), name: name.to_owned() };
    let fail = |error: io::Error| SourceError::new(format!("reading {image}"), error);
    let reader = Arc::new(Reader::start(&image, &context.scratch).await?);
    let token = format!("{:016x}", u64::from_be_bytes(random::bytes().map_err(fail)?));
    let prefix = prefix(context);
    let captured = context.clock.capture_time();
    let tracking = Snapshots {
        image: image.clone(),
        name: format!("{prefix}{token}"),
        prefix,
        token,
        reader: Mutex::new(Some(reader.clone())),
        is_kept: AtomicBool::new(false),
    };
    let content = blocking(move || {
        // Dropped on failure, which removes the snapshot.
        let tracking = tracking;
        tracking.image.add_snapshot(&tracking.name)?;
        let content = SnapshotContent::open(reader, tracking.name.clone()).map_err(|error| {
            SourceError::new(format!("reading {}", tracking.image), error).hint(
                "reading needs Ceph's module for the system's Python (Debian: `apt install python3-rbd`)",
            )
        })?;
        Ok((content, tracking))
    });
    let (content, tracking) = content.await?;
    Ok(Capture {
        item: item.clone(),
        kind: ItemKind::Cinder,
        captured,
        consistency: Consistency::Crash,
        content: Content::Volume(Arc::new(content)),
        still: true,
        ancestor: None,
        details: BTreeMap::from([("backend".to_owned(), "rbd".to_owned())]),
        tracking: Some(Box::new(tracking)),
        guard: None,
    })
}

/// What was written since our snapshots of some images, which these hold the old state of.
pub(crate) async fn kept(
    rbd: &Rbd,
    images: Vec<String>,
    context: &CaptureContext,
) -> Result<Vec<KeptSpace>, SourceError> {
    let (pool, prefix) = (pool(rbd), prefix(context));
    let used = blocking(move || pool.usage()).await?;
    let space = |name: &String| {
        let of_it = used.iter().filter(|used| used.image == *name);
        let is_before =
            |used: &&Used| used.snapshot.as_ref().is_none_or(|snapshot| !snapshot.starts_with(&prefix));
        let mut since = of_it.skip_while(is_before).skip(1).peekable();
        since.peek()?;
        Some(KeptSpace {
            item: ItemId::new(ItemKind::Cinder, name),
            bytes: since.map(|used| used.bytes).sum(),
            free_bytes: None,
        })
    };
    Ok(images.iter().filter_map(space).collect())
}

/// The item is gone for good: our snapshots go from its image, if that is still there.
pub(crate) async fn forget(rbd: &Rbd, name: &str, context: &CaptureContext) {
    let image = Image { pool: pool(rbd), name: name.to_owned() };
    let prefix = prefix(context);
    let forgotten = blocking(move || {
        if image.pool.images()?.contains(&image.name) {
            remove_others(&image, &prefix, &[])?;
        }
        Ok(())
    });
    if let Err(error) = forgotten.await {
        tracing::warn!("{error}");
    }
}

/// How the snapshots of one group at one host begin: all others are somebody else's.
fn prefix(context: &CaptureContext) -> String {
    format!("farsite-{}-", context.owner)
}

fn remove_others(image: &Image, prefix: &str, but: &[String]) -> Result<(), SourceError> {
    for name in image.snapshots()? {
        if name.strip_prefix(prefix).is_some_and(|token| but.iter().all(|kept| kept != token)) {
            image.remove_snapshot(&name)?;
        }
    }
    Ok(())
}

/// The tracking of one capture.
struct Snapshots {
    image: Image,
    prefix: String,
    token: String,
    /// Of this capture's snapshot.
    name: String,
    reader: Mutex<Option<Arc<Reader>>>,
    is_kept: AtomicBool,
}

impl Snapshots {
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
        if let Err(error) = remove_others(&self.image, &self.prefix, tokens) {
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
