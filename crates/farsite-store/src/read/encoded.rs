//! The header of an opened blob comes in, its raw bytes go out. What must hold: no more memory is taken than the largest
//! block, whatever a header claims.

use std::cell::RefCell;

use zstd::zstd_safe::DCtx;

use crate::blob::{BlobRef, Location, MAX_PATCH_DEPTH};
use crate::hex::Hex;

/// No blob is larger than the largest block; a header that claims more is damage, not an allocation.
pub(crate) const RAW_BYTES: usize = 4 << 20;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const PATCH: u8 = 2;

/// What stands inside a sealed blob (see [`crate::blob`]), borrowed.
#[derive(Debug)]
pub(crate) enum Encoded<'a> {
    Raw(&'a [u8]),
    Zstd { raw_len: usize, payload: &'a [u8] },
    Patch { base: BlobRef, depth: u8, raw_len: usize, payload: &'a [u8] },
}

impl<'a> Encoded<'a> {
    /// `None` when the bytes make no sense.
    pub(crate) fn parse(plain: &'a [u8]) -> Option<Self> {
        let (codec, rest) = plain.split_first()?;
        let raw_len = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let payload = rest.get(4..)?;
        if raw_len > RAW_BYTES {
            return None;
        }
        match *codec {
            RAW => (payload.len() == raw_len).then_some(Self::Raw(payload)),
            ZSTD => Some(Self::Zstd { raw_len, payload }),
            PATCH => {
                let depth = *payload.first()?;
                let id = Hex(payload.get(1..33)?.try_into().ok()?);
                let at = Location::from_bytes(payload.get(33..33 + Location::BYTES)?)?;
                let payload = payload.get(33 + Location::BYTES..)?;
                let base = BlobRef { id, at };
                (1..=MAX_PATCH_DEPTH).contains(&depth).then_some(Self::Patch {
                    base,
                    depth,
                    raw_len,
                    payload,
                })
            }
            _ => None,
        }
    }
}

thread_local! {
    /// A context takes about 100 KiB and is set up once for each thread.
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Decompresses into `out`, whose former contents are gone. False when the bytes make no sense.
pub(crate) fn inflate(payload: &[u8], raw_len: usize, out: &mut Vec<u8>) -> bool {
    make_room(out, raw_len);
    CONTEXT.with_borrow_mut(|context| context.decompress(out, payload)).is_ok_and(|len| len == raw_len)
}

/// The raw bytes of a patch into `out`, given those of its base.
pub(crate) fn patch(base: &[u8], payload: &[u8], raw_len: usize, out: &mut Vec<u8>) -> bool {
    make_room(out, raw_len);
    // A context that holds a prefix borrows it, so it cannot be kept.
    let mut context = DCtx::create();
    context.ref_prefix(base).is_ok() && context.decompress(out, payload).is_ok_and(|len| len == raw_len)
}

/// The raw bytes of what stands by itself; `None` for a patch, or when the bytes make no sense.
pub(crate) fn whole(plain: &[u8]) -> Option<Vec<u8>> {
    match Encoded::parse(plain)? {
        Encoded::Raw(bytes) => Some(bytes.to_vec()),
        Encoded::Zstd { raw_len, payload } => {
            let mut out = Vec::new();
            inflate(payload, raw_len, &mut out).then_some(out)
        }
        Encoded::Patch { .. } => None,
    }
}

fn make_room(out: &mut Vec<u8>, raw_len: usize) {
    out.clear();
    // Not one byte more: what is longer than it claims must fail.
    out.reserve_exact(raw_len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob;

    #[test]
    fn what_a_writer_encodes_is_read_back() {
        let mut out = Vec::new();
        for raw in [vec![7u8; 65536], (0..9000u32).flat_map(u32::to_le_bytes).collect(), Vec::new()] {
            let plain = blob::encode(&raw, 3);
            match Encoded::parse(&plain).unwrap() {
                Encoded::Raw(bytes) => assert_eq!(bytes, raw),
                Encoded::Zstd { raw_len, payload } => {
                    assert!(inflate(payload, raw_len, &mut out));
                    assert_eq!(out, raw);
                    assert!(!inflate(&payload[..payload.len() - 1], raw_len, &mut out));
                    assert!(!inflate(payload, raw_len - 1, &mut out), "longer than it claims");
                }
                Encoded::Patch { .. } => panic!("it has no base"),
            }
        }
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused() {
        let mut plain = blob::encode(b"abc", 3);
        plain[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Encoded::parse(&plain).is_none());
        assert!(Encoded::parse(&[]).is_none() && Encoded::parse(&[9, 0, 0, 0, 0]).is_none());
    }
}
