//! Change tracking by reflinks: the snapshot that a point was made of is kept, and the next one is compared with it by where
//! their extents lie on the disk. The kept snapshot holds its blocks, so the file system uses none of them again: what lies
//! at the same place is the same data. What must hold: an extent of which the file system does not say plainly where it
//! lies counts as changed; a kept version takes no more room than what was written since.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farsite_model::ItemId;
use farsite_model::content::ReadAt;
use fiemap::{Fiemap, FiemapExtentFlags, FiemapFlags};
use rustix::fs::{AtFlags, CWD, linkat};

use crate::extent::FileContent;
use crate::random;
use crate::tracking::ChangeTracking;
use crate::{CaptureContext, KeptSpace};

/// Kept versions begin so; hidden, so that no listing of volumes takes one for a volume.
const PREFIX: &str = ".farsite-kept-";

/// The tracking of a snapshot that was made by reflink.
pub(crate) struct Kept {
    snapshot: File,
    /// Where a version may be kept: the group's own folder, and the volume's, for it must be on the same file system.
    folders: [PathBuf; 2],
    prefix: String,
}

impl Kept {
    pub(crate) fn new(snapshot: File, volume: &Path, item: &ItemId, context: &CaptureContext) -> Self {
        Self { snapshot, folders: folders(volume, context), prefix: prefix(item, context) }
    }

    fn path_of(&self, token: &str) -> Option<PathBuf> {
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let name = format!("{}{token}", self.prefix);
        self.folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file())
    }
}

fn folders(volume: &Path, context: &CaptureContext) -> [PathBuf; 2] {
    [context.kept.clone(), volume.parent().unwrap_or(volume).to_owned()]
}

fn prefix(item: &ItemId, context: &CaptureContext) -> String {
    let hash = blake3::hash(item.as_str().as_bytes()).to_hex();
    format!("{PREFIX}{}-{}-", context.owner, &hash[..24])
}

/// Removes every kept version of an item.
pub(crate) fn forget(volume: &Path, item: &ItemId, context: &CaptureContext) {
    forget_in(&folders(volume, context), &prefix(item, context), &[]);
}

fn forget_in(folders: &[PathBuf], prefix: &str, but: &[String]) {
    for folder in folders {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let token = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if token.is_some_and(|token| but.iter().all(|kept| kept != token))
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!("the kept version {} could not be removed: {error}", entry.path().display());
            }
        }
    }
}

impl ChangeTracking for Kept {
    fn kind(&self) -> &'static str {
        "reflink extents"
    }

    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        let Some(path) = self.path_of(token) else { return Ok(None) };
        let before = File::open(path)?;
        let size = self.snapshot.metadata()?.len();
        match changed(&mut Extents::of(&before), &mut Extents::of(&self.snapshot), size) {
            Ok(changed) => Ok(Some(changed)),
            // A file system that does not tell where its extents lie.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>> {
        let path = self.path_of(token)?;
        Some(Arc::new(FileContent::open(&path).ok()?))
    }

    fn keep(&self) -> io::Result<String> {
        let token = format!("{:016x}", u64::from_be_bytes(random::bytes()?));
        let open = format!("/proc/self/fd/{}", self.snapshot.as_raw_fd());
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for folder in &self.folders {
            let _ = fs::create_dir_all(folder);
            let path = folder.join(format!("{}{token}", self.prefix));
            match linkat(CWD, &open, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => return Ok(token),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    fn forget_others(&self, tokens: &[String]) {
        forget_in(&self.folders, &self.prefix, tokens);
    }
}

/// Where a stretch of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: u64,
    end: u64,
    physical: u64,
    /// Allocated and never written: it reads as zeros.
    unwritten: bool,
    /// The place says all about the contents.
    plain: bool,
}

/// A file's extents, in order.
struct Extents<'f>(Box<dyn Iterator<Item = io::Result<Extent>> + 'f>);

impl<'f> Extents<'f> {
    fn of(file: &'f File) -> Self {
        let extents = Fiemap::with_flags(file, FiemapFlags::SYNC).map(|extent| {
            let extent = extent?;
            let odd = FiemapExtentFlags::UNKNOWN
                | FiemapExtentFlags::DELALLOC
                | FiemapExtentFlags::ENCODED
                | FiemapExtentFlags::DATA_ENCRYPTED
                | FiemapExtentFlags::NOT_ALIGNED
                | FiemapExtentFlags::DATA_INLINE
                | FiemapExtentFlags::DATA_TAIL;
            Ok(Extent {
                start: extent.fe_logical,
                end: extent.fe_logical + extent.fe_length,
                physical: extent.fe_physical,
                unwritten: extent.fe_flags.contains(FiemapExtentFlags::UNWRITTEN),
                plain: !extent.fe_flags.intersects(odd),
            })
        });
        Self(Box::new(extents))
    }
}

/// Ranges up to `size` in which two files do not lie at the same place.
fn changed(before: &mut Extents<'_>, after: &mut Extents<'_>, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    differences(before, after, size, &mut |range, _| match found.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => found.push(range),
    })?;
    Ok(found)
}

