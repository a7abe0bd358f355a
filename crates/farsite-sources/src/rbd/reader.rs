//! The bytes of an RBD image and its snapshots, read at any offset through Ceph's own library. A place and a snapshot come in;
//! [`ReadAt`] and extents go out.
//!
//! What must hold: memory does not grow with the image.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use farsite_model::content::ReadAt;

use super::child::{Answer, Child, odd};
use super::image::Image;
use crate::SourceError;

const PROGRAM: &str = include_str!("reader.py");
/// The image as it is now, in place of a snapshot's name.
pub(super) const NOW: &str = "-";
/// One request for data is no longer.
const READ_BYTES: usize = 4 << 20;
/// Data and holes are asked of so much at once.
const TOLD_BYTES: u64 = 4 << 30;
/// A line of an answer is no longer.
const LINE_BYTES: u64 = 4096;

/// The child that reads one image.
pub(crate) struct Reader(Child);

impl Reader {
    pub(crate) async fn start(image: &Image) -> Result<Self, SourceError> {
        Ok(Self(Child::start(&format!("reading {image}"), PROGRAM, &image.as_arguments()).await?))
    }

    pub(crate) fn size_bytes(&self, snapshot: &str) -> io::Result<u64> {
        let mut size = None;
        self.ask(&format!("size {snapshot}"), &mut |_, _| (), |_, words| {
            size = words.parse().ok();
            Ok(())
        })
        .map_err(Answer::into_error)?;
        size.ok_or_else(|| odd("a size that is no number"))
    }

    fn read(&self, snapshot: &str, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let request = format!("read {snapshot} {offset} {}", buffer.len());
        self.ask(&request, &mut |_, _| (), |talk, words| {
            if words.parse() != Ok(buffer.len()) {
                return Err(odd("fewer bytes than were asked for"));
            }
            talk.read_exact(buffer)
        })
        .map_err(Answer::into_error)
    }

    /// What differs between two snapshots; `None` when there is no such earlier one.
    pub(crate) fn differing(
        &self,
        snapshot: &str,
        from: &str,
        each: &mut dyn FnMut(Range<u64>),
    ) -> io::Result<Option<()>> {
        match self.extents(&format!("diff {snapshot} {from}"), &mut |range, _| each(range)) {
            Ok(()) => Ok(Some(())),
            Err(Answer::Gone) => Ok(None),
            Err(no) => Err(no.into_error()),
        }
    }

    fn extents(&self, request: &str, each: &mut dyn FnMut(Range<u64>, bool)) -> Result<(), Answer> {
        self.ask(request, each, |_, _| Ok(()))
    }

    /// One request and its answer: lines of extents, then how it ended, then what `good` reads.
    fn ask(
        &self,
        request: &str,
        each: &mut dyn FnMut(Range<u64>, bool),
        good: impl FnOnce(&mut dyn BufRead, &str) -> io::Result<()>,
    ) -> Result<(), Answer> {
        self.0.ask(&[request.as_bytes(), b"\n"], |from| {
            loop {
                let mut line = String::new();
                let read = from.by_ref().take(LINE_BYTES).read_line(&mut line)?;
                if read == 0 || !line.ends_with('\n') {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                let line = line.trim_end();
                let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
                match first {
                    "ok" => return good(from, rest).map_err(Answer::Broken),
                    "gone" => return Err(Answer::Gone),
                    "error" => return Err(Answer::refused(rest)),
                    _ => {
                        let (range, is_data) =
                            extent(line).ok_or_else(|| odd("an extent that makes no sense"))?;
                        each(range, is_data);
                    }
                }
            }
        })
    }
}

fn extent(line: &str) -> Option<(Range<u64>, bool)> {
    let mut words = line.split(' ').map(str::parse::<u64>);
    let (start, length) = (words.next()?.ok()?, words.next()?.ok()?);
    let exists = words.next()?.ok()? == 1;
    Some((start..start.checked_add(length)?, exists))
}

/// One snapshot's bytes.
pub(crate) struct SnapshotContent {
    reader: Arc<Reader>,
    snapshot: String,
    size_bytes: u64,
    /// A range, and the data in it.
    told: Mutex<(Range<u64>, Vec<Range<u64>>)>,
}

impl SnapshotContent {
    pub(crate) fn open(reader: Arc<Reader>, snapshot: String) -> io::Result<Self> {
        let size_bytes = reader.size_bytes(&snapshot)?;
        Ok(Self { reader, snapshot, size_bytes, told: Mutex::new((0..0, Vec::new())) })
    }
}

impl ReadAt for SnapshotContent {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.size_bytes);
        if !inside {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the snapshot"));
        }
        let mut at = offset;
        for piece in buffer.chunks_mut(READ_BYTES) {
            self.reader.read(&self.snapshot, piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut told = self.told.lock().expect("no holder of this lock panics");
        let mut at = offset;
        while at < self.size_bytes {
            if !told.0.contains(&at) {
                let range = at..self.size_bytes.min(at.saturating_add(TOLD_BYTES));
                let mut data: Vec<Range<u64>> = Vec::new();
                let request = format!("data {} {} {}", self.snapshot, range.start, range.end - range.start);
                let mut each = |extent: Range<u64>, exists: bool| match data.last_mut() {
                    _ if !exists => {}
                    Some(last) if last.end >= extent.start => last.end = last.end.max(extent.end),
                    _ => data.push(extent),
                };
                self.reader.extents(&request, &mut each).map_err(Answer::into_error)?;
                *told = (range, data);
            }
            let first = told.1.partition_point(|data| data.end <= at);
            if let Some(data) = told.1.get(first) {
                return Ok(Some(at.max(data.start)..data.end.min(self.size_bytes)));
            }
            at = told.0.end;
        }
        Ok(None)
    }
}
