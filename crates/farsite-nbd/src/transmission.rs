//! The talk after the handshake: commands come in, replies go out, several at once and in any order. What must hold: what
//! is being put together at once stays within the server's limit; a read that fails is told as such and sends no bytes
//! of the range that failed.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use crate::handshake::Agreed;
use crate::wire::{self, Request, chunk, command, error};
use crate::{Export, Extent};

/// Commands of one client that are worked on at once; the next waits in the socket.
const COMMANDS: usize = 16;
/// A structured reply sends a long read in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;
/// Extents in one answer.
const EXTENTS: usize = 512;

/// One client.
pub(crate) struct Client<W> {
    pub export: Arc<dyn Export>,
    pub agreed: Agreed,
    /// Permits of one byte each.
    pub room: Arc<Semaphore>,
    pub room_bytes: usize,
    pub writer: Mutex<W>,
}

/// Serves one client until it disconnects.
pub(crate) async fn serve<R, W>(mut reader: R, client: Client<W>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let client = Arc::new(client);
    // Dropped with this future: what was asked by a client that is gone is worked on no more.
    let mut work: JoinSet<io::Result<()>> = JoinSet::new();
    loop {
        while let Some(done) = work.try_join_next() {
            done.unwrap_or(Ok(()))?;
        }
        if work.len() >= COMMANDS
            && let Some(done) = work.join_next().await
        {
            done.unwrap_or(Ok(()))?;
        }
        let mut bytes = [0; Request::BYTES];
        match reader.read_exact(&mut bytes).await {
            Ok(_) => {}
            // Most clients hang up without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let Some(request) = Request::parse(&bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what it sent is no command"));
        };
        match request.command {
            command::DISCONNECT => {
                // It may still wait for what it asked before.
                while let Some(done) = work.join_next().await {
                    done.unwrap_or(Ok(()))?;
                }
                return Ok(());
            }
            command::WRITE => {
                let mut rest = (&mut reader).take(u64::from(request.length));
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
                client.refuse(&request, error::NOT_PERMITTED, "it is read-only").await?;
            }
            _ => {
                let client = client.clone();
                work.spawn(async move { client.answer(request).await });
            }
        }
    }
}

impl<W: AsyncWrite + Unpin + Send> Client<W> {
    async fn answer(&self, request: Request) -> io::Result<()> {
        let end = request.offset.checked_add(u64::from(request.length));
        let inside = end.is_some_and(|end| end <= self.export.size_bytes()) && request.length > 0;
        match request.command {
            command::FLUSH => self.done(&request).await,
            command::TRIM | command::WRITE_ZEROES => {
                self.refuse(&request, error::NOT_PERMITTED, "it is read-only").await
            }
            command::READ | command::BLOCK_STATUS if !inside => {
                self.refuse(&request, error::INVALID, "the range lies outside of the export").await
            }
            command::READ if request.length > wire::READ_BYTES => {
                self.refuse(&request, error::OVERFLOW, "a read this long is not answered").await
            }
            command::READ if self.agreed.structured && request.flags & wire::DONT_FRAGMENT == 0 => {
                self.read_in_pieces(&request).await
            }
            command::READ => self.read_whole(&request).await,
            command::BLOCK_STATUS if self.agreed.allocation => self.extents(&request).await,
            _ => self.refuse(&request, error::INVALID, "this server does not know the command").await,
        }
    }

    async fn read_in_pieces(&self, request: &Request) -> io::Result<()> {
        let mut offset = request.offset;
        let end = offset + u64::from(request.length);
        while offset < end {
            let stop = (offset + PIECE_BYTES).min(end);
            let extent = match self.export.extent(offset..stop).await {
                Ok(extent) => extent,
                Err(why) => return self.refuse(request, error::IO, &why).await,
            };
            let stop = bounded(extent.end, offset, stop);
            let last = if stop == end { chunk::DONE } else { 0 };
            let at = offset.to_be_bytes();
            if extent.is_hole {
                let mut payload = at.to_vec();
                payload.extend_from_slice(&((stop - offset) as u32).to_be_bytes());
                self.send(&wire::chunk_head(last, chunk::OFFSET_HOLE, request.cookie, &payload, 0), &[])
                    .await?;
            } else {
                let _room = self.room((stop - offset) as usize).await?;
                let bytes = match self.read(offset..stop).await {
                    Ok(bytes) => bytes,
                    Err(why) => return self.refuse(request, error::IO, &why).await,
                };
                let head = wire::chunk_head(last, chunk::OFFSET_DATA, request.cookie, &at, bytes.len());
                self.send(&head, &bytes).await?;
            }
            offset = stop;
        }
        Ok(())
    }

