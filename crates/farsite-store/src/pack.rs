//! Packs: immutable objects of about 32 MiB that hold many sealed blobs, and a sealed index at the end so that a
//! pack explains itself to whoever may open it.
//!
//! ```text
//! 0   8  magic "FARSPACK"         8   4  version (u32 LE, 3)     12  4  reserved, 0
//! 16 16  pack id                  32 16  content key id
//! 48  …  sealed blobs and groups, one after the other
//!     …  sealed index: number of blobs u32 LE, per blob  kind u8, id 32, offset u32 LE, length u32 LE;
//!        number of base packs u32 LE, per base pack  pack id 16, content key id 16, depths u8
//! -48 8  offset of the index (u64 LE)  -40 4  its length (u32 LE)  -36 4  version
//! -32 32 BLAKE3 of everything before
//! ```
//!
//! The base packs are the other packs that this pack's patches stand on; bit `d - 1` of `depths` is set when a patch of
//! depth `d` does. A chain gets shallower by one with each base, so whoever collects follows it a bounded number of
//! times. A group has one line in the index for each of its members, all with the group's own offset and length. Version 1
//! has no count and no base packs: its index is the blobs alone, and none of them is a patch. Version 2 has no groups.

use bytes::Bytes;

use std::collections::BTreeMap;

use crate::blob::{BlobRef, Location, MAX_PATCH_DEPTH};
use crate::hex::Hex;
use crate::keys::BlobId;
use crate::seal::{BlobKind, ContentKey, ContentKeyId, Opener, Sealer};
use crate::{Damage, Store, StoreError};

/// Drawn before the first blob, so that locations are known while the pack is still being filled: six bytes of time
/// (milliseconds since 1970, big-endian) and ten random ones. Nothing depends on the time; it keeps ids in order.
pub type PackId = Hex<16>;

fn new_id() -> PackId {
    let mut id = PackId::random();
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    id.0[..6].copy_from_slice(&(since_1970.as_millis() as u64).to_be_bytes()[2..]);
    id
}

const MAGIC: &[u8; 8] = b"FARSPACK";
const VERSION: u32 = 3;
/// Without base packs.
const FIRST_VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 48;
const TRAILER_BYTES: usize = 48;
const INDEX_ENTRY_BYTES: usize = 1 + 32 + 4 + 4;
const BASE_BYTES: usize = 16 + 16 + 1;
/// Read from a pack's end at once: the indexes of most packs are shorter.
const TAIL_BYTES: u64 = 64 << 10;
/// No index is longer: a trailer that says so is damage, not an allocation.
const MOST_INDEX_BYTES: u32 = 64 << 20;

/// Which of the 256 folders a pack lies in: by its last byte, which is random, so that packs are spread over them.
pub(crate) fn folder_of(id: &PackId) -> u8 {
    id.0[15]
}

/// The pack's key in the store.
pub fn object_key(id: &PackId) -> String {
    format!("packs/{:02x}/{id}", folder_of(id))
}

/// Which pack has this key in the store.
pub(crate) fn id_of(key: &str) -> Option<PackId> {
    let id: PackId = key.rsplit('/').next()?.parse().ok()?;
    (object_key(&id) == key).then_some(id)
}

/// One line of a pack's index: a blob, or a member of a group. `offset` and `len` are those of its [`Location`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub kind: u8,
    pub id: BlobId,
    pub offset: u32,
    pub len: u32,
}

impl IndexEntry {
    pub fn sealed_bytes(&self) -> u32 {
        self.len & !Location::GROUPED
    }
    /// Whether this is a block, by itself or in a group.
    pub fn is_block(&self) -> bool {
        self.kind == BlobKind::Block as u8 || self.kind == BlobKind::Group as u8
    }
}

/// Another pack that patches of this one stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasePack {
    pub pack: PackId,
    pub key: ContentKeyId,
    /// Bit `d - 1`: a patch of depth `d` stands on it.
    pub depths: u8,
}

/// What a patch stands on, as the index must tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchBase {
    pub pack: PackId,
    pub key: ContentKeyId,
    /// The patch's own depth, 1 to [`MAX_PATCH_DEPTH`].
    pub depth: u8,
}

