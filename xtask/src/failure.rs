//! Why a command stopped, for the person who typed it: what failed, and what to do next.

use std::fmt;

/// Shown on stderr as `error: WHAT` and `hint: NEXT`; a usage error is followed by the usage instead.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Failed { what: String, next: String },
    /// Exit code 2, as for the `farsite` command itself.
    Usage { what: String, usage: &'static str },
}

impl Failure {
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), next: next.into() }
    }

    pub fn usage(what: String, usage: &'static str) -> Self {
        Self::Usage { what, usage }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::Usage { .. } => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { what, next } => writeln!(f, "error: {what}\nhint: {next}"),
            Self::Usage { what, usage } => write!(f, "error: {what}\n\n{usage}"),
        }
    }
}
