//! What stands inside a sealed blob: one codec byte, the raw length, and the payload.
//!
//! `0` raw · `1` zstd · `2` zstd patch against a base blob: `depth u8, base id 32, base location 40, payload`.

use std::cell::RefCell;

use zstd::zstd_safe::{CCtx, CParameter};

use crate::hex::Hex;
use crate::keys::BlobId;
use crate::pack::PackId;
use crate::seal::ContentKeyId;

/// Where a blob lies. 40 bytes: pack id, content key id, offset and length (u32 LE each) of what is sealed there: the blob
/// itself, or the group that it is a member of, when the highest bit of the length is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Location {
    pub pack: PackId,
    pub key: ContentKeyId,
    pub offset: u32,
    pub len: u32,
}

impl Location {
    pub const BYTES: usize = 40;
    pub(crate) const GROUPED: u32 = 1 << 31;

    /// Bytes of what is sealed there.
    pub fn sealed_bytes(&self) -> u32 {
        self.len & !Self::GROUPED
    }
    pub fn is_grouped(&self) -> bool {
        self.len & Self::GROUPED != 0
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.pack.0);
        bytes[16..32].copy_from_slice(&self.key.0);
        bytes[32..36].copy_from_slice(&self.offset.to_le_bytes());
        bytes[36..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            pack: Hex(bytes.get(..16)?.try_into().ok()?),
            key: Hex(bytes.get(16..32)?.try_into().ok()?),
            offset: u32::from_le_bytes(bytes.get(32..36)?.try_into().ok()?),
            len: u32::from_le_bytes(bytes.get(36..40)?.try_into().ok()?),
        })
    }
}

/// A blob's identity and where it lies now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct BlobRef {
    pub id: BlobId,
    #[serde(flatten)]
    pub at: Location,
}

/// Patches may stand on patches, but not deeper than this: a read opens at most this many blobs and one more.
pub const MAX_PATCH_DEPTH: u8 = 8;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const PATCH: u8 = 2;
const HEADER_BYTES: usize = 5;
const PATCH_HEADER_BYTES: usize = 1 + 32 + Location::BYTES;

thread_local! {
    /// Making a context costs more than compressing a block with it.
    static CONTEXT: RefCell<CCtx<'static>> = RefCell::new(CCtx::create());
}

/// Compresses when that saves at least a sixteenth; otherwise the bytes are kept as they are.
pub fn encode(raw: &[u8], level: i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + most_bytes(raw.len()));
    out.push(ZSTD);
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    if compress(raw, None, level, &mut out).is_some() && is_worth_it(out.len() - HEADER_BYTES, raw.len()) {
        return out;
    }
    out.clear();
    out.push(RAW);
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(raw);
    out
}

/// Bytes kept as they are cost no time to read.
pub(crate) fn is_worth_it(compressed: usize, raw: usize) -> bool {
    compressed < raw - raw / 16
}

/// The most bytes that one zstd frame takes.
pub(crate) fn most_bytes(raw: usize) -> usize {
    zstd::zstd_safe::compress_bound(raw)
}

/// Appends one zstd frame. `None` when zstd fails, which leaves `out` in no certain state.
pub(crate) fn compress(raw: &[u8], base: Option<&[u8]>, level: i32, out: &mut Vec<u8>) -> Option<()> {
    let Some(base) = base else {
        return CONTEXT.with_borrow_mut(|context| {
            context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
            frame(context, raw, out)
        });
    };
    // A context borrows its prefix for as long as it lives, so this one lives no longer.
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
    // The window must cover base and block, or matches are lost.
    let window = (raw.len() + base.len()).next_power_of_two().trailing_zeros().max(10);
    context.set_parameter(CParameter::WindowLog(window)).ok()?;
    context.ref_prefix(base).ok()?;
    frame(&mut context, raw, out)
}

fn frame(context: &mut CCtx<'_>, raw: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    out.resize(start + most_bytes(raw.len()), 0);
    let written = context.compress2(&mut out[start..], raw).ok()?;
    out.truncate(start + written);
    Some(())
}

/// Encodes `raw` against the raw bytes of `base`.
pub fn encode_patch(raw: &[u8], base_ref: &BlobRef, base: &[u8], depth: u8, level: i32) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    compress(raw, Some(base), level, &mut frame)?;
    Some(patch(raw.len(), base_ref, depth, &frame))
}