/// Walks along the same ranges, with whether `before` holds room there.
fn differences(
    before: &mut Extents<'_>,
    after: &mut Extents<'_>,
    size: u64,
    each: &mut dyn FnMut(Range<u64>, bool),
) -> io::Result<()> {
    let (mut old, mut new) = (before.0.next().transpose()?, after.0.next().transpose()?);
    let mut at = 0;
    while at < size {
        while old.is_some_and(|extent| extent.end <= at) {
            old = before.0.next().transpose()?;
        }
        while new.is_some_and(|extent| extent.end <= at) {
            new = after.0.next().transpose()?;
        }
        // Up to the next border of either nothing changes.
        let border = |extent: Option<Extent>| match extent {
            Some(extent) if extent.start > at => extent.start,
            Some(extent) => extent.end,
            None => size,
        };
        let until = border(old).min(border(new)).min(size);
        let here = |extent: Option<Extent>| extent.filter(|extent| extent.start <= at);
        let same = match (here(old), here(new)) {
            (None, None) => true,
            (Some(old), Some(new)) => {
                old.plain
                    && new.plain
                    && old.unwritten == new.unwritten
                    && old.physical + (at - old.start) == new.physical + (at - new.start)
            }
            _ => false,
        };
        if !same {
            each(at..until, here(old).is_some());
        }
        at = until;
    }
    Ok(())
}

/// The space that an item's kept versions hold and the volume itself does not use any more; `None` where none is kept.
pub(crate) fn space(volume: &Path, item: &ItemId, context: &CaptureContext) -> io::Result<Option<KeptSpace>> {
    let prefix = prefix(item, context);
    let mut kept: Option<KeptSpace> = None;
    for folder in &folders(volume, context) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            let (version, now) = (File::open(entry.path())?, File::open(volume)?);
            let size = version.metadata()?.len().max(now.metadata()?.len());
            let mut bytes = 0;
            let mut add =
                |range: Range<u64>, is_held: bool| bytes += if is_held { range.end - range.start } else { 0 };
            match differences(&mut Extents::of(&version), &mut Extents::of(&now), size, &mut add) {
                // At worst all of it.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => bytes = version.metadata()?.len(),
                walked => walked?,
            }
            let room = rustix::fs::fstatvfs(&version)?;
            let so_far = kept.take().map_or(0, |kept| kept.bytes);
            kept = Some(KeptSpace {
                item: item.clone(),
                bytes: so_far + bytes,
                free_bytes: Some(room.f_bavail.saturating_mul(room.f_frsize)),
            });
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64, u64, bool, bool)]) -> Extents<'static> {
        let list: Vec<io::Result<Extent>> = list
            .iter()
            .map(|(start, end, physical, unwritten, plain)| {
                Ok(Extent {
                    start: *start,
                    end: *end,
                    physical: *physical,
                    unwritten: *unwritten,
                    plain: *plain,
                })
            })
            .collect();
        Extents(Box::new(list.into_iter()))
    }

    fn ranges(
        before: &[(u64, u64, u64, bool, bool)],
        after: &[(u64, u64, u64, bool, bool)],
        size: u64,
    ) -> Vec<(u64, u64)> {
        let found = changed(&mut extents(before), &mut extents(after), size).unwrap();
        found.into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn what_lies_at_the_same_place_is_unchanged_however_it_is_cut() {
        let whole = [(0, 100, 1000, false, true)];
        assert_eq!(ranges(&whole, &whole, 100), []);
        let cut = [(0, 40, 1000, false, true), (40, 100, 1040, false, true)];
        assert_eq!(ranges(&whole, &cut, 100), []);
        assert_eq!(ranges(&cut, &whole, 100), []);
        let rewritten =
            [(0, 40, 1000, false, true), (40, 60, 5000, false, true), (60, 100, 1060, false, true)];
        assert_eq!(ranges(&whole, &rewritten, 100), [(40, 60)]);
    }

    #[test]
    fn holes_that_come_and_go_are_changes() {
        let whole = [(0, 100, 1000, false, true)];
        let holed = [(0, 40, 1000, false, true), (60, 100, 1060, false, true)];
        assert_eq!(ranges(&whole, &holed, 100), [(40, 60)]);
        assert_eq!(ranges(&holed, &whole, 100), [(40, 60)]);
        assert_eq!(ranges(&[], &whole, 100), [(0, 100)]);
        assert_eq!(ranges(&[], &[], 100), []);
        // Grown, and shrunken: what lies beyond the new end is nobody's business here.
        assert_eq!(ranges(&whole, &[(0, 150, 1000, false, true)], 150), [(100, 150)]);
        assert_eq!(ranges(&whole, &[(0, 50, 1000, false, true)], 50), []);
    }

    #[test]
    fn what_is_not_plain_or_was_written_in_place_is_changed() {
        let whole = [(0, 100, 1000, false, true)];
        assert_eq!(ranges(&[(0, 100, 1000, true, true)], &whole, 100), [(0, 100)]);
        assert_eq!(ranges(&whole, &[(0, 100, 1000, false, false)], 100), [(0, 100)]);
    }
}
