//! The block map: a tree that says which block stands at which offset. A node's identity is its logical content
//! (the ids of its children) alone; where the children lie stands beside it, so that compaction can move them.
//!
//! Raw bytes of a node blob: `u32 LE` length of the logical part, the logical part, the locations.
//! Logical: `version u8 = 1, level u8, reserved u16, count u32 LE, count × id 32` (all zeros: a hole).
//! Locations: `table length u16 LE, table × (pack id 16, content key id 16)`, then for every child that is not a hole
//! `table index u16 LE, offset u32 LE, length u32 LE`.

use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keys::{BlobId, HOLE};

/// Children of a node: a leaf spans 1024 blocks, 64 MiB at 64 KiB.
pub const FAN_OUT: u64 = 1024;

const VERSION: u8 = 1;
const LOGICAL_HEADER_BYTES: usize = 8;

/// A child: `None` is a hole.
pub type Child = Option<BlobRef>;

/// One node. `level` 0 is a leaf, whose children are blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub level: u8,
    pub children: Vec<Child>,
}

impl Node {
    pub fn is_hole(&self) -> bool {
        self.children.iter().all(Option::is_none)
    }

    /// What the node's id is computed from.
    pub fn logical(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LOGICAL_HEADER_BYTES + self.children.len() * 32);
        bytes.extend_from_slice(&[VERSION, self.level, 0, 0]);
        bytes.extend_from_slice(&(self.children.len() as u32).to_le_bytes());
        for child in &self.children {
            bytes.extend_from_slice(&child.map_or(HOLE, |c| c.id).0);
        }
        bytes
    }

    /// The raw bytes of the node's blob, given its logical part. They follow from the children alone. The table is in order
    /// of pack ids, and those grow with time: what a run adds stands at its end, so the next version of a node differs
    /// from this one only where its children do.
    pub fn raw(&self, logical: &[u8]) -> Vec<u8> {
        let mut table: Vec<(Hex<16>, Hex<16>)> =
            self.children.iter().flatten().map(|child| (child.at.pack, child.at.key)).collect();
        table.sort_unstable();
        table.dedup();
        let mut places = Vec::with_capacity(self.children.len() * 10);
        for child in self.children.iter().flatten() {
            let index = table.binary_search(&(child.at.pack, child.at.key)).unwrap_or_default();
            places.extend_from_slice(&(index as u16).to_le_bytes());
            places.extend_from_slice(&child.at.offset.to_le_bytes());
            places.extend_from_slice(&child.at.len.to_le_bytes());
        }
        let mut raw = Vec::with_capacity(4 + logical.len() + 2 + table.len() * 32 + places.len());
        raw.extend_from_slice(&(logical.len() as u32).to_le_bytes());
        raw.extend_from_slice(logical);
        raw.extend_from_slice(&(table.len() as u16).to_le_bytes());
        for (pack, key) in table {
            raw.extend_from_slice(&pack.0);
            raw.extend_from_slice(&key.0);
        }
        raw.extend_from_slice(&places);
        raw
    }

    /// The logical part of raw bytes, and the node. `None` when the bytes make no sense.
    pub fn parse(raw: &[u8]) -> Option<(&[u8], Node)> {
        let logical_len = u32::from_le_bytes(raw.get(..4)?.try_into().ok()?) as usize;
        let logical = raw.get(4..4usize.checked_add(logical_len)?)?;
        let mut rest = raw.get(4 + logical_len..)?;
        if *logical.first()? != VERSION {
            return None;
        }
        let level = *logical.get(1)?;
        let count = u32::from_le_bytes(logical.get(4..8)?.try_into().ok()?) as usize;
        let ids = logical.get(LOGICAL_HEADER_BYTES..)?;
        if count as u64 > FAN_OUT || ids.len() != count * 32 {
            return None;
        }
        let table_len = u16::from_le_bytes(rest.get(..2)?.try_into().ok()?) as usize;
        let table = rest.get(2..2 + table_len * 32)?;
        rest = rest.get(2 + table_len * 32..)?;
        let mut children = Vec::with_capacity(count);
        for id in ids.chunks_exact(32) {
            let id: BlobId = Hex(id.try_into().ok()?);
            if id == HOLE {
                children.push(None);
                continue;
            }
            let index = u16::from_le_bytes(rest.get(..2)?.try_into().ok()?) as usize;
            let entry = table.get(index * 32..index * 32 + 32)?;
            let at = Location {
                pack: Hex(entry[..16].try_into().ok()?),
                key: Hex(entry[16..].try_into().ok()?),
                offset: u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?),
                len: u32::from_le_bytes(rest.get(6..10)?.try_into().ok()?),
            };
            rest = &rest[10..];
            children.push(Some(BlobRef { id, at }));
        }
        rest.is_empty().then_some((logical, Node { level, children }))
    }
}

/// The root of an item's map, as a manifest carries it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MapRoot {
    pub size_bytes: u64,
    pub block_bytes: u32,
    /// `None`: the item is all zeros (or empty).
    pub root: Option<BlobRef>,
}

impl MapRoot {
    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.block_bytes))
    }
    /// A block size that a policy may set, and a size that block numbers can count.
    pub fn is_possible(&self) -> bool {
        self.block_bytes.is_power_of_two()
            && (4 << 10..=4 << 20).contains(&self.block_bytes)
            && self.size_bytes <= 1 << 60
    }
    /// How many children the node at `index` of `level` has: 0 when the item ends before it.
    pub(crate) fn children_at(&self, level: u8, index: u64) -> u64 {
        let span = FAN_OUT.saturating_pow(u32::from(level));
        self.blocks().div_ceil(span).saturating_sub(index.saturating_mul(FAN_OUT)).min(FAN_OUT)
    }
    /// Level of the root node: 0 when one leaf spans the item.
    pub fn root_level(&self) -> u8 {
        root_level(self.blocks())
    }
}

/// Level of the root over so many blocks.
pub fn root_level(blocks: u64) -> u8 {
    let mut level = 0;
    let mut span = FAN_OUT;
    while span < blocks {
        span = span.saturating_mul(FAN_OUT);
        level += 1;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(n: u8) -> BlobRef {
        let at = Location { pack: Hex([n % 3; 16]), key: Hex([7; 16]), offset: u32::from(n) * 100, len: 50 };
        BlobRef { id: Hex([n; 32]), at }
    }

    #[test]
    fn a_node_survives_its_bytes() {
        let node =
            Node { level: 0, children: vec![Some(child(1)), None, Some(child(2)), Some(child(4)), None] };
        let logical = node.logical();
        let raw = node.raw(&logical);
        let (parsed_logical, parsed) = Node::parse(&raw).unwrap();
        assert_eq!((parsed_logical, parsed), (&logical[..], node));
        for cut in 0..raw.len() {
            assert!(Node::parse(&raw[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn a_node_keeps_its_identity_when_its_children_move() {
        let node = Node { level: 0, children: vec![Some(child(1))] };
        let mut moved = node.clone();
        moved.children[0].as_mut().unwrap().at.offset = 9_999;
        assert_eq!(node.logical(), moved.logical());
    }

    #[test]
    fn the_tree_is_as_high_as_it_must_be() {
        assert_eq!([1, 1024, 1025, 1024 * 1024, 1024 * 1024 + 1].map(root_level), [0, 0, 1, 1, 2]);
    }
}
