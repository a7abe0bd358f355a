//! Folders that a process of QEMU can write to as well: made beside an image or where the policy says, owned by whom the
//! image belongs to, and told apart by whom and what they are for, so that what a killed process left is found.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use farsite_model::policy::Qmp;

use crate::guards::RemovedFolder;
use crate::{SourceError, random};

/// Hidden, so that no listing of volumes takes one for a volume.
const PREFIX: &str = ".farsite-";
const DEFAULT_BYTES: u64 = 10 << 30;
/// An empty image and its bitmap are smaller.
const LEAST_BYTES: u64 = 1 << 20;

/// Such a folder; it goes with this.
pub(super) struct Scratch {
    folder: RemovedFolder,
    owner: (u32, u32),
}

/// Tells what belongs to one purpose from all else; short, for it becomes part of names with 31 letters at most.
pub(super) fn short(purpose: &str) -> String {
    blake3::hash(purpose.as_bytes()).to_hex()[..14].to_owned()
}

fn label(kind: &str, purpose: &str) -> String {
    format!("{PREFIX}{kind}-{}-", short(purpose))
}

fn parent<'a>(qmp: &'a Qmp, beside: &'a Path) -> &'a Path {
    qmp.scratch.as_deref().or(beside.parent()).unwrap_or(beside)
}

impl Scratch {
    pub(super) fn create(kind: &str, purpose: &str, qmp: &Qmp, beside: &Path) -> Result<Self, SourceError> {
        let parent = std::path::absolute(parent(qmp, beside)).unwrap_or_default();
        let fail = |error: io::Error| {
            SourceError::new(format!("making a folder in {}", parent.display()), error)
                .hint("`qmp.scratch` names a folder that both the agent and the process of QEMU can write to")
        };
        let image = fs::metadata(beside).map_err(fail)?;
        let random = u32::from_be_bytes(random::bytes().map_err(fail)?);
        let folder = RemovedFolder::create(&parent, &format!("{}{random:08x}", label(kind, purpose)))?;
        let new = Self { folder, owner: (image.uid(), image.gid()) };
        new.give(new.path()).map_err(fail)?;
        Ok(new)
    }

    /// Folders of this purpose that nobody removed.
    pub(super) fn left_over(kind: &str, purpose: &str, qmp: &Qmp, beside: &Path) -> Vec<PathBuf> {
        let label = label(kind, purpose);
        let entries = fs::read_dir(parent(qmp, beside)).into_iter().flatten().flatten();
        let is_it = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&label);
        entries.filter(is_it).map(|entry| entry.path()).collect()
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a file that of the image's owner. Whoever is not root runs as the same user as the process, or is told by that.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        std::os::unix::fs::chown(path, Some(self.owner.0), Some(self.owner.1))
    }

    /// The most that may be written here.
    pub(super) fn limit_bytes(&self, qmp: &Qmp) -> io::Result<u64> {
        let room = rustix::fs::statvfs(self.path())?;
        // The guest's own image may grow on the same disk.
        let half = room.f_bavail.saturating_mul(room.f_frsize) / 2;
        let limit = qmp.scratch_size.map_or(DEFAULT_BYTES, |size| size.0).min(half);
        if limit < LEAST_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "there is no room for what a guest overwrites",
            ));
        }
        // Whole sectors.
        Ok(limit & !4095)
    }
}
