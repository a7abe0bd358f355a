//! `tcp-check`: waits until a port accepts connections.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

use super::silence;
use crate::action::{Action, ActionContext, ActionError, Outcome, parameters};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// `host:port`
    address: String,
}

pub(crate) struct TcpCheck;

const ANSWER: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(250);

#[async_trait]
impl Action for TcpCheck {
    fn name(&self) -> &'static str {
        "tcp-check"
    }
    fn summary(&self) -> &'static str {
        "waits until `address: host:port` accepts connections"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let with: With = parameters(with)?;
        if with.address.contains(':') { Ok(()) } else { Err("`address` needs a port: host:port".into()) }
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(1)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let give_up = tokio::time::Instant::now() + context.timeout.mul_f32(0.9);
        let mut before = None;
        loop {
            let patience = give_up.saturating_duration_since(tokio::time::Instant::now()).min(ANSWER);
            let why = match tokio::time::timeout(patience, TcpStream::connect(&with.address)).await {
                Ok(Ok(_)) => return Ok(Outcome::said(format!("{} accepts connections", with.address))),
                Ok(Err(error)) => error.to_string(),
                Err(_) => silence(patience, ANSWER, before),
            };
            if tokio::time::Instant::now() + PAUSE >= give_up {
                return Err(ActionError::failed(format!("{}: {why}", with.address)));
            }
            before = Some(why);
            tokio::time::sleep(PAUSE).await;
        }
    }
}
