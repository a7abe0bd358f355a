//! MariaDB's binary log files, read only as far as their events' headers: a file comes in, the end of its last complete
//! event and the first event of a moment go out. What must hold: nothing half-written is ever called complete.
//!
//! The layout (MariaDB knowledge base, "Binlog event header"): a file begins with the magic `fe 62 69 6e`; each event
//! has a header of 19 bytes, little-endian: timestamp u32 (seconds), type u8, server id u32, length u32 (header
//! included), end position u32, flags u16.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;

const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];
pub(crate) const HEADER_BYTES: u64 = 19;
/// Every log file's first event: how the others are read.
const FORMAT_DESCRIPTION: u8 = 15;
/// MariaDB's `GTID_EVENT`, with which every transaction begins.
const GTID: u8 = 162;

/// One event's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) kind: u8,
    pub(crate) seconds: u32,
}

impl Event {
    pub(crate) fn begins_transaction(&self) -> bool {
        self.kind == GTID
    }
}

/// What a scan of one file found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// End of the last complete event; zero when not even the file's first one is complete.
    pub(crate) complete: u64,
    /// Length of the file; more than `complete` when an event is cut off.
    pub(crate) length: u64,
    /// Begin of the first transaction that may be later than the moment asked for: the log knows whole seconds only,
    /// so one of that very second is taken for later.
    pub(crate) later: Option<u64>,
}

/// Follows the headers of a file from event to event.
pub(crate) fn scan(path: &Path, until: Option<Timestamp>) -> io::Result<Scan> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut found = Scan { length, ..Scan::default() };
    let mut magic = [0; 4];
    if length < 4 {
        return Ok(found);
    }
    reader.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(io::Error::other(
            "it does not begin as a binary log does (an encrypted one cannot be read outside its server)",
        ));
    }
    let mut offset = 4;
    while let Some(event) = next(&mut reader, offset, length)? {
        if offset == 4 && event.kind != FORMAT_DESCRIPTION {
            return Err(io::Error::other(format!(
                "its first event is of type {}, not a description",
                event.kind
            )));
        }
        let late = until.is_some_and(|until| i64::from(event.seconds) >= until.as_second());
        if late && found.later.is_none() && event.begins_transaction() {
            found.later = Some(event.offset);
        }
        offset = event.end;
        found.complete = event.end;
        reader.seek_relative((event.end - event.offset - HEADER_BYTES).cast_signed())?;
    }
    Ok(found)
}

/// The complete event at `offset`, if there is one.
fn next(reader: &mut BufReader<File>, offset: u64, length: u64) -> io::Result<Option<Event>> {
    if length - offset < HEADER_BYTES {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES as usize];
    reader.read_exact(&mut header)?;
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let bytes = u64::from(number(9));
    if bytes < HEADER_BYTES {
        // A crash can leave zeros behind the last event; anything else is damage.
        if header.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        return Err(io::Error::other(format!("the event at byte {offset} claims a length of {bytes}")));
    }
    if offset + bytes > length {
        return Ok(None);
    }
    Ok(Some(Event { offset, end: offset + bytes, kind: header[4], seconds: number(0) }))
}

/// Whether a complete event ends exactly at `position`.
pub(crate) fn is_boundary(path: &Path, position: u64) -> io::Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(64 << 10, file);
    reader.seek(SeekFrom::Start(4))?;
    let mut offset = 4;
    while offset < position && length >= 4 {
        let Some(event) = next(&mut reader, offset, length)? else { return Ok(false) };
        reader.seek_relative((event.end - event.offset - HEADER_BYTES).cast_signed())?;
        offset = event.end;
    }
    Ok(offset == position)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An event with a body of `body` bytes.
    pub(crate) fn event(kind: u8, seconds: u32, body: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(seconds.to_le_bytes());
        bytes.push(kind);
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend((19 + body as u32).to_le_bytes());
        bytes.extend([0; 6]);
        bytes.extend(vec![0xaa; body]);
        bytes
    }

    fn write(events: &[Vec<u8>]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin.000001");
        std::fs::write(&path, [MAGIC.to_vec(), events.concat()].concat()).unwrap();
        (dir, path)
    }

    #[test]
    fn the_last_complete_event_ends_a_log_that_is_cut_off_anywhere() {
        let (first, second) = (event(FORMAT_DESCRIPTION, 10, 230), event(GTID, 11, 23));
        let (_dir, path) = write(&[first.clone(), second.clone()]);
        let whole = std::fs::read(&path).unwrap();
        let ends = [4 + first.len(), 4 + first.len() + second.len()];
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let expected = ends.iter().rev().find(|end| **end <= length).copied().unwrap_or(0);
            assert_eq!(scan(&path, None).unwrap().complete, expected as u64, "cut at {length}");
        }
        assert!(is_boundary(&path, ends[0] as u64).unwrap());
        assert!(!is_boundary(&path, ends[0] as u64 + 1).unwrap());
        assert!(!is_boundary(&path, ends[1] as u64 + 100).unwrap());
    }

    #[test]
    fn a_moment_ends_before_the_first_later_transaction() {
        let events = [
            event(FORMAT_DESCRIPTION, 10, 230),
            event(GTID, 20, 23),
            event(16, 20, 12),
            event(GTID, 21, 23),
            event(16, 21, 12),
        ];
        let (_dir, path) = write(&events);
        let third = 4 + events[..3].iter().map(Vec::len).sum::<usize>() as u64;
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(scan(&path, Some(at(21))).unwrap().later, Some(third));
        assert_eq!(scan(&path, Some(at(22))).unwrap().later, None);
    }

    #[test]
    fn what_is_no_log_is_named_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin.000001");
        std::fs::write(&path, b"not a log at all").unwrap();
        assert!(scan(&path, None).is_err());
        let (_dir, path) = write(&[event(FORMAT_DESCRIPTION, 1, 200)]);
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes.extend([0; 64]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(scan(&path, None).unwrap().complete, end as u64, "zeros of a crash are not events");
    }
}
