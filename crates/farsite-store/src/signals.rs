//! Anomaly signals of one item in one point: how much of it was overwritten, cleared and added, how much of what is new
//! cannot be compressed, and how mixed its bytes are. Leaves and new blocks come in while the item is read, at no extra
//! pass; a [`Signals`] goes out that stands in the manifest. Nothing here judges: what is unusual follows from the item's
//! own history, which whoever commits the point knows.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::local_map::KnownChild;

/// Of each new block so many stretches of so many bytes are looked at, evenly spread.
const STRETCHES: usize = 4;
const STRETCH_BYTES: usize = 1024;
/// From this entropy of such a sample on a block counts as incompressible: 4096 random bytes come to about 7.95, machine code
/// to 6, text to 4.5. Of a small sample less: see [`is_incompressible`].
const INCOMPRESSIBLE_MILLIBITS: u32 = 7800;

/// What was seen while an item was read for one point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signals {
    /// Nothing was there to compare with: all that follows describes the item and not a change.
    pub first_copy: bool,
    /// Blocks that hold data now.
    pub data_blocks: u64,
    /// Blocks that held data and hold other data now.
    pub overwritten_blocks: u64,
    /// Blocks that held data and are holes now.
    pub cleared_blocks: u64,
    /// Blocks that were holes and hold data now.
    pub added_blocks: u64,
    /// Of the overwritten and added ones: those that cannot be compressed.
    pub incompressible_blocks: u64,
    /// Order-0 entropy of samples of them, in thousandths of a bit for each byte (0 to 8000), on average.
    pub entropy_millibits: u32,
    /// Of a tree: files that the version before had, and those of them that are gone.
    #[serde(skip_serializing_if = "is_zero")]
    pub files_before: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub files_gone: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Signals {
    /// Blocks whose bytes are new.
    pub fn new_blocks(&self) -> u64 {
        self.overwritten_blocks + self.added_blocks
    }
    /// Blocks of the version before that are not there any more.
    pub fn lost_blocks(&self) -> u64 {
        self.overwritten_blocks + self.cleared_blocks
    }
    /// Blocks that held data in the version before.
    pub fn blocks_before(&self) -> u64 {
        (self.data_blocks + self.cleared_blocks).saturating_sub(self.added_blocks)
    }
}

/// Counts while an item is read; shared by all who read it.
#[derive(Debug, Default)]
pub struct Meter {
    compared: AtomicU64,
    overwritten: AtomicU64,
    cleared: AtomicU64,
    added: AtomicU64,
    sampled: AtomicU64,
    incompressible: AtomicU64,
    millibits: AtomicU64,
}

impl Meter {
    /// The item is read from its beginning, with or without a version to compare with.
    pub(crate) fn begin(&self, compared: bool) {
        let Self { compared: is_compared, overwritten, cleared, added, sampled, incompressible, millibits } =
            self;
        for count in [overwritten, cleared, added, sampled, incompressible, millibits] {
            count.store(0, Ordering::Relaxed);
        }
        is_compared.store(u64::from(compared), Ordering::Relaxed);
    }

