//! A small item in memory: a tree's directory. An item that is larger than its reader expects is refused before memory
//! is taken.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use farsite_model::content::WriteAt;

use super::{ReadStats, Reader};
use crate::StoreError;
use crate::map::MapRoot;

impl Reader {
    /// All bytes of an item of at most `limit_bytes`.
    pub async fn read_small(&self, map: &MapRoot, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        if map.size_bytes > limit_bytes {
            return Err(StoreError::Content {
                what: format!("an item of {} bytes into memory", map.size_bytes),
                source: io::ErrorKind::FileTooLarge.into(),
            });
        }
        let target = Arc::new(MemoryTarget(Mutex::new(vec![0; map.size_bytes as usize])));
        self.restore(map, target.clone(), &ReadStats::default()).await?;
        let bytes = std::mem::take(&mut *target.0.lock().expect("no holder of this lock panics"));
        Ok(bytes)
    }
}

struct MemoryTarget(Mutex<Vec<u8>>);

impl WriteAt for MemoryTarget {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        let start = offset as usize;
        memory.get_mut(start..start + bytes.len()).ok_or(io::ErrorKind::WriteZero)?.copy_from_slice(bytes);
        Ok(())
    }
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        memory.get_mut(range.start as usize..range.end as usize).ok_or(io::ErrorKind::WriteZero)?.fill(0);
        Ok(())
    }
    fn finish(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
