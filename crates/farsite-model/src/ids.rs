//! Names and ids. Each is its own type, so that a group is never passed where a site is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct InvalidId {
    pub what: &'static str,
    pub text: String,
    pub why: &'static str,
}

/// Names that people choose: they become parts of object keys and file names, so their alphabet is small.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $type(String);

        impl $type {
            /// Accepts 1 to 64 characters out of `a-z A-Z 0-9 . _ -`, the first one a letter or digit.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                let invalid = |why| InvalidId { what: $what, text: text.clone(), why };
                if text.is_empty() || text.len() > 64 {
                    return Err(invalid("it must have 1 to 64 characters"));
                }
                if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
                    return Err(invalid("only letters, digits, '.', '_' and '-' are allowed"));
                }
                if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                    return Err(invalid("it must start with a letter or digit"));
                }
                Ok(Self(text))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// One cloud in one place.
    SiteName,
    "site name"
);
name!(
    /// What one policy protects together.
    GroupName,
    "group name"
);

/// Ids that Farsite draws at random: 64 bits, written as 16 lower-case hex digits, shortened like git's.
macro_rules! random_id {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(u64);

        impl $type {
            /// The caller supplies the randomness, so that a test can replay a run.
            pub fn from_random(bits: u64) -> Self {
                Self(bits)
            }
            /// The first eight digits: what tables show.
            pub fn short(&self) -> String {
                format!("{:08x}", self.0 >> 32)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = |why| InvalidId { what: $what, text: text.to_owned(), why };
                if text.len() != 16 {
                    return Err(invalid("it must have 16 hex digits"));
                }
                u64::from_str_radix(text, 16).map(Self).map_err(|_| invalid("it must be hex digits"))
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

random_id!(
    /// One recovery point (or a manifest that may become one).
    PointId,
    "point id"
);
random_id!(
    /// One replication run; it survives a restart of the agent while its pin lives.
    RunId,
    "run id"
);
random_id!(
    /// One promotion: failover, planned failover, failback or drill.
    PromotionId,
    "promotion id"
);

/// Grows by one whenever a group's primary changes; an agent of an older epoch can commit nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub const FIRST: Epoch = Epoch(1);
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One item of a group: `glance/<image id>`, `cinder/<volume id>`, `mariadb/main`, `files/keystone`, …
/// The part before the first slash is the kind of source, the rest is the source's own name for the item.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemId(String);

impl ItemId {
    pub fn new(kind: crate::ItemKind, name: &str) -> Self {
        Self(format!("{}/{name}", kind.as_str()))
    }
    pub fn parse(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The source's own name: everything after the first slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }
}
impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a short id finds among many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShortIdError {
    #[error("no {what} starts with {text:?}")]
    None { what: &'static str, text: String },
    #[error("{text:?} is the start of {count} {what}s ({examples}); type more of it")]
    Many { what: &'static str, text: String, count: usize, examples: String },
}

/// Finds the one id that starts with `text`.
pub fn find_short<'a, T: fmt::Display>(
    what: &'static str,
    text: &str,
    ids: impl IntoIterator<Item = &'a T>,
) -> Result<&'a T, ShortIdError> {
    let hits: Vec<&T> = ids.into_iter().filter(|id| id.to_string().starts_with(text)).collect();
    match hits.as_slice() {
        [] => Err(ShortIdError::None { what, text: text.to_owned() }),
        [one] => Ok(one),
        many => Err(ShortIdError::Many {
            what,
            text: text.to_owned(),
            count: many.len(),
            examples: many.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_refused() {
        assert!(SiteName::new("north/../south").is_err());
        assert!(SiteName::new("").is_err());
        assert!(SiteName::new("-x").is_err());
        assert_eq!(SiteName::new("north-1").unwrap().as_str(), "north-1");
    }

    #[test]
    fn a_short_id_is_accepted_where_it_is_unique() {
        let ids = [PointId::from_random(0xabcd_0000_0000_0001), PointId::from_random(0xabce_0000_0000_0001)];
        assert_eq!(find_short("point", "abcd", &ids).unwrap(), &ids[0]);
        assert!(matches!(find_short("point", "abc", &ids), Err(ShortIdError::Many { count: 2, .. })));
        assert!(matches!(find_short("point", "f", &ids), Err(ShortIdError::None { .. })));
    }

    #[test]
    fn ids_survive_their_text_form() {
        let id = PointId::from_random(7);
        assert_eq!(id.to_string().parse::<PointId>().unwrap(), id);
        assert_eq!(id.to_string().len(), 16);
    }
}