/// A patch, out of its frame and of where its base lies.
pub(crate) fn patch(raw_bytes: usize, base: &BlobRef, depth: u8, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + PATCH_HEADER_BYTES + frame.len());
    out.push(PATCH);
    out.extend_from_slice(&(raw_bytes as u32).to_le_bytes());
    out.push(depth);
    out.extend_from_slice(&base.id.0);
    out.extend_from_slice(&base.at.to_bytes());
    out.extend_from_slice(frame);
    out
}

/// A patch where that is smaller than the block by itself; its depth, and the blob.
pub fn encode_best(raw: &[u8], base: Option<(&BlobRef, &[u8], u8)>, level: i32) -> (u8, Vec<u8>) {
    let tried = base.map(|(at, base, depth)| {
        let patch = |depth| encode_patch(raw, at, base, depth, level);
        patch_or_whole(raw, depth, None, patch, || encode(raw, level))
    });
    match tried {
        Some(Tried::Patch { depth, blob }) => (depth, blob),
        Some(Tried::Whole(blob)) => (0, blob),
        Some(Tried::PatchIsLarger) | None => (0, encode(raw, level)),
    }
}

/// Whether a patch is to be preferred to `whole` bytes. What compresses may come to a quarter less among its neighbours.
fn is_small_beside(patch: &[u8], whole: usize, raw: &[u8]) -> bool {
    let share = if is_worth_it(whole, raw.len()) { whole - whole / 4 } else { whole };
    patch.len() < share
}

/// What came of a block that has a last version.
pub(crate) enum Tried {
    Patch {
        depth: u8,
        blob: Vec<u8>,
    },
    /// No patch can be made, or it would be larger than this.
    Whole(Vec<u8>),
    /// A patch would be larger than what was expected of the block by itself.
    PatchIsLarger,
}

/// `base_depth` is how many patches deep the last version is. `expected` is what the block would come to by itself, when that
/// can be told from its neighbours: then it is not tried.
pub(crate) fn patch_or_whole(
    raw: &[u8],
    base_depth: u8,
    expected: Option<usize>,
    patch: impl FnOnce(u8) -> Option<Vec<u8>>,
    whole: impl FnOnce() -> Vec<u8>,
) -> Tried {
    let depth = base_depth + 1;
    let patch = if base_depth < MAX_PATCH_DEPTH { patch(depth) } else { None };
    match patch {
        // So small that the block by itself need not be tried.
        Some(blob) if blob.len() < raw.len() / 8 => Tried::Patch { depth, blob },
        Some(blob) => match expected {
            Some(expected) if is_small_beside(&blob, expected, raw) => Tried::Patch { depth, blob },
            Some(_) => Tried::PatchIsLarger,
            None => {
                let whole = whole();
                if is_small_beside(&blob, whole.len(), raw) {
                    Tried::Patch { depth, blob }
                } else {
                    Tried::Whole(whole)
                }
            }
        },
        None => Tried::Whole(whole()),
    }
}

/// Whether an encoded block is smaller than its raw bytes.
pub(crate) fn is_compressed(blob: &[u8]) -> bool {
    blob.first() == Some(&ZSTD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::encoded::{self, Encoded};

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn blocks_survive_encoding_whether_they_compress_or_not() {
        for raw in [vec![7u8; 65536], noise(65536), noise(1), Vec::new()] {
            let encoded = encode(&raw, 3);
            assert_eq!(encoded::whole(&encoded), Some(raw.clone()));
            assert!(encoded.len() <= raw.len() + HEADER_BYTES);
        }
    }

    #[test]
    fn a_patch_of_incompressible_data_is_small_and_exact() {
        let base = noise(65536);
        let mut raw = base.clone();
        raw[1000..1100].fill(0);
        let at = Location { pack: Hex([1; 16]), key: Hex([2; 16]), offset: 3, len: 4 };
        let blob = encode_patch(&raw, &BlobRef { id: Hex([9; 32]), at }, &base, 1, 3).unwrap();
        assert!(blob.len() < 400, "{} bytes", blob.len());
        let Some(Encoded::Patch { base: base_ref, raw_len, payload, depth: 1 }) = Encoded::parse(&blob)
        else {
            panic!("it is a patch of depth 1")
        };
        assert_eq!(base_ref.at, at);
        let mut back = Vec::new();
        assert!(encoded::patch(&base, payload, raw_len, &mut back));
        assert_eq!(back, raw);
    }
}
