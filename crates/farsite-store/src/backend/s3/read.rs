//! Objects and ranges of them, read to their last byte or not at all. A connection that is cut is no damage: what is still
//! missing is asked for again, a few times, with pauses; a body that does not match the checksum that the server keeps is
//! read again from its start, and then said. A long range is read in several requests at once.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use farsite_model::StoreTime;
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, timeout_at};

use super::S3;
use super::answer::stamp;
use super::client::limits;
use super::failure::chain;
use crate::backend::{BackendError, Object};
use crate::hex::Hex;

const READING: &str = "reading";
/// How often a body that was cut in the middle is asked for again; the SDK retries only what fails before it.
const BODY_ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Memory that is taken for a body on the word of its `Content-Length`; more grows as it arrives.
const RESERVE_BYTES: u64 = 64 << 20;

/// What the first answer said of the object: a later one must say the same.
#[derive(PartialEq, Eq)]
struct Version {
    written: StoreTime,
    etag: Option<String>,
}

/// What is there so far of one read.
struct Partial {
    key: String,
    range: Option<Range<u64>>,
    bytes: BytesMut,
    version: Option<Version>,
    /// How many bytes the whole answer has, as far as it is known.
    expected: Option<u64>,
}

enum Ended {
    Whole,
    Cut(String),
    /// The bytes are not those that the server's checksum was made of.
    Wrong(String),
}

impl S3 {
    pub(super) async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BackendError> {
        let mut partial =
            Partial { key: key.to_owned(), range, bytes: BytesMut::new(), version: None, expected: None };
        let mut why = String::new();
        let mut wrong = false;
        for attempt in 0..BODY_ATTEMPTS {
            // Wrong bytes are no sign of a crowd: read again at once.
            if attempt > 0 && !wrong {
                // Full jitter: many readers that were cut at once must not come back at once.
                sleep((FIRST_PAUSE * 2u32.pow(attempt)).mul_f64(fraction())).await;
            }
            match self.go_on(&mut partial).await? {
                Ended::Whole => {
                    let version = partial.version.take().expect("an answer that ended whole has begun");
                    return Ok(Object { bytes: partial.bytes.freeze(), written: version.written });
                }
                Ended::Cut(said) => (why, wrong) = (said, false),
                // Once may have been the way; twice is what lies there.
                Ended::Wrong(said) if wrong => {
                    why = said;
                    break;
                }
                Ended::Wrong(said) => {
                    (why, wrong) = (said, true);
                    partial.bytes.clear();
                }
            }
        }
        let (store, key) = (self.description(), key.to_owned());
        Err(if wrong {
            BackendError::Unreadable { store, key, why }
        } else {
            BackendError::Uncertain { store, operation: READING, key, why }
        })
    }

    /// Exactly `range`, in several requests at once where it is long. Objects never change, so that the pieces fit.
    pub(super) async fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        let part = self.settings.part_bytes as u64;
        if range.end - range.start <= 2 * part {
            return self.exactly(key, range).await;
        }
        let pieces = (range.start..range.end).step_by(self.settings.part_bytes).map(|start| {
            let piece = start..range.end.min(start + part);
            async move {
                let _turn = self.turn().await;
                self.exactly(key, piece).await
            }
        });
        let pieces = try_join_all(pieces).await?;
        let mut whole = BytesMut::with_capacity((range.end - range.start) as usize);
        for piece in pieces {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    async fn exactly(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        let bytes = self.read(key, Some(range.clone())).await?.bytes;
        if bytes.len() as u64 != range.end - range.start {
            return Err(BackendError::Unreadable {
                store: self.description(),
                key: key.to_owned(),
                why: format!(
                    "asked for bytes {}..{} and got {}: the object is truncated",
                    range.start,
                    range.end,
                    bytes.len()
                ),
            });
        }
        Ok(bytes)
    }

    /// One request for what is missing.
    async fn go_on(&self, partial: &mut Partial) -> Result<Ended, BackendError> {
        let key = partial.key.as_str();
        let answer = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .set_range(partial.header())
            .send()
            .await
            .map_err(|e| self.error(READING, key, e))?;
        // A time that was made up would make a commit or an epoch look old, and an RPO better than the truth.
        let written =
            stamp(answer.last_modified()).ok_or_else(|| self.unsaid(READING, key, "when it was written"))?;
        let version = Version { written, etag: answer.e_tag().map(str::to_owned) };
        match &partial.version {
            Some(first) if *first != version => {
                return Err(BackendError::Unreadable {
                    store: self.description(),
                    key: key.to_owned(),
                    why: "it was replaced while it was read, and nothing in a store may be".into(),
                });
            }
            _ => partial.version = Some(version),
        }
        let length = answer.content_length().and_then(|length| u64::try_from(length).ok());
        partial.meet(&answer, length).map_err(|what| self.unsaid(READING, &partial.key, what))?;
        let bytes = length.unwrap_or(0);
        partial.bytes.reserve(bytes.min(RESERVE_BYTES) as usize);
        let limit = limits(&self.settings, bytes as usize).operation_attempt_timeout();
        let until = Instant::now() + limit.unwrap_or(Duration::from_mins(1));
        let mut body = answer.body;
        loop {
            match timeout_at(until, body.next()).await {
                Ok(Some(Ok(chunk))) => partial.bytes.extend_from_slice(&chunk),
                Ok(Some(Err(error))) => {
                    let why = chain(&error);
                    return Ok(if why.contains("checksum mismatch") {
                        Ended::Wrong(format!(
                            "its bytes are not those of the checksum that the server keeps: {why}"
                        ))
                    } else {
                        Ended::Cut(format!("the connection was cut: {why}"))
                    });
                }
                Ok(None) if partial.expected.is_some_and(|all| (partial.bytes.len() as u64) < all) => {
                    return Ok(Ended::Cut("the answer ended early".into()));
                }
                Ok(None) => return Ok(Ended::Whole),
                Err(_) => return Ok(Ended::Cut("the answer took too long".into())),
            }
        }
    }
}

impl Partial {
    /// `Range`, or nothing for a whole object.
    fn header(&self) -> Option<String> {
        let got = self.bytes.len() as u64;
        match &self.range {
            Some(range) => Some(format!("bytes={}-{}", range.start + got, range.end - 1)),
            None if got > 0 => Some(format!("bytes={got}-")),
            None => None,
        }
    }

    /// Compares where the answer begins with what is missing. A server that sends the whole object all the same is taken
    /// at its word when that was the wish.
    fn meet(&mut self, answer: &GetObjectOutput, length: Option<u64>) -> Result<(), &'static str> {
        let begins = answer
            .content_range()
            .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
        let start = self.range.as_ref().map_or(0, |range| range.start);
        match begins {
            Some(at) if at == start + self.bytes.len() as u64 => {}
            None if self.range.is_none() => self.bytes.clear(),
            _ => return Err("the bytes that were asked for"),
        }
        if let Some(length) = length {
            // An object that ends within the range answers less: the caller says so.
            self.expected = Some(self.bytes.len() as u64 + length);
        }
        Ok(())
    }
}

/// Between 0 and 1.
fn fraction() -> f64 {
    f64::from(u32::from_le_bytes(Hex::<4>::random().0)) / f64::from(u32::MAX)
}
