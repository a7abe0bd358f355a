//! What an item is and what its capture may be called.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of items that a group can hold; the same words stand in policies, item ids and manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemKind {
    Mariadb,
    Sqlite,
    Glance,
    Cinder,
    Volume,
    Files,
}

impl ItemKind {
    pub const ALL: [ItemKind; 6] =
        [Self::Mariadb, Self::Sqlite, Self::Glance, Self::Cinder, Self::Volume, Self::Files];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mariadb => "mariadb",
            Self::Sqlite => "sqlite",
            Self::Glance => "glance",
            Self::Cinder => "cinder",
            Self::Volume => "volume",
            Self::Files => "files",
        }
    }
    pub fn is_database(self) -> bool {
        matches!(self, Self::Mariadb | Self::Sqlite)
    }
}
impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an item's capture may be called. Ordered: a policy that demands `crash` is content with `application`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Read while it was written: never called consistent.
    Fuzzy,
    /// One instant of its storage.
    Crash,
    /// Frozen by its own software.
    Application,
}
impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fuzzy => "fuzzy",
            Self::Crash => "crash",
            Self::Application => "application",
        })
    }
}
