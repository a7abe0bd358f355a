//! The agent's own copy of an item's last block map, with a fingerprint of every block. The agent can seal and not open, so
//! what it must compare with lies here. Two files: leaf records of one size, each in a slot of its own, and a small JSON
//! file that names the root and says in which slot each leaf lies. A run writes changed leaves into slots that are free and
//! keeps the others where they are, so its work follows the change and not the item's size.
//!
//! What must hold: until the JSON file is replaced, after the point's commit, the old map is untouched; what this disk
//! lost is noticed and costs a copy. An agent that has lost these files sends the item once in full.

mod writer;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use farsite_model::ItemId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::writer::LocalMapWriter;
use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keys::HOLE;
use crate::map::{Child, FAN_OUT, MapRoot, Node};
use crate::pack::PackId;
use crate::print::{PRINT_BYTES, Print};

/// A block or node that the store holds, as this host remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub blob: BlobRef,
    /// How many patches must be applied to read it.
    pub depth: u8,
    /// Of a block: its fingerprint. Of a node: the beginning of the hash of its raw bytes.
    pub print: Print,
}

/// `None` is a hole.
pub type KnownChild = Option<Known>;

/// One leaf: its own node, and its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// `None`: it has to be stored anew.
    pub node: KnownChild,
    pub blocks: Vec<KnownChild>,
}

/// The node that these children make.
pub(crate) fn node_of(level: u8, children: &[KnownChild]) -> Node {
    Node { level, children: children.iter().map(|child| -> Child { child.map(|c| c.blob) }).collect() }
}

/// id 32, location 40, depth 1, fingerprint 16.
const CHILD_BYTES: usize = 32 + Location::BYTES + 1 + PRINT_BYTES;
const HASH_BYTES: usize = 16;
/// The leaf's own node, then its children, then a hash of both: what this disk lost must not become part of a new
/// point.
const RECORD_BYTES: u64 = (CHILD_BYTES as u64) * (1 + FAN_OUT) + HASH_BYTES as u64;
/// Of the two files together; a map of another version costs a full copy.
const VERSION: u32 = 3;
/// In the list of slots: the leaf is all holes.
const NO_SLOT: u32 = u32::MAX;

