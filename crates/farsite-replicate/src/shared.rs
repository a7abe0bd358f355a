//! One capture, read by several members of a round at once. The bytes that one of them has read lie here until the others
//! have taken them, so that the source is read once while they are near one another. What must hold: a member whose bytes
//! lie here no more reads for itself and is right all the same; no more memory is taken than the window; whoever is ahead
//! waits for the others only as long as the round has patience.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use farsite_model::content::ReadAt;
use farsite_store::ingest::RunStats;

use crate::patience::Patience;

/// Whoever waits for others looks again after this long.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) struct Shared {
    /// None once it was taken back.
    source: RwLock<Option<Arc<dyn ReadAt>>>,
    size_bytes: u64,
    /// Members read whole blocks: a cell is one.
    cell_bytes: u64,
    window_bytes: u64,
    patience: Arc<Patience>,
    is_alone: bool,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// How far each member has come; none when it does not read or has come to the end.
    at: Vec<Option<u64>>,
    cells: BTreeMap<u64, Cell>,
    /// Cells that are being read.
    reading: BTreeSet<u64>,
    oldest: BTreeMap<u64, u64>,
    next_number: u64,
    bytes: u64,
    /// What could not be read once fails for all.
    failed: Option<(io::ErrorKind, String)>,
}

struct Cell {
    bytes: Box<[u8]>,
    /// Members that have not taken it.
    left: usize,
    number: u64,
}

impl State {
    fn remove(&mut self, index: u64) {
        if let Some(cell) = self.cells.remove(&index) {
            self.bytes -= cell.bytes.len() as u64;
            self.oldest.remove(&cell.number);
        }
    }

    fn slowest_but(&self, member: usize) -> Option<u64> {
        let others = self.at.iter().enumerate().filter(|(other, _)| *other != member);
        others.filter_map(|(_, at)| *at).min()
    }

    fn check(&self) -> io::Result<()> {
        self.failed.as_ref().map_or(Ok(()), |(kind, why)| Err(io::Error::new(*kind, why.clone())))
    }
}

