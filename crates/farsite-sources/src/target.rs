//! A regular file or block device as it is written: a path comes in; the data plane's [`WriteAt`] goes out, and its
//! [`ReadAt`] too where an older copy stands there already. What must hold: a new target that was not finished leaves no
//! file behind unless it was asked to; two processes never write one file; a finished one is durable.

use std::fs::{File, FileTimes, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::content::{ReadAt, WriteAt};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};

use crate::SourceError;
use crate::extent::{next_data, size_of};

/// Zeros are written in pieces of this size where holes cannot be made.
const ZEROS_BYTES: usize = 1 << 20;

/// A regular file or block device as it is written.
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    is_file: bool,
    /// Removed again when it is never finished.
    remove_unfinished: AtomicBool,
    finished: AtomicBool,
}

impl FileTarget {
    /// A new sparse file of `size_bytes`, mode 0600. What stood at `path` is replaced by a new inode.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, SourceError> {
        let fail = |error: io::Error| {
            SourceError::new(format!("creating {} ({size_bytes} bytes)", path.display()), &error)
                .hint(write_hint(&error))
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        // Dropped on failure, which removes the file.
        let target = Self {
            file,
            path: path.to_owned(),
            size_bytes,
            is_file: true,
            remove_unfinished: AtomicBool::new(true),
            finished: AtomicBool::new(false),
        };
        let _ = flock(&target.file, FlockOperation::NonBlockingLockExclusive);
        target.file.set_len(size_bytes).map_err(fail)?;
        Ok(target)
    }

    /// An existing block device of at least `size_bytes`.
    pub fn open_device(path: &Path, size_bytes: u64) -> Result<Self, SourceError> {
        let fail = |error: io::Error| {
            SourceError::new(format!("opening {} for writing", path.display()), &error)
                .hint(write_hint(&error))
        };
        // O_EXCL on a device fails while it is mounted or otherwise in use (open(2)).
        let exclusive = OFlags::EXCL.bits().cast_signed();
        let mut file =
            File::options().read(true).write(true).custom_flags(exclusive).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.file_type().is_block_device() {
            return Err(fail(io::Error::other("it is not a block device")));
        }
        let there = size_of(&mut file, &metadata).map_err(fail)?;
        if there < size_bytes {
            let why = format!("the device has {there} bytes, and {size_bytes} are to be written");
            return Err(SourceError::new(format!("opening {} for writing", path.display()), why)
                .hint("nothing was written; give a device that is large enough"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            size_bytes,
            is_file: false,
            remove_unfinished: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        })
    }

    /// An existing regular file. It stays whatever happens. One that another process of Farsite writes is refused.
    pub fn open_standing(path: &Path) -> Result<Self, SourceError> {
        let what = || format!("opening {} for writing", path.display());
        let fail = |error: io::Error| SourceError::new(what(), &error).hint(write_hint(&error));
        // A link is not followed: the file that it names is somebody else's. O_NONBLOCK: a pipe keeps nobody waiting.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = File::options().read(true).write(true).custom_flags(flags).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(fail(io::Error::other("it is not a regular file")));
        }
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(SourceError::new(what(), "another process writes it now")
                .hint("nothing was changed; let the other restore end, then run this again"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            size_bytes: metadata.len(),
            is_file: true,
            remove_unfinished: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        })
    }

    /// Makes a file `size_bytes` long: what is new of it reads as zeros.
    pub fn sized(mut self, size_bytes: u64) -> Result<Self, SourceError> {
        self.file.set_len(size_bytes).map_err(|error| {
            let what = format!("making {} {size_bytes} bytes long", self.path.display());
            SourceError::new(what, &error).hint(write_hint(&error))
        })?;
        self.size_bytes = size_bytes;
        Ok(self)
    }

    /// Leaves the file when it is not finished, so that another attempt can go on with it.
    pub fn keep_unfinished(self) -> Self {
        self.remove_unfinished.store(false, Ordering::Release);
        self
    }

