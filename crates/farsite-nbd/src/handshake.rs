//! The talk before the first command: a fresh connection comes in; what was agreed goes out, or nothing when the client
//! only looked. What must hold: only this one export is ever entered; no option makes the server take much memory.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wire::{self, Fields, info, option, reply};
use crate::{Export, wire::option_reply};

/// No option that a client may send is longer.
const OPTION_BYTES: u32 = 16 << 10;
/// Nor are there more of them.
const OPTIONS: usize = 200;

/// What a client and this server agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub structured: bool,
    /// The client may ask for extents.
    pub allocation: bool,
}

/// `None`: the client left without entering the export.
pub(crate) async fn shake(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    export: &dyn Export,
) -> io::Result<Option<Agreed>> {
    stream.write_all(&wire::NBD_MAGIC.to_be_bytes()).await?;
    stream.write_all(&wire::OPTION_MAGIC.to_be_bytes()).await?;
    stream.write_all(&(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes()).await?;
    stream.flush().await?;
    let flags = stream.read_u32().await?;
    let no_zeroes = flags & u32::from(wire::NO_ZEROES) != 0;
    let mut agreed = Agreed::default();
    for _ in 0..OPTIONS {
        if stream.read_u64().await? != wire::OPTION_MAGIC {
            return Err(odd("what it sent is no option"));
        }
        let (option, length) = (stream.read_u32().await?, stream.read_u32().await?);
        if length > OPTION_BYTES {
            // Read past it, so that the client hears the refusal.
            let mut rest = (&mut *stream).take(u64::from(length));
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            answer(stream, option, reply::TOO_BIG, b"this option is too long").await?;
            continue;
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        match option {
            // The oldest way in: it has no way to say no but to hang up.
            option::EXPORT_NAME => {
                if !is_ours(&data, export) {
                    return Err(odd("it asked for an export that is not here"));
                }
                let mut entered = export.size_bytes().to_be_bytes().to_vec();
                entered.extend_from_slice(&wire::TRANSMISSION_FLAGS.to_be_bytes());
                if !no_zeroes {
                    entered.extend_from_slice(&[0; 124]);
                }
                stream.write_all(&entered).await?;
                stream.flush().await?;
                return Ok(Some(agreed));
            }
            option::ABORT => {
                // It may have hung up already.
                let _ = answer(stream, option, reply::ACK, &[]).await;
                return Ok(None);
            }
            option::LIST if data.is_empty() => {
                let name = export.name().as_bytes();
                let mut listed = (name.len() as u32).to_be_bytes().to_vec();
                listed.extend_from_slice(name);
                answer(stream, option, reply::SERVER, &listed).await?;
                answer(stream, option, reply::ACK, &[]).await?;
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                agreed.structured = true;
                answer(stream, option, reply::ACK, &[]).await?;
            }
            option::LIST | option::STRUCTURED_REPLY => {
                answer(stream, option, reply::INVALID, b"this option takes no data").await?;
            }
            option::INFO | option::GO => {
                if enter(stream, option, &data, export).await? && option == option::GO {
                    return Ok(Some(agreed));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                context(stream, option, &data, export, &mut agreed).await?;
            }
            _ => answer(stream, option, reply::UNSUPPORTED, b"this server does not know it").await?,
        }
    }
    Err(odd("it sends options without end"))
}

/// Answers GO and INFO. True when the export is this one.
async fn enter(
    stream: &mut (impl AsyncWriteExt + Unpin),
    option: u32,
    data: &[u8],
    export: &dyn Export,
) -> io::Result<bool> {
    let mut fields = Fields(data);
    let parsed = fields.text().and_then(|name| {
        let count = fields.u16()?;
        (fields.0.len() == usize::from(count) * 2).then_some(name)
    });
    let Some(name) = parsed else {
        answer(stream, option, reply::INVALID, b"its data makes no sense").await?;
        return Ok(false);
    };
    if !is_ours(name, export) {
        answer(stream, option, reply::UNKNOWN, b"there is no such export").await?;
        return Ok(false);
    }
    let mut about = info::EXPORT.to_be_bytes().to_vec();
    about.extend_from_slice(&export.size_bytes().to_be_bytes());
    about.extend_from_slice(&wire::TRANSMISSION_FLAGS.to_be_bytes());
    answer(stream, option, reply::INFO, &about).await?;
    let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, export.preferred_bytes(), wire::READ_BYTES] {
        sizes.extend_from_slice(&size.to_be_bytes());
    }
    answer(stream, option, reply::INFO, &sizes).await?;
    answer(stream, option, reply::ACK, &[]).await?;
    Ok(true)
}

/// Answers the two options about metadata contexts: there is one, `base:allocation`.
async fn context(
    stream: &mut (impl AsyncWriteExt + Unpin),
    option: u32,
    data: &[u8],
    export: &dyn Export,
    agreed: &mut Agreed,
) -> io::Result<()> {
    let sets = option == option::SET_META_CONTEXT;
    if sets {
        // The last one counts, whatever came before.
        agreed.allocation = false;
    }
    let mut fields = Fields(data);
    let parsed = fields.text().and_then(|name| {
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.text()?);
        }
        fields.0.is_empty().then_some((name, queries))
    });
    let Some((name, queries)) = parsed.filter(|_| agreed.structured) else {
        return answer(stream, option, reply::INVALID, b"it makes no sense here").await;
    };
    if !is_ours(name, export) {
        return answer(stream, option, reply::UNKNOWN, b"there is no such export").await;
    }
    let all = !sets && (queries.is_empty() || queries.contains(&b"base:".as_slice()));
    if all || queries.contains(&wire::ALLOCATION.as_bytes()) {
        agreed.allocation |= sets;
        let mut about = wire::ALLOCATION_ID.to_be_bytes().to_vec();
        about.extend_from_slice(wire::ALLOCATION.as_bytes());
        answer(stream, option, reply::META_CONTEXT, &about).await?;
    }
    answer(stream, option, reply::ACK, &[]).await
}

fn is_ours(name: &[u8], export: &dyn Export) -> bool {
    name.is_empty() || name == export.name().as_bytes()
}

async fn answer(
    stream: &mut (impl AsyncWriteExt + Unpin),
    option: u32,
    kind: u32,
    data: &[u8],
) -> io::Result<()> {
    stream.write_all(&option_reply(option, kind, data)).await?;
    stream.flush().await
}

fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
