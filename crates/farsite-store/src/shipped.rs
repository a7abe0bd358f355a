//! Copies of the blocks that were shipped last, so that a block that changes again can be sent as a patch. A sparse file
//! for each item, with each block at its own offset; all of them together take no more room than the policy allows. A block
//! goes in, and comes back later or does not: whoever takes it out compares its id with what the map says, so that a copy
//! that is missing, old or damaged costs bytes on the wire and nothing else.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use farsite_model::ItemId;
use rustix::fs::{FallocateFlags, fallocate};

use crate::local_map::stem;

/// Room is made in stretches of this size.
const STRETCH_BYTES: u64 = 4 << 20;

/// The copies of all items of a group at one standby.
#[derive(Debug)]
pub struct Shipped {
    folder: PathBuf,
    /// What may still be taken before room must be made.
    left_bytes: AtomicI64,
    hand: Mutex<Hand>,
}

/// Where room is made next: like the hand of a clock it goes over all files, again and again.
#[derive(Debug, Default)]
struct Hand {
    files: Vec<PathBuf>,
    /// Rewound, and the file that it is at.
    at: usize,
    offset: u64,
}

impl Shipped {
    /// `limit_bytes` is for all items together; 0 keeps nothing.
    pub fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut taken = 0;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if limit_bytes == 0 {
                fs::remove_file(path)?;
            } else {
                taken += path.metadata()?.blocks() * 512;
            }
        }
        let left = i64::try_from(limit_bytes).unwrap_or(i64::MAX) - i64::try_from(taken).unwrap_or(i64::MAX);
        Ok(Self { folder: folder.to_owned(), left_bytes: AtomicI64::new(left), hand: Mutex::default() })
    }

    fn path(&self, item: &ItemId) -> PathBuf {
        self.folder.join(stem(item))
    }

    /// Forgets an item, as when its source has deleted it.
    pub fn remove(&self, item: &ItemId) {
        let path = self.path(item);
        let taken = path.metadata().map_or(0, |m| m.blocks() * 512);
        if fs::remove_file(path).is_ok() {
            self.left_bytes.fetch_add(taken as i64, Ordering::Relaxed);
        }
    }

    /// The copies of one item, for one reading of it.
    pub fn item(&self, item: &ItemId, block_bytes: u32) -> io::Result<Copies<'_>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path(item))?;
        Ok(Copies { shipped: self, file, block_bytes })
    }

    /// Gives a stretch back to the file system. False when there is none left to give.
    fn make_room(&self) -> io::Result<bool> {
        let mut hand = self.hand.lock().expect("no holder of this lock panics");
        let mut rounds = 0;
        loop {
            if hand.at >= hand.files.len() {
                rounds += 1;
                if rounds > 2 {
                    return Ok(false);
                }
                hand.files = fs::read_dir(&self.folder)?.flatten().map(|e| e.path()).collect();
                hand.files.sort();
                (hand.at, hand.offset) = (0, 0);
                continue;
            }
            let file = File::options().write(true).open(&hand.files[hand.at])?;
            let before = file.metadata()?;
            if hand.offset >= before.len() {
                hand.at += 1;
                hand.offset = 0;
                continue;
            }
            let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, holes, hand.offset, STRETCH_BYTES)?;
            hand.offset += STRETCH_BYTES;
            let freed = before.blocks().saturating_sub(file.metadata()?.blocks()) * 512;
            if freed > 0 {
                self.left_bytes.fetch_add(freed as i64, Ordering::Relaxed);
                return Ok(true);
            }
        }
    }
}

/// One item's copies.
#[derive(Debug)]
pub struct Copies<'s> {
    shipped: &'s Shipped,
    file: File,
    block_bytes: u32,
}

impl Copies<'_> {
    /// What was kept of a block, if anything was: to be compared with the block's id before it is used.
    pub fn get(&self, block: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut copy = vec![0; bytes];
        self.file.read_exact_at(&mut copy, block * u64::from(self.block_bytes)).ok()?;
        Some(copy)
    }

    /// Keeps a block, if there is room for it or room can be made. Nothing depends on it.
    pub fn put(&self, block: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = block * u64::from(self.block_bytes);
        let data = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)).ok();
        if data != Some(offset) {
            let size = bytes.len() as i64;
            while self.shipped.left_bytes.fetch_sub(size, Ordering::Relaxed) < size {
                self.shipped.left_bytes.fetch_add(size, Ordering::Relaxed);
                if !self.shipped.make_room()? {
                    return Ok(());
                }
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use farsite_model::ItemKind;

    use super::*;

    fn item(name: &str) -> ItemId {
        ItemId::new(ItemKind::Volume, name)
    }

    #[test]
    fn what_was_put_comes_back_and_what_was_not_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let shipped = Shipped::open(&dir.path().join("shipped"), 64 << 20).unwrap();
        let copies = shipped.item(&item("v"), 65536).unwrap();
        copies.put(3, &vec![7; 65536]).unwrap();
        copies.put(9, &[8; 100]).unwrap();
        assert_eq!(copies.get(3, 65536).unwrap(), vec![7; 65536]);
        assert_eq!(copies.get(9, 100).unwrap(), vec![8; 100]);
        assert_eq!(copies.get(2, 65536).unwrap(), vec![0; 65536]);
        assert!(copies.get(10, 65536).is_none());
        let other = shipped.item(&item("w"), 65536).unwrap();
        assert!(other.get(3, 65536).is_none());
        shipped.remove(&item("v"));
        assert!(shipped.item(&item("v"), 65536).unwrap().get(3, 1).is_none());
    }

    #[test]
    fn the_room_is_bounded_and_what_was_put_last_is_there() {
        const LIMIT: u64 = 16 << 20;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("shipped");
        let taken = || -> u64 {
            let files = fs::read_dir(&folder).unwrap();
            files.map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum()
        };
        for round in 1..=3u8 {
            // A new start knows what is taken.
            let shipped = Shipped::open(&folder, LIMIT).unwrap();
            for name in ["v", "w"] {
                let copies = shipped.item(&item(name), 65536).unwrap();
                for block in 0..300 {
                    copies.put(block, &vec![round; 65536]).unwrap();
                }
                assert_eq!(copies.get(299, 65536).unwrap(), vec![round; 65536]);
            }
            assert!(taken() <= LIMIT + (1 << 20), "{}", taken());
        }
        Shipped::open(&folder, 0).unwrap();
        assert_eq!(taken(), 0);
        let nothing = Shipped::open(&folder, 0).unwrap();
        let copies = nothing.item(&item("v"), 65536).unwrap();
        copies.put(0, &vec![1; 65536]).unwrap();
        assert!(copies.get(0, 65536).is_none_or(|copy| copy == vec![0; 65536]));
    }
}
