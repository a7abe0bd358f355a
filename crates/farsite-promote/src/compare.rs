//! Compares what lies on disk with a recovery point, block by block, by the ids under which the store knows them. Nothing
//! is fetched but block maps.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farsite_model::content::{ReadAt, TreeEntry, TreeEntryKind};
use farsite_replicate::tree::TreeContent;
use farsite_replicate::{ReplicateError, restore};
use farsite_store::blob::BlobRef;
use farsite_store::manifest::ManifestItem;
use farsite_store::map::{FAN_OUT, MapRoot};
use farsite_store::read::Reader;
use rustix::fs::SeekFrom;

/// Differences that are named one by one; of more only the number is told.
const NAMED: usize = 20;

/// What differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub named: Vec<String>,
    pub more: u64,
    /// Bytes that were read and compared.
    pub compared_bytes: u64,
}

impl Difference {
    pub fn is_none(&self) -> bool {
        self.named.is_empty()
    }
    pub(crate) fn add(&mut self, what: String) {
        if self.named.len() < NAMED {
            self.named.push(what);
        } else {
            self.more += 1;
        }
    }
    pub(crate) fn take_in(&mut self, other: Difference) {
        self.compared_bytes += other.compared_bytes;
        self.more += other.more;
        other.named.into_iter().for_each(|what| self.add(what));
    }
}

struct OnDisk {
    file: File,
    size_bytes: u64,
}

impl ReadAt for OnDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => Ok(Some(start..self.size_bytes.max(start))),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // Not every file system knows its holes, and no device does.
            Err(_) => Ok((offset < self.size_bytes).then_some(offset..self.size_bytes)),
        }
    }
}

/// Compares one item with what stands at `place` (a tree: below it).
pub async fn item(reader: &Reader, item: &ManifestItem, place: &Path) -> Result<Difference, ReplicateError> {
    let mut difference = Difference::default();
    if let Some(directory) = &item.directory {
        let entries = restore::entries(reader, item, directory).await?;
        tree(item, &entries, place, &mut difference);
        if !difference.is_none() {
            return Ok(difference);
        }
        let content: Arc<dyn ReadAt> = Arc::new(TreeContent::new(place, &entries));
        let name = |offset: u64| file_at(&entries, offset);
        blocks(reader, &item.data, &content, &name, &mut difference).await?;
        return Ok(difference);
    }
    let on_disk = File::open(place).and_then(|file| {
        let metadata = file.metadata()?;
        // A device says nothing about its size; it may be larger than what was captured.
        let size_bytes = if metadata.is_file() { metadata.len() } else { item.data.size_bytes };
        Ok(OnDisk { file, size_bytes })
    });
    match on_disk {
        Err(error) => {
            difference.add(format!("{}: {}: {error}", item.id, place.display()));
            Ok(difference)
        }
        Ok(on_disk) => content(reader, item, Arc::new(on_disk), &place.display().to_string()).await,
    }
}

/// Compares an item that is no tree with what `content` reads; `place` says where that is.
pub async fn content(
    reader: &Reader,
    item: &ManifestItem,
    content: Arc<dyn ReadAt>,
    place: &str,
) -> Result<Difference, ReplicateError> {
    let (mut difference, id) = (Difference::default(), &item.id);
    let (is, should) = (content.size_bytes(), item.data.size_bytes);
    if is == should {
        let name = |offset: u64| format!("{id}: {place} at byte {offset}");
        blocks(reader, &item.data, &content, &name, &mut difference).await?;
    } else {
        difference.add(format!("{id}: {place} has {is} bytes, the point's has {should}"));
    }
    Ok(difference)
}

fn file_at(entries: &[TreeEntry], at: u64) -> String {
    let found = entries.iter().find(|entry| match entry.kind {
        TreeEntryKind::File { size_bytes, offset } => (offset..offset + size_bytes).contains(&at),
        _ => false,
    });
    found.map_or_else(|| format!("byte {at}"), |entry| entry.path.clone())
}

