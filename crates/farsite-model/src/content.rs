//! The bytes of an item, as the data plane sees them: something that can be read at an offset and knows its
//! holes, and something that can be written at an offset. Sources make the first, sinks the second.

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Frozen bytes of one item. Reading past the end is an error; holes read as zeros.
pub trait ReadAt: Send + Sync {
    fn size_bytes(&self) -> u64;
    /// Fills `buffer` completely from `offset`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The next range at or after `offset` that may hold data (bytes outside of all such ranges are zero), or
    /// `None` when only holes follow. An item that does not know its holes says that everything is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size_bytes()).then(|| offset..self.size_bytes()))
    }
}

/// Where an item's bytes are restored to.
pub trait WriteAt: Send + Sync {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes a range read as zeros without taking space where the destination can do that.
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()>;
    /// Durable when this returns.
    fn finish(&self, size_bytes: u64) -> io::Result<()>;
}

/// Bytes in memory: small things such as a tree's directory.
#[derive(Debug, Clone)]
pub struct InMemory(pub Vec<u8>);

impl ReadAt for InMemory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = offset as usize;
        let bytes = self.0.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// One entry of a tree item (a file set, a database's physical backup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Path relative to the tree's root, `/` between components; never absolute, never with `..`.
    /// Bytes that are not UTF-8 are refused at capture with the path named.
    pub path: String,
    pub kind: TreeEntryKind,
    /// Permission bits, `st_mode & 0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Modification time, nanoseconds since the Unix epoch.
    pub modified_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum TreeEntryKind {
    Directory,
    /// The file's bytes stand at `offset` (a multiple of the block size) of the item's address space.
    File {
        size_bytes: u64,
        offset: u64,
    },
    Symlink {
        target: String,
    },
}
