//! A volume that is the same every time: holes, incompressible stretches, and stretches like files; and the changes that
//! are made to it. A size comes in, a sparse file goes out.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::at;
use crate::failure::Failure;

const MIB: u64 = 1 << 20;
/// The volume is made of stretches of this size.
const STRETCH: u64 = MIB / 4;

/// Random numbers that follow from a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.draw().to_le_bytes()[..eight.len()]);
        }
    }
}

/// Text and records as files hold them: words of a small language, some far more often than others, and numbers. zstd -3
/// makes about a third of it.
pub fn like_files(random: &mut Random, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let draw = random.draw();
        // Small words come often: the minimum of three draws.
        let rank = (draw & 0xfff).min((draw >> 12) & 0xfff).min((draw >> 24) & 0xfff);
        let mut word = Random(rank + 1);
        let length = 2 + (word.draw() % 9) as usize;
        let mut letters = [0u8; 12];
        for letter in &mut letters[..length] {
            *letter = b'a' + (word.draw() % 26) as u8;
        }
        letters[length] = if draw >> 60 == 0 { b'\n' } else { b' ' };
        let piece = &letters[..=length];
        let taken = piece.len().min(bytes.len() - at);
        bytes[at..at + taken].copy_from_slice(&piece[..taken]);
        at += taken;
        if (draw >> 40).is_multiple_of(16) && at + 4 <= bytes.len() {
            bytes[at..at + 4].copy_from_slice(&(random.draw() as u32).to_le_bytes());
            at += 4;
        }
    }
}

/// What a stretch is made of follows from its number: of ten, four are holes, three noise and three like files.
fn kind(stretch: u64) -> u64 {
    Random(stretch ^ 0xfa25_17e0).draw() % 10
}

pub fn create(path: &Path, size_mib: u64) -> Result<(), Failure> {
    let make = || -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(size_mib * MIB)?;
        let mut bytes = vec![0; STRETCH as usize];
        for stretch in 0..size_mib * MIB / STRETCH {
            let mut random = Random(stretch + 1);
            match kind(stretch) {
                0..4 => continue,
                4..7 => random.fill(&mut bytes),
                _ => like_files(&mut random, &mut bytes),
            }
            file.write_all_at(&bytes, stretch * STRETCH)?;
        }
        file.sync_all()
    };
    make().map_err(|e| at(path, &e))
}

/// A change to the volume.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// One in a hundred pages of 4 KiB, anywhere, incompressible.
    Pages,
    /// 64 MiB in a row, like files.
    Sequential,
    /// 0.25 % of the pages of 16 KiB, about 100 bytes in each quarter, where there is data.
    Database,
}

/// The bytes that a change comes to at the least: of pages, themselves; of what compresses, by zstd -3.
#[derive(Debug, Clone, Copy)]
pub struct Ideal {
    pub bytes: Option<u64>,
}

impl Ideal {
    pub fn first(_: u64) -> Self {
        Self { bytes: None }
    }
}

pub fn change(path: &Path, change: Change) -> Result<Ideal, Failure> {
    let make = || -> std::io::Result<Ideal> {
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let bytes = match change {
            Change::Pages => {
                writes(change, size, &mut |at, page| file.write_all_at(page, at))?;
                Some(size / 4096 / 100 * 4096)
            }
            Change::Sequential => {
                let plain = path.with_extension("rewritten");
                writes(change, size, &mut |at, bytes| {
                    file.write_all_at(bytes, at)?;
                    std::fs::write(&plain, bytes)
                })?;
                compressed(&plain)
            }
            Change::Database => {
                change_rows(&file, size)?;
                None
            }
        };
        file.sync_all()?;
        Ok(Ideal { bytes })
    };
    make().map_err(|e| at(path, &e))
}

fn random(change: Change) -> Random {
    Random(0xc4a6_0000 + change as u64)
}

/// What a change writes to a disk of `size` bytes, one write after the other; those of `Database` depend on what is there.
pub fn writes(
    change: Change,
    size: u64,
    write: &mut dyn FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut random = random(change);
    match change {
        Change::Pages => {
            let mut page = [0; 4096];
            for _ in 0..size / 4096 / 100 {
                random.fill(&mut page);
                write(random.draw() % (size / 4096) * 4096, &page)?;
            }
            Ok(())
        }
        Change::Sequential => {
            let mut bytes = vec![0; (64 * MIB).min(size / 4) as usize];
            like_files(&mut random, &mut bytes);
            write(size / 2, &bytes)
        }
        Change::Database => Err(std::io::Error::other("these writes are told by no size alone")),
    }
}

fn change_rows(file: &File, size: u64) -> std::io::Result<()> {
    let mut random = random(Change::Database);
    let mut left = size / 16384 / 400;
    let mut row = [0; 100];
    while left > 0 {
        let page = random.draw() % (size / 16384) * 16384;
        let mut first = [0; 64];
        file.read_exact_at(&mut first, page)?;
        if first.iter().all(|b| *b == 0) {
            continue;
        }
        for quarter in 0..4 {
            // A row is numbers and text; half of it stays as compressible as such things are.
            random.fill(&mut row[..32]);
            row[32..].fill(b'-');
            file.write_all_at(&row, page + quarter * 4096 + random.draw() % 3996)?;
        }
        left -= 1;
    }
    Ok(())
}

/// What `zstd -3` makes of a file; none where the program is missing.
fn compressed(path: &Path) -> Option<u64> {
    let output = std::process::Command::new("zstd").args(["-3", "-c", "-q"]).arg(path).output().ok()?;
    output.status.success().then_some(output.stdout.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_the_same_every_time_and_has_holes() {
        let folder = std::env::temp_dir().join(format!("farsite-xtask-volume-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (a, b) = (folder.join("a"), folder.join("b"));
        create(&a, 8).unwrap();
        create(&b, 8).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        for kind in [Change::Pages, Change::Sequential, Change::Database] {
            change(&a, kind).unwrap();
            change(&b, kind).unwrap();
        }
        let (bytes, again) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(bytes, again);
        let zeros = bytes.chunks(4096).filter(|page| page.iter().all(|b| *b == 0)).count();
        assert!(zeros > 0 && zeros < bytes.len() / 4096, "{zeros}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_change_that_is_told_write_by_write_is_the_one_that_is_made() {
        let folder = std::env::temp_dir().join(format!("farsite-xtask-writes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (made, told) = (folder.join("made"), folder.join("told"));
        create(&made, 8).unwrap();
        std::fs::copy(&made, &told).unwrap();
        let file = File::options().write(true).open(&told).unwrap();
        for kind in [Change::Pages, Change::Sequential] {
            change(&made, kind).unwrap();
            writes(kind, 8 * MIB, &mut |at, bytes| file.write_all_at(bytes, at)).unwrap();
            assert!(std::fs::read(&made).unwrap() == std::fs::read(&told).unwrap(), "{kind:?}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
