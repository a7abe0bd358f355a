//! Commands of the site's own around a capture and after a commit.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::quantity::Span;

/// A hook that has not ended by then is ended: a frozen file system must not stay frozen.
const DEFAULT_TIMEOUT: Span = Span::from_secs(60);

/// One command: `{ run: [program, argument…], timeout: 10s }`, or a text for `/bin/sh -c`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(with = "HookInFile")]
pub struct Hook {
    /// The program and its arguments, never empty.
    pub run: Vec<String>,
    pub timeout: Span,
}

/// Around the capture of a whole group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GroupHooks {
    /// Before the first item is frozen or read; when one fails nothing is captured.
    #[serde(default)]
    pub before_capture: Vec<Hook>,
    /// When every item is frozen or read, and always when a `before-capture` hook has run.
    #[serde(default)]
    pub after_capture: Vec<Hook>,
    /// When a recovery point has been committed.
    #[serde(default)]
    pub after_commit: Vec<Hook>,
}

/// Around the capture of one item.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ItemHooks {
    /// Before the item is frozen or read; when one fails the item is not captured.
    #[serde(default)]
    pub before_capture: Vec<Hook>,
    /// When it is frozen or read, and always when a `before-capture` hook has run.
    #[serde(default)]
    pub after_capture: Vec<Hook>,
}

impl ItemHooks {
    pub fn is_empty(&self) -> bool {
        self.before_capture.is_empty() && self.after_capture.is_empty()
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CommandInFile {
    /// The program and its arguments.
    #[serde(deserialize_with = "crate::env::deserialize")]
    run: Vec<String>,
    /// It is ended when it has not ended by then.
    #[serde(default = "default_timeout")]
    timeout: Span,
}

fn default_timeout() -> Span {
    DEFAULT_TIMEOUT
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "the shape for the JSON Schema; reading keeps the place of an error")]
enum HookInFile {
    Shell(String),
    Command(CommandInFile),
}

impl<'de> Deserialize<'de> for Hook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrCommand;
        impl<'de> Visitor<'de> for TextOrCommand {
            type Value = Hook;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a shell command, or `{ run: [program, argument], timeout: 10s }`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Hook, E> {
                if text.trim().is_empty() {
                    return Err(E::custom("this hook has no command"));
                }
                let text = crate::env::expand(text).map_err(E::custom)?;
                Ok(Hook { run: vec!["/bin/sh".into(), "-c".into(), text], timeout: DEFAULT_TIMEOUT })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Hook, A::Error> {
                let CommandInFile { run, timeout } =
                    CommandInFile::deserialize(MapAccessDeserializer::new(map))?;
                if run.first().is_none_or(String::is_empty) {
                    return Err(serde::de::Error::custom("this hook has no program in `run`"));
                }
                Ok(Hook { run, timeout })
            }
        }
        deserializer.deserialize_any(TextOrCommand)
    }
}
