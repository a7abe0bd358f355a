//! A group: several blocks in one zstd frame, sealed as one blob. Blocks that lie side by side have much in common, and
//! a frame for each would say it again.
//!
//! Opened, it is `count u16 LE`, per member `block id 32, raw length u32 LE`, and the frame of all their bytes, one after
//! the other. What must hold: no more memory is taken than the largest block, whatever a header claims.

use std::ops::Range;

use crate::blob;
use crate::keys::BlobId;
use crate::read::encoded::{self, RAW_BYTES};

const MEMBER_BYTES: usize = 32 + 4;

/// Encodes these blocks, whose bytes lie one after the other in `raw`. `None` when that saves less than a sixteenth.
pub(crate) fn encode(members: &[(BlobId, u32)], raw: &[u8], level: i32) -> Option<Vec<u8>> {
    debug_assert!(raw.len() <= RAW_BYTES && u16::try_from(members.len()).is_ok());
    let mut out = Vec::with_capacity(2 + members.len() * MEMBER_BYTES + blob::most_bytes(raw.len()));
    out.extend_from_slice(&(members.len() as u16).to_le_bytes());
    for (id, len) in members {
        out.extend_from_slice(&id.0);
        out.extend_from_slice(&len.to_le_bytes());
    }
    blob::compress(raw, None, level, &mut out)?;
    blob::is_worth_it(out.len(), raw.len()).then_some(out)
}

/// An opened group, borrowed.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    table: &'a [u8],
    raw_bytes: usize,
    frame: &'a [u8],
}

impl<'a> Group<'a> {
    /// `None` when the bytes make no sense.
    pub(crate) fn parse(plain: &'a [u8]) -> Option<Self> {
        let count = usize::from(u16::from_le_bytes(plain.get(..2)?.try_into().ok()?));
        let table = plain.get(2..2 + count * MEMBER_BYTES)?;
        let frame = &plain[2 + table.len()..];
        let raw_bytes = members(table).map(|(_, len)| len).sum();
        (raw_bytes <= RAW_BYTES).then_some(Self { table, raw_bytes, frame })
    }

    /// Where a member stands among the raw bytes. `None` when it is no member.
    pub(crate) fn place_of(&self, id: &BlobId) -> Option<Range<usize>> {
        let mut start = 0;
        for (member, len) in members(self.table) {
            if member == id.0 {
                return Some(start..start + len);
            }
            start += len;
        }
        None
    }

    /// The raw bytes of all members. False when the bytes make no sense.
    pub(crate) fn inflate(&self, out: &mut Vec<u8>) -> bool {
        encoded::inflate(self.frame, self.raw_bytes, out)
    }
}

fn members(table: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    table.chunks_exact(MEMBER_BYTES).map(|member| {
        let (id, len) = member.split_at(32);
        (id, u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::Hex;

    fn two() -> (Vec<(BlobId, u32)>, Vec<u8>) {
        let raw: Vec<u8> = (0..40_000u32).flat_map(|n| (n / 64).to_le_bytes()).collect();
        (vec![(Hex([1; 32]), 100_000), (Hex([2; 32]), 60_000)], raw)
    }

    #[test]
    fn every_member_is_read_back() {
        let (members, raw) = two();
        let plain = encode(&members, &raw, 3).unwrap();
        let group = Group::parse(&plain).unwrap();
        let mut out = Vec::new();
        assert!(group.inflate(&mut out));
        assert_eq!(out, raw);
        assert_eq!(group.place_of(&Hex([1; 32])), Some(0..100_000));
        assert_eq!(group.place_of(&Hex([2; 32])), Some(100_000..160_000));
        assert_eq!(group.place_of(&Hex([3; 32])), None);
    }

    #[test]
    fn a_group_that_was_cut_or_that_claims_too_much_makes_no_sense() {
        let (members, raw) = two();
        let plain = encode(&members, &raw, 3).unwrap();
        let mut out = Vec::new();
        for cut in 0..plain.len() {
            assert!(
                !Group::parse(&plain[..cut]).is_some_and(|group| group.inflate(&mut out)),
                "cut at {cut}"
            );
        }
        let mut claims = plain;
        claims[34..38].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Group::parse(&claims).is_none());
    }
}
