//! A read-only NBD client: the socket of a server, an export's name and the contexts that are wanted come in; bytes and
//! extents go out. Fixed newstyle handshake with GO and structured replies, over as many connections as there are readers
//! at once, for those who read on threads of their own.
//!
//! What must hold: nothing is believed that the protocol does not allow (a reply of another request, bytes outside of the
//! range, an extent of no length); a connection on which anything went wrong is not used again; none waits past its limit.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::wire::{self, Fields, chunk, command, info, option, reply};

/// One request for data is no longer; servers must answer this much by default.
const READ_BYTES: usize = 8 << 20;
/// One question for extents covers no more: it must fit into 32 bits.
const STATUS_BYTES: u64 = 1 << 30;
/// A reply that carries no data is shorter.
const SMALL_BYTES: u32 = 16 << 20;
/// Connections that are kept open for the next reader.
const POOL: usize = 8;

/// One export as it is read.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    export: String,
    contexts: Vec<String>,
    limit: Duration,
    size_bytes: u64,
    idle: Mutex<Vec<Connection>>,
}

/// A stretch of an export in one context: its length, and the context's flags.
pub type Stretch = (u64, u32);

impl Client {
    /// Enters the export once. `limit` is the longest that one answer may take. A context that the server does not have is
    /// an error.
    pub fn connect(socket: &Path, export: &str, contexts: &[&str], limit: Duration) -> io::Result<Self> {
        let contexts: Vec<String> = contexts.iter().map(|context| (*context).to_owned()).collect();
        let first = Connection::enter(socket, export, &contexts, limit)?;
        Ok(Self {
            socket: socket.to_owned(),
            export: export.to_owned(),
            contexts,
            limit,
            size_bytes: first.size_bytes,
            idle: Mutex::new(vec![first]),
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.size_bytes);
        if !inside {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the export"));
        }
        if buffer.is_empty() {
            return Ok(());
        }
        self.with(|connection| {
            let mut at = offset;
            for piece in buffer.chunks_mut(READ_BYTES) {
                connection.read(piece, at)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    /// The stretches of one context from `range.start` on: at least one, and perhaps fewer than the range holds.
    pub fn stretches(&self, context: &str, range: Range<u64>) -> io::Result<Vec<Stretch>> {
        let end = range.end.min(self.size_bytes);
        if range.start >= end {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the export"));
        }
        let length = (end - range.start).min(STATUS_BYTES);
        self.with(|connection| connection.stretches(context, range.start, length))
    }

    /// Runs one exchange on a connection of its own; only after a good one is it used again.
    fn with<T>(&self, exchange: impl FnOnce(&mut Connection) -> io::Result<T>) -> io::Result<T> {
        let idle = self.idle.lock().expect("no holder of this lock panics").pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::enter(&self.socket, &self.export, &self.contexts, self.limit)?,
        };
        if connection.size_bytes != self.size_bytes {
            return Err(odd("the export has another size than before"));
        }
        let answer = exchange(&mut connection)?;
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        if idle.len() < POOL {
            idle.push(connection);
        }
        Ok(answer)
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    size_bytes: u64,
    /// Names of the contexts and the numbers that the server gave them.
    contexts: Vec<(String, u32)>,
    cookie: u64,
}

impl Connection {
    fn enter(socket: &Path, export: &str, contexts: &[String], limit: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut new = Self { stream, size_bytes: 0, contexts: Vec::new(), cookie: 0 };
        if new.u64()? != wire::NBD_MAGIC || new.u64()? != wire::OPTION_MAGIC {
            return Err(odd("what answers is no NBD server"));
        }
        let flags = u16::from_be_bytes(new.array()?);
        if flags & wire::FIXED_NEWSTYLE == 0 {
            return Err(odd("the server is too old: it has no fixed newstyle handshake"));
        }
        let no_zeroes = flags & wire::NO_ZEROES;
        new.stream.write_all(&u32::from(wire::FIXED_NEWSTYLE | no_zeroes).to_be_bytes())?;
        new.structured()?;
        if !contexts.is_empty() {
            new.set_contexts(export, contexts)?;
        }
        new.go(export)?;
        Ok(new)
    }

    fn structured(&mut self) -> io::Result<()> {
        self.ask(option::STRUCTURED_REPLY, &[])?;
        match self.option_reply(option::STRUCTURED_REPLY)? {
            (reply::ACK, _) => Ok(()),
            (_, why) => Err(refused("structured replies", &why)),
        }
    }

    fn set_contexts(&mut self, export: &str, contexts: &[String]) -> io::Result<()> {
        let mut data = text(export);
        data.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
        for context in contexts {
            data.extend_from_slice(&text(context));
        }
        self.ask(option::SET_META_CONTEXT, &data)?;
        loop {
            match self.option_reply(option::SET_META_CONTEXT)? {
                (reply::ACK, _) => break,
                (reply::META_CONTEXT, data) => {
                    let (id, name) =
                        data.split_first_chunk::<4>().ok_or_else(|| odd("a context without a name"))?;
                    let name = String::from_utf8_lossy(name).into_owned();
                    self.contexts.push((name, u32::from_be_bytes(*id)));
                }
                (_, why) => return Err(refused("its contexts", &why)),
            }
        }
        match contexts.iter().find(|wanted| !self.contexts.iter().any(|(name, _)| name == *wanted)) {
            Some(missing) => Err(odd(&format!("the server does not tell {missing} of this export"))),
            None => Ok(()),
        }
    }

    fn go(&mut self, export: &str) -> io::Result<()> {
        let mut data = text(export);
        data.extend_from_slice(&0_u16.to_be_bytes());
        self.ask(option::GO, &data)?;
        let mut size_bytes = None;
        loop {
            match self.option_reply(option::GO)? {
                (reply::ACK, _) => break,
                (reply::INFO, data) => {
                    let mut fields = Fields(&data);
                    if fields.u16() == Some(info::EXPORT) {
                        let size =
                            fields.0.first_chunk::<8>().ok_or_else(|| odd("an export without a size"))?;
                        size_bytes = Some(u64::from_be_bytes(*size));
                    }
                }
                (_, why) => return Err(refused(&format!("the export {export:?}"), &why)),
            }
        }
        self.size_bytes = size_bytes.ok_or_else(|| odd("the server did not tell the export's size"))?;
        Ok(())
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes)
    }

    fn option_reply(&mut self, asked: u32) -> io::Result<(u32, Vec<u8>)> {
        if self.u64()? != wire::OPTION_REPLY_MAGIC || self.u32()? != asked {
            return Err(odd("its answer belongs to no option"));
        }
        let (kind, length) = (self.u32()?, self.u32()?);
        Ok((kind, self.payload(length)?))
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut bytes = Vec::with_capacity(wire::Request::BYTES);
        bytes.extend_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        self.stream.write_all(&bytes)
    }

    /// The head of the next chunk of the reply: whether it is the last, its kind, and the length of what it carries.
    fn chunk(&mut self) -> io::Result<(bool, u16, u32)> {
        if self.u32()? != wire::STRUCTURED_REPLY_MAGIC {
            return Err(odd("a reply out of step"));
        }
        let (flags, kind) = (u16::from_be_bytes(self.array()?), u16::from_be_bytes(self.array()?));
        if self.u64()? != self.cookie {
            return Err(odd("a reply to another request"));
        }
        Ok((flags & chunk::DONE != 0, kind, self.u32()?))
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.request(command::READ, 0, offset, buffer.len() as u32)?;
        let mut missing = buffer.len() as u64;
        let mut failed = None;
        loop {
            let (done, kind, length) = self.chunk()?;
            match kind {
                chunk::OFFSET_DATA if length > 8 => {
                    let at = self.u64()?;
                    let part = part(buffer, offset, at, u64::from(length) - 8)?;
                    missing = missing.saturating_sub(part.len() as u64);
                    self.stream.read_exact(part)?;
                }
                chunk::OFFSET_HOLE if length == 12 => {
                    let (at, hole) = (self.u64()?, self.u32()?);
                    let part = part(buffer, offset, at, u64::from(hole))?;
                    missing = missing.saturating_sub(part.len() as u64);
                    part.fill(0);
                }
                chunk::NONE if length == 0 => {}
                kind if kind & (1 << 15) != 0 => failed = Some(self.error(length)?),
                _ => return Err(odd("a reply of an unknown kind")),
            }
            if done {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            // Chunks may not overlap, so that the count tells whether all of it came.
            None if missing > 0 => Err(odd("a reply that lacks bytes")),
            None => Ok(()),
        }
    }

    fn stretches(&mut self, context: &str, offset: u64, length: u64) -> io::Result<Vec<Stretch>> {
        let id = self.contexts.iter().find(|(name, _)| name == context).map(|(_, id)| *id);
        let id = id.ok_or_else(|| odd(&format!("{context} was not agreed on")))?;
        self.request(command::BLOCK_STATUS, 0, offset, length as u32)?;
        let mut found = None;
        let mut failed = None;
        loop {
            let (done, kind, bytes) = self.chunk()?;
            match kind {
                chunk::BLOCK_STATUS if bytes >= 12 => {
                    let data = self.payload(bytes)?;
                    let (of, list) = data.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                    if u32::from_be_bytes(*of) == id {
                        found = Some(listed(list)?);
                    }
                }
                chunk::NONE if bytes == 0 => {}
                kind if kind & (1 << 15) != 0 => failed = Some(self.error(bytes)?),
                _ => return Err(odd("a reply of an unknown kind")),
            }
            if done {
                break;
            }
        }
        match (failed, found) {
            (Some(error), _) => Err(error),
            (None, Some(found)) => Ok(found),
            (None, None) => Err(odd("a reply without extents")),
        }
    }

    fn error(&mut self, length: u32) -> io::Result<io::Error> {
        let data = self.payload(length)?;
        let (number, rest) = data.split_first_chunk::<4>().ok_or_else(|| odd("an error without a number"))?;
        let number = i32::from_be_bytes(*number);
        let words = Fields(rest).u16().and_then(|words| rest.get(2..2 + usize::from(words)));
        let words = String::from_utf8_lossy(words.unwrap_or_default()).into_owned();
        Ok(io::Error::other(format!("the NBD server says: {} {words}", io::Error::from_raw_os_error(number))))
    }

    fn payload(&mut self, length: u32) -> io::Result<Vec<u8>> {
        if length > SMALL_BYTES {
            return Err(odd("a reply of an absurd length"));
        }
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

/// Where a piece of a reply belongs; one that lies outside of what was asked for is an error.
fn part(buffer: &mut [u8], offset: u64, at: u64, length: u64) -> io::Result<&mut [u8]> {
    let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
    let part =
        start.and_then(|start| buffer.get_mut(start..start.checked_add(usize::try_from(length).ok()?)?));
    part.ok_or_else(|| odd("bytes that nobody asked for"))
}

fn listed(list: &[u8]) -> io::Result<Vec<Stretch>> {
    let (eights, rest) = list.as_chunks::<8>();
    if eights.is_empty() || !rest.is_empty() {
        return Err(odd("a list of extents that makes no sense"));
    }
    let stretch = |eight: &[u8; 8]| {
        let value = u64::from_be_bytes(*eight);
        (value >> 32, value as u32)
    };
    let found: Vec<Stretch> = eights.iter().map(stretch).collect();
    // Whoever walks along them must get on.
    if found.iter().any(|(length, _)| *length == 0) {
        return Err(odd("an extent of no length"));
    }
    Ok(found)
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn refused(what: &str, why: &[u8]) -> io::Error {
    odd(&format!("the NBD server refuses {what}: {}", String::from_utf8_lossy(why)))
}

fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
