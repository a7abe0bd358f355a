//! What a store's URL may say about its S3 server beyond its address: `?checksums=…&lock=30d&multipart=off`. Text comes
//! in, checked settings go out; what is not known is refused, so that a mistyped lock is never a lock that is missing.

use std::time::Duration;

use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode};
use farsite_model::quantity::Span;

/// Which checksum travels with every object, beside the SHA-256 that the request's signature always covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums {
    /// Known to every server that knows any; those that know none ignore the header.
    #[default]
    Crc32,
    Crc64Nvme,
    Sha256,
    /// None but where the protocol demands one: for servers that refuse the header.
    WhenRequired,
}

impl Checksums {
    pub(super) fn algorithm(self) -> Option<ChecksumAlgorithm> {
        match self {
            Self::Crc32 => Some(ChecksumAlgorithm::Crc32),
            Self::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Self::Sha256 => Some(ChecksumAlgorithm::Sha256),
            Self::WhenRequired => None,
        }
    }
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "crc32" => Self::Crc32,
            "crc64nvme" => Self::Crc64Nvme,
            "sha256" => Self::Sha256,
            "when-required" => Self::WhenRequired,
            _ => return None,
        })
    }
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Crc32 => {
                "a CRC32 with every object, kept by the server and compared when whole objects are read"
            }
            Self::Crc64Nvme => {
                "a CRC64NVME with every object, kept by the server and compared when whole objects are read"
            }
            Self::Sha256 => {
                "a SHA-256 with every object, kept by the server and compared when whole objects are read"
            }
            Self::WhenRequired => {
                "only in the request's signature (checksums=when-required); every byte read is authenticated all the same"
            }
        }
    }
}

/// Retention that is set on every object when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub span: Duration,
    /// Nobody can shorten it, the bucket's owner included.
    pub compliance: bool,
}

impl Lock {
    pub(super) fn mode(self) -> ObjectLockMode {
        if self.compliance { ObjectLockMode::Compliance } else { ObjectLockMode::Governance }
    }
    pub fn in_words(self) -> String {
        let mode = if self.compliance { "compliance" } else { "governance" };
        format!("{} in {mode} mode", Span::from_secs(self.span.as_secs()))
    }
}

/// Smallest part that S3 takes, but for an upload's last.
const SMALLEST_PART_BYTES: usize = 5 << 20;

#[derive(Debug, Clone)]
pub struct Settings {
    pub checksums: Checksums,
    pub lock: Option<Lock>,
    /// Large packs go up in parts where the server honours `If-None-Match` on their completion.
    pub multipart: bool,
    /// Size of a part, and of one of several requests for a long range.
    pub part_bytes: usize,
    /// How long one attempt waits for an answer to a small request.
    pub answer_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            checksums: Checksums::default(),
            lock: None,
            multipart: true,
            part_bytes: 8 << 20,
            answer_timeout: Duration::from_mins(1),
        }
    }
}

/// What [`Settings::set`] knows, for messages.
pub const NAMES: [&str; 6] = ["checksums", "lock", "lock-mode", "multipart", "part-size", "answer-timeout"];

impl Settings {
    /// Takes one `key=value` of a URL: `Ok(false)` when it is not one of these, `Err` says what is wrong with it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "checksums" => {
                self.checksums = Checksums::parse(value).ok_or_else(|| {
                    format!("checksums={value}: one of crc32, crc64nvme, sha256, when-required is meant")
                })?;
            }
            "lock" => {
                let span = span(key, value)?;
                if span < Duration::from_hours(24) {
                    return Err(format!("lock={value}: at least 1d, or nothing is gained by it"));
                }
                let compliance = self.lock.is_some_and(|lock| lock.compliance);
                self.lock = Some(Lock { span, compliance });
            }
            "lock-mode" => {
                let compliance = match value {
                    "governance" => false,
                    "compliance" => true,
                    _ => return Err(format!("lock-mode={value}: governance or compliance is meant")),
                };
                let Some(lock) = &mut self.lock else {
                    return Err("lock-mode stands after lock=…, as in ?lock=30d&lock-mode=compliance".into());
                };
                lock.compliance = compliance;
            }
            "multipart" => {
                self.multipart = match value {
                    "auto" => true,
                    "off" => false,
                    _ => return Err(format!("multipart={value}: auto or off is meant")),
                };
            }
            "part-size" => {
                let size: farsite_model::quantity::ByteSize =
                    value.parse().map_err(|error| format!("part-size={value}: {error}"))?;
                self.part_bytes = usize::try_from(size.0)
                    .ok()
                    .filter(|bytes| (SMALLEST_PART_BYTES..=1 << 30).contains(bytes))
                    .ok_or_else(|| format!("part-size={value}: between 5MiB and 1GiB is possible"))?;
            }
            "answer-timeout" => {
                let timeout = span(key, value)?;
                // An upload lives for a few of these, and never for a day: what is older was left behind.
                if !(Duration::from_secs(1)..=Duration::from_hours(1)).contains(&timeout) {
                    return Err(format!("answer-timeout={value}: between 1s and 1h is possible"));
                }
                self.answer_timeout = timeout;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// How long one attempt to move so many bytes may take: what a link of 256 kbit/s needs, beyond the usual limit. A
    /// link on which nothing moves any more is noticed much earlier, by the SDK's own watch over the stream.
    pub(super) fn attempt_limit(&self, bytes: usize) -> Duration {
        self.answer_timeout + Duration::from_secs(bytes as u64 / (32 << 10))
    }

    /// How long all attempts and the pauses between them may take.
    pub(super) fn operation_limit(&self, bytes: usize) -> Duration {
        self.attempt_limit(bytes) * 2 + Duration::from_mins(1)
    }
}

fn span(key: &str, value: &str) -> Result<Duration, String> {
    value.parse::<Span>().map(Span::duration).map_err(|error| format!("{key}={value}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_mistyped_is_never_no_lock() {
        let mut settings = Settings::default();
        assert!(settings.set("lock", "30").is_err() && settings.set("lock", "1h").is_err());
        assert!(settings.set("lock-mode", "compliance").is_err(), "nothing to set it on yet");
        assert!(settings.set("lock", "30d").unwrap() && settings.set("lock-mode", "compliance").unwrap());
        let lock = settings.lock.unwrap();
        assert!(lock.compliance && lock.span == Duration::from_hours(30 * 24));
        assert_eq!(lock.in_words(), "30d in compliance mode");
        assert!(settings.set("lock-mode", "strict").is_err());
    }

    #[test]
    fn what_is_not_known_is_left_to_the_caller_and_what_is_wrong_is_said() {
        let mut settings = Settings::default();
        assert!(!settings.set("locks", "30d").unwrap());
        assert!(settings.set("checksums", "md5").unwrap_err().contains("when-required"));
        assert!(settings.set("part-size", "1MiB").unwrap_err().contains("5MiB"));
    }

    #[test]
    fn a_pack_may_take_as_long_as_a_slow_link_needs() {
        let settings = Settings::default();
        assert_eq!(settings.attempt_limit(1000), settings.answer_timeout);
        assert!(settings.attempt_limit(32 << 20) > Duration::from_secs(1000));
        assert!(settings.operation_limit(32 << 20) < Duration::from_hours(1));
    }
}
