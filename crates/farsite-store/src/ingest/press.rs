//! Where blocks are compressed. Writers of several stores that are given the same bytes share one press: what one of them has
//! compressed the others take as it is, and each seals it for its own store. What must hold: a frame is known by the ids of
//! all that went into it, which are keyed hashes; frames that nobody fetches do not gather beyond a limit.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::RunStats;
use crate::blob::{self, BlobRef};
use crate::group;
use crate::keys::BlobId;

/// Compresses for one writer or for several.
#[derive(Debug)]
pub struct Press {
    state: Mutex<State>,
    /// A frame was made, or given up.
    made: Condvar,
    level: AtomicI32,
    limit_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The level that each writer asks for; none when it has left.
    seats: Vec<Option<i32>>,
    frames: HashMap<Key, Frame>,
    /// Those that were made, by their numbers.
    oldest: BTreeMap<u64, Key>,
    next_number: u64,
    bytes: usize,
}

type Key = [u8; 32];

#[derive(Debug)]
enum Frame {
    InWork,
    /// `None`: compressing does not make it smaller.
    Made {
        bytes: Option<Arc<[u8]>>,
        /// Writers that have not fetched it.
        left: usize,
        number: u64,
    },
}

impl State {
    fn writers(&self) -> usize {
        self.seats.iter().flatten().count()
    }
    fn remove(&mut self, key: &Key) {
        if let Some(Frame::Made { bytes, number, .. }) = self.frames.remove(key) {
            self.bytes -= size(bytes.as_ref());
            self.oldest.remove(&number);
        }
    }

    /// The oldest ones make room.
    fn add(&mut self, key: Key, bytes: Option<Arc<[u8]>>, left: usize, limit_bytes: usize) {
        self.next_number += 1;
        self.bytes += size(bytes.as_ref());
        self.oldest.insert(self.next_number, key);
        self.frames.insert(key, Frame::Made { bytes, left, number: self.next_number });
        while self.bytes > limit_bytes
            && let Some(oldest) = self.oldest.first_entry().map(|entry| *entry.get())
        {
            self.remove(&oldest);
        }
    }
}

/// What an entry takes, roughly, its own record included.
fn size(bytes: Option<&Arc<[u8]>>) -> usize {
    128 + bytes.map_or(0, |bytes| bytes.len())
}

impl Press {
    /// Keeps at most so many bytes for writers that come later.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            made: Condvar::new(),
            level: AtomicI32::new(0),
            limit_bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The lightest level that any writer asks for.
    pub(super) fn level(&self) -> i32 {
        self.level.load(Ordering::Relaxed)
    }

    /// A block by itself.
    pub(super) fn whole(&self, id: &BlobId, raw: &[u8], stats: &RunStats) -> Vec<u8> {
        let made = self.once(key(b'w', [id]), raw.len(), stats, |level| Some(blob::encode(raw, level)));
        made.map_or_else(|| blob::encode(raw, self.level()), |bytes| bytes.to_vec())
    }

    /// Blocks that are sealed as one; `None` where that saves nothing.
    pub(super) fn group(&self, members: &[(BlobId, u32)], raw: &[u8], stats: &RunStats) -> Option<Arc<[u8]>> {
        let key = key(b'g', members.iter().map(|(id, _)| id));
        self.once(key, raw.len(), stats, |level| group::encode(members, raw, level))
    }

    /// A block as a patch against its last version. Where that lies differs from store to store, the patch does not.
    pub(super) fn patch(
        &self,
        id: &BlobId,
        raw: &[u8],
        (at, base): (&BlobRef, &[u8]),
        depth: u8,
        stats: &RunStats,
    ) -> Option<Vec<u8>> {
        let frame = self.once(key(b'p', [id, &at.id]), raw.len(), stats, |level| {
            let mut frame = Vec::new();
            blob::compress(raw, Some(base), level, &mut frame).map(|()| frame)
        })?;
        Some(blob::patch(raw.len(), at, depth, &frame))
    }

