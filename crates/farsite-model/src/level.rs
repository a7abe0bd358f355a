//! DR levels and promotion modes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much is promoted; each level includes the one before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Data,
    Application,
    Business,
}
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Data => "data",
            Self::Application => "application",
            Self::Business => "business",
        })
    }
}

/// Why a runbook runs. Declared by whoever starts it, never inferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Failover,
    Planned,
    Failback,
    Drill,
}
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Failover => "failover",
            Self::Planned => "planned",
            Self::Failback => "failback",
            Self::Drill => "drill",
        })
    }
}
