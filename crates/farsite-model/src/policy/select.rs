//! Which of Cinder's volumes an entry means.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which volumes are meant: those for which everything that is given holds. `metadata`, `names`, `project` and `volume-type`
/// are answered by Cinder's API, at the site's `cloud:`; when it cannot be asked, the run fails for the entry and captures
/// nothing less.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Select {
    /// Metadata that a volume must have.
    #[serde(
        default,
        deserialize_with = "crate::env::deserialize",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub metadata: BTreeMap<String, String>,
    /// Ids, of which a volume must have one.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Names that users gave, of which a volume must have one; `*` stands for any characters.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Names of files or of a pool's images, of which a volume must have one; `*` stands for any characters.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// The project that a volume must be of: its name or id.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The volume type that a volume must have.
    #[serde(default, deserialize_with = "crate::env::deserialize", skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<String>,
}

impl Select {
    /// Whether the names of files cannot answer it.
    pub fn asks_cloud(&self) -> bool {
        !self.metadata.is_empty()
            || !self.names.is_empty()
            || self.project.is_some()
            || self.volume_type.is_some()
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters.
pub fn is_like(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            name.char_indices().map(|(at, _)| &name[at..]).chain([""]).any(|end| is_like(rest, end))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, fits) in [
            ("vol*-a*", "volume-a.qcow2", true),
            ("vol*-a*", "volume-b", false),
            ("volume", "volume-b", false),
            ("*", "", true),
            ("*ü", "über-ü", true),
        ] {
            assert_eq!(is_like(pattern, name), fits, "{pattern} {name}");
        }
    }
}
