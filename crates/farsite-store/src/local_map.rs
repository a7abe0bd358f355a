//! The agent's own copy of an item's last block map. The agent can seal and not open, so what it must compare with
//! lies here, as a sparse file of fixed-size leaf records; a small JSON file beside it names the root. An agent that
//! has lost these files sends the item once in full.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use farsite_model::{ItemId, RunId};
use serde::{Deserialize, Serialize};

use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keys::HOLE;
use crate::map::{Child, FAN_OUT, MapRoot};

/// One child: id 32, location 40.
const CHILD_BYTES: usize = 32 + Location::BYTES;
/// The leaf's own reference, then its children, then a hash of both: what this disk lost must not become part of a new
/// point.
const RECORD_BYTES: u64 = (CHILD_BYTES as u64) * (1 + FAN_OUT) + HASH_BYTES as u64;
const HASH_BYTES: usize = 16;
/// Of the two files together; a map of another version costs a full copy.
const VERSION: u32 = 2;

/// What the JSON file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    version: u32,
    /// The own id of the store whose packs the map names.
    store: Hex<16>,
    item: ItemId,
    map: MapRoot,
    /// Inner nodes of the tree: level, index within the level, reference.
    inner: Vec<(u8, u64, BlobRef)>,
    /// File name of the leaf records.
    records: String,
}

impl Meta {
    /// JSON, and in a second line a hash of it.
    fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        let hash = blake3::hash(&bytes).to_hex();
        bytes.push(b'\n');
        bytes.extend_from_slice(hash.as_bytes());
        Ok(bytes)
    }
    fn parse(bytes: &[u8]) -> Option<Self> {
        let line = bytes.iter().rposition(|b| *b == b'\n')?;
        let (json, hash) = (&bytes[..line], &bytes[line + 1..]);
        let meta: Self = serde_json::from_slice(json).ok()?;
        (blake3::hash(json).to_hex().as_bytes() == hash && meta.version == VERSION).then_some(meta)
    }
}

fn record_hash(index: u64, bytes: &[u8]) -> [u8; HASH_BYTES] {
    let hash = *blake3::Hasher::new().update(&index.to_le_bytes()).update(bytes).finalize().as_bytes();
    std::array::from_fn(|i| hash[i])
}

/// A finished local map.
#[derive(Debug)]
pub struct LocalMap {
    file: File,
    meta: Meta,
}

/// The leaf's reference and its children; `None` for a leaf that is all holes or was never written.
pub type LeafRecord = Option<(BlobRef, Vec<Child>)>;

/// The name that this item's files here begin with.
pub fn stem(item: &ItemId) -> String {
    blake3::hash(item.as_str().as_bytes()).to_hex()[..32].to_owned()
}

