//! Where the age identity is that opens a store.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::secret::SecretRef;

/// A path, a reference to a secret, or a command that prints the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Identity {
    Secret(SecretRef),
    File(PathBuf),
    Command {
        /// The program and its arguments: a password manager, an agent for a hardware key.
        command: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandInFile {
    #[serde(deserialize_with = "crate::env::deserialize")]
    command: Vec<String>,
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrCommand;
        impl<'de> Visitor<'de> for PathOrCommand {
            type Value = Identity;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a path, a reference such as `credential:NAME`, or `{ command: [program, argument] }`",
                )
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Identity, E> {
                if text.to_uppercase().contains("AGE-SECRET-KEY") {
                    return Err(E::custom(
                        "an identity may not stand in this file; put it in a file of its own, name that, and change the identity",
                    ));
                }
                match text.parse() {
                    Ok(reference) => Ok(Identity::Secret(reference)),
                    Err(why) if text.starts_with("file:") || text.starts_with("credential:") => {
                        Err(E::custom(why))
                    }
                    Err(_) => Ok(Identity::File(crate::env::expand(text).map_err(E::custom)?.into())),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Identity, A::Error> {
                let CommandInFile { command } = CommandInFile::deserialize(MapAccessDeserializer::new(map))?;
                if command.first().is_none_or(String::is_empty) {
                    return Err(A::Error::custom("this command names no program"));
                }
                Ok(Identity::Command { command })
            }
        }
        deserializer.deserialize_any(PathOrCommand)
    }
}