    /// The attempt failed in a way that none can go on from: the file goes with this target, if it still has its name.
    pub fn remove_unless_finished(&self) {
        self.remove_unfinished.store(self.is_file, Ordering::Release);
    }

    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

fn write_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there, then run it again",
        io::ErrorKind::FileTooLarge => {
            "its file system cannot hold a file of this size: restore to another one"
        }
        io::ErrorKind::PermissionDenied => "let the user who runs Farsite write there",
        io::ErrorKind::ResourceBusy => "it is mounted or otherwise in use: let go of it first",
        _ => "nothing was written; look at the path and at the system's log",
    }
}

impl ReadAt for FileTarget {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.named(error))
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(next_data(&self.file, self.is_file, self.size_bytes, offset))
    }
}

impl WriteAt for FileTarget {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| self.named(error))
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, range.start, range.end - range.start).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_BYTES.min((range.end - range.start) as usize)];
        let mut offset = range.start;
        while offset < range.end {
            let length = zeros.len().min((range.end - offset) as usize);
            self.write_all_at(&zeros[..length], offset)?;
            offset += length as u64;
        }
        Ok(())
    }

    fn finish(&self, size_bytes: u64) -> io::Result<()> {
        if self.is_file {
            self.file.set_len(size_bytes).map_err(|error| self.named(error))?;
            // A file of holes only must still show that it was written now.
            self.file.set_times(FileTimes::new().set_modified(std::time::SystemTime::now()))?;
        }
        self.file.sync_all().map_err(|error| self.named(error))?;
        self.finished.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        if !*self.remove_unfinished.get_mut() || *self.finished.get_mut() {
            return;
        }
        // Only the file made here, not one that somebody has put in its place.
        let same = |ours: &Metadata, there: &Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        if let (Ok(ours), Ok(there)) = (self.file.metadata(), std::fs::symlink_metadata(&self.path))
            && same(&ours, &there)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_target_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        std::fs::write(&path, b"left over").unwrap();
        let target = FileTarget::create(&path, 1 << 20).unwrap();
        target.write_all_at(b"x", 0).unwrap();
        drop(target);
        assert!(!path.exists());
        let target = FileTarget::create(&path, 10).unwrap();
        target.finish(10).unwrap();
        drop(target);
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (10, 0o600));
    }

    #[test]
    fn a_target_that_is_too_large_fails_cleanly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let error = FileTarget::create(&path, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("hint:"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_punched_range_reads_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let target = FileTarget::create(&path, 300_000).unwrap();
        target.write_all_at(&vec![9; 300_000], 0).unwrap();
        target.punch_hole(1000..200_000).unwrap();
        target.finish(300_000).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[1000..200_000].iter().all(|b| *b == 0));
        assert!(bytes[..1000].iter().chain(&bytes[200_000..]).all(|b| *b == 9));
    }

    #[test]
    fn a_folder_or_a_plain_file_is_no_device() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"keep").unwrap();
        assert!(FileTarget::open_device(&path, 1).is_err());
        assert!(FileTarget::open_device(dir.path(), 1).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }

    #[test]
    fn a_standing_file_is_read_and_written_by_one_at_a_time_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        std::fs::write(&path, vec![5; 1000]).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(FileTarget::open_standing(&dir.path().join("link")).is_err());
        assert!(FileTarget::open_standing(&dir.path().join("gone")).is_err());
        let target = FileTarget::open_standing(&path).unwrap().sized(2000).unwrap();
        let error = FileTarget::open_standing(&path).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        let mut bytes = [1; 2000];
        target.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..1000].iter().all(|b| *b == 5) && bytes[1000..].iter().all(|b| *b == 0));
        drop(target);
        assert_eq!(path.metadata().unwrap().len(), 2000, "it stays, unfinished as it is");
    }
}
