//! `service`: starts or stops a service by systemd or by commands, and waits until it is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use super::command::run_command;
use crate::action::{Action, ActionContext, ActionError, Done, Outcome, parameters};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// systemd unit; or `start`, `stop` and `status` as argument vectors.
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    start: Vec<String>,
    #[serde(default)]
    stop: Vec<String>,
    /// Ends with 0 when the service runs.
    #[serde(default)]
    status: Vec<String>,
    #[serde(default = "started")]
    state: State,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum State {
    Started,
    Stopped,
}
fn started() -> State {
    State::Started
}

impl With {
    fn commands(&self) -> [Vec<String>; 3] {
        if let Some(unit) = &self.unit {
            let systemctl = |verb: &str| vec!["systemctl".to_owned(), verb.to_owned(), unit.clone()];
            return [systemctl("start"), systemctl("stop"), systemctl("is-active")];
        }
        [self.start.clone(), self.stop.clone(), self.status.clone()]
    }
}

pub(crate) struct Service;

async fn bring(context: &ActionContext, with: &With, state: State) -> Result<Outcome, ActionError> {
    let [start, stop, status] = with.commands();
    let command = if state == State::Started { start } else { stop };
    if command.is_empty() {
        return Ok(Outcome::said("no command is configured: nothing to do"));
    }
    let tail = run_command(&command, &BTreeMap::new(), context).await?;
    if !tail.ok {
        return Err(ActionError::failed(format!("{}: {}", command.join(" "), tail.text)));
    }
    // Ready means: its own status says so.
    while !status.is_empty() {
        context.lease.check()?;
        if run_command(&status, &BTreeMap::new(), context).await?.ok == (state == State::Started) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(Outcome::said(if state == State::Started { "started" } else { "stopped" }))
}

#[async_trait]
impl Action for Service {
    fn name(&self) -> &'static str {
        "service"
    }
    fn summary(&self) -> &'static str {
        "starts or stops a service: `unit:` (systemd) or `start`, `stop`, `status` argument vectors; `state: started|stopped`"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let with: With = parameters(with)?;
        if with.unit.is_none() && with.start.is_empty() && with.stop.is_empty() {
            return Err("needs `unit`, or `start` and `stop`".into());
        }
        Ok(())
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_secs(90)
    }
    async fn check(&self, context: &ActionContext, with: &Value) -> Result<Done, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let [_, _, status] = with.commands();
        if status.is_empty() {
            return Ok(Done::Unknown);
        }
        let runs = run_command(&status, &BTreeMap::new(), context).await?.ok;
        Ok(if runs == (with.state == State::Started) {
            Done::Yes("its status says so".into())
        } else {
            Done::No
        })
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        bring(context, &with, with.state).await
    }
    async fn undo(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let back = if with.state == State::Started { State::Stopped } else { State::Started };
        bring(context, &with, back).await
    }
}
