//! Change tracking by persistent dirty bitmaps of a qcow2 image, closed or open. At each capture a bitmap is added before the first
//! byte is read; it records every write from then on, whichever process of QEMU opens the image, and is what the next
//! capture asks. The bitmap of the committed point goes on recording beside it until the next point is committed, so that
//! a run may fail at any instant and nothing need be put back.
//!
//! What must hold: a bitmap is believed only when it was closed as it should be, still bears the mark in its last sector
//! and is as long as the image was; all else is "cannot tell".

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use farsite_model::ItemId;
use farsite_model::content::ReadAt;

use super::image::{Image, Trouble};
use super::process::Process;
use super::served::{Served, context};
use crate::tracking::{ChangeTracking, Changed};
use crate::{CaptureContext, SourceError, random};

/// The flag of a bitmap's context: written.
const DIRTY: u32 = 1;

/// How the bitmaps of an item begin for one group at one host: all others are somebody else's.
pub(crate) fn prefix(item: &ItemId, context: &CaptureContext) -> String {
    let hash = blake3::hash(item.as_str().as_bytes()).to_hex();
    format!("farsite-{}-{}-", context.owner, &hash[..24])
}

/// A fresh token: the size of the virtual disk, and what nobody else comes upon.
pub(crate) fn new_token(size_bytes: u64) -> io::Result<String> {
    Ok(format!("{size_bytes}-{:016x}", u64::from_be_bytes(random::bytes()?)))
}

/// The size that a token tells; `None` for what is no token of ours.
fn size_of(token: &str) -> Option<u64> {
    let (size, random) = token.split_once('-')?;
    let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    size.parse().ok().filter(|_| is_random)
}

/// What one bitmap tells of an export of `size` bytes; `None` when it is not to be believed.
pub(crate) fn changed(served: &Served, prefix: &str, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
    let size = served.client.size_bytes();
    let Some(before) = size_of(token).filter(|before| (1..=size).contains(before)) else { return Ok(None) };
    let context = context(&format!("{prefix}{token}"));
    let mut changed = Changed::default();
    let mut has_mark = false;
    let mut at = 0;
    while at < size {
        for (length, flags) in served.client.stretches(&context, at..size)? {
            let end = at + length;
            if flags & DIRTY != 0 {
                changed.add(at..end.min(size));
                has_mark |= at < before && before <= end;
            }
            at = end;
        }
    }
    if has_mark {
        return Ok(Some(changed.into_ranges()));
    }
    tracing::warn!(
        "the bitmap {prefix}{token} was cleared, or its image was made shorter: it is not believed"
    );
    Ok(None)
}

/// Where bitmaps are added and removed.
pub(crate) enum Place {
    Closed(Image),
    /// A node of the process that has the image open.
    Open {
        process: Arc<Process>,
        node: String,
        image: Image,
    },
}

impl Place {
    fn path(&self) -> &std::path::Path {
        match self {
            Self::Closed(image) | Self::Open { image, .. } => &image.path,
        }
    }

    fn bitmaps(&self) -> Result<Vec<(String, bool)>, Trouble> {
        match self {
            Self::Closed(image) => Ok(image.look()?.named_bitmaps()),
            Self::Open { process, node, .. } => process.bitmaps(node).map_err(|error| self.trouble(error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), Trouble> {
        match self {
            Self::Closed(image) => image.remove_bitmap(name),
            Self::Open { process, node, .. } => {
                let named = serde_json::json!({ "node": node, "name": name });
                let removed = process.ask("block-dirty-bitmap-remove", &named);
                removed.map(drop).map_err(|error| self.trouble(error))
            }
        }
    }

    fn trouble(&self, error: io::Error) -> Trouble {
        Trouble::Other(SourceError::new(format!("the bitmaps of {}", self.path().display()), error))
    }
}

/// The tracking of one capture.
pub(crate) struct Bitmaps {
    place: Place,
    prefix: String,
    /// Bitmaps of earlier captures that can be asked.
    there: Vec<String>,
    token: String,
    /// Let go of as soon as nothing is asked any more: while it reads the image itself, nobody can change it.
    served: Mutex<Option<Arc<Served>>>,
    is_kept: AtomicBool,
}

impl Bitmaps {
    /// `token` is of the bitmap that was added for this capture, which goes again if it is not kept.
    pub(crate) fn new(place: Place, prefix: String, token: String, there: Vec<String>) -> Self {
        Self { place, prefix, there, token, served: Mutex::default(), is_kept: AtomicBool::new(false) }
    }

    pub(crate) fn there(&self) -> &[String] {
        &self.there
    }

    /// Of the bitmap that was added for this capture.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.prefix, self.token)
    }

    pub(crate) fn serve(&self, served: Arc<Served>) {
        *self.served.lock().expect("no holder of this lock panics") = Some(served);
    }

    fn let_go(&self) -> Option<Arc<Served>> {
        self.served.lock().expect("no holder of this lock panics").take()
    }
}

impl ChangeTracking for Bitmaps {
    fn kind(&self) -> &'static str {
        "qcow2 bitmap"
    }

    fn keeps_versions(&self) -> bool {
        false
    }

    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        let name = format!("{}{token}", self.prefix);
        let served = self.served.lock().expect("no holder of this lock panics").clone();
        match served {
            Some(served) if self.there.contains(&name) => changed(&served, &self.prefix, token),
            _ => Ok(None),
        }
    }

    fn version(&self, _token: &str) -> Option<Arc<dyn ReadAt>> {
        None
    }

    fn token(&self) -> Option<&str> {
        Some(&self.token)
    }

    fn keep(&self) -> io::Result<String> {
        self.let_go();
        self.is_kept.store(true, Ordering::Release);
        Ok(self.token.clone())
    }

    fn forget_others(&self, tokens: &[String]) {
        forget(&self.place, &self.prefix, tokens);
    }
}

impl Drop for Bitmaps {
    fn drop(&mut self) {
        if *self.is_kept.get_mut() {
            return;
        }
        // Nothing is read of a capture that is given up; its server would keep the image from being changed.
        if let Some(served) = self.let_go() {
            served.end();
        }
        remove(&self.place, &self.name());
    }
}

/// Removes every bitmap of an item but those that are named.
pub(crate) fn forget(place: &Place, prefix: &str, but: &[String]) {
    let bitmaps = match place.bitmaps() {
        Ok(bitmaps) => bitmaps,
        Err(Trouble::Open(_)) => {
            // Its process holds them until it closes the image; a later run removes them.
            tracing::info!("the old bitmaps of {} stay until a run finds it closed", place.path().display());
            return;
        }
        Err(Trouble::Other(error)) => {
            tracing::warn!("the old bitmaps of {} are not removed: {error}", place.path().display());
            return;
        }
    };
    for (name, _) in bitmaps {
        if name.strip_prefix(prefix).is_some_and(|token| but.iter().all(|kept| kept != token)) {
            remove(place, &name);
        }
    }
}

fn remove(place: &Place, name: &str) {
    if let Err(trouble) = place.remove(name) {
        let error = trouble.into_error(place.path());
        tracing::warn!("the bitmap {name} stays, and a later run removes it: {error}");
    }
}

/// Bitmaps of earlier captures that can be asked: names, of those that are good.
pub(crate) fn usable(bitmaps: &[(String, bool)], prefix: &str) -> Vec<String> {
    let ours = bitmaps.iter().filter(|(name, is_good)| *is_good && name.starts_with(prefix));
    ours.map(|(name, _)| name.clone()).collect()
}
