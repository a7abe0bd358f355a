//! A block map comes in, alone or with the map of what stands at the destination; the blocks and holes that differ go out,
//! part by part, in order of offset. Subtrees with equal ids are never read.
//!
//! What must hold: at most one path of inner nodes and a few leaves are in memory; a node that does not fit the size of
//! its item is damage (what it leaves out would read as zeros); an old map that cannot be read only makes more work.

use std::ops::Range;

use super::damage::{self, Found};
use super::{ReadStats, Reader};
use crate::blob::BlobRef;
use crate::keys::BlobId;
use crate::map::{FAN_OUT, MapRoot, Node};
use crate::pack::object_key;
use crate::seal::BlobKind;
use crate::{Damage, StoreError};

/// Leaves that are read together: 1 GiB of an item at 64 KiB a block.
const LEAVES: usize = 16;

/// What the destination holds where a node of the new map belongs.
#[derive(Debug, Clone, Copy)]
enum Old {
    /// Nobody knows: it is compared by reading.
    Unknown,
    /// This node or block; `None`: zeros.
    Holds(Option<BlobRef>),
    /// The old tree is lower than this level: its root is this node's first descendant, beside which all is zeros.
    Above,
}

#[derive(Debug)]
struct Entry {
    level: u8,
    index: u64,
    new: Option<BlobRef>,
    old: Old,
}

/// A block that belongs at `number`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub number: u64,
    pub blob: BlobRef,
    /// The maps say that something else stands there now; otherwise nothing is known.
    pub differs: bool,
    /// What the maps say of it: this block.
    pub stands: Option<BlobId>,
}

/// A stretch of bytes that must read as zeros.
#[derive(Debug, Clone)]
pub(super) struct Hole {
    pub bytes: Range<u64>,
    pub differs: bool,
}

/// Some of what differs.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub blocks: Vec<Block>,
    pub holes: Vec<Hole>,
    pub damage: Found,
}

pub(super) struct Walk<'a> {
    reader: &'a Reader,
    map: &'a MapRoot,
    stats: &'a ReadStats,
    stack: Vec<Entry>,
    old_root: Option<(BlobRef, u8)>,
    /// Holes are of no interest where the destination was empty.
    with_holes: bool,
}

impl<'a> Walk<'a> {
    /// Over all blocks of an item.
    pub(super) fn whole(reader: &'a Reader, map: &'a MapRoot, stats: &'a ReadStats) -> Self {
        Self::new(reader, map, stats, Old::Unknown, false)
    }

    /// Over all blocks and holes that may differ from what stands at a destination. `old` is the map of what is known to
    /// stand there; behind its end there are zeros.
    pub(super) async fn difference(
        reader: &'a Reader,
        map: &'a MapRoot,
        old: Option<&MapRoot>,
        stats: &'a ReadStats,
    ) -> Result<Self, StoreError> {
        let mut walk = Self::new(reader, map, stats, Old::Unknown, true);
        let Some(old) = old.filter(|old| old.is_possible() && old.block_bytes == map.block_bytes) else {
            return Ok(walk);
        };
        let (mut root, mut level, target) = (old.root, old.root_level(), map.root_level());
        while let Some(node) = root
            && level > target
        {
            // The item became smaller: what lay behind its new end is cut off.
            match walk.read(&[(node, level)]).await?.pop() {
                Some(Ok(node)) => root = node.children.first().copied().flatten(),
                _ => return Ok(walk),
            }
            level -= 1;
        }
        walk.old_root = root.map(|root| (root, level));
        let known = if level < target && root.is_some() { Old::Above } else { Old::Holds(root) };
        for entry in &mut walk.stack {
            entry.old = known;
        }
        Ok(walk)
    }

    fn new(reader: &'a Reader, map: &'a MapRoot, stats: &'a ReadStats, old: Old, with_holes: bool) -> Self {
        let root = Entry { level: map.root_level(), index: 0, new: map.root, old };
        Self { reader, map, stats, stack: vec![root], old_root: None, with_holes }
    }