impl Shared {
    pub(crate) fn new(
        source: Arc<dyn ReadAt>,
        block_bytes: u32,
        members: &[bool],
        window_bytes: u64,
        patience: Arc<Patience>,
    ) -> Self {
        let at = members.iter().map(|takes_part| takes_part.then_some(0)).collect();
        let state = State { at, ..State::default() };
        Self {
            size_bytes: source.size_bytes(),
            source: RwLock::new(Some(source)),
            cell_bytes: u64::from(block_bytes),
            window_bytes,
            patience,
            is_alone: members.iter().filter(|takes_part| **takes_part).count() < 2,
            state: Mutex::new(state),
            moved: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn source(&self) -> io::Result<Arc<dyn ReadAt>> {
        let source = self.source.read().expect("no holder of this lock panics").clone();
        source.ok_or_else(|| io::Error::other("its capture was taken back"))
    }

    /// Nothing is read of it any more: who still tries gets an error.
    pub(crate) fn take_back(&self) {
        self.source.write().expect("no holder of this lock panics").take();
        let mut state = self.lock();
        let cells: Vec<u64> = state.cells.keys().copied().collect();
        for index in cells {
            state.remove(index);
        }
        self.moved.notify_all();
    }

    /// The member reads no more, or not at all.
    pub(crate) fn leave(&self, member: usize) {
        if let Some(at) = self.lock().at.get_mut(member) {
            *at = None;
        }
        self.moved.notify_all();
    }

    fn read(&self, member: usize, buffer: &mut [u8], offset: u64, stats: &RunStats) -> io::Result<()> {
        let source = self.source()?;
        if self.is_alone || !offset.is_multiple_of(self.cell_bytes) {
            stats.source_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            return source.read_exact_at(buffer, offset);
        }
        let mut state = self.lock();
        if let Some(at) = state.at.get_mut(member).and_then(Option::as_mut) {
            *at = (*at).max(offset);
        }
        self.moved.notify_all();
        while state.slowest_but(member).is_some_and(|slowest| offset > slowest + self.window_bytes / 2)
            && !self.patience.left().is_zero()
        {
            let _waits = self.patience.waits();
            state = self.moved.wait_timeout(state, LOOK).expect("no holder of this lock panics").0;
        }
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        while at < end {
            state.check()?;
            let index = at / self.cell_bytes;
            let cell_end = ((index + 1) * self.cell_bytes).min(end);
            let part = |range: Range<u64>| (range.start - offset) as usize..(range.end - offset) as usize;
            if let Some(cell) = state.cells.get_mut(&index) {
                // A last block that is read shorter than it lies here would be somebody else's.
                let wanted = (cell_end - at) as usize;
                if cell.bytes.len() != wanted {
                    state.remove(index);
                    continue;
                }
                buffer[part(at..cell_end)].copy_from_slice(&cell.bytes);
                cell.left -= 1;
                if cell.left == 0 {
                    state.remove(index);
                }
                at = cell_end;
            } else if state.reading.contains(&index) {
                state = self.moved.wait_timeout(state, LOOK).expect("no holder of this lock panics").0;
            } else {
                let mut until = cell_end;
                state.reading.insert(index);
                while until < end && {
                    let next = until / self.cell_bytes;
                    !state.cells.contains_key(&next) && state.reading.insert(next)
                } {
                    until = (until + self.cell_bytes).min(end);
                }
                drop(state);
                stats.source_bytes.fetch_add(until - at, Ordering::Relaxed);
                // Gone whatever becomes of the read: others wait for it.
                let marks = Marks { shared: self, cells: index..until.div_ceil(self.cell_bytes) };
                let read = source.read_exact_at(&mut buffer[part(at..until)], at);
                self.put(member, &buffer[part(at..until)], at, &read);
                drop(marks);
                read?;
                at = until;
                state = self.lock();
            }
        }
        Ok(())
    }

    /// What was read lies here for those who have not passed it.
    fn put(&self, member: usize, bytes: &[u8], offset: u64, read: &io::Result<()>) {
        let mut state = self.lock();
        if let Err(error) = read {
            state.failed.get_or_insert_with(|| (error.kind(), error.to_string()));
        }
        for (i, cell) in bytes.chunks(self.cell_bytes as usize).enumerate() {
            let index = offset / self.cell_bytes + i as u64;
            // Several workers read for each member, none of them far from the others.
            let has_passed = |at: u64| at > (index + 1) * self.cell_bytes + self.window_bytes / 2;
            let others = state.at.iter().enumerate().filter(|(other, _)| *other != member);
            let left = others.filter_map(|(_, at)| *at).filter(|at| !has_passed(*at)).count();
            if left == 0 || read.is_err() {
                continue;
            }
            state.next_number += 1;
            let number = state.next_number;
            state.bytes += cell.len() as u64;
            state.oldest.insert(number, index);
            state.cells.insert(index, Cell { bytes: cell.into(), left, number });
            while state.bytes > self.window_bytes
                && let Some(oldest) = state.oldest.first_entry().map(|entry| *entry.get())
            {
                state.remove(oldest);
            }
        }
    }
}

/// Cells that one member reads and the others wait for.
struct Marks<'s> {
    shared: &'s Shared,
    cells: Range<u64>,
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.cells.clone().for_each(|index| {
            state.reading.remove(&index);
        });
        drop(state);
        self.shared.moved.notify_all();
    }
}

/// For a look at some of its bytes, beside those who read it.
impl ReadAt for Shared {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.source()?.read_exact_at(buffer, offset)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.source()?.next_data(offset)
    }
}

/// One member's way through it.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    member: usize,
    stats: Arc<RunStats>,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, member: usize, stats: Arc<RunStats>) -> Self {
        Self { shared, member, stats }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.leave(self.member);
    }
}

