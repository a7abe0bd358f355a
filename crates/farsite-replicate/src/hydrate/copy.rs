//! One hydrated copy. A version comes in; the copy is that version when this returns, by writing only what differs.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use farsite_model::{ItemId, PointId};
use farsite_store::manifest::ManifestItem;
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadStats, Reader};

use super::lock::{Lock, until_wanted};
use super::state::{self, Stamp, Stands, Version};
use crate::ReplicateError;
use crate::restore::{Guard, write_over};

/// The hidden folder beside the places.
const FOLDER: &str = ".farsite-hydrated";
/// A file system stamps changes with the kernel's tick (10 ms at 100 Hz): a stamp that is older than that when it is taken
/// differs from that of every later change.
const TICK: Duration = Duration::from_millis(25);
/// Native snapshots that are kept of each copy, where the file system has them.
const SNAPSHOTS: usize = 3;

/// The copy of one item for one place.
#[derive(Debug, Clone)]
pub struct Copy {
    pub item: ItemId,
    /// Where a promotion will want it.
    pub place: PathBuf,
    path: PathBuf,
}

/// How a copy became what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was that already, untouched.
    Already,
    /// There was no copy.
    Anew,
    /// By the difference of two block maps.
    ByMaps,
    /// By comparing its contents: it was dirty, touched or unknown.
    ByContents,
}

/// What applying a version did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub how: How,
    pub written_bytes: u64,
}

impl Copy {
    pub fn of(item: &ItemId, place: &Path) -> Self {
        let name = place.file_name().map(ToOwned::to_owned).unwrap_or_default();
        let folder = place.parent().unwrap_or(Path::new(".")).join(FOLDER);
        Self { item: item.clone(), place: place.to_owned(), path: folder.join(name) }
    }

    /// Where it lies until a promotion takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }
    fn beside(&self, ending: &str) -> PathBuf {
        let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        self.path.with_file_name(format!(".{name}.{ending}"))
    }
    pub(super) fn state_path(&self) -> PathBuf {
        self.beside("state")
    }
    pub(super) fn lock_path(&self) -> PathBuf {
        self.beside("lock")
    }
    pub(super) fn wanted_path(&self) -> PathBuf {
        self.beside("wanted")
    }

    /// What is known of it.
    pub fn stands(&self) -> io::Result<Option<Stands>> {
        state::read(&self.state_path(), &self.item)
    }

