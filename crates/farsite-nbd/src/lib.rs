//! A read-only NBD server: an [`Export`] and a listener come in, any number of NBD clients (`qemu-img`, `qemu-nbd`,
//! `nbdcopy`, the kernel) read it. Fixed newstyle handshake, structured replies and the `base:allocation` context, as in
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Beside it a [`Client`] of the same protocol, for sources
//! that read what another server (`qemu-nbd`, a running QEMU) gives.
//!
//! What must hold: nothing can be written; no byte is sent that the export did not give; memory is bounded by
//! [`Limits`] whatever clients ask for; a client that says nothing or nonsense harms nobody but itself.

mod client;
mod handshake;
mod server;
mod transmission;
mod wire;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

pub use client::{Client, Stretch};
pub use server::{Address, Server};

/// What is served.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// Under this name, and under the empty one.
    fn name(&self) -> &str;
    fn size_bytes(&self) -> u64;
    /// Reads of this size and alignment cost least: a power of two from 512 bytes on.
    fn preferred_bytes(&self) -> u32;
    /// Exactly the bytes of `range`, which lies within the export. The error is what a client hears as EIO.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, String>;
    /// The first stretch of `range`, which is not empty: where it ends, and whether it is a hole. Stretches that follow one
    /// another may be alike.
    async fn extent(&self, range: Range<u64>) -> Result<Extent, String>;
}

/// One stretch of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub end: u64,
    /// Reads as zeros, and takes no space.
    pub is_hole: bool,
}

/// Limits of one server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients served at once; more are turned away.
    pub clients: usize,
    /// Bytes of replies that are being put together at once, over all clients.
    pub reply_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 32, reply_bytes: 32 << 20 }
    }
}