impl LocalMap {
    /// The item's last map, if there is one.
    pub fn open(folder: &Path, item: &ItemId) -> io::Result<Option<Self>> {
        let text = match fs::read(folder.join(format!("{}.json", stem(item)))) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // A local map is a cache: one that cannot be read costs a full copy, nothing else.
        let Some(meta) = Meta::parse(&text) else { return Ok(None) };
        match File::open(folder.join(&meta.records)) {
            Ok(file) => Ok(Some(Self { file, meta })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets an item, as when its source has deleted it.
    pub fn remove(folder: &Path, item: &ItemId) -> io::Result<()> {
        let path = folder.join(format!("{}.json", stem(item)));
        let records = fs::read(&path).ok().and_then(|text| Meta::parse(&text));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(meta) = records {
            let _ = fs::remove_file(folder.join(meta.records));
        }
        Ok(())
    }

    /// Removes the records that killed runs left behind. No run may be under way.
    pub fn sweep(folder: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut records = Vec::new();
        let mut used = std::collections::HashSet::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_some_and(|e| e == "json") {
                if let Some(meta) = Meta::parse(&fs::read(&path)?) {
                    used.insert(meta.records);
                }
            } else {
                records.push((name, path));
            }
        }
        for (name, path) in records {
            if !used.contains(&name) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub fn map(&self) -> &MapRoot {
        &self.meta.map
    }
    /// The own id of the store that it was written for.
    pub fn store(&self) -> &Hex<16> {
        &self.meta.store
    }

    pub fn leaf(&self, index: u64) -> io::Result<LeafRecord> {
        let mut bytes = vec![0; RECORD_BYTES as usize];
        match self.file.read_exact_at(&mut bytes, index * RECORD_BYTES) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (bytes, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
        if hash != record_hash(index, bytes) {
            // A leaf that was all holes was never written; anything else is a disk that lost something, and costs
            // sending the leaf again.
            if bytes.iter().any(|b| *b != 0) {
                tracing::warn!(item = %self.meta.item, leaf = index, "the local block map is damaged here; the leaf is sent again");
            }
            return Ok(None);
        }
        let mut children = bytes.chunks_exact(CHILD_BYTES).map(child_from_bytes);
        Ok(children.next().flatten().map(|leaf| (leaf, children.collect())))
    }

    pub fn inner(&self, level: u8, index: u64) -> Option<BlobRef> {
        self.meta.inner.iter().find(|(l, i, _)| (*l, *i) == (level, index)).map(|(_, _, node)| *node)
    }
}

fn child_from_bytes(bytes: &[u8]) -> Child {
    let id = Hex(bytes[..32].try_into().expect("32 bytes"));
    if id == HOLE { None } else { Location::from_bytes(&bytes[32..]).map(|at| BlobRef { id, at }) }
}

/// A map being written by a run; it takes the old one's place only when [`LocalMapWriter::commit`] is called after the
/// point's ledger entry exists.
#[derive(Debug)]
pub struct LocalMapWriter {
    folder: PathBuf,
    item: ItemId,
    records: String,
    file: File,
    inner: Vec<(u8, u64, BlobRef)>,
    map: Option<(MapRoot, Hex<16>)>,
}

impl LocalMapWriter {
    pub fn create(folder: &Path, item: &ItemId, run: RunId) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let records = format!("{}.{run}", stem(item));
        let file = File::options().write(true).create(true).truncate(true).open(folder.join(&records))?;
        Ok(Self {
            folder: folder.to_owned(),
            item: item.clone(),
            records,
            file,
            inner: Vec::new(),
            map: None,
        })
    }

    pub(crate) fn leaf(&mut self, index: u64, leaf: BlobRef, children: &[Child]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(RECORD_BYTES as usize);
        for child in std::iter::once(Some(leaf)).chain(children.iter().copied()) {
            match child {
                Some(child) => {
                    bytes.extend_from_slice(&child.id.0);
                    bytes.extend_from_slice(&child.at.to_bytes());
                }
                None => bytes.extend_from_slice(&[0; CHILD_BYTES]),
            }
        }
        bytes.resize(RECORD_BYTES as usize - HASH_BYTES, 0);
        bytes.extend_from_slice(&record_hash(index, &bytes));
        self.file.write_all_at(&bytes, index * RECORD_BYTES)
    }

    pub(crate) fn inner(&mut self, level: u8, index: u64, node: BlobRef) {
        self.inner.push((level, index, node));
    }
    pub(crate) fn finish(&mut self, map: MapRoot, store: Hex<16>) {
        self.map = Some((map, store));
    }

    /// Makes this the item's last map. Call it only once the point is committed.
    pub fn commit(self) -> io::Result<()> {
        let Some((map, store)) = self.map else {
            return Err(io::Error::other("the item was not read to its end"));
        };
        self.file.sync_data()?;
        let path = self.folder.join(format!("{}.json", stem(&self.item)));
        let old = fs::read(&path).ok().and_then(|text| Meta::parse(&text));
        let (version, item, inner, records) = (VERSION, self.item, self.inner, self.records);
        let meta = Meta { version, store, item, map, inner, records };
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, meta.to_bytes().map_err(io::Error::other)?)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &path)?;
        if let Some(old) = old
            && old.records != meta.records
        {
            let _ = fs::remove_file(self.folder.join(old.records));
        }
        Ok(())
    }

    /// Forgets this map; the old one stays.
    pub fn discard(self) {
        let _ = fs::remove_file(self.folder.join(&self.records));
    }
}
