//! Volumes in a Ceph pool: an image comes in; a snapshot of it goes out, and what differs from the snapshot of the last
//! point, as RBD itself knows it (`rbd diff` without whole objects). The snapshot of the committed point is kept until the
//! next point is committed, to be compared with and to make patches against.
//!
//! What must hold: a snapshot carries the owner's name, and only such are removed; one that a killed run left behind is
//! removed when the next begins.

mod child;
mod image;
mod instant;
mod reader;
mod snapshots;
mod standing;
mod trash;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farsite_model::policy::Rbd;
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};
use farsite_openstack::SiteCloud;

use crate::claim::{Claim, claimed};
use crate::volume::blocking;
use crate::{Capture, CaptureContext, Content, KeptSpace, Needed, SourceError, random};
use image::{Image, Pool, Used};
pub(crate) use instant::{Ready, prepare};
use snapshots::Snapshots;
pub(crate) use standing::standing;
pub use trash::sweep;
pub use writer::{Found, ImageName, OpenImage, Snapshot, Writer};

/// Longest time that one `rbd` command may take: a removal waits for the image's owner.
const LIMIT: Duration = Duration::from_mins(5);

fn pool(rbd: &Rbd) -> Pool {
    Pool { rbd: rbd.clone(), limit: LIMIT }
}

/// A pool in words.
pub(crate) fn shown(rbd: &Rbd) -> impl fmt::Display {
    pool(rbd)
}

/// One image of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolImage {
    pub size_bytes: u64,
    pub snapshots: BTreeSet<String>,
}

/// A pool's images, our hidden ones left out.
pub async fn images(rbd: &Rbd) -> Result<BTreeMap<String, PoolImage>, SourceError> {
    let pool = pool(rbd);
    let listed = blocking(move || pool.images_with_snapshots()).await?;
    let mut images: BTreeMap<String, PoolImage> = BTreeMap::new();
    for one in listed.into_iter().filter(|one| !one.image.starts_with('.')) {
        let image = images.entry(one.image).or_default();
        match one.snapshot {
            Some(snapshot) => drop(image.snapshots.insert(snapshot)),
            None => image.size_bytes = one.size_bytes,
        }
    }
    Ok(images)
}

/// The names of a pool's images. Those that Cinder has given up and cannot delete yet are nobody's volumes, and neither are our
/// own hidden ones.
pub(crate) async fn list(rbd: &Rbd) -> Result<Vec<String>, SourceError> {
    let pool = pool(rbd);
    let mut names = blocking(move || pool.images()).await?;
    names.retain(|name| !name.ends_with(".deleted") && !name.starts_with('.'));
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
    let captured = context.clock.capture_time();
    let token = token()?;
    let snapshot = Snapshots::new(&image, &prefix(context), &token, &claim(context, &token)?);
    let snapshot = blocking(move || snapshot.make()).await?;
    captured_from(snapshot, captured, item).await
}

/// Reads an image at a snapshot that is made already.
async fn captured_from(
    snapshot: Snapshots,
    captured: CaptureTime,
    item: &ItemId,
) -> Result<Capture, SourceError> {
    let (content, tracking) = snapshot.open().await?;
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

/// Names one capture's snapshot.
fn token() -> Result<String, SourceError> {
    let random = random::bytes().map_err(|error| SourceError::new("naming a snapshot", error))?;
    Ok(format!("{:016x}", u64::from_be_bytes(random)))
}

/// What is under way in any process of this group at this host.
fn claims(context: &CaptureContext) -> PathBuf {
    context.kept.join("under-way")
}

/// Before its snapshots are made, a capture claims their token.
fn claim(context: &CaptureContext, token: &str) -> Result<Arc<Claim>, SourceError> {
    let folder = claims(context);
    let claim = Claim::new(&folder, token).map_err(|error| {
        SourceError::new(format!("noting a snapshot in {}", folder.display()), error)
            .hint("no snapshot was made, for another run could have removed it; is the agent's state folder full, or read-only?")
    })?;
    Ok(Arc::new(claim))
}

/// What was written since our snapshots of some images, which these hold the old state of.
pub(crate) async fn kept(
    rbd: &Rbd,
    images: Vec<String>,
    context: &CaptureContext,
    cloud: &SiteCloud,
) -> Result<Vec<KeptSpace>, SourceError> {
    // What Cinder deleted and only we still hold takes room as well.
    if let Err(error) = trash::sweep(rbd, &context.owner, trash::GRACE, cloud).await {
        tracing::warn!("{error}");
    }
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

/// The item is gone for good: our snapshots go from its image, or from what Cinder has made of that.
pub(crate) async fn forget(rbd: &Rbd, name: &str, context: &CaptureContext, cloud: &SiteCloud) {
    let image = Image { pool: pool(rbd), name: name.to_owned() };
    let (prefix, claims) = (prefix(context), claims(context));
    let forgotten = blocking(move || {
        let is_there = image.pool.images()?.contains(&image.name);
        if is_there {
            remove_others(&image, &prefix, &[], &claims)?;
        }
        Ok(is_there)
    });
    let done = match forgotten.await {
        Ok(true) => Ok(()),
        Ok(false) => trash::sweep(rbd, &context.owner, trash::GRACE, cloud).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::warn!("{error}");
    }
}

/// Our snapshots of all images go that nobody needs: those of a killed run.
pub(crate) async fn tidy(rbd: &Rbd, needed: Needed, context: &CaptureContext) -> Result<(), SourceError> {
    let images = images(rbd).await?;
    let (pool, prefix, claims) = (pool(rbd), prefix(context), claims(context));
    blocking(move || {
        for (name, found) in images {
            let ours: Vec<&str> =
                found.snapshots.iter().filter_map(|snapshot| snapshot.strip_prefix(&prefix)).collect();
            let image = Image { pool: pool.clone(), name };
            let tidy = |needed: &[String]| {
                if ours.iter().all(|token| needed.iter().any(|needed| needed == token)) {
                    return;
                }
                if let Err(error) = remove_others(&image, &prefix, needed, &claims) {
                    tracing::warn!("a snapshot of a killed run stays until this one ends: {error}");
                }
            };
            if !ours.is_empty() {
                needed(&ItemId::new(ItemKind::Cinder, &image.name), &tidy);
            }
        }
        Ok(())
    })
    .await
}

/// How the snapshots of one group at one host begin: all others are somebody else's.
fn prefix(context: &CaptureContext) -> String {
    prefix_of(&context.owner)
}

fn prefix_of(owner: &str) -> String {
    format!("farsite-{owner}-")
}

/// Removes our snapshots of an image, but for some, and for those of captures that are under way.
fn remove_others(image: &Image, prefix: &str, but: &[String], claims: &Path) -> Result<(), SourceError> {
    let there = image.snapshots()?;
    // In this order: who makes a snapshot has claimed it before.
    let under_way = claimed(claims, |_| true).map_err(|error| {
        SourceError::new(format!("looking for what is under way in {}", claims.display()), error)
    })?;
    let is_needed = |token: &str| but.iter().any(|kept| kept == token) || under_way.contains(token);
    for name in there {
        if name.strip_prefix(prefix).is_some_and(|token| !is_needed(token)) {
            image.remove_snapshot(&name)?;
        }
    }
    Ok(())
}
