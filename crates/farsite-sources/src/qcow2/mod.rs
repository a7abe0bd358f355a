//! A qcow2 image as one item: a path comes in; the bytes of its virtual disk go out, with bitmaps in the image that tell
//! what changed. A closed image is read through `qemu-nbd`: where the file system has reflinks a copy of one instant, else
//! the image itself, which no process of QEMU can open for writing until it is read. One that a process has open is read
//! through that process, where the policy says how it is reached, and refused otherwise.
//!
//! What must hold: no image is read behind the back of a process that writes to it; a bitmap is added before the first
//! byte is read, so that what is written from then on is told the next time.

mod bitmaps;
mod image;
mod open;
mod process;
mod qmp;
mod scratch;
mod served;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farsite_model::policy::Qmp;
use farsite_model::{Consistency, ItemId, ItemKind};

use crate::tracking::ChangeTracking;
use crate::volume::{blocking, mode_of};
use crate::{Capture, CaptureContext, Content, SourceError, snapshot};
use bitmaps::{Bitmaps, Place};
use image::{Image, SECTOR, Seen, Trouble};
use open::Opened;
use process::Found;
use served::{Served, ServedContent};

/// Longest time that a command on an image may take: it looks at its header and at a few clusters.
const LIMIT: Duration = Duration::from_mins(5);

/// Captures the virtual disk of one image.
pub(crate) async fn capture(
    path: &Path,
    qmp: Option<&Qmp>,
    item: &ItemId,
    kind: ItemKind,
    context: &CaptureContext,
) -> Result<Capture, SourceError> {
    let captured = context.clock.capture_time();
    let image = Image::new(path, context.timeout.min(LIMIT));
    let prefix = bitmaps::prefix(item, context);
    let (held, qmp, lent) = (image.clone(), qmp.cloned(), context.clone());
    let held = blocking(move || hold(&held, qmp.as_ref(), prefix, &lent)).await?;
    let (served, tracking, still) = match held {
        Held::Open(Opened { served, tracking }) => (Arc::new(served), tracking, true),
        Held::Closed(Closed { copy, tracking }) => {
            let still = copy.is_some();
            let there = tracking.as_ref().map(Bitmaps::there).unwrap_or_default();
            let served = Served::closed(&image.path, copy, there, &context.scratch).await?;
            (Arc::new(served), tracking, still)
        }
    };
    if let Some(tracking) = &tracking {
        tracking.serve(served.clone());
    }
    Ok(Capture {
        item: item.clone(),
        kind,
        captured,
        // Of one instant, or nobody has it open and nobody can until it is read.
        consistency: Consistency::Crash,
        content: Content::Volume(Arc::new(ServedContent::new(served))),
        still,
        ancestor: None,
        details: details().into_iter().chain(mode_of(path)).collect(),
        tracking: tracking.map(|tracking| -> Box<dyn ChangeTracking> { Box::new(tracking) }),
        guard: None,
    })
}

/// An image that can be read.
enum Held {
    Open(Opened),
    Closed(Closed),
}

/// Through the process that has it open, where the policy tells of one and it has.
fn hold(
    image: &Image,
    qmp: Option<&Qmp>,
    prefix: String,
    context: &CaptureContext,
) -> Result<Held, SourceError> {
    let mut silent = None;
    if let Some(qmp) = qmp {
        match process::find(qmp, &image.path) {
            Found::Open(process, node) => {
                return open::hold(&process, &node, qmp, image, prefix, context).map(Held::Open);
            }
            Found::Nowhere(error) => silent = error,
        }
    }
    match hold_closed(image, prefix, &context.scratch) {
        Ok(closed) => Ok(Held::Closed(closed)),
        Err(trouble @ Trouble::Open(_)) => Err(silent.unwrap_or_else(|| trouble.into_error(&image.path))),
        Err(Trouble::Other(error)) => Err(error),
    }
}

/// What is read of a closed image.
struct Closed {
    /// One instant of it, where the file system makes such.
    copy: Option<File>,
    tracking: Option<Bitmaps>,
}

/// Adds this capture's bitmap, and makes a copy where that costs nothing.
fn hold_closed(image: &Image, prefix: String, scratch: &Path) -> Result<Closed, Trouble> {
    let seen = image.look()?;
    let tracking = track(image, &seen, prefix, scratch)?;
    // A backing file is found by its place beside the image, and nameless copies have none.
    let copy = if seen.is_overlay { None } else { copy(image, tracking.as_ref(), scratch)? };
    Ok(Closed { copy, tracking })
}

