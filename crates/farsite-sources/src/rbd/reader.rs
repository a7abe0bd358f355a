//! The bytes of an RBD image's snapshots, read at any offset through Ceph's own library. A place and a snapshot come in;
//! [`ReadAt`] and extents go out. There is no kernel driver or QEMU module in between: a small program of Python, whose
//! module for RBD comes with every `ceph-common`, answers one request after another.
//!
//! What must hold: the child outlives neither its readers nor this process; an answer that is out of step is an error; none
//! is waited for past its limit; memory does not grow with the image.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farsite_model::content::ReadAt;
use tokio::process::Child;

use super::image::Image;
use crate::guards::RemovedFolder;
use crate::{SourceError, commands};

const PROGRAM: &str = include_str!("reader.py");
/// Pythons that may have Ceph's module: it is built for the system's own.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "/usr/libexec/platform-python"];
/// One request for data is no longer.
const READ_BYTES: usize = 4 << 20;
/// Data and holes are asked of so much at once.
const TOLD_BYTES: u64 = 4 << 30;
/// The longest that one answer may take; a difference of a large image is told bit by bit, each within this.
const ANSWER: Duration = Duration::from_mins(5);
/// A line of an answer is no longer.
const LINE_BYTES: u64 = 4096;

/// The child that reads one image.
pub(crate) struct Reader {
    talk: Mutex<Talk>,
    _child: Child,
    _folder: RemovedFolder,
    log: PathBuf,
}

struct Talk {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// An answer was not read to its end: nothing after it can be told apart.
    is_broken: bool,
}

/// An answer that is no good.
enum Answer {
    Gone,
    Failed(io::Error),
}

impl From<io::Error> for Answer {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Answer {
    fn into_error(self) -> io::Error {
        match self {
            Self::Gone => io::Error::new(io::ErrorKind::NotFound, "the snapshot is gone"),
            Self::Failed(error) => error,
        }
    }
}

impl Reader {
    pub(crate) async fn start(image: &Image, scratch: &Path) -> Result<Self, SourceError> {
        let what = format!("reading {image}");
        let fail = |error: io::Error| SourceError::new(&what, error);
        let python = PYTHONS.iter().map(Path::new).find(|python| python.is_file());
        let python = python.ok_or_else(|| {
            SourceError::new(&what, "the system has no Python").hint("install python3 and python3-rbd")
        })?;
        let folder = RemovedFolder::create(scratch, "rbd")?;
        let log = folder.path().join("log");
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(false).map_err(fail)?;
        }
        ours.set_read_timeout(Some(ANSWER)).map_err(fail)?;
        ours.set_write_timeout(Some(ANSWER)).map_err(fail)?;
        let mut command = commands::tied(python);
        // Neither this user's modules nor those of the folder it happens to stand in.
        command.args(["-I", "-c", PROGRAM]).args(image.as_arguments());
        command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone().map_err(fail)?)));
        command.stdout(Stdio::from(OwnedFd::from(theirs)));
        command.stderr(File::create(&log).map_err(fail)?);
        let child = commands::spawn(&what, command).await?;
        let from = BufReader::new(ours.try_clone().map_err(fail)?);
        let talk = Mutex::new(Talk { to: ours, from, is_broken: false });
        Ok(Self { talk, _child: child, _folder: folder, log })
    }

    /// What the child said before it ended.
    pub(crate) fn said(&self) -> String {
        commands::shown(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    pub(crate) fn size_bytes(&self, snapshot: &str) -> io::Result<u64> {
        let mut size = None;
        self.ask(&format!("size {snapshot}"), |_, words| {
            size = words.parse().ok();
            Ok(())
        })
        .map_err(Answer::into_error)?;
        size.ok_or_else(|| odd("a size that is no number"))
    }

    fn read(&self, snapshot: &str, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let request = format!("read {snapshot} {offset} {}", buffer.len());
        self.ask(&request, |talk, words| {
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
            Err(Answer::Failed(error)) => Err(error),
        }
    }

    fn extents(&self, request: &str, each: &mut dyn FnMut(Range<u64>, bool)) -> Result<(), Answer> {
        self.ask_with(request, each, |_, _| Ok(()))
    }

    fn ask(
        &self,
        request: &str,
        good: impl FnOnce(&mut BufReader<UnixStream>, &str) -> io::Result<()>,
    ) -> Result<(), Answer> {
        self.ask_with(request, &mut |_, _| (), good)
    }

    /// One request and its answer: lines of extents, then how it ended, then what `good` reads.
    fn ask_with(
        &self,
        request: &str,
        each: &mut dyn FnMut(Range<u64>, bool),
        good: impl FnOnce(&mut BufReader<UnixStream>, &str) -> io::Result<()>,
    ) -> Result<(), Answer> {
        let mut talk = self.talk.lock().expect("no holder of this lock panics");
        if talk.is_broken {
            return Err(odd(&format!("the child that reads it has failed{}", self.said())).into());
        }
        talk.is_broken = true;
        let Talk { to, from, .. } = &mut *talk;
        to.write_all(format!("{request}\n").as_bytes()).map_err(|error| self.ended(error))?;
        let answer = loop {
            let mut line = String::new();
            let read =
                from.by_ref().take(LINE_BYTES).read_line(&mut line).map_err(|error| self.ended(error))?;
            if read == 0 || !line.ends_with('\n') {
                return Err(self.ended(io::ErrorKind::UnexpectedEof.into()).into());
            }
            let line = line.trim_end();
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            match first {
                "ok" => break good(from, rest).map_err(Answer::Failed),
                "gone" => break Err(Answer::Gone),
                "error" => break Err(Answer::Failed(io::Error::other(format!("Ceph says: {rest}")))),
                _ => {
                    let (range, is_data) =
                        extent(line).ok_or_else(|| odd("an extent that makes no sense"))?;
                    each(range, is_data);
                }
            }
        };
        // Bytes that were not all read leave it broken; that it was refused does not.
        let is_in_step =
            !matches!(&answer, Err(Answer::Failed(error)) if error.kind() != io::ErrorKind::Other);
        talk.is_broken = !is_in_step;
        answer
    }

    fn ended(&self, error: io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            format!("the child that reads it gave no answer: {error}{}", self.said()),
        )
    }
}

fn extent(line: &str) -> Option<(Range<u64>, bool)> {
    let mut words = line.split(' ').map(str::parse::<u64>);
    let (start, length) = (words.next()?.ok()?, words.next()?.ok()?);
    let exists = words.next()?.ok()? == 1;
    Some((start..start.checked_add(length)?, exists))
}

fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
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