impl PatchBase {
    pub fn new(base: &BlobRef, depth: u8) -> Self {
        Self { pack: base.at.pack, key: base.at.key, depth }
    }
}

/// A pack's index: what lies in it, and which other packs it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackIndex {
    pub entries: Vec<IndexEntry>,
    pub bases: Vec<BasePack>,
}

/// A pack being filled.
pub struct PackBuilder {
    id: PackId,
    key: ContentKeyId,
    bytes: Vec<u8>,
    index: Vec<IndexEntry>,
    bases: BTreeMap<(PackId, ContentKeyId), u8>,
}

/// A pack ready to be uploaded.
pub struct FinishedPack {
    pub id: PackId,
    pub key: ContentKeyId,
    pub bytes: Bytes,
    pub index: Vec<IndexEntry>,
}

impl PackBuilder {
    pub fn new(key: ContentKeyId, target_bytes: usize) -> Self {
        Self::with_id(new_id(), key, target_bytes)
    }

    pub(crate) fn with_id(id: PackId, key: ContentKeyId, target_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(target_bytes + (1 << 20));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&key.0);
        Self { id, key, bytes, index: Vec::new(), bases: BTreeMap::new() }
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
    pub(crate) fn id(&self) -> PackId {
        self.id
    }
    /// Blobs so far: the line of the index that the next one takes.
    pub(crate) fn blobs(&self) -> u32 {
        self.index.len() as u32
    }

    /// Adds a blob; `base` says what it stands on when it is a patch. A base that is not named here would be collected
    /// under the patch.
    pub fn push(&mut self, kind: BlobKind, id: BlobId, sealed: &[u8], base: Option<PatchBase>) -> Location {
        if let Some(base) = base.filter(|base| base.pack != self.id) {
            let bit = 1 << (base.depth.clamp(1, MAX_PATCH_DEPTH) - 1);
            *self.bases.entry((base.pack, base.key)).or_default() |= bit;
        }
        let (offset, len) = (self.bytes.len() as u32, sealed.len() as u32);
        self.bytes.extend_from_slice(sealed);
        self.index.push(IndexEntry { kind: kind as u8, id, offset, len });
        Location { pack: self.id, key: self.key, offset, len }
    }

    /// Adds a group. Every member lies where the group does.
    pub fn push_group(&mut self, members: &[BlobId], sealed: &[u8]) -> Location {
        let (offset, len) = (self.bytes.len() as u32, sealed.len() as u32 | Location::GROUPED);
        self.bytes.extend_from_slice(sealed);
        let kind = BlobKind::Group as u8;
        self.index.extend(members.iter().map(|id| IndexEntry { kind, id: *id, offset, len }));
        Location { pack: self.id, key: self.key, offset, len }
    }

    pub fn finish(mut self, sealer: &Sealer) -> FinishedPack {
        let mut index =
            Vec::with_capacity(8 + self.index.len() * INDEX_ENTRY_BYTES + self.bases.len() * BASE_BYTES);
        index.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        for entry in &self.index {
            index.push(entry.kind);
            index.extend_from_slice(&entry.id.0);
            index.extend_from_slice(&entry.offset.to_le_bytes());
            index.extend_from_slice(&entry.len.to_le_bytes());
        }
        index.extend_from_slice(&(self.bases.len() as u32).to_le_bytes());
        for ((pack, key), depths) in &self.bases {
            index.extend_from_slice(&pack.0);
            index.extend_from_slice(&key.0);
            index.push(*depths);
        }
        let offset = self.bytes.len() as u64;
        let sealed = sealer.seal(BlobKind::PackIndex, &index_id(&self.id, VERSION), &index);
        self.bytes.extend_from_slice(&sealed);
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&VERSION.to_le_bytes());
        let hash = blake3::hash(&self.bytes);
        self.bytes.extend_from_slice(hash.as_bytes());
        FinishedPack { id: self.id, key: self.key, bytes: self.bytes.into(), index: self.index }
    }
}

/// What the sealed index is bound to. From version 2 on the version is part of it: a flipped version must not hide the
/// base packs.
fn index_id(pack: &PackId, version: u32) -> [u8; 32] {
    let mut id = [0; 32];
    id[..16].copy_from_slice(&pack.0);
    if version != FIRST_VERSION {
        id[16..20].copy_from_slice(&version.to_le_bytes());
    }
    id
}

