//! Packs: immutable objects of about 32 MiB that hold many sealed blobs, and a sealed index at the end so that a
//! pack explains itself to whoever may open it.
//!
//! ```text
//! 0   8  magic "FARSPACK"         8   4  version (u32 LE, 1)     12  4  reserved, 0
//! 16 16  pack id                  32 16  content key id
//! 48  …  sealed blobs, one after the other
//!     …  sealed index: per blob  kind u8, id 32, offset u32 LE, length u32 LE
//! -48 8  offset of the index (u64 LE)  -40 4  its length (u32 LE)  -36 4  version
//! -32 32 BLAKE3 of everything before
//! ```

use bytes::Bytes;

use crate::blob::Location;
use crate::hex::Hex;
use crate::keys::BlobId;
use crate::seal::{BlobKind, ContentKey, ContentKeyId, Sealer};

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
const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 48;
const TRAILER_BYTES: usize = 48;
const INDEX_ENTRY_BYTES: usize = 1 + 32 + 4 + 4;

/// The pack's key in the store.
pub fn object_key(id: &PackId) -> String {
    let text = id.to_string();
    // The last digits are random: packs are spread over the folders.
    format!("packs/{}/{text}", &text[30..])
}

/// One line of a pack's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub kind: u8,
    pub id: BlobId,
    pub offset: u32,
    pub len: u32,
}

/// A pack being filled.
pub struct PackBuilder {
    id: PackId,
    key: ContentKeyId,
    bytes: Vec<u8>,
    index: Vec<IndexEntry>,
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
        Self { id, key, bytes, index: Vec::new() }
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn push(&mut self, kind: BlobKind, id: BlobId, sealed: &[u8]) -> Location {
        let (offset, len) = (self.bytes.len() as u32, sealed.len() as u32);
        self.bytes.extend_from_slice(sealed);
        self.index.push(IndexEntry { kind: kind as u8, id, offset, len });
        Location { pack: self.id, key: self.key, offset, len }
    }

    pub fn finish(mut self, sealer: &Sealer) -> FinishedPack {
        let mut index = Vec::with_capacity(self.index.len() * INDEX_ENTRY_BYTES);
        for entry in &self.index {
            index.push(entry.kind);
            index.extend_from_slice(&entry.id.0);
            index.extend_from_slice(&entry.offset.to_le_bytes());
            index.extend_from_slice(&entry.len.to_le_bytes());
        }
        let offset = self.bytes.len() as u64;
        let sealed = sealer.seal(BlobKind::PackIndex, &index_id(&self.id), &index);
        self.bytes.extend_from_slice(&sealed);
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&VERSION.to_le_bytes());
        let hash = blake3::hash(&self.bytes);
        self.bytes.extend_from_slice(hash.as_bytes());
        FinishedPack { id: self.id, key: self.key, bytes: self.bytes.into(), index: self.index }
    }
}

fn index_id(pack: &PackId) -> [u8; 32] {
    let mut id = [0; 32];
    id[..16].copy_from_slice(&pack.0);
    id
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
    if version != VERSION {
        return Err(format!("pack version {version} is not known; use a newer farsite"));
    }
    let (body, hash) = bytes.split_at(bytes.len() - 32);
    if blake3::hash(body).as_bytes() != hash {
        return Err("its bytes do not match its hash".into());
    }
    Ok(())
}

/// The index of a whole pack, opened.
pub fn read_index(id: &PackId, bytes: &[u8], key: &ContentKey) -> Result<Vec<IndexEntry>, String> {
    check_whole(id, bytes)?;
    let trailer = &bytes[bytes.len() - TRAILER_BYTES..];
    let offset = u64::from_le_bytes(trailer[..8].try_into().expect("8 bytes")) as usize;
    let len = u32::from_le_bytes(trailer[8..12].try_into().expect("4 bytes")) as usize;
    let sealed = bytes.get(offset..offset.saturating_add(len)).ok_or("its index lies outside of it")?;
    let plain = key
        .open(BlobKind::PackIndex, &index_id(id), sealed)
        .ok_or("its index does not open: damaged or sealed with another key")?;
    Ok(plain
        .chunks_exact(INDEX_ENTRY_BYTES)
        .map(|entry| IndexEntry {
            kind: entry[0],
            id: Hex(entry[1..33].try_into().expect("32 bytes")),
            offset: u32::from_le_bytes(entry[33..37].try_into().expect("4 bytes")),
            len: u32::from_le_bytes(entry[37..41].try_into().expect("4 bytes")),
        })
        .collect())
}
