//! The counter page of a demo volume: 4 KiB at its beginning that say how far the volume's writer had come. A page
//! that was read while it was written is found out by its checksum.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const PAGE_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"FSDEMO01";

/// What a counter page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    pub counter: u64,
    /// Unix time in milliseconds.
    pub at_ms: u64,
}

impl Counter {
    /// Magic, counter, time (both little-endian), filler, and the checksum in the last eight bytes.
    pub fn page(self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(MAGIC);
        page[8..16].copy_from_slice(&self.counter.to_le_bytes());
        page[16..24].copy_from_slice(&self.at_ms.to_le_bytes());
        page[24..PAGE_BYTES - 8].fill((self.counter % 251) as u8);
        let sum = checksum(&page[..PAGE_BYTES - 8]);
        page[PAGE_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        page
    }

    pub fn parse(page: &[u8; PAGE_BYTES]) -> Result<Self, String> {
        let word =
            |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes are eight bytes"));
        if &page[..8] != MAGIC {
            return Err("its first page is no counter page".to_owned());
        }
        if checksum(&page[..PAGE_BYTES - 8]) != word(PAGE_BYTES - 8) {
            return Err("its counter page is torn: its checksum does not fit".to_owned());
        }
        Ok(Self { counter: word(8), at_ms: word(16) })
    }

    pub fn read(volume: &Path) -> Result<Self, String> {
        let mut page = [0; PAGE_BYTES];
        File::open(volume)
            .and_then(|file| file.read_exact_at(&mut page, 0))
            .map_err(|error| error.to_string())?;
        Self::parse(&page)
    }
}

/// FNV-1a, 64 bits: enough for a page that was torn, not for an enemy.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_page_is_found_out() {
        let mut page = Counter { counter: 41, at_ms: 5 }.page();
        assert_eq!(Counter::parse(&page).unwrap().counter, 41);
        page[2000..].copy_from_slice(&Counter { counter: 42, at_ms: 6 }.page()[2000..]);
        assert!(Counter::parse(&page).unwrap_err().contains("torn"));
    }
}