    /// The next part, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, StoreError> {
        let mut part = Part::default();
        let mut leaves: Vec<Entry> = Vec::new();
        while let Some(entry) = self.stack.pop() {
            let Some(new) = entry.new else {
                self.hole(&entry, &mut part);
                continue;
            };
            if matches!(entry.old, Old::Holds(Some(old)) if old.id == new.id) {
                continue;
            }
            if entry.level == 0 {
                leaves.push(entry);
                if leaves.len() == LEAVES {
                    break;
                }
            } else if leaves.is_empty() {
                self.inner(&entry, &new, &mut part).await?;
            } else {
                self.stack.push(entry);
                break;
            }
        }
        if leaves.is_empty() && part.holes.is_empty() && part.damage.is_empty() {
            return Ok(None);
        }
        self.leaves(leaves, &mut part).await?;
        Ok(Some(part))
    }

    /// A whole subtree of zeros.
    fn hole(&self, entry: &Entry, part: &mut Part) {
        if !self.with_holes || matches!(entry.old, Old::Holds(None)) {
            return;
        }
        let blocks = FAN_OUT.saturating_pow(u32::from(entry.level) + 1);
        let first = entry.index.saturating_mul(blocks);
        self.add_hole(part, first, blocks, matches!(entry.old, Old::Holds(Some(_))));
    }

    fn add_hole(&self, part: &mut Part, first_block: u64, blocks: u64, differs: bool) {
        let block_bytes = u64::from(self.map.block_bytes);
        let start = first_block.saturating_mul(block_bytes);
        let end = first_block.saturating_add(blocks).saturating_mul(block_bytes).min(self.map.size_bytes);
        match part.holes.last_mut() {
            Some(last) if last.bytes.end == start && last.differs == differs => last.bytes.end = end,
            _ if start < end => part.holes.push(Hole { bytes: start..end, differs }),
            _ => {}
        }
    }

    async fn inner(&mut self, entry: &Entry, new: &BlobRef, part: &mut Part) -> Result<(), StoreError> {
        let old = match entry.old {
            Old::Holds(Some(old)) => Some(old),
            _ => None,
        };
        let wanted: Vec<_> = std::iter::once(*new).chain(old).map(|node| (node, entry.level)).collect();
        let mut nodes = self.read(&wanted).await?.into_iter();
        let Some(node) = self.fitting(entry, new, nodes.next(), part) else { return Ok(()) };
        let old_node = nodes.next();
        let children = node.children.iter().enumerate().rev();
        for (i, child) in children {
            self.stack.push(Entry {
                level: entry.level - 1,
                index: entry.index * FAN_OUT + i as u64,
                new: *child,
                old: self.old_child(entry, old_node.as_ref(), i),
            });
        }
        Ok(())
    }

    fn old_child(&self, entry: &Entry, old_node: Option<&Result<Node, Damage>>, child: usize) -> Old {
        match (entry.old, old_node) {
            (Old::Holds(None), _) => Old::Holds(None),
            (Old::Holds(Some(_)), Some(Ok(node))) => Old::Holds(node.children.get(child).copied().flatten()),
            (Old::Above, _) if child > 0 => Old::Holds(None),
            (Old::Above, _) => match self.old_root {
                Some((root, level)) if level + 1 == entry.level => Old::Holds(Some(root)),
                _ => Old::Above,
            },
            _ => Old::Unknown,
        }
    }

    async fn leaves(&mut self, leaves: Vec<Entry>, part: &mut Part) -> Result<(), StoreError> {
        let mut wanted = Vec::with_capacity(leaves.len() * 2);
        for leaf in &leaves {
            wanted.extend(leaf.new);
            if let Old::Holds(Some(old)) = leaf.old {
                wanted.push(old);
            }
        }
        let wanted: Vec<_> = wanted.into_iter().map(|node| (node, 0)).collect();
        let mut nodes = self.read(&wanted).await?.into_iter();
        for leaf in leaves {
            let Some(new) = leaf.new else { continue };
            let node = nodes.next();
            let old_node = if matches!(leaf.old, Old::Holds(Some(_))) { nodes.next() } else { None };
            let Some(node) = self.fitting(&leaf, &new, node, part) else { continue };
            for (i, child) in node.children.iter().enumerate() {
                let number = leaf.index * FAN_OUT + i as u64;
                let old = self.old_child(&leaf, old_node.as_ref(), i);
                let (differs, stands) = match old {
                    Old::Holds(old) if old.map(|old| old.id) == child.map(|new| new.id) => continue,
                    Old::Holds(old) => (true, old.map(|old| old.id)),
                    Old::Unknown | Old::Above => (false, None),
                };
                match child {
                    Some(blob) => part.blocks.push(Block { number, blob: *blob, differs, stands }),
                    None if self.with_holes => self.add_hole(part, number, 1, differs),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// A node of the new map that can be read and fits; anything else is damage.
    fn fitting(
        &self,
        entry: &Entry,
        new: &BlobRef,
        node: Option<Result<Node, Damage>>,
        part: &mut Part,
    ) -> Option<Node> {
        match node {
            Some(Ok(node))
                if node.children.len() as u64 == self.map.children_at(entry.level, entry.index) =>
            {
                Some(node)
            }
            Some(Ok(_)) => {
                let why = "a block-map node does not fit the size of its item";
                part.damage.extend([damage::of(new, why)]);
                None
            }
            Some(Err(damage)) => {
                part.damage.extend([damage]);
                None
            }
            None => None,
        }
    }

    async fn read(&self, wanted: &[(BlobRef, u8)]) -> Result<Vec<Result<Node, Damage>>, StoreError> {
        self.reader.nodes(wanted.to_vec(), self.stats).await
    }
}

impl Reader {
    /// Block-map nodes with their levels, each checked against its id.
    pub(super) async fn nodes(
        &self,
        wanted: Vec<(BlobRef, u8)>,
        stats: &ReadStats,
    ) -> Result<Vec<Result<Node, Damage>>, StoreError> {
        let blobs = wanted.iter().map(|(node, _)| *node).collect();
        let secret = self.opener.secret.clone();
        self.gather(BlobKind::Node, blobs, stats, move |batch| {
            let mut room = super::gather::Room::default();
            let mut one = |node: &BlobRef, level: u8| {
                let raw = batch.raw(node, &mut room)?;
                let (logical, parsed) = Node::parse(raw).ok_or_else(|| {
                    Damage::new(object_key(&node.at.pack), "a block-map node makes no sense")
                })?;
                if secret.node_id(logical) == node.id && parsed.level == level {
                    Ok(parsed)
                } else {
                    Err(damage::wrong_hash(node))
                }
            };
            wanted.iter().map(|(node, level)| one(node, *level)).collect()
        })
        .await
    }

    /// One block-map node, checked against its id.
    pub async fn node(&self, node: &BlobRef, level: u8) -> Result<Node, StoreError> {
        let found = self.nodes(vec![(*node, level)], &ReadStats::default()).await?.pop();
        match found {
            Some(Ok(node)) => Ok(node),
            Some(Err(damage)) => Err(StoreError::Damaged(vec![damage])),
            None => Err(StoreError::Cancelled),
        }
    }
}
