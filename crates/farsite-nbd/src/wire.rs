//! The numbers of the protocol, and the bytes of its messages. All integers are big-endian.

pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, of both sides.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

/// Options of a client.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const UNSUPPORTED: u32 = (1 << 31) | 1;
    pub(crate) const INVALID: u32 = (1 << 31) | 3;
    pub(crate) const UNKNOWN: u32 = (1 << 31) | 6;
    pub(crate) const TOO_BIG: u32 = (1 << 31) | 9;
}

/// Kinds of information in a reply to GO and INFO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// HAS_FLAGS, READ_ONLY, SEND_DF, CAN_MULTI_CONN: what never changes may be read over many connections.
pub(crate) const TRANSMISSION_FLAGS: u16 = 1 | 2 | (1 << 7) | (1 << 8);

/// Commands.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}
/// Flags of a command: the reply must not be in pieces; one extent is enough.
pub(crate) const DONT_FRAGMENT: u16 = 1 << 2;
pub(crate) const ONE_EXTENT: u16 = 1 << 3;

/// Structured replies.
pub(crate) mod chunk {
    pub(crate) const DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR: u16 = (1 << 15) | 1;
}

pub(crate) const ALLOCATION: &str = "base:allocation";
/// The context's number, of our choice.
pub(crate) const ALLOCATION_ID: u32 = 1;
/// HOLE and ZERO of `base:allocation`.
pub(crate) const HOLE_AND_ZERO: u32 = 3;

/// Errors that a client is told.
pub(crate) mod error {
    pub(crate) const NOT_PERMITTED: u32 = 1;
    pub(crate) const IO: u32 = 5;
    pub(crate) const INVALID: u32 = 22;
    pub(crate) const OVERFLOW: u32 = 75;
}

/// The longest read that is answered; the protocol's own default.
pub(crate) const READ_BYTES: u32 = 32 << 20;

/// One command as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub(crate) const BYTES: usize = 28;

    /// `None`: the stream is out of step.
    pub(crate) fn parse(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (command, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then_some(Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(*length),
        })
    }
}

pub(crate) fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&error.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a chunk, and the first bytes of what it carries; `more` bytes follow from elsewhere.
pub(crate) fn chunk_head(flags: u16, kind: u16, cookie: u64, start: &[u8], more: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + start.len());
    bytes.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&((start.len() + more) as u32).to_be_bytes());
    bytes.extend_from_slice(start);
    bytes
}

/// A last chunk that says what went wrong.
pub(crate) fn error_chunk(cookie: u64, error: u32, why: &str) -> Vec<u8> {
    // A client shows it to a person; the protocol allows 4096 bytes.
    let why: String = why.chars().take(500).collect();
    let mut payload = error.to_be_bytes().to_vec();
    payload.extend_from_slice(&(why.len() as u16).to_be_bytes());
    payload.extend_from_slice(why.as_bytes());
    chunk_head(chunk::DONE, chunk::ERROR, cookie, &payload, 0)
}

pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Takes integers and strings off the front of an option's data.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn u16(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*first))
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }
    /// A length and so many bytes.
    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}
