//! A small program of Python that talks to Ceph through its own library, one request after another: a request goes in, and
//! what its reader makes of the answer goes out. Ceph's module for Python comes with every `ceph-common`; there is no
//! kernel driver or QEMU module in between.
//!
//! What must hold: the child outlives neither its users nor this process; an answer that is out of step is an error; none is
//! waited for past its limit.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::{SourceError, commands};

/// Pythons that may have Ceph's module: it is built for the system's own.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "/usr/libexec/platform-python"];
/// The longest that one answer may take; what takes longer is told bit by bit, each within this.
const ANSWER: Duration = Duration::from_mins(5);
/// What is kept of what it said on standard error.
const SAID_BYTES: usize = 16 << 10;

/// The child. It ends with this.
pub(super) struct Child {
    talk: Mutex<Talk>,
    _process: tokio::process::Child,
    log: File,
}

struct Talk {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// An answer was not read to its end: nothing after it can be told apart.
    is_broken: bool,
}

/// An answer that is no good.
pub(super) enum Answer {
    /// What was asked about is not there.
    Gone,
    /// It says no, and waits for the next request.
    Refused(io::Error),
    /// It gave no answer, or one that makes no sense: it is asked no more.
    Broken(io::Error),
}

impl From<io::Error> for Answer {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Answer {
    pub(super) fn refused(why: &str) -> Self {
        Self::Refused(io::Error::other(format!("Ceph says: {why}")))
    }
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Gone => io::Error::new(io::ErrorKind::NotFound, "it is not there"),
            Self::Refused(error) | Self::Broken(error) => error,
        }
    }
}

pub(super) fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Child {
    pub(super) async fn start(what: &str, program: &str, arguments: &[PathBuf]) -> Result<Self, SourceError> {
        let fail = |error: io::Error| SourceError::new(what, error);
        let python = PYTHONS.iter().map(Path::new).find(|python| python.is_file());
        let python = python.ok_or_else(|| {
            SourceError::new(what, "the system has no Python").hint("install python3 and python3-rbd")
        })?;
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(false).map_err(fail)?;
        }
        ours.set_read_timeout(Some(ANSWER)).map_err(fail)?;
        ours.set_write_timeout(Some(ANSWER)).map_err(fail)?;
        let log =
            File::from(memfd_create("farsite-rbd", MemfdFlags::CLOEXEC).map_err(|errno| fail(errno.into()))?);
        let mut command = commands::tied(python);
        // Neither this user's modules nor those of the folder it happens to stand in.
        command.args(["-I", "-c", program]).args(arguments);
        command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone().map_err(fail)?)));
        command.stdout(Stdio::from(OwnedFd::from(theirs)));
        command.stderr(log.try_clone().map_err(fail)?);
        let child = commands::spawn(what, command).await?;
        let from = BufReader::new(ours.try_clone().map_err(fail)?);
        let talk = Mutex::new(Talk { to: ours, from, is_broken: false });
        Ok(Self { talk, _process: child, log })
    }

    /// Makes the limit of one answer a shorter one.
    pub(super) fn answers_within(&self, limit: Duration) -> io::Result<()> {
        let talk = self.talk.lock().expect("no holder of this lock panics");
        talk.to.set_read_timeout(Some(limit))?;
        talk.to.set_write_timeout(Some(limit))
    }

    /// Sends a request, in pieces, and reads its answer. Blocks.
    pub(super) fn ask<T>(
        &self,
        request: &[&[u8]],
        answer: impl FnOnce(&mut BufReader<UnixStream>) -> Result<T, Answer>,
    ) -> Result<T, Answer> {
        let mut talk = self.talk.lock().expect("no holder of this lock panics");
        if talk.is_broken {
            return Err(odd(&format!("the child that reads it has failed{}", self.said())).into());
        }
        talk.is_broken = true;
        let Talk { to, from, .. } = &mut *talk;
        for piece in request {
            to.write_all(piece).map_err(|error| self.ended(error))?;
        }
        let answer = answer(from).map_err(|no| match no {
            Answer::Broken(error) => Answer::Broken(self.ended(error)),
            other => other,
        });
        talk.is_broken = matches!(answer, Err(Answer::Broken(_)));
        answer
    }

    /// What it said before it ended.
    fn said(&self) -> String {
        let mut said = vec![0; SAID_BYTES];
        let length = self.log.metadata().map_or(0, |metadata| metadata.len());
        let from = length.saturating_sub(SAID_BYTES as u64);
        let read = self.log.read_at(&mut said, from).unwrap_or(0);
        commands::shown(&String::from_utf8_lossy(&said[..read]))
    }

    fn ended(&self, error: io::Error) -> io::Error {
        // What a socket says of its time limit (socket(7), SO_RCVTIMEO).
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the time is over".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("the child that reads it gave no answer: {why}{}", self.said()))
    }
}
