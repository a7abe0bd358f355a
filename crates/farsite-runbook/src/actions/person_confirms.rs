//! `person-confirms`: what is not IT. The step's `gate` names the person and asks; this action records that they
//! said yes.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::action::{Action, ActionContext, ActionError, Outcome};

pub(crate) struct PersonConfirms;

#[async_trait]
impl Action for PersonConfirms {
    fn name(&self) -> &'static str {
        "person-confirms"
    }
    fn summary(&self) -> &'static str {
        "records a person's confirmation; who, prompt and time limit stand in the step's `gate`"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        match with.as_object() {
            Some(map) if map.is_empty() => Ok(()),
            _ => Err("takes no parameters; use the step's `gate`".into()),
        }
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }
    async fn run(&self, _: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        Ok(Outcome::said("confirmed"))
    }
}
