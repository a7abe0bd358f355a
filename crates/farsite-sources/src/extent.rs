//! Bytes of a regular file or block device, read and written at offsets. A path or an open file comes in; the data
//! plane's [`ReadAt`] and [`WriteAt`] go out. What must hold: a hole is only reported where the file system vouches
//! for it, a file that shrinks under its reader is an error and never zeros, and a target that was not finished
//! leaves no file behind.

use std::fs::{File, FileTimes, Metadata};
use std::io::{self, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::content::{ReadAt, WriteAt};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::SourceError;

/// Zeros are written in pieces of this size where holes cannot be made.
const ZEROS_BYTES: usize = 1 << 20;

/// Smaller files go through the page cache, where they often are.
const DIRECT_FROM_BYTES: u64 = 16 << 20;
/// Of memory, length and offset: right for every disk there is.
const DIRECT_ALIGN: usize = 4096;

/// A regular file or block device as it is read.
#[derive(Debug)]
pub struct FileContent {
    file: File,
    /// The same past the page cache, where the file system allows it: what is read once shall not push out what others use.
    direct: Option<File>,
    path: PathBuf,
    size_bytes: u64,
    is_file: bool,
}

impl FileContent {
    /// Opens what stands at `path`, following links. Anything but a regular file or a block device is refused.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let what = || format!("reading {}", path.display());
        // Without O_NONBLOCK a pipe would keep the opener waiting for a writer.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options()
            .read(true)
            .custom_flags(nonblock)
            .open(path)
            .map_err(|error| SourceError::new(what(), &error).hint(open_hint(&error)))?;
        Self::of(file, path)
    }

    /// The same of an open file; `path` is for messages.
    pub fn of(mut file: File, path: &Path) -> Result<Self, SourceError> {
        let fail = |error: io::Error| SourceError::new(format!("reading {}", path.display()), error);
        let metadata = file.metadata().map_err(fail)?;
        let size_bytes = size_of(&mut file, &metadata).map_err(fail)?;
        let direct = if size_bytes < DIRECT_FROM_BYTES { None } else { direct(&file) };
        Ok(Self { file, direct, path: path.to_owned(), size_bytes, is_file: metadata.is_file() })
    }

    /// Whether it is a regular file; a block device otherwise.
    pub fn is_file(&self) -> bool {
        self.is_file
    }

    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }

    /// Holes at the end look like a file that ends early: a shrunken file must not read as zeros.
    fn refuse_shrunken(&self) -> io::Result<()> {
        let now = self.file.metadata()?.len();
        if self.is_file && now < self.size_bytes {
            return Err(io::Error::other(format!(
                "{}: it shrank from {} to {now} bytes while it was read",
                self.path.display(),
                self.size_bytes
            )));
        }
        Ok(())
    }
}

/// An open file once more, to be read past the page cache.
fn direct(file: &File) -> Option<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).custom_flags(flags).open(path).ok()
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "is the path right, and its file system mounted?",
        io::ErrorKind::PermissionDenied => "let the agent's user read it",
        _ => "see the system's log for trouble with its disk",
    }
}

/// The length of a regular file or block device.
fn size_of(file: &mut File, metadata: &Metadata) -> io::Result<u64> {
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.file_type().is_block_device() {
        let size_bytes = file.seek(io::SeekFrom::End(0))?;
        file.rewind()?;
        Ok(size_bytes)
    } else {
        Err(io::Error::other("it is neither a regular file nor a block device"))
    }
}

impl ReadAt for FileContent {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let is_aligned = buffer.as_ptr().align_offset(DIRECT_ALIGN) == 0
            && buffer.len().is_multiple_of(DIRECT_ALIGN)
            && offset.is_multiple_of(DIRECT_ALIGN as u64);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned)
            // What it cannot do (EINVAL on a stranger file system), the page cache can.
            && direct.read_exact_at(buffer, offset).is_ok()
        {
            return Ok(());
        }
        self.file.read_exact_at(buffer, offset).map_err(|error| self.named(error))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size_bytes {
            return Ok(None);
        }
        let whole = offset..self.size_bytes;
        if !self.is_file {
            return Ok(Some(whole));
        }
        // lseek(2): ENXIO when only a hole follows; EINVAL and the like where the file system does not know.
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => {
                self.refuse_shrunken()?;
                return Ok(None);
            }
            Err(_) => return Ok(Some(whole)),
        };
        if start >= self.size_bytes {
            return Ok(None);
        }
        let end = seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.size_bytes);
        if end < self.size_bytes {
            self.refuse_shrunken()?;
        }
        Ok(Some(start..end.min(self.size_bytes)))
    }
}

/// A regular file or block device as it is written.
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    path: PathBuf,
    /// Made here, and removed again when it is never finished.
    is_new: bool,
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
        let target = Self { file, path: path.to_owned(), is_new: true, finished: AtomicBool::new(false) };
        target.file.set_len(size_bytes).map_err(fail)?;
        Ok(target)
    }

    /// An existing block device.
    pub fn open_device(path: &Path) -> Result<Self, SourceError> {
        let fail = |error: io::Error| {
            SourceError::new(format!("opening {} for writing", path.display()), &error)
                .hint(write_hint(&error))
        };
        // O_EXCL on a device fails while it is mounted or otherwise in use (open(2)).
        let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
        let file = File::options().read(true).write(true).custom_flags(exclusive).open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.file_type().is_block_device() {
            return Err(fail(io::Error::other("it is not a block device")));
        }
        Ok(Self { file, path: path.to_owned(), is_new: false, finished: AtomicBool::new(false) })
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
        if self.is_new {
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
        if !self.is_new || *self.finished.get_mut() {
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
    fn holes_are_skipped_and_data_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let target = FileTarget::create(&path, 8 << 20).unwrap();
        target.write_all_at(&vec![7; 65536], 4 << 20).unwrap();
        target.finish(8 << 20).unwrap();
        drop(target);
        let content = FileContent::open(&path).unwrap();
        assert_eq!(content.size_bytes(), 8 << 20);
        let mut covered = 0;
        let mut offset = 0;
        while let Some(range) = content.next_data(offset).unwrap() {
            covered += range.end - range.start;
            offset = range.end;
        }
        assert!((65536..1 << 20).contains(&covered), "{covered} bytes are called data");
        let mut bytes = vec![0; 65536];
        content.read_exact_at(&mut bytes, 4 << 20).unwrap();
        assert_eq!(bytes, vec![7; 65536]);
        assert!(content.next_data(8 << 20).unwrap().is_none());
        assert!(content.read_exact_at(&mut [0; 2], (8 << 20) - 1).is_err(), "past the end is an error");
    }

    #[test]
    fn a_file_that_shrinks_under_its_reader_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        let content = FileContent::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(content.next_data(50_000).is_err());
        assert!(content.read_exact_at(&mut [0; 10], 50_000).is_err());
    }

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
        assert!(FileContent::open(dir.path()).is_err());
        let path = dir.path().join("f");
        std::fs::write(&path, b"keep").unwrap();
        assert!(FileTarget::open_device(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }
}