fn is_known(version: u32) -> Result<(), String> {
    if (FIRST_VERSION..=VERSION).contains(&version) {
        Ok(())
    } else {
        Err(format!("pack version {version} is not known; use a newer farsite"))
    }
}

/// Checks a whole pack without any key: magic, id, trailing hash. The error says what is wrong.
pub fn check_whole(id: &PackId, bytes: &[u8]) -> Result<(), String> {
    if bytes.len() < HEADER_BYTES + TRAILER_BYTES {
        return Err(format!("truncated to {} bytes", bytes.len()));
    }
    if bytes[..8] != *MAGIC || bytes[16..32] != id.0 {
        return Err("it is not the pack that its name says".into());
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
    is_known(version)?;
    let (body, hash) = bytes.split_at(bytes.len() - 32);
    if blake3::hash(body).as_bytes() != hash {
        return Err("its bytes do not match its hash".into());
    }
    Ok(())
}

/// Where a pack's sealed index lies, out of its last bytes.
struct Trailer {
    offset: u64,
    len: u32,
    version: u32,
}

impl Trailer {
    fn parse(end: &[u8]) -> Result<Self, String> {
        let at = end.len().checked_sub(TRAILER_BYTES).ok_or("it is truncated")?;
        let number =
            |from: usize| u32::from_le_bytes(end[at + from..at + from + 4].try_into().expect("4 bytes"));
        let offset = u64::from_le_bytes(end[at..at + 8].try_into().expect("8 bytes"));
        let (len, version) = (number(8), number(12));
        is_known(version)?;
        if len > MOST_INDEX_BYTES {
            return Err(format!("it says that its index has {len} bytes"));
        }
        Ok(Self { offset, len, version })
    }
}

#[cfg(test)]
pub(crate) fn trailer_makes_sense(end: &[u8]) -> bool {
    Trailer::parse(end).is_ok()
}

/// The index of a whole pack, opened.
pub fn read_index(id: &PackId, bytes: &[u8], key: &ContentKey) -> Result<PackIndex, String> {
    check_whole(id, bytes)?;
    let trailer = Trailer::parse(bytes)?;
    let from = usize::try_from(trailer.offset).map_err(|_| "its index lies outside of it")?;
    let sealed =
        bytes.get(from..from.saturating_add(trailer.len as usize)).ok_or("its index lies outside of it")?;
    open_index(id, trailer.version, sealed, key)
}

fn open_index(id: &PackId, version: u32, sealed: &[u8], key: &ContentKey) -> Result<PackIndex, String> {
    let plain = key
        .open(BlobKind::PackIndex, &index_id(id, version), sealed)
        .ok_or("its index does not open: damaged or sealed with another key")?;
    parse_index(&plain, version).ok_or_else(|| "its index makes no sense".to_owned())
}

pub(crate) fn parse_index(plain: &[u8], version: u32) -> Option<PackIndex> {
    if version == FIRST_VERSION {
        let whole = plain.len().is_multiple_of(INDEX_ENTRY_BYTES);
        return whole.then(|| PackIndex { entries: entries(plain), bases: Vec::new() });
    }
    let count = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize);
    let rest = &plain.get(4..)?;
    let blobs = rest.get(..count(plain)?.checked_mul(INDEX_ENTRY_BYTES)?)?;
    let rest = &rest[blobs.len()..];
    let bases = rest.get(4..)?;
    if bases.len() != count(rest)?.checked_mul(BASE_BYTES)? {
        return None;
    }
    let bases = bases.chunks_exact(BASE_BYTES).map(|base| BasePack {
        pack: Hex(base[..16].try_into().expect("16 bytes")),
        key: Hex(base[16..32].try_into().expect("16 bytes")),
        depths: base[32],
    });
    Some(PackIndex { entries: entries(blobs), bases: bases.collect() })
}

fn entries(bytes: &[u8]) -> Vec<IndexEntry> {
    let entry = |entry: &[u8]| IndexEntry {
        kind: entry[0],
        id: Hex(entry[1..33].try_into().expect("32 bytes")),
        offset: u32::from_le_bytes(entry[33..37].try_into().expect("4 bytes")),
        len: u32::from_le_bytes(entry[37..41].try_into().expect("4 bytes")),
    };
    bytes.chunks_exact(INDEX_ENTRY_BYTES).map(entry).collect()
}

