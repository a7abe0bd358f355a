//! How a command ends when it does not end well: a message for a person, and an exit code that scripts can rely on.

use std::fmt;

use farsite_model::ids::ShortIdError;
use farsite_model::yaml::YamlError;
use farsite_openstack::AskError;
use farsite_promote::PromoteError;
use farsite_replicate::ReplicateError;
use farsite_store::StoreError;
use farsite_store::backend::BackendError;
use farsite_store::keys::KeyError;
use farsite_store::ledger::Refusal;

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const USAGE: u8 = 2;
/// Done, but a target was missed.
pub const TARGET_MISSED: u8 = 3;
/// Refused because unsafe.
pub const UNSAFE: u8 = 4;
pub const INTERRUPTED: u8 = 130;

/// Why a command stopped. The text may hold lines that begin with `  hint: `.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

impl Failure {
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into() }
    }
    pub fn refused(text: impl Into<String>) -> Self {
        Self { code: UNSAFE, text: text.into() }
    }
    pub fn interrupted(text: impl Into<String>) -> Self {
        Self { code: INTERRUPTED, text: text.into() }
    }
    /// For `map_err` around files: what was done, and why it did not work.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::failed(format!("{what}: {error}"))
    }
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.text.push_str("\n  hint: ");
        self.text.push_str(hint.as_ref());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<YamlError> for Failure {
    fn from(error: YamlError) -> Self {
        Self::usage(error.to_string())
    }
}
impl From<ShortIdError> for Failure {
    fn from(error: ShortIdError) -> Self {
        Self::usage(error.to_string())
    }
}
impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::usage(error.to_string())
    }
}
impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::failed(error.to_string())
    }
}
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Race(_) | StoreError::AlreadyInitialised { .. } | StoreError::WrongStore { .. } => {
                UNSAFE
            }
            StoreError::Refused(refusal) => match refusal {
                Refusal::UnknownPoint { .. } => USAGE,
                Refusal::PinReleased { .. } | Refusal::Other(_) => FAILED,
                Refusal::Fenced { .. }
                | Refusal::PromotionOpen { .. }
                | Refusal::Role { .. }
                | Refusal::Incomplete { .. }
                | Refusal::KeysDamaged(_)
                | Refusal::Unsafe(_)
                | Refusal::Damaged { .. } => UNSAFE,
            },
            StoreError::Key(_) | StoreError::NotInitialised { .. } | StoreError::UnknownVersion { .. } => {
                USAGE
            }
            StoreError::Cancelled => INTERRUPTED,
            _ => FAILED,
        };
        let text = match &error {
            StoreError::Cancelled => "interrupted; what is complete counts when it is run again".to_owned(),
            other => other.to_string(),
        };
        Self { code, text }
    }
}
impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Clouds(_) | AskError::NoCloud { .. } | AskError::Certificates { .. } => {
                Self::usage(error.to_string())
            }
            other => Self::failed(other.to_string()),
        }
    }
}
impl From<ReplicateError> for Failure {
    fn from(error: ReplicateError) -> Self {
        match error {
            ReplicateError::Store(error) => error.into(),
            ReplicateError::Config(error) => error.into(),
            ReplicateError::Setup(text) => Self::usage(text),
            error @ ReplicateError::FencedAt { .. } => Self { code: UNSAFE, text: error.to_string() },
            other => Self::failed(other.to_string()),
        }
    }
}
impl From<PromoteError> for Failure {
    fn from(error: PromoteError) -> Self {
        match error {
            PromoteError::Store(error) => error.into(),
            PromoteError::Setup(error) => error.into(),
            other => Self { code: other.exit_code(), text: other.to_string() },
        }
    }
}