impl ReadAt for Reader {
    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.shared.read(self.member, buffer, offset, &self.stats)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.shared.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const BLOCK: usize = 4096;

    /// Counts what is read of it.
    struct Counting {
        bytes: Vec<u8>,
        read: AtomicU64,
        breaks_at: u64,
    }

    impl ReadAt for Counting {
        fn size_bytes(&self) -> u64 {
            self.bytes.len() as u64
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            if offset + buffer.len() as u64 > self.breaks_at {
                return Err(io::Error::other("a bad sector"));
            }
            self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            buffer.copy_from_slice(&self.bytes[offset as usize..offset as usize + buffer.len()]);
            Ok(())
        }
    }

    /// A hundred blocks and a piece, a window of sixteen, two members and one that has left.
    fn shared(breaks_at: u64) -> (Arc<Counting>, Arc<Shared>) {
        let bytes: Vec<u8> = (0..100 * BLOCK + 10).map(|i| (i / 7) as u8).collect();
        let source = Arc::new(Counting { bytes, read: AtomicU64::new(0), breaks_at });
        let patience = Arc::new(Patience::new(Duration::from_millis(300)));
        let window = 16 * BLOCK as u64;
        let shared = Shared::new(source.clone(), BLOCK as u32, &[true, false, true], window, patience);
        (source, Arc::new(shared))
    }

    fn read(reader: &Reader, range: Range<usize>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        reader.read_exact_at(&mut bytes, range.start as u64)?;
        Ok(bytes)
    }

    #[test]
    fn two_who_read_side_by_side_read_everything_once() {
        let (source, shared) = shared(u64::MAX);
        std::thread::scope(|scope| {
            for member in [0, 2] {
                let reader = Reader::new(shared.clone(), member, Arc::default());
                let source = &source;
                // Batches of another size for each, the last one with a piece of a block.
                scope.spawn(move || {
                    let step = if member == 0 { 3 * BLOCK } else { 5 * BLOCK };
                    for start in (0..source.bytes.len()).step_by(step) {
                        let range = start..(start + step).min(source.bytes.len());
                        assert!(read(&reader, range.clone()).unwrap() == source.bytes[range]);
                    }
                });
            }
        });
        assert_eq!(source.read.load(Ordering::Relaxed), source.bytes.len() as u64);
        assert_eq!(shared.lock().bytes, 0, "what everybody has is not kept");
    }

    #[test]
    fn who_has_fallen_behind_reads_for_himself_and_is_right() {
        let (source, shared) = shared(u64::MAX);
        let [fast, slow] = [0, 2].map(|member| Reader::new(shared.clone(), member, Arc::default()));
        // The fast one waits until there is no patience left.
        for start in (0..100 * BLOCK).step_by(4 * BLOCK) {
            read(&fast, start..start + 4 * BLOCK).unwrap();
            assert!(shared.lock().bytes <= 16 * BLOCK as u64);
        }
        assert!(shared.patience.left().is_zero());
        assert!(read(&slow, 0..9 * BLOCK).unwrap() == source.bytes[..9 * BLOCK]);
        assert_eq!(source.read.load(Ordering::Relaxed), 109 * BLOCK as u64);
    }

    #[test]
    fn what_cannot_be_read_fails_for_all_and_what_was_taken_back_as_well() {
        let (_, shared) = shared(8 * BLOCK as u64);
        let [one, other] = [0, 2].map(|member| Reader::new(shared.clone(), member, Arc::default()));
        read(&one, 0..BLOCK).unwrap();
        assert!(read(&one, 7 * BLOCK..9 * BLOCK).unwrap_err().to_string().contains("bad sector"));
        assert!(read(&other, 0..BLOCK).unwrap_err().to_string().contains("bad sector"));
        shared.take_back();
        assert!(read(&one, 0..BLOCK).unwrap_err().to_string().contains("taken back"));
    }
}
