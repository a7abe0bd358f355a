//! Where the blobs of a compacted pack lay before: the places that block maps and patches go on naming for ever come in, the
//! places of today go out. The table stands in the pack itself, sealed, as blobs of kind 6.
//!
//! ```text
//! number of former packs u32 LE, then per former pack  pack id 16, rows u32 LE, then per row  old offset u32 LE, line u32 LE
//! ```
//!
//! `line` counts in the pack's index from 0; the blob there has the id that lay at the old offset. What must hold: a place is
//! found exactly. An id alone would not do: two block-map nodes may have the same children and name other places for them,
//! and a patch stands on the bytes of one of the two.

use std::collections::BTreeMap;

use crate::blob::{BlobRef, Location};
use crate::hex::Hex;
use crate::keys::BlobId;
use crate::pack::{IndexEntry, PackId};
use crate::seal::{BlobKind, ContentKeyId};

/// Rows of one table: with all of a pack's former packs it stays under the largest blob.
pub(crate) const MOST_ROWS: usize = 200_000;

/// One blob's former place, and its line in the index of the pack where it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) line: u32,
}

/// The id that a pack's table with this number is sealed under.
pub(crate) fn table_id(pack: &PackId, number: u32) -> BlobId {
    let mut id = [0; 32];
    id[..16].copy_from_slice(&pack.0);
    id[16..20].copy_from_slice(&number.to_le_bytes());
    Hex(id)
}

pub(crate) fn encode(rows: &[Row]) -> Vec<u8> {
    let mut packs: BTreeMap<PackId, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        packs.entry(row.pack).or_default().push(row);
    }
    let mut bytes = Vec::with_capacity(4 + packs.len() * 20 + rows.len() * 8);
    bytes.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    for (pack, rows) in packs {
        bytes.extend_from_slice(&pack.0);
        bytes.extend_from_slice(&(rows.len() as u32).to_le_bytes());
        for row in rows {
            bytes.extend_from_slice(&row.offset.to_le_bytes());
            bytes.extend_from_slice(&row.line.to_le_bytes());
        }
    }
    bytes
}

/// `None` when the bytes make no sense.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Row>> {
    let (mut rest, mut rows) = (bytes, Vec::new());
    let number = |rest: &mut &[u8]| {
        let (four, behind) = rest.split_first_chunk::<4>()?;
        *rest = behind;
        Some(u32::from_le_bytes(*four))
    };
    for _ in 0..number(&mut rest)? {
        let (id, behind) = rest.split_first_chunk::<16>()?;
        rest = behind;
        for _ in 0..number(&mut rest)? {
            rows.push(Row { pack: Hex(*id), offset: number(&mut rest)?, line: number(&mut rest)? });
        }
    }
    rest.is_empty().then_some(rows)
}

/// One compacted pack's index, as far as former places need it.
#[derive(Debug)]
pub(crate) struct MovedIndex {
    pack: PackId,
    key: ContentKeyId,
    entries: Vec<IndexEntry>,
    /// In order of former pack and offset.
    rows: Vec<Row>,
}

impl MovedIndex {
    pub(crate) fn new(pack: PackId, key: ContentKeyId, entries: Vec<IndexEntry>, mut rows: Vec<Row>) -> Self {
        rows.sort_unstable_by_key(|row| (row.pack, row.offset));
        Self { pack, key, entries, rows }
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.len() * size_of::<IndexEntry>() + self.rows.len() * size_of::<Row>() + 64
    }

    /// Where a blob is that lay there.
    pub(crate) fn find(&self, kind: BlobKind, blob: &BlobRef) -> Option<BlobRef> {
        let place = (blob.at.pack, blob.at.offset);
        let first = self.rows.partition_point(|row| (row.pack, row.offset) < place);
        let here = self.rows[first..].iter().take_while(|row| (row.pack, row.offset) == place);
        let entry = here
            .filter_map(|row| self.entries.get(row.line as usize))
            .find(|entry| entry.id == blob.id && is_of(entry, kind))?;
        let at = Location { pack: self.pack, key: self.key, offset: entry.offset, len: entry.len };
        Some(BlobRef { id: blob.id, at })
    }

    /// All former places of the blob on this line.
    pub(crate) fn former(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }
}

/// Whether a line of an index is of this kind; a block may be a member of a group.
pub(crate) fn is_of(entry: &IndexEntry, kind: BlobKind) -> bool {
    if kind == BlobKind::Block { entry.is_block() } else { entry.kind == kind as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pack: u8, offset: u32, line: u32) -> Row {
        Row { pack: Hex([pack; 16]), offset, line }
    }

    #[test]
    fn former_places_survive_their_bytes_and_a_cut_table_is_none() {
        let rows = vec![row(1, 48, 0), row(1, 99, 2), row(7, 48, 1)];
        let bytes = encode(&rows);
        assert_eq!(decode(&bytes).unwrap(), rows);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn two_blobs_with_one_id_are_told_apart_by_where_they_lay() {
        let id = Hex([5; 32]);
        let entry = |offset| IndexEntry { kind: BlobKind::Node as u8, id, offset, len: 10 };
        let rows = vec![row(1, 48, 0), row(2, 48, 1)];
        let index = MovedIndex::new(Hex([9; 16]), Hex([8; 16]), vec![entry(48), entry(58)], rows);
        let at = |pack: u8, offset| Location { pack: Hex([pack; 16]), key: Hex([0; 16]), offset, len: 3 };
        let find = |pack, offset| index.find(BlobKind::Node, &BlobRef { id, at: at(pack, offset) });
        assert_eq!(find(1, 48).unwrap().at.offset, 48);
        assert_eq!(find(2, 48).unwrap().at.offset, 58);
        assert!(find(2, 49).is_none() && find(3, 48).is_none());
        let other = BlobRef { id: Hex([6; 32]), at: at(1, 48) };
        assert!(index.find(BlobKind::Node, &other).is_none(), "a place is nothing without its blob");
    }
}
