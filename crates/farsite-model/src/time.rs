//! Times of two clocks, as two types: the source's and the store's. They are compared only through a measured
//! [`crate::rpo::ClockSkew`].

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Source time, read before the first byte of an item was frozen or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaptureTime(pub Timestamp);

/// A time of the replica store's clock (the `Date` of its answers; for a folder the file system's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreTime(pub Timestamp);

impl StoreTime {
    /// Elapsed time since `earlier`, zero when `earlier` lies ahead.
    pub fn since(self, earlier: StoreTime) -> SignedDuration {
        self.0.duration_since(earlier.0).max(SignedDuration::ZERO)
    }
}
impl fmt::Display for CaptureTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}
impl fmt::Display for StoreTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// Why a text is not a moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write ISO 8601 (2026-11-24T03:00:00Z) or an age such as `2h ago`")]
pub struct InvalidMoment(pub String);

/// Reads ISO 8601 (with offset or `Z`) or an age: `90s ago`, `2h ago`, `1d ago`.
pub fn parse_moment(text: &str, now: Timestamp) -> Result<Timestamp, InvalidMoment> {
    let invalid = || InvalidMoment(text.to_owned());
    let text = text.trim();
    if text == "now" {
        return Ok(now);
    }
    if let Some(age) = text.strip_suffix("ago") {
        let age: crate::quantity::Span = age.trim().parse().map_err(|_| invalid())?;
        return now.checked_sub(age.to_signed()).map_err(|_| invalid());
    }
    text.parse::<Timestamp>().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_iso_8601_or_ages() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        assert_eq!(parse_moment("2h ago", now).unwrap(), "2026-11-24T10:00:00Z".parse().unwrap());
        assert_eq!(
            parse_moment("2026-11-24T11:00:00+01:00", now).unwrap(),
            "2026-11-24T10:00:00Z".parse().unwrap()
        );
        assert!(parse_moment("yesterday-ish", now).is_err());
    }
}