    /// A block with new bytes.
    pub(crate) fn block(&self, raw: &[u8]) {
        let (millibits, sample_bytes) = entropy(raw);
        self.sampled.fetch_add(1, Ordering::Relaxed);
        self.millibits.fetch_add(u64::from(millibits), Ordering::Relaxed);
        if is_incompressible(millibits, sample_bytes) {
            self.incompressible.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A leaf as it was and as it is.
    pub(crate) fn leaf(&self, old: Option<&[KnownChild]>, new: &[KnownChild]) {
        let old = old.unwrap_or_default();
        let (mut overwritten, mut cleared, mut added) = (0, 0, 0);
        for i in 0..old.len().max(new.len()) {
            match (old.get(i).copied().flatten(), new.get(i).copied().flatten()) {
                (Some(old), Some(new)) => overwritten += u64::from(old.blob.id != new.blob.id),
                (Some(_), None) => cleared += 1,
                (None, Some(_)) => added += 1,
                (None, None) => {}
            }
        }
        self.overwritten.fetch_add(overwritten, Ordering::Relaxed);
        self.cleared.fetch_add(cleared, Ordering::Relaxed);
        self.added.fetch_add(added, Ordering::Relaxed);
    }

    /// What was seen. `before` says how many blocks held data in the version before, where that is known; else it is at most
    /// `at_most`.
    pub fn signals(&self, before: Option<u64>, at_most: u64) -> Signals {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let compared = load(&self.compared) != 0;
        let sampled = load(&self.sampled);
        let (overwritten, cleared, added) = (load(&self.overwritten), load(&self.cleared), load(&self.added));
        let before = if compared { before.unwrap_or(at_most) } else { 0 };
        Signals {
            first_copy: !compared,
            data_blocks: (before + added).saturating_sub(cleared).min(at_most),
            overwritten_blocks: overwritten,
            cleared_blocks: cleared,
            added_blocks: added,
            incompressible_blocks: load(&self.incompressible),
            entropy_millibits: u32::try_from(load(&self.millibits).checked_div(sampled).unwrap_or(0))
                .unwrap_or(u32::MAX),
            files_before: 0,
            files_gone: 0,
        }
    }
}

/// Whether these bytes, by a look at a few of them, seem to be compressed or encrypted already.
pub(crate) fn looks_incompressible(raw: &[u8]) -> bool {
    let (millibits, sample_bytes) = entropy(raw);
    is_incompressible(millibits, sample_bytes)
}

/// Order-0 entropy of a sample, in thousandths of a bit for each byte, and how long the sample was.
fn entropy(raw: &[u8]) -> (u32, usize) {
    let mut counts = [0_u32; 256];
    let mut total = 0_usize;
    let mut count = |bytes: &[u8]| {
        for byte in bytes {
            counts[usize::from(*byte)] += 1;
        }
        total += bytes.len();
    };
    if raw.len() <= STRETCHES * STRETCH_BYTES {
        count(raw);
    } else {
        let apart = (raw.len() - STRETCH_BYTES) / (STRETCHES - 1);
        for stretch in 0..STRETCHES {
            let start = stretch * apart;
            count(&raw[start..start + STRETCH_BYTES]);
        }
    }
    if total == 0 {
        return (0, 0);
    }
    let n = total as f64;
    let sum: f64 = counts.iter().filter(|c| **c > 0).map(|c| f64::from(*c) * f64::from(*c).log2()).sum();
    (((n.log2() - sum / n) * 1000.0).max(0.0) as u32, total)
}

/// Even random bytes do not come to 8 bits in a small sample: by Miller and Madow the shortfall is about 255 / (2 n ln 2).
fn is_incompressible(millibits: u32, sample_bytes: usize) -> bool {
    const FULL: usize = STRETCHES * STRETCH_BYTES;
    let shortfall = |n: usize| 255.0 * 1000.0 / (2.0 * n as f64 * std::f64::consts::LN_2);
    // Too small to say anything of.
    if sample_bytes < 512 {
        return false;
    }
    let least = f64::from(INCOMPRESSIBLE_MILLIBITS) - (shortfall(sample_bytes) - shortfall(FULL));
    f64::from(millibits) >= least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BlobRef, Location};
    use crate::hex::Hex;
    use crate::local_map::Known;

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
    fn random_and_compressed_bytes_are_incompressible_and_text_and_code_are_not() {
        let text = "The order is the promise: the clock is compared with the store's. ".repeat(2000);
        let text = text.as_bytes();
        for bytes in [512, 1024, 4096, 65536, 1 << 20] {
            let (millibits, sample) = entropy(&noise(bytes));
            assert!(is_incompressible(millibits, sample), "{bytes}: {millibits}");
            let (millibits, sample) = entropy(&text[..bytes.min(text.len())]);
            assert!(
                !is_incompressible(millibits, sample) && (3500..5000).contains(&millibits),
                "{millibits}"
            );
        }
        // Numbers in ascending order, compressed hard.
        let numbers: String =
            (0..400_000u32).flat_map(|n| [n.wrapping_mul(2_654_435_761).to_string(), "\n".into()]).collect();
        let packed = zstd::bulk::compress(numbers.as_bytes(), 9).unwrap();
        let (millibits, sample) = entropy(&packed[..65536]);
        assert!(is_incompressible(millibits, sample), "{millibits}");
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let code: Vec<u32> = program.chunks_exact(65536).map(|block| entropy(block).0).collect();
        let mean = code.iter().sum::<u32>() / code.len() as u32;
        assert!(mean < 7000, "{mean}");
        assert_eq!(entropy(&[]), (0, 0));
        assert_eq!(entropy(&vec![7; 65536]).0, 0);
    }

    #[test]
    fn what_was_overwritten_cleared_and_added_is_counted_from_the_two_leaves() {
        let known = |id: u8| {
            let at = Location { pack: Hex([1; 16]), key: Hex([2; 16]), offset: 3, len: 4 };
            Some(Known { blob: BlobRef { id: Hex([id; 32]), at }, depth: 0, print: [id; 16] })
        };
        let meter = Meter::default();
        meter.begin(true);
        meter.leaf(
            Some(&[known(1), known(2), None, known(4), known(5)]),
            &[known(1), known(9), known(3), None],
        );
        meter.leaf(None, &[known(7), None]);
        meter.block(&noise(65536));
        meter.block(&vec![1; 65536]);
        let seen = meter.signals(Some(100), 1000);
        assert_eq!((seen.overwritten_blocks, seen.cleared_blocks, seen.added_blocks), (1, 2, 2));
        assert_eq!((seen.data_blocks, seen.blocks_before(), seen.incompressible_blocks), (100, 100, 1));
        assert!((3900..4000).contains(&seen.entropy_millibits) && !seen.first_copy, "{seen:?}");
        meter.begin(false);
        meter.leaf(None, &[known(7), known(8)]);
        let first = meter.signals(Some(100), 1000);
        assert!(first.first_copy && first.data_blocks == 2 && first.incompressible_blocks == 0, "{first:?}");
    }
}
