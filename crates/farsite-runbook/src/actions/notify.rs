//! `notify`: tells somebody, by webhook or by a command. A notification that does not get through is recorded and
//! never stops a promotion.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use super::command::run_command;
use super::http_check::request;
use crate::action::{Action, ActionContext, ActionError, Outcome, parameters};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    message: String,
    /// `http://…`: the message is POSTed as `{"text": …}`.
    #[serde(default)]
    webhook: Option<String>,
    /// Gets the message as its last argument.
    #[serde(default)]
    run: Vec<String>,
}

pub(crate) struct Notify;

#[async_trait]
impl Action for Notify {
    fn name(&self) -> &'static str {
        "notify"
    }
    fn summary(&self) -> &'static str {
        "sends `message` to a `webhook` or to a command (`run`); never stops the run"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_secs(15)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let mut said = Vec::new();
        if let Some(url) = with.webhook.as_ref().filter(|url| !url.is_empty()) {
            let body = serde_json::json!({ "text": with.message }).to_string();
            said.push(match request("POST", url, &body).await {
                Ok((status, _)) if status < 300 => "the webhook took it".to_owned(),
                Ok((status, _)) => format!("NOT delivered: the webhook answered {status}"),
                Err(error) => format!("NOT delivered: {error}"),
            });
        }
        if !with.run.is_empty() {
            let mut argv = with.run.clone();
            argv.push(with.message.clone());
            said.push(match run_command(&argv, &BTreeMap::new(), context).await {
                Ok(tail) if tail.ok => "the command took it".into(),
                Ok(tail) => format!("NOT delivered: {}", tail.text),
                Err(ActionError::Cancelled) => return Err(ActionError::Cancelled),
                Err(error) => format!("NOT delivered: {error}"),
            });
        }
        if said.is_empty() {
            said.push("nobody is configured to be told".into());
        }
        Ok(Outcome::said(said.join("; ")).with("message", with.message))
    }
}
