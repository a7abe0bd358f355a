//! Signed objects: one header line, then the body.
//!
//! `farsite/1 <kind> <key id> <signature>\n<body>`. The signature covers version, kind, store id, object key and
//! body, so an object cannot be moved to another name or another store.

use bytes::Bytes;

use crate::format::Format;
use crate::hex::{self, Hex};
use crate::keys::{self, KeyId, KeyRole, Signer};

/// What a signed object is; the word stands in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ContentKey,
    Manifest,
    LogSegment,
    Ledger,
    Journal,
    Amendment,
    Wrap,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContentKey => "content-key",
            Self::Manifest => "manifest",
            Self::LogSegment => "log-segment",
            Self::Ledger => "ledger",
            Self::Journal => "journal",
            Self::Amendment => "amendment",
            Self::Wrap => "wrap",
        }
    }
}

/// Why a signed object is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("its header is damaged")]
    Header,
    #[error("it says it is a {found}, a {expected} belongs here")]
    WrongKind { found: String, expected: &'static str },
    #[error("key {0} is not listed in the store's format object")]
    UnknownKey(KeyId),
    #[error("its signature by key {0} does not match: damaged or forged")]
    Mismatch(KeyId),
}

fn message(kind: Kind, store: &Hex<16>, key: &str, body: &[u8]) -> Vec<u8> {
    let mut message = format!("farsite/1 {} {store} {key}\n", kind.as_str()).into_bytes();
    message.extend_from_slice(body);
    message
}

/// Signs `body` for the object named `key`.
pub fn seal(signer: &Signer, kind: Kind, store: &Hex<16>, key: &str, body: &[u8]) -> Bytes {
    let signature = signer.sign(&message(kind, store, key, body));
    let mut object =
        format!("farsite/1 {} {} {}\n", kind.as_str(), signer.key_id(), hex::encode(&signature)).into_bytes();
    object.extend_from_slice(body);
    object.into()
}

/// The body, and who signed it.
pub fn open<'f>(
    format: &'f Format,
    kind: Kind,
    key: &str,
    object: &Bytes,
) -> Result<(Bytes, &'f KeyRole), SignatureError> {
    // The header has a fixed upper length; a damaged object must not be searched to its end.
    let line_end = object.iter().take(256).position(|b| *b == b'\n').ok_or(SignatureError::Header)?;
    let header = std::str::from_utf8(&object[..line_end]).map_err(|_| SignatureError::Header)?;
    let words: Vec<&str> = header.split(' ').collect();
    let ["farsite/1", found, key_id, signature] = words[..] else { return Err(SignatureError::Header) };
    if found != kind.as_str() {
        return Err(SignatureError::WrongKind { found: found.to_owned(), expected: kind.as_str() });
    }
    let key_id: KeyId = key_id.parse().map_err(|_| SignatureError::Header)?;
    let signature = hex::decode(signature).ok_or(SignatureError::Header)?;
    let body = object.slice(line_end + 1..);
    let role = format.key(&key_id).ok_or(SignatureError::UnknownKey(key_id))?;
    if !keys::verify(&role.key, &message(kind, &format.store, key, &body), &signature) {
        return Err(SignatureError::Mismatch(key_id));
    }
    Ok((body, role))
}
