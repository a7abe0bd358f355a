//! Another host of this site, and how a process that reads what is local to it is started there.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::Span;

const DEFAULT_PATIENCE: Span = Span::from_secs(30);
/// Four signs of life fit into it, on a busy machine as well.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// Another host of this site.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// The program and its arguments that start `farsite serve-sources` there with its standard input and output:
    /// `[ssh, -T, -o, BatchMode=yes, farsite@stor1, farsite, serve-sources]`. Never a password: arguments can be seen by everybody
    /// on the host.
    #[serde(deserialize_with = "crate::env::deserialize")]
    pub command: Vec<String>,
    /// How long it may say nothing before it is given up; 30s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Span>,
}

impl Host {
    pub fn patience(&self) -> Duration {
        self.patience.unwrap_or(DEFAULT_PATIENCE).duration()
    }

    /// What is wrong with it, and what to do.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err((
                "no command starts anything there",
                "such as `command: [ssh, -T, -o, BatchMode=yes, farsite@stor1, farsite, serve-sources]`",
            ));
        }
        if self.patience() < LEAST_PATIENCE {
            return Err(("it is given up too early", "give it a `patience:` of a second or more"));
        }
        Ok(())
    }
}
