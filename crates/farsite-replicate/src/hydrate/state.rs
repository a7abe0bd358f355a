//! What a hydrated copy is: a small file beside it, replaced in one step. What must hold: it is durable when a write
//! returns; one that is torn or odd says that nothing is known.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use farsite_model::{ItemId, PointId};
use farsite_store::map::MapRoot;
use serde::{Deserialize, Serialize};

use crate::unfinished::sync_folder;

/// Of this file; one of another format says that nothing is known.
const FORMAT: u32 = 1;

/// One item as one point holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub point: PointId,
    pub map: MapRoot,
}

impl Version {
    /// Two points that hold the same bytes have the same root.
    pub fn is_same_content(&self, map: &MapRoot) -> bool {
        self.map.size_bytes == map.size_bytes
            && self.map.block_bytes == map.block_bytes
            && self.map.root.map(|root| root.id) == map.root.map(|root| root.id)
    }
}

/// What the kernel says of a file that nobody has touched: any write, truncation, replacement or change of its times shows
/// in one of these (POSIX: `st_ctime` cannot be set by a program).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
}

impl Stamp {
    pub fn of(metadata: &Metadata) -> Self {
        let nanos = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified_ns: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What stands in a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stands {
    /// Exactly this version, as long as its stamp is what it was.
    Whole { version: Version, stamp: Stamp },
    /// Anything: it was being made `to`.
    Dirty { from: Option<Version>, to: Version },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    item: ItemId,
    stands: Stands,
}

/// `None`: nothing is known of the copy, or there is none.
pub(super) fn read(path: &Path, item: &ItemId) -> io::Result<Option<Stands>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // JSON, and a hash of it in a line of its own.
    let stored = bytes.iter().rposition(|b| *b == b'\n').and_then(|line| {
        let (json, hash) = (&bytes[..line], &bytes[line + 1..]);
        let stored: Stored = serde_json::from_slice(json).ok()?;
        (blake3_hex(json).as_bytes() == hash).then_some(stored)
    });
    match stored {
        Some(stored) if stored.format == FORMAT && stored.item == *item => Ok(Some(stored.stands)),
        _ => {
            tracing::warn!("{} makes no sense: the copy is compared by its contents", path.display());
            Ok(None)
        }
    }
}

/// Durable when this returns.
pub(super) fn write(path: &Path, item: &ItemId, stands: &Stands) -> io::Result<()> {
    let stored = Stored { format: FORMAT, item: item.clone(), stands: stands.clone() };
    let mut bytes = serde_json::to_vec(&stored)?;
    let hash = blake3_hex(&bytes);
    bytes.push(b'\n');
    bytes.extend_from_slice(hash.as_bytes());
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path)
}

/// Durable when this returns.
pub(super) fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