/// The content key that a pack's header names. The header is not authenticated: good for asking whose a pack is, and
/// no more.
pub(crate) async fn read_header(store: &Store, id: &PackId) -> Result<ContentKeyId, StoreError> {
    let name = object_key(id);
    let header = store.get_range(&name, 0..HEADER_BYTES as u64).await?;
    if header[..8] != *MAGIC || header[16..32] != id.0 {
        return Err(StoreError::Damaged(vec![Damage::new(name, "it is not the pack that its name says")]));
    }
    Ok(Hex(header[32..48].try_into().expect("16 bytes")))
}

/// Reads and opens a pack's index without the pack. `key` is the content key of the pack itself. Returns the pack's
/// size as well.
pub(crate) async fn fetch_index(
    store: &Store,
    opener: &Opener,
    id: &PackId,
    key: ContentKeyId,
) -> Result<(PackIndex, u64), StoreError> {
    let name = object_key(id);
    let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&name, why)]);
    let size = store.size(&name).await?;
    let from = size.saturating_sub(TAIL_BYTES);
    let tail = store.get_range(&name, from..size).await?;
    let trailer = Trailer::parse(&tail).map_err(damaged)?;
    let end = trailer.offset.saturating_add(u64::from(trailer.len));
    if end != size - TRAILER_BYTES as u64 {
        return Err(damaged("its index lies outside of it: truncated or damaged".to_owned()));
    }
    let sealed = if trailer.offset >= from {
        tail.slice((trailer.offset - from) as usize..(end - from) as usize)
    } else {
        store.get_range(&name, trailer.offset..end).await?
    };
    let key = opener.content_key(store, key).await?;
    Ok((open_index(id, trailer.version, &sealed, &key).map_err(damaged)?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed_pack() -> (FinishedPack, ContentKey) {
        let (id, secret) = (Hex([7; 16]), [1; 32]);
        let sealer = Sealer::known(id, &secret);
        let mut pack = PackBuilder::with_id(Hex([5; 16]), id, 0);
        let base = |pack: u8, depth| Some(PatchBase { pack: Hex([pack; 16]), key: Hex([8; 16]), depth });
        pack.push(BlobKind::Block, Hex([1; 32]), b"whole", None);
        pack.push(BlobKind::Block, Hex([2; 32]), b"patch", base(9, 1));
        pack.push(BlobKind::Node, Hex([3; 32]), b"patch", base(9, 3));
        pack.push(BlobKind::Block, Hex([4; 32]), b"on a neighbour", base(5, 2));
        (pack.finish(&sealer), ContentKey::known(id, &secret))
    }

    #[test]
    fn an_index_tells_its_blobs_and_the_other_packs_that_its_patches_stand_on() {
        let (pack, key) = sealed_pack();
        let index = read_index(&pack.id, &pack.bytes, &key).unwrap();
        assert_eq!(index.entries, pack.index);
        assert_eq!(index.bases, [BasePack { pack: Hex([9; 16]), key: Hex([8; 16]), depths: 0b101 }]);
    }

    #[test]
    fn a_version_that_was_changed_cannot_hide_the_base_packs() {
        let (pack, key) = sealed_pack();
        let mut bytes = pack.bytes.to_vec();
        let end = bytes.len();
        bytes[end - 36] = 1;
        let hash = blake3::hash(&bytes[..end - 32]);
        bytes[end - 32..].copy_from_slice(hash.as_bytes());
        assert!(read_index(&pack.id, &bytes, &key).unwrap_err().contains("does not open"));
    }

    #[test]
    fn an_index_of_version_1_is_its_blobs_alone() {
        let entry = [&[1u8][..], &[6; 32], &48u32.to_le_bytes(), &10u32.to_le_bytes()].concat();
        let index = parse_index(&entry, FIRST_VERSION).unwrap();
        assert_eq!((index.entries.len(), index.bases.len()), (1, 0));
        for cut in 1..entry.len() {
            assert!(parse_index(&entry[..cut], FIRST_VERSION).is_none());
        }
        assert!(parse_index(&entry, VERSION).is_none());
    }
}