/// Names, kinds, sizes, modes and link targets.
fn tree(item: &ManifestItem, entries: &[TreeEntry], root: &Path, difference: &mut Difference) {
    for entry in entries {
        let path: PathBuf = root.join(&entry.path);
        let mut say = |why: String| difference.add(format!("{}: {}: {why}", item.id, path.display()));
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                say(error.to_string());
                continue;
            }
        };
        match &entry.kind {
            TreeEntryKind::Directory if !metadata.is_dir() => say("it is not a folder".into()),
            TreeEntryKind::File { .. } if !metadata.is_file() => say("it is not a file".into()),
            TreeEntryKind::File { size_bytes, .. } if metadata.size() != *size_bytes => {
                say(format!("it has {} bytes, the point's has {size_bytes}", metadata.size()));
            }
            TreeEntryKind::Symlink { target }
                if fs::read_link(&path).ok().as_deref() != Some(Path::new(target)) =>
            {
                say(format!("it is not a link to {target}"));
            }
            _ if metadata.permissions().mode() & 0o7777 != entry.mode => {
                say(format!(
                    "its mode is {:o}, the point's is {:o}",
                    metadata.permissions().mode() & 0o7777,
                    entry.mode
                ));
            }
            _ => {}
        }
    }
}

async fn blocks(
    reader: &Reader,
    map: &MapRoot,
    content: &Arc<dyn ReadAt>,
    name: &(dyn Fn(u64) -> String + Sync),
    difference: &mut Difference,
) -> Result<(), ReplicateError> {
    let block_bytes = u64::from(map.block_bytes);
    let span = FAN_OUT * block_bytes;
    let mut stack: Vec<(Option<BlobRef>, u8, u64)> = vec![(map.root, map.root_level(), 0)];
    while let Some((node, level, index)) = stack.pop() {
        if level > 0 && node.is_some() {
            let node = match node {
                Some(node) => reader.node(&node, level).await?,
                None => continue,
            };
            let children = node.children.iter().enumerate().rev();
            stack.extend(children.map(|(i, child)| (*child, level - 1, index * FAN_OUT + i as u64)));
            continue;
        }
        // A leaf, or a hole as wide as its level: what it spans must be zeros.
        let leaves = FAN_OUT.pow(u32::from(level));
        let start = index * leaves * span;
        let end = (start + leaves * span).min(map.size_bytes);
        let children: Vec<Option<BlobRef>> = match node {
            Some(node) => reader.node(&node, 0).await?.children,
            None => Vec::new(),
        };
        let (content, reader) = (content.clone(), reader.clone());
        let wrong = tokio::task::spawn_blocking(move || -> io::Result<Vec<u64>> {
            let mut wrong = Vec::new();
            let mut buffer = vec![0u8; block_bytes as usize];
            let mut offset = start;
            while offset < end {
                let length = block_bytes.min(end - offset) as usize;
                let child = children.get(((offset - start) / block_bytes) as usize).copied().flatten();
                if child.is_none() {
                    // What is a hole on both sides is not read.
                    let data = content.next_data(offset)?.map_or(end, |data| data.start.min(end));
                    let until = if data == end { end } else { data / block_bytes * block_bytes };
                    let blocks = children.iter().skip(((offset - start) / block_bytes) as usize);
                    let holes = if children.is_empty() {
                        u64::MAX
                    } else {
                        blocks.take_while(|c| c.is_none()).count() as u64
                    };
                    let next = until.min(offset.saturating_add(holes.saturating_mul(block_bytes)));
                    if next > offset {
                        offset = next;
                        continue;
                    }
                }
                let block = &mut buffer[..length];
                content.read_exact_at(block, offset)?;
                let same = match child {
                    Some(child) => reader.opener.block_id(block) == child.id,
                    None => block.iter().all(|b| *b == 0),
                };
                if !same {
                    wrong.push(offset);
                }
                offset += block_bytes;
            }
            Ok(wrong)
        })
        .await
        .map_err(|error| ReplicateError::Setup(format!("comparing was stopped: {error}")))?
        .map_err(|source| ReplicateError::Io { what: format!("reading {} back", name(start)), source })?;
        difference.compared_bytes += end.saturating_sub(start);
        for offset in wrong {
            difference.add(format!("{} is not what the point holds", name(offset)));
        }
    }
    Ok(())
}

/// What is read at once to be hashed.
const HASHED_BYTES: u64 = 1 << 20;

/// SHA-512 of a file, as Glance records it.
pub fn sha512(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    sha512_of(&OnDisk { file, size_bytes })
}

/// The same of anything that can be read.
pub fn sha512_of(content: &dyn ReadAt) -> io::Result<String> {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA512);
    let mut buffer = vec![0u8; HASHED_BYTES as usize];
    let mut offset = 0;
    while offset < content.size_bytes() {
        let piece = &mut buffer[..HASHED_BYTES.min(content.size_bytes() - offset) as usize];
        content.read_exact_at(piece, offset)?;
        hash.update(piece);
        offset += piece.len() as u64;
    }
    Ok(farsite_store::hex::encode(hash.finish().as_ref()))
}
