//! Bytes of a regular file or block device, read at offsets. A path or an open file comes in; the data plane's
//! [`ReadAt`] goes out. What must hold: a hole is only reported where the file system vouches for it, and a file that
//! shrinks under its reader is an error and never zeros.

use std::fs::{File, Metadata};
use std::io::{self, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use farsite_model::content::ReadAt;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::SourceError;
pub use crate::target::FileTarget;

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

    /// Of what is open, whatever has the name by now.
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata().map_err(|error| self.named(error))
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
pub(crate) fn size_of(file: &mut File, metadata: &Metadata) -> io::Result<u64> {
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
        let found = next_data(&self.file, self.is_file, self.size_bytes, offset);
        if found.as_ref().is_none_or(|range| range.end < self.size_bytes) && offset < self.size_bytes {
            self.refuse_shrunken()?;
        }
        Ok(found)
    }
}

/// The next range at or after `offset` that may hold data, as the file system says; a device says nothing.
pub(crate) fn next_data(file: &File, is_file: bool, size_bytes: u64, offset: u64) -> Option<Range<u64>> {
    if offset >= size_bytes {
        return None;
    }
    let whole = offset..size_bytes;
    if !is_file {
        return Some(whole);
    }
    // lseek(2): ENXIO when only a hole follows; EINVAL and the like where the file system does not know.
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        Err(_) => return Some(whole),
    };
    if start >= size_bytes {
        return None;
    }
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size_bytes);
    Some(start..end.min(size_bytes))
}

#[cfg(test)]
mod tests {
    use farsite_model::content::WriteAt;

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
}
