//! The few bytes of a qcow2 header that tell whether a file is what its row says (QEMU's docs/interop/qcow2.txt).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The longest name of a backing file that the format allows.
const NAME_BYTES: usize = 1023;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) size_bytes: u64,
    pub(crate) backing: Option<String>,
}

/// `None`: the file does not begin as a qcow2 image does.
pub(crate) fn header(path: &Path) -> io::Result<Option<Header>> {
    let file = File::open(path)?;
    let mut bytes = [0; 32];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    if &bytes[..4] != MAGIC {
        return Ok(None);
    }
    let number =
        |at: usize| bytes[at..at + 8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let (backing_at, size_bytes) = (number(8), number(24));
    let length = bytes[16..20].iter().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
    let backing = if backing_at == 0 || length == 0 {
        None
    } else {
        let mut name = vec![0; length.min(NAME_BYTES)];
        file.read_exact_at(&mut name, backing_at)?;
        Some(String::from_utf8_lossy(&name).into_owned())
    };
    Ok(Some(Header { size_bytes, backing }))
}

/// Whether an image refers to any cluster of its own: its first table has an entry (`l1_size`, `l1_table_offset`).
pub(crate) fn holds_data(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut bytes = [0; 12];
    file.read_exact_at(&mut bytes, 36)?;
    let entries = bytes[..4].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let mut at = bytes[4..].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    // The format's own limit is 32 MiB (`QCOW_MAX_L1_SIZE`).
    let end = at.saturating_add(entries.saturating_mul(8).min(32 << 20));
    let mut table = vec![0; 64 << 10];
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(table.len());
        file.read_exact_at(&mut table[..length], at)?;
        if table[..length].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at += length as u64;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 3 with a backing file's name behind it.
    pub(crate) fn image(size_bytes: u64, backing: &str) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[7] = 3;
        if !backing.is_empty() {
            bytes[8..16].copy_from_slice(&128u64.to_be_bytes());
            bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            bytes[128..128 + backing.len()].copy_from_slice(backing.as_bytes());
        }
        bytes[24..32].copy_from_slice(&size_bytes.to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_tells_size_and_backing_file_and_a_raw_disk_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        std::fs::write(&path, image(1 << 30, "volume-a")).unwrap();
        let expected = Header { size_bytes: 1 << 30, backing: Some("volume-a".into()) };
        assert_eq!(header(&path).unwrap(), Some(expected));
        std::fs::write(&path, image(5, "")).unwrap();
        assert_eq!(header(&path).unwrap(), Some(Header { size_bytes: 5, backing: None }));
        std::fs::write(&path, vec![0; 4096]).unwrap();
        assert_eq!(header(&path).unwrap(), None);
        std::fs::write(&path, b"QFI").unwrap();
        assert_eq!(header(&path).unwrap(), None);
    }
}