fn track(image: &Image, seen: &Seen, prefix: String, scratch: &Path) -> Result<Option<Bitmaps>, Trouble> {
    if seen.is_overlay || seen.size_bytes < SECTOR {
        return Ok(None);
    }
    let token = bitmaps::new_token(seen.size_bytes)
        .map_err(|error| SourceError::new(format!("reading {}", image.path.display()), error))?;
    match image.add_bitmap(&format!("{prefix}{token}"), seen.size_bytes, scratch) {
        Ok(()) => {
            let there = bitmaps::usable(&seen.named_bitmaps(), &prefix);
            Ok(Some(Bitmaps::new(Place::Closed(image.clone()), prefix, token, there)))
        }
        Err(Trouble::Open(why)) => Err(Trouble::Open(why)),
        // An old version of the format, a file that may not be written to: it is read all the same.
        Err(Trouble::Other(error)) => {
            tracing::warn!("all of {} is read, its changes cannot be tracked: {error}", image.path.display());
            Ok(None)
        }
    }
}

/// A copy of an instant at which nobody had the image open: else this capture's bitmap is in use in it.
fn copy(image: &Image, tracking: Option<&Bitmaps>, scratch: &Path) -> Result<Option<File>, Trouble> {
    let Some(tracking) = tracking else { return Ok(None) };
    let folders: Vec<&Path> = [Some(scratch), image.path.parent()].into_iter().flatten().collect();
    let copy = snapshot::reflink(&image.path, &folders)
        .map_err(|error| SourceError::new(format!("reading {}", image.path.display()), error))?;
    let Some(copy) = copy else { return Ok(None) };
    let there = Image { path: nameless(&copy), limit: image.limit }.bitmaps()?;
    if there.iter().any(|bitmap| bitmap.name == tracking.name() && bitmap.is_good()) {
        return Ok(Some(copy));
    }
    Err(Trouble::Open(String::new()))
}

/// Where another process finds an open file without a name.
fn nameless(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// What a person must know of a restored copy: it is the disk, not the file.
fn details() -> BTreeMap<String, String> {
    let said = [("content", "virtual disk"), ("source_format", "qcow2")];
    said.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What `farsite check` says of how an image can be read.
pub(crate) fn stillness(path: &Path, qmp: Option<&Qmp>) -> Result<String, String> {
    let image = Image::new(path, LIMIT);
    let mut silent = None;
    if let Some(qmp) = qmp {
        match process::find(qmp, &image.path) {
            Found::Open(process, node) => {
                return Ok(format!(
                    "a qcow2 that the process at {} has open, {} bytes: captures are crash consistent, and read through it",
                    process.socket.display(),
                    node.size_bytes
                ));
            }
            Found::Nowhere(error) => silent = error,
        }
    }
    match image.look() {
        Ok(seen) if seen.is_overlay => Ok(format!(
            "a closed qcow2 with a backing file, {} bytes: captures are crash consistent, and read in full",
            seen.size_bytes
        )),
        Ok(seen) => Ok(format!(
            "a closed qcow2, {} bytes: captures are crash consistent, and bitmaps tell what changed",
            seen.size_bytes
        )),
        Err(Trouble::Open(_)) if silent.is_some() => {
            Err(silent.map(|error| error.to_string()).unwrap_or_default())
        }
        Err(trouble) => Err(trouble.into_error(path).to_string()),
    }
}

/// The item is gone for good: our bitmaps go from its image, if that is still there.
pub(crate) async fn forget(path: &Path, qmp: Option<&Qmp>, item: &ItemId, context: &CaptureContext) {
    if !path.exists() {
        return;
    }
    let (image, prefix) = (Image::new(path, LIMIT), bitmaps::prefix(item, context));
    let qmp = qmp.cloned();
    let removed = blocking(move || {
        let place = match qmp.as_ref().map(|qmp| process::find(qmp, &image.path)) {
            Some(Found::Open(process, node)) => Place::Open { process, node: node.name, image },
            _ => Place::Closed(image),
        };
        bitmaps::forget(&place, &prefix, &[]);
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!("{error}");
    }
}