/// What the JSON file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    version: u32,
    /// The own id of the store whose packs the map names.
    store: Hex<16>,
    item: ItemId,
    map: MapRoot,
    /// What the source calls the version that this map describes, where it can tell what has changed since.
    token: Option<String>,
    /// When all of the item was read last, by this host's clock.
    read_in_full: Timestamp,
    /// Nothing here lies in a pack that the group's ledger called damaged up to this entry.
    #[serde(default)]
    damage_told: u64,
    /// Inner nodes of the tree: level, index within the level, node, depth, fingerprint.
    inner: Vec<(u8, u64, BlobRef, u8, Hex<PRINT_BYTES>)>,
    /// For each leaf the slot of its record.
    slots: Vec<u32>,
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
    fn read(folder: &Path, item: &ItemId) -> io::Result<Option<Self>> {
        match fs::read(meta_path(folder, item)) {
            // A local map is a cache: one that cannot be read costs a full copy, nothing else.
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn record_hash(index: u64, bytes: &[u8]) -> [u8; HASH_BYTES] {
    let hash = *blake3::Hasher::new().update(&index.to_le_bytes()).update(bytes).finalize().as_bytes();
    std::array::from_fn(|i| hash[i])
}

/// The name that this item's files here begin with.
pub fn stem(item: &ItemId) -> String {
    blake3::hash(item.as_str().as_bytes()).to_hex()[..32].to_owned()
}
fn meta_path(folder: &Path, item: &ItemId) -> std::path::PathBuf {
    folder.join(format!("{}.json", stem(item)))
}
fn leaves_path(folder: &Path, item: &ItemId) -> std::path::PathBuf {
    folder.join(format!("{}.leaves", stem(item)))
}

/// A finished local map.
#[derive(Debug)]
pub struct LocalMap {
    leaves: File,
    meta: Meta,
    /// What lies in these packs counts as unknown.
    damaged: BTreeSet<PackId>,
}

impl LocalMap {
    /// The item's last map, if there is one.
    pub fn open(folder: &Path, item: &ItemId) -> io::Result<Option<Self>> {
        let Some(meta) = Meta::read(folder, item)? else { return Ok(None) };
        match File::open(leaves_path(folder, item)) {
            Ok(leaves) => Ok(Some(Self { leaves, meta, damaged: BTreeSet::new() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The map without what lies in these packs: of that, something cannot be read at the store, so it is sent again and
    /// nothing new refers to it. `told` is the ledger entry that said so last.
    pub fn without(mut self, packs: &BTreeSet<PackId>, told: u64) -> io::Result<Self> {
        if self.meta.damage_told >= told || packs.is_empty() {
            return Ok(self);
        }
        let is_hit = |known: &Known| packs.contains(&known.blob.at.pack);
        let mut hit = self.meta.inner.iter().any(|(_, _, blob, ..)| packs.contains(&blob.at.pack));
        for index in 0..self.meta.slots.len() as u64 {
            if hit {
                break;
            }
            let leaf = self.leaf(index)?;
            hit = leaf.is_some_and(|leaf| leaf.node.iter().chain(leaf.blocks.iter().flatten()).any(is_hit));
        }
        if hit {
            self.damaged.clone_from(packs);
        }
        Ok(self)
    }

    /// Something that it names is damaged at the store.
    pub fn is_hit(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Forgets an item, as when its source has deleted it.
    pub fn remove(folder: &Path, item: &ItemId) -> io::Result<()> {
        for path in [meta_path(folder, item), leaves_path(folder, item)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what killed runs left behind, and the files of other versions. No run may be under way.
    pub fn sweep(folder: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut others = Vec::new();
        let mut used = std::collections::HashSet::new();
        for entry in entries {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") if Meta::parse(&fs::read(&path)?).is_some() => {
                    used.insert(path.with_extension("leaves"));
                }
                _ => others.push(path),
            }
        }
        for path in others {
            if !used.contains(&path) {
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
    /// What the source calls the version that the map describes.
    pub fn token(&self) -> Option<&str> {
        self.meta.token.as_deref()
    }

    /// How many of these blocks (by number, with their fingerprints) the map has at the same place.
    pub fn agrees_on(&self, blocks: &[(u64, Print)]) -> io::Result<usize> {
        let mut leaf: Option<(u64, Option<Leaf>)> = None;
        let mut count = 0;
        for (number, print) in blocks {
            let index = number / FAN_OUT;
            if leaf.as_ref().is_none_or(|(at, _)| *at != index) {
                let read =
                    if index < self.meta.map.blocks().div_ceil(FAN_OUT) { self.leaf(index)? } else { None };
                leaf = Some((index, read));
            }
            let blocks = leaf.as_ref().and_then(|(_, leaf)| Some(&leaf.as_ref()?.blocks));
            let known = blocks.and_then(|blocks| blocks.get((number % FAN_OUT) as usize).copied().flatten());
            count += usize::from(known.is_some_and(|known| known.print == *print));
        }
        Ok(count)
    }

    pub fn read_in_full(&self) -> Timestamp {
        self.meta.read_in_full
    }

    /// The slot of a leaf; none for one that is all holes.
    fn slot(&self, index: u64) -> Option<u32> {
        let slot = usize::try_from(index).ok().and_then(|i| self.meta.slots.get(i).copied())?;
        (slot != NO_SLOT).then_some(slot)
    }
    pub(crate) fn has_leaf(&self, index: u64) -> bool {
        self.slot(index).is_some()
    }

    /// A leaf; `None` for one that is all holes, or that this disk has lost.
    pub fn leaf(&self, index: u64) -> io::Result<Option<Leaf>> {
        let Some(slot) = self.slot(index) else { return Ok(None) };
        let mut bytes = vec![0; RECORD_BYTES as usize];
        match self.leaves.read_exact_at(&mut bytes, u64::from(slot) * RECORD_BYTES) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => bytes.fill(0),
            Err(error) => return Err(error),
        }
        let (bytes, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
        if hash != record_hash(index, bytes) {
            tracing::warn!(item = %self.meta.item, leaf = index, "the local block map is damaged here; the leaf is sent again");
            return Ok(None);
        }
        let mut children = bytes.chunks_exact(CHILD_BYTES).map(child_from_bytes);
        let Some(node) = children.next().flatten() else { return Ok(None) };
        let count = self.meta.map.children_at(0, index) as usize;
        let mut leaf = Leaf { node: Some(node), blocks: children.take(count).collect() };
        self.leave_out_damaged(&mut leaf);
        Ok(Some(leaf))
    }

    /// A leaf of which anything lies in a damaged pack is stored anew, with what lies there.
    fn leave_out_damaged(&self, leaf: &mut Leaf) {
        let is_hit = |child: &KnownChild| child.is_some_and(|c| self.damaged.contains(&c.blob.at.pack));
        if self.damaged.is_empty() || !leaf.blocks.iter().chain([&leaf.node]).any(is_hit) {
            return;
        }
        leaf.node = None;
        for child in leaf.blocks.iter_mut().filter(|child| is_hit(child)) {
            *child = None;
        }
    }

    /// The own node of a leaf, without its blocks. It is as good as the leaf's record, which nobody checks here: whoever
    /// puts it into a node has compared the whole.
    fn leaf_node(&self, index: u64) -> io::Result<KnownChild> {
        let Some(slot) = self.slot(index) else { return Ok(None) };
        let mut bytes = [0; CHILD_BYTES];
        self.leaves.read_exact_at(&mut bytes, u64::from(slot) * RECORD_BYTES)?;
        Ok(child_from_bytes(&bytes))
    }

    /// An inner node, or a leaf's.
    pub(crate) fn node(&self, level: u8, index: u64) -> io::Result<KnownChild> {
        if level == 0 {
            return self.leaf_node(index);
        }
        let is_it = |(l, i, blob, ..): &&(u8, u64, BlobRef, u8, Hex<PRINT_BYTES>)| {
            (*l, *i) == (level, index) && !self.damaged.contains(&blob.at.pack)
        };
        let found = self.meta.inner.iter().find(is_it);
        Ok(found.map(|(_, _, blob, depth, print)| Known { blob: *blob, depth: *depth, print: print.0 }))
    }

    /// The children of an inner node, when together they are what the node's fingerprint says.
    pub(crate) fn children(&self, level: u8, index: u64) -> io::Result<Option<(Known, Vec<KnownChild>)>> {
        let Some(node) = self.node(level, index)? else { return Ok(None) };
        let count = self.meta.map.children_at(level, index);
        let children = (0..count)
            .map(|i| self.node(level - 1, index * FAN_OUT + i))
            .collect::<io::Result<Vec<KnownChild>>>()?;
        Ok((raw_print(&node_of(level, &children)) == node.print).then_some((node, children)))
    }
}

/// By what a node's raw bytes are recognised on this host.
pub(crate) fn raw_print(node: &Node) -> Print {
    let hash = *blake3::hash(&node.raw(&node.logical())).as_bytes();
    std::array::from_fn(|i| hash[i])
}

fn child_from_bytes(bytes: &[u8]) -> KnownChild {
    let id = Hex(bytes[..32].try_into().expect("32 bytes"));
    if id == HOLE {
        return None;
    }
    let at = Location::from_bytes(&bytes[32..])?;
    let print = bytes[CHILD_BYTES - PRINT_BYTES..].try_into().expect("16 bytes");
    Some(Known { blob: BlobRef { id, at }, depth: bytes[32 + Location::BYTES], print })
}

fn push_child(bytes: &mut Vec<u8>, child: &KnownChild) {
    match child {
        Some(child) => {
            bytes.extend_from_slice(&child.blob.id.0);
            bytes.extend_from_slice(&child.blob.at.to_bytes());
            bytes.push(child.depth);
            bytes.extend_from_slice(&child.print);
        }
        None => bytes.extend_from_slice(&[0; CHILD_BYTES]),
    }
}
