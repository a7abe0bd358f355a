//! What goes over the line: after eight bytes that say what this is, frames of a header in JSON and raw bytes behind it. A
//! frame is `header length (u32, little endian), body length (u32, little endian), header, body`.

use std::io::{self, Read};

use serde::Serialize;

/// The first bytes in both directions. What a login prints before them is found by it.
pub(super) const MAGIC: [u8; 8] = *b"FARSITE\n";
/// The longest frame, header and body.
const LONGEST: usize = 4 << 20;

pub(super) struct Frame {
    pub(super) header: Vec<u8>,
    pub(super) body: Vec<u8>,
}

/// A frame as it goes over the line.
pub(super) fn encode(header: &impl Serialize, body: &[u8]) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(header)?;
    if header.len() + body.len() > LONGEST {
        return Err(io::Error::other(format!(
            "a message of {} bytes is longer than {LONGEST}",
            header.len() + body.len()
        )));
    }
    let mut bytes = Vec::with_capacity(8 + header.len() + body.len());
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// The next frame; `None` at the end.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut lengths = [0; 8];
    let mut filled = 0;
    while filled < lengths.len() {
        match from.read(&mut lengths[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let [header, body] = [0, 4].map(|at| {
        let mut length = [0; 4];
        length.copy_from_slice(&lengths[at..at + 4]);
        u32::from_le_bytes(length) as usize
    });
    if header + body > LONGEST {
        return Err(io::Error::other(format!(
            "a message of {} bytes is longer than {LONGEST}",
            header + body
        )));
    }
    let mut frame = Frame { header: vec![0; header], body: vec![0; body] };
    from.read_exact(&mut frame.header)?;
    from.read_exact(&mut frame.body)?;
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = encode(&"first", b"body").unwrap();
        bytes.extend(encode(&"second", b"").unwrap());
        let mut from = bytes.as_slice();
        let first = read(&mut from).unwrap().unwrap();
        assert_eq!((first.header.as_slice(), first.body.as_slice()), (&b"\"first\""[..], &b"body"[..]));
        assert_eq!(read(&mut from).unwrap().unwrap().header, b"\"second\"");
        assert!(read(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_frame_that_is_cut_off_or_too_long_is_an_error() {
        let bytes = encode(&"first", b"body").unwrap();
        for length in 1..bytes.len() {
            assert!(read(&mut &bytes[..length]).is_err(), "{length}");
        }
        assert!(encode(&"x", &vec![0; LONGEST]).is_err());
        let mut long = bytes;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&mut long.as_slice()).is_err());
    }
}
