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
/// The leaf's own reference, then its children.
const RECORD_BYTES: u64 = (CHILD_BYTES as u64) * (1 + FAN_OUT);

/// What the JSON file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    item: ItemId,
    map: MapRoot,
    /// Inner nodes of the tree: level, index within the level, reference.
    inner: Vec<(u8, u64, BlobRef)>,
    /// File name of the leaf records.
    records: String,
}

/// A finished local map.
#[derive(Debug)]
pub struct LocalMap {
    file: File,
    meta: Meta,
}

/// The leaf's reference and its children; `None` for a leaf that is all holes or was never written.
pub type LeafRecord = Option<(BlobRef, Vec<Child>)>;

fn stem(item: &ItemId) -> String {
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
        let Ok(meta) = serde_json::from_slice::<Meta>(&text) else { return Ok(None) };
        match File::open(folder.join(&meta.records)) {
            Ok(file) => Ok(Some(Self { file, meta })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn map(&self) -> &MapRoot {
        &self.meta.map
    }

    pub fn leaf(&self, index: u64) -> io::Result<LeafRecord> {
        let mut bytes = vec![0; RECORD_BYTES as usize];
        match self.file.read_exact_at(&mut bytes, index * RECORD_BYTES) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
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
    map: Option<MapRoot>,
}

impl LocalMapWriter {
    pub fn create(folder: &Path, item: &ItemId, run: RunId) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let records = format!("{}.{run}", stem(item));
        let file = File::options().write(true).create(true).truncate(true).open(folder.join(&records))?;
        Ok(Self { folder: folder.to_owned(), item: item.clone(), records, file, inner: Vec::new(), map: None })
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
        bytes.resize(RECORD_BYTES as usize, 0);
        self.file.write_all_at(&bytes, index * RECORD_BYTES)
    }

    pub(crate) fn inner(&mut self, level: u8, index: u64, node: BlobRef) {
        self.inner.push((level, index, node));
    }
    pub(crate) fn finish(&mut self, map: MapRoot) {
        self.map = Some(map);
    }

    /// Makes this the item's last map. Call it only once the point is committed.
    pub fn commit(self) -> io::Result<()> {
        let Some(map) = self.map else { return Err(io::Error::other("the item was not read to its end")) };
        self.file.sync_data()?;
        let path = self.folder.join(format!("{}.json", stem(&self.item)));
        let old = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Meta>(&text).ok());
        let meta = Meta { item: self.item, map, inner: self.inner, records: self.records };
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec(&meta).map_err(io::Error::other)?)?;
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
