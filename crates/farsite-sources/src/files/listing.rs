//! What stands below some paths at one moment. Paths come in; every file, folder and link with its attributes goes out,
//! so that two listings are equal only when nothing changed between them.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::absolute;
use crate::SourceError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Link(PathBuf),
}

/// One entry's attributes; the change time betrays a write that set the modification time back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size_bytes: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    changed: (i64, i64),
    inode: (u64, u64),
}

/// Entries by their path below `/`; a folder's path sorts before those in it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: BTreeMap<PathBuf, Stat>,
    /// Sockets, pipes and devices: nothing that can be restored.
    pub(super) skipped: Vec<PathBuf>,
}

impl Listing {
    pub(super) fn take(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let mut listing = Self::default();
        for path in paths {
            let fail = |why: String, hint: &str| {
                SourceError::new(format!("listing {}", absolute(path).display()), why).hint(hint)
            };
            let metadata = fs::symlink_metadata(absolute(path)).map_err(|error| {
                fail(
                    error.to_string(),
                    "is the path right, its file system mounted, and may the agent's user read it?",
                )
            })?;
            if metadata.is_symlink() {
                return Err(fail("it is a symbolic link".to_owned(), "name the folder that it leads to"));
            }
            listing.add(path.clone(), &metadata).map_err(|error| {
                fail(
                    error.to_string(),
                    "let the agent's user read it; if it is being changed, run this again",
                )
            })?;
        }
        Ok(listing)
    }

    fn add(&mut self, path: PathBuf, metadata: &Metadata) -> std::io::Result<()> {
        let kind = if metadata.is_dir() {
            Kind::Folder
        } else if metadata.is_symlink() {
            Kind::Link(fs::read_link(absolute(&path))?)
        } else if metadata.is_file() {
            Kind::File
        } else {
            self.skipped.push(path);
            return Ok(());
        };
        if kind == Kind::Folder {
            for entry in fs::read_dir(absolute(&path)).map_err(|error| named(&path, &error))? {
                let below = path.join(entry?.file_name());
                match fs::symlink_metadata(absolute(&below)) {
                    Ok(metadata) => self.add(below, &metadata)?,
                    // Removed between the two calls; its folder's times say so too.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(named(&below, &error)),
                }
            }
        }
        let stat = Stat {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        };
        self.entries.insert(path, stat);
        Ok(())
    }

    pub(super) fn files(&self) -> usize {
        self.entries.values().filter(|stat| stat.kind == Kind::File).count()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.values().filter(|stat| stat.kind == Kind::File).map(|stat| stat.size_bytes).sum()
    }

    /// Whether nothing was changed within `quiet` before `now`, by the kernel's clock, which gives files their times.
    pub(super) fn is_at_rest(&self, now: SystemTime, quiet: Duration) -> bool {
        let Ok(now) = now.duration_since(UNIX_EPOCH) else { return true };
        let limit = now.saturating_sub(quiet);
        let limit = (limit.as_secs().cast_signed(), i64::from(limit.subsec_nanos()));
        // A time ahead of the clock is no recent one: it was set, or the clock was.
        let now = (now.as_secs().cast_signed(), i64::from(now.subsec_nanos()));
        self.entries.values().all(|stat| stat.changed <= limit || stat.changed > now)
    }
}

fn named(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", absolute(path).display()))
}