    /// The version that it is, proved untouched; anything else is `None`.
    pub fn untouched(&self) -> io::Result<Option<Version>> {
        match (self.stands()?, fs::symlink_metadata(&self.path)) {
            (Some(Stands::Whole { version, stamp }), Ok(there)) if Stamp::of(&there) == stamp => {
                Ok(Some(version))
            }
            (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(None),
        }
    }

    /// Makes the copy what `item` is in `point`. `Ok(None)`: another process works on it. `guard` stops it between two blocks;
    /// then the copy is dirty and says so.
    pub async fn apply(
        &self,
        reader: &Reader,
        item: &ManifestItem,
        point: PointId,
        guard: &Guard,
        stats: &ReadStats,
    ) -> Result<Option<Applied>, ReplicateError> {
        let what = || format!("hydrating {} at {}", item.id, self.path.display());
        let io = |source| ReplicateError::Io { what: what(), source };
        self.make_folder().map_err(io)?;
        let Some(_lock) = Lock::try_take(&self.lock_path()).map_err(io)? else { return Ok(None) };
        let guard = until_wanted(self.wanted_path(), guard.clone()).map_err(io)?;
        guard().map_err(io)?;
        let to = Version { point, map: item.data.clone() };
        let before = written(stats);
        let stands = self.stands().map_err(io)?;
        let untouched = self.untouched().map_err(io)?;
        if let Some(version) = &untouched
            && version.is_same_content(&to.map)
        {
            if version.point != point
                && let Some(Stands::Whole { stamp, .. }) = stands
            {
                // The same bytes under a newer point's name: its map may lie elsewhere after a compaction.
                state::write(&self.state_path(), &self.item, &Stands::Whole { version: to, stamp })
                    .map_err(io)?;
            }
            return Ok(Some(Applied { how: How::Already, written_bytes: 0 }));
        }
        let exists = fs::symlink_metadata(&self.path).is_ok();
        if let (Some(Stands::Whole { version, .. }), None, true) = (&stands, &untouched, exists) {
            tracing::warn!(
                "{} is not as it was when it was hydrated to point {}: somebody touched it; it is compared by its contents",
                self.path.display(),
                version.point.short()
            );
        }
        let dirty = Stands::Dirty { from: untouched.clone(), to: to.clone() };
        state::write(&self.state_path(), &self.item, &dirty).map_err(io)?;
        let how = match (&untouched, exists) {
            (_, false) => How::Anew,
            (Some(_), true) => How::ByMaps,
            (None, true) => How::ByContents,
        };
        if how == How::Anew {
            // Empty and all holes: known, so nothing of it is read.
            let made = fs::File::options().write(true).create_new(true).mode(0o600).open(&self.path);
            made.and_then(|file| file.sync_all()).map_err(io)?;
        }
        let empty = MapRoot { size_bytes: 0, block_bytes: to.map.block_bytes, root: None };
        let known = match how {
            How::Anew => Some(&empty),
            _ => untouched.as_ref().map(|version| &version.map),
        };
        write_over(reader, item, &self.path, known, &guard, stats).await?;
        let stamp = self.stamp().await.map_err(io)?;
        state::write(&self.state_path(), &self.item, &Stands::Whole { version: to, stamp }).map_err(io)?;
        self.keep_snapshot(point);
        Ok(Some(Applied { how, written_bytes: written(stats) - before }))
    }

    fn make_folder(&self) -> io::Result<()> {
        let Some(folder) = self.path.parent() else { return Ok(()) };
        if fs::symlink_metadata(folder).is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        // The place's own folder is for its service; the hidden one is for nobody else.
        if let Some(places) = folder.parent() {
            fs::create_dir_all(places)?;
        }
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        crate::unfinished::sync_folder(folder)
    }

    /// Of a copy that nobody is writing any more.
    async fn stamp(&self) -> io::Result<Stamp> {
        tokio::time::sleep(TICK).await;
        fs::symlink_metadata(&self.path).map(|metadata| Stamp::of(&metadata))
    }

    /// Where the file system shares blocks between files, each hydrated point stays as a file of its own for a while: to
    /// go back to, or to drill with.
    fn keep_snapshot(&self, point: PointId) {
        let prefix = format!("{}@", self.path.file_name().unwrap_or_default().to_string_lossy());
        let snapshot = self.path.with_file_name(format!("{prefix}{point}"));
        let made = (|| {
            let source = fs::File::open(&self.path)?;
            let _ = fs::remove_file(&snapshot);
            let file =
                fs::File::options().read(true).write(true).create_new(true).mode(0o400).open(&snapshot)?;
            rustix::fs::ioctl_ficlone(&file, &source)?;
            file.sync_all()
        })();
        if made.is_err() {
            // Most file systems have no such thing.
            let _ = fs::remove_file(&snapshot);
            return;
        }
        // Ids of points are random: the files' own times tell their age.
        let Some(Ok(entries)) = self.path.parent().map(fs::read_dir) else { return };
        let mut snapshots: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
        snapshots.sort_by_key(age);
        for old in snapshots.iter().rev().skip(SNAPSHOTS) {
            let _ = fs::remove_file(old);
        }
    }
}

fn written(stats: &ReadStats) -> u64 {
    use std::sync::atomic::Ordering::Relaxed;
    stats.written_bytes.load(Relaxed) + stats.punched_bytes.load(Relaxed)
}
