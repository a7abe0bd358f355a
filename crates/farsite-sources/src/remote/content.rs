//! The bytes of captures at another host: reads are cut into pieces, several of which are under way at once.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use farsite_model::content::{ReadAt, TreeEntry};

use super::READ_BYTES;
use super::client::Held;
use super::messages::{Call, Extents};
use crate::tree::{Part, TreeFiles};

/// A volume, or a version of one that was kept.
pub(super) struct FarVolume {
    held: Held,
    size_bytes: u64,
    /// What was told last of where data may be: from where on, and what.
    extents: Mutex<Option<(u64, Extents)>>,
}

impl FarVolume {
    pub(super) fn new(held: Held, size_bytes: u64) -> Self {
        Self { held, size_bytes, extents: Mutex::new(None) }
    }
}

impl ReadAt for FarVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        read(&self.held, [(None, offset, buffer)].into_iter())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut told = self.extents.lock().expect("no holder of this lock panics");
        let mut from = offset;
        while from < self.size_bytes {
            let (begin, extents) = match &*told {
                Some((begin, extents)) if (*begin..extents.until).contains(&from) => (*begin, extents),
                _ => {
                    let call = Call::Extents { of: self.held.id, offset: from };
                    let extents: Extents = self.held.line.ask_now(self.held.line.next_id(), call)?;
                    if extents.until <= from {
                        return Err(io::Error::other("its host tells nothing of where its data is"));
                    }
                    let (begin, extents) = told.insert((from, extents));
                    (*begin, &*extents)
                }
            };
            debug_assert!(begin <= from);
            if let Some((start, end)) = extents.ranges.iter().find(|(_, end)| *end > from) {
                return Ok(Some(*start.max(&offset)..*end));
            }
            from = extents.until;
        }
        Ok(None)
    }
}

/// The files of a tree.
pub(super) struct FarFiles(Held);

impl FarFiles {
    pub(super) fn new(held: Held) -> Self {
        Self(held)
    }
}

impl TreeFiles for FarFiles {
    fn entries(&self) -> io::Result<Vec<TreeEntry>> {
        self.0.line.ask_now(self.0.line.next_id(), Call::Entries { of: self.0.id })
    }

    fn read(&self, parts: &mut [Part<'_>]) -> io::Result<()> {
        read(&self.0, parts.iter_mut().map(|part| (Some(part.file), part.offset, &mut *part.buffer)))
    }
}

/// Fills buffers, each of a file (or of the volume) from an offset on.
fn read<'b>(held: &Held, parts: impl Iterator<Item = (Option<usize>, u64, &'b mut [u8])>) -> io::Result<()> {
    let line = &held.line;
    let pieces = parts.flat_map(|(file, offset, buffer)| {
        let pieces = buffer.chunks_mut(READ_BYTES).enumerate();
        pieces.map(move |(n, piece)| (file, offset + (n * READ_BYTES) as u64, piece))
    });
    let mut under_way = VecDeque::new();
    let take = |(asked, piece): (_, &mut [u8])| {
        let bytes = line.answer(asked)?;
        if bytes.len() != piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        piece.copy_from_slice(&bytes);
        Ok(())
    };
    // Those that are under way when one fails are given up with it.
    for (file, offset, piece) in pieces {
        // What has come lies in memory until it is taken.
        if under_way.len() == super::READS
            && let Some(first) = under_way.pop_front()
        {
            take(first)?;
        }
        let call = Call::Read { of: held.id, file, offset, length: piece.len() };
        under_way.push_back((line.begin_read(call)?, piece));
    }
    under_way.into_iter().try_for_each(take)
}