    /// The error must be known before the first byte goes out.
    async fn read_whole(&self, request: &Request) -> io::Result<()> {
        let _room = self.room(request.length as usize).await?;
        let end = request.offset + u64::from(request.length);
        match self.read(request.offset..end).await {
            Err(why) => self.refuse(request, error::IO, &why).await,
            Ok(bytes) if self.agreed.structured => {
                let at = request.offset.to_be_bytes();
                let head =
                    wire::chunk_head(chunk::DONE, chunk::OFFSET_DATA, request.cookie, &at, bytes.len());
                self.send(&head, &bytes).await
            }
            Ok(bytes) => self.send(&wire::simple_reply(0, request.cookie), &bytes).await,
        }
    }

    async fn read(&self, range: std::ops::Range<u64>) -> Result<Bytes, String> {
        let expected = range.end - range.start;
        let bytes = self.export.read(range).await?;
        // Whatever went wrong there, a client must never take other bytes for these.
        if bytes.len() as u64 == expected {
            Ok(bytes)
        } else {
            Err(format!("{} bytes were read, not {expected}", bytes.len()))
        }
    }

    async fn extents(&self, request: &Request) -> io::Result<()> {
        let mut payload = wire::ALLOCATION_ID.to_be_bytes().to_vec();
        let one = request.flags & wire::ONE_EXTENT != 0;
        let end = request.offset + u64::from(request.length);
        let mut found: Vec<(u64, bool)> = Vec::new();
        let mut offset = request.offset;
        while offset < end {
            let Extent { end: stop, is_hole } = match self.export.extent(offset..end).await {
                Ok(extent) => extent,
                Err(why) => return self.refuse(request, error::IO, &why).await,
            };
            let stop = bounded(stop, offset, end);
            let is_full = found.len() == if one { 1 } else { EXTENTS };
            match found.last_mut() {
                Some((length, hole)) if *hole == is_hole => *length += stop - offset,
                _ if is_full => break,
                _ => found.push((stop - offset, is_hole)),
            }
            offset = stop;
        }
        for (length, is_hole) in found {
            payload.extend_from_slice(&(length as u32).to_be_bytes());
            let state = if is_hole { wire::HOLE_AND_ZERO } else { 0 };
            payload.extend_from_slice(&state.to_be_bytes());
        }
        self.send(&wire::chunk_head(chunk::DONE, chunk::BLOCK_STATUS, request.cookie, &payload, 0), &[]).await
    }

    async fn done(&self, request: &Request) -> io::Result<()> {
        if self.agreed.structured {
            self.send(&wire::chunk_head(chunk::DONE, chunk::NONE, request.cookie, &[], 0), &[]).await
        } else {
            self.send(&wire::simple_reply(0, request.cookie), &[]).await
        }
    }

    async fn refuse(&self, request: &Request, error: u32, why: &str) -> io::Result<()> {
        if self.agreed.structured {
            self.send(&wire::error_chunk(request.cookie, error, why), &[]).await
        } else {
            self.send(&wire::simple_reply(error, request.cookie), &[]).await
        }
    }

    async fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.write_all(head).await?;
        writer.write_all(body).await?;
        writer.flush().await
    }

    /// Room for a reply that is put together.
    async fn room(&self, bytes: usize) -> io::Result<tokio::sync::SemaphorePermit<'_>> {
        let permits = bytes.min(self.room_bytes) as u32;
        self.room.acquire_many(permits).await.map_err(io::Error::other)
    }
}

/// An export that answers oddly must not keep a client going round in circles.
fn bounded(stop: u64, offset: u64, end: u64) -> u64 {
    if stop > offset { stop.min(end) } else { end }
}
