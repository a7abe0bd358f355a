//! `wait`: lets time pass.

use std::time::Duration;

use async_trait::async_trait;
use farsite_model::quantity::Span;
use serde::Deserialize;
use serde_json::Value;

use crate::action::{Action, ActionContext, ActionError, Outcome, parameters};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct With {
    r#for: Span,
}

pub(crate) struct Wait;

#[async_trait]
impl Action for Wait {
    fn name(&self) -> &'static str {
        "wait"
    }
    fn summary(&self) -> &'static str {
        "lets `for:` pass"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_hours(1)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        tokio::select! {
            () = tokio::time::sleep(with.r#for.duration()) => Ok(Outcome::said(format!("waited {}", with.r#for))),
            () = context.cancel.cancelled() => Err(ActionError::Cancelled),
        }
    }
}
