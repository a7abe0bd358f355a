//! Change tracking by persistent dirty bitmaps of a closed qcow2 image. At each capture a bitmap is added before the first
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

use super::image::{Image, Seen, Trouble};
use super::served::{Served, context};
use crate::tracking::{ChangeTracking, Changed};
use crate::{CaptureContext, random};

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

/// The tracking of one capture of a closed image.
pub(crate) struct Bitmaps {
    image: Image,
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
    pub(crate) fn new(image: Image, prefix: String, token: String, there: Vec<String>) -> Self {
        Self { image, prefix, there, token, served: Mutex::default(), is_kept: AtomicBool::new(false) }
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
        forget(&self.image, &self.prefix, tokens);
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
        remove(&self.image, &self.name());
    }
}

/// Removes every bitmap of an item but those that are named.
pub(crate) fn forget(image: &Image, prefix: &str, but: &[String]) {
    let seen = match image.look() {
        Ok(seen) => seen,
        Err(Trouble::Open(_)) => {
            // Its process holds them until it closes the image; a later run removes them.
            tracing::info!("the old bitmaps of {} stay until a run finds it closed", image.path.display());
            return;
        }
        Err(Trouble::Other(error)) => {
            tracing::warn!("the old bitmaps of {} are not removed: {error}", image.path.display());
            return;
        }
    };
    for name in others(&seen, prefix, but) {
        remove(image, &name);
    }
}

fn others(seen: &Seen, prefix: &str, but: &[String]) -> Vec<String> {
    let is_other =
        |name: &&String| name.strip_prefix(prefix).is_some_and(|token| but.iter().all(|kept| kept != token));
    seen.bitmaps.iter().map(|bitmap| &bitmap.name).filter(is_other).cloned().collect()
}

fn remove(image: &Image, name: &str) {
    if let Err(trouble) = image.remove_bitmap(name) {
        let error = trouble.into_error(&image.path);
        tracing::warn!("the bitmap {name} stays, and a later run removes it: {error}");
    }
}

/// Bitmaps of earlier captures that can be asked.
pub(crate) fn usable(seen: &Seen, prefix: &str) -> Vec<String> {
    let ours = seen.bitmaps.iter().filter(|bitmap| bitmap.name.starts_with(prefix));
    ours.filter(|bitmap| bitmap.is_good()).map(|bitmap| bitmap.name.clone()).collect()
}