    /// Made by whoever asks first; others wait for it.
    fn once(
        &self,
        key: Key,
        raw_bytes: usize,
        stats: &RunStats,
        make: impl FnOnce(i32) -> Option<Vec<u8>>,
    ) -> Option<Arc<[u8]>> {
        let make = || {
            stats.pressed_bytes.fetch_add(raw_bytes as u64, Ordering::Relaxed);
            make(self.level()).map(Arc::from)
        };
        let mut state = self.lock();
        if state.writers() < 2 {
            drop(state);
            return make();
        }
        loop {
            match state.frames.get_mut(&key) {
                Some(Frame::InWork) => {
                    state = self.made.wait(state).expect("no holder of this lock panics");
                }
                Some(Frame::Made { bytes, left, .. }) => {
                    let bytes = bytes.clone();
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        state.remove(&key);
                    }
                    return bytes;
                }
                None => break,
            }
        }
        state.frames.insert(key, Frame::InWork);
        drop(state);
        let mut work = Work { press: self, key, bytes: None, is_made: false };
        work.bytes = make();
        work.is_made = true;
        work.bytes.clone()
    }
}

/// Ends the wait of others, whatever becomes of the work.
struct Work<'p> {
    press: &'p Press,
    key: Key,
    bytes: Option<Arc<[u8]>>,
    is_made: bool,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let mut state = self.press.lock();
        state.frames.remove(&self.key);
        let left = state.writers().saturating_sub(1);
        if self.is_made && left > 0 {
            state.add(self.key, self.bytes.take(), left, self.press.limit_bytes);
        }
        drop(state);
        self.press.made.notify_all();
    }
}

fn key<'i>(kind: u8, ids: impl IntoIterator<Item = &'i BlobId>) -> Key {
    let mut hash = blake3::Hasher::new();
    hash.update(&[kind]);
    for id in ids {
        hash.update(&id.0);
    }
    *hash.finalize().as_bytes()
}

/// One writer's place at a press.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) press: Arc<Press>,
    number: usize,
}

impl Seat {
    pub(super) fn take(press: &Arc<Press>, level: i32) -> Self {
        let mut state = press.lock();
        state.seats.push(Some(level));
        let number = state.seats.len() - 1;
        drop(state);
        let seat = Self { press: press.clone(), number };
        seat.ask(Some(level));
        seat
    }

    /// One step harder or lighter.
    pub(super) fn step(&self, step: i32, (lightest, hardest): (i32, i32)) {
        let asked = self.press.lock().seats[self.number].unwrap_or(lightest);
        self.ask(Some(asked.saturating_add(step).clamp(lightest, hardest)));
    }

    fn ask(&self, level: Option<i32>) {
        let mut state = self.press.lock();
        state.seats[self.number] = level;
        if let Some(lightest) = state.seats.iter().flatten().min() {
            self.press.level.store(*lightest, Ordering::Relaxed);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ask(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::Hex;

    fn text(n: u32) -> Vec<u8> {
        (0..20_000u32).flat_map(|i| (i / 64 + n).to_le_bytes()).collect()
    }

    #[test]
    fn what_two_writers_are_given_is_compressed_once_whoever_comes_first() {
        let press = Press::new(1 << 20);
        let _seats = [Seat::take(&press, 3), Seat::take(&press, 3)];
        let stats = [RunStats::default(), RunStats::default()];
        let made: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let writers = stats.each_ref().map(|stats| {
                let press = &press;
                scope.spawn(move || {
                    (0..50).map(|n| press.whole(&Hex([n as u8; 32]), &text(n), stats)).collect()
                })
            });
            writers.map(|writer| writer.join().unwrap()).into()
        });
        assert_eq!(made[0], made[1]);
        let pressed = stats.each_ref().map(|stats| stats.pressed_bytes.load(Ordering::Relaxed));
        assert_eq!(pressed[0] + pressed[1], 50 * 80_000, "{pressed:?}");
        assert_eq!(press.lock().bytes, 0, "what everybody has is not kept");
    }

    #[test]
    fn frames_that_nobody_fetches_do_not_gather_and_who_has_left_is_not_waited_for() {
        let press = Press::new(100_000);
        let stats = RunStats::default();
        let (here, gone) = (Seat::take(&press, 5), Seat::take(&press, 1));
        assert_eq!(press.level(), 1, "the lightest that is asked for");
        for n in 0..100 {
            press.whole(&Hex([n as u8; 32]), &text(n), &stats);
            assert!(press.lock().bytes <= 100_000);
        }
        drop(gone);
        assert_eq!(press.level(), 5);
        let kept = press.lock().frames.len();
        press.whole(&Hex([200; 32]), &text(200), &stats);
        assert_eq!(press.lock().frames.len(), kept, "one writer keeps nothing for others");
        here.step(7, (1, 9));
        assert_eq!(press.level(), 9);
    }
}
