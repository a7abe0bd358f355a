//! Who answers a gate when no terminal is there.

use std::collections::BTreeMap;

use async_trait::async_trait;
use farsite_model::GroupName;
use farsite_runbook::action::{ActionError, People};
use farsite_runbook::journal::JournalEntry;
use farsite_runbook::plan::Plan;
use jiff::Timestamp;

/// Nobody is here: the run ends waiting, and `farsite promotion confirm` answers.
pub struct Nobody;

#[async_trait]
impl People for Nobody {
    async fn answer(&self, _: &str, _: &str, _: &str) -> Result<Option<bool>, ActionError> {
        Ok(None)
    }
    fn waits(&self) -> bool {
        false
    }
}

/// A drill asks nobody: a gate's default is its answer, and a gate without one fails its step.
pub struct DrillAnswers(BTreeMap<String, Option<bool>>);

impl DrillAnswers {
    pub fn of(plan: &Plan) -> Self {
        Self(plan.steps.iter().filter_map(|s| Some((s.id.clone(), s.gate.as_ref()?.default))).collect())
    }
}

#[async_trait]
impl People for DrillAnswers {
    async fn answer(&self, step: &str, who: &str, _: &str) -> Result<Option<bool>, ActionError> {
        match self.0.get(step) {
            Some(Some(answer)) => Ok(Some(*answer)),
            _ => Err(ActionError::failed(format!(
                "its gate asks {who}, and a drill waits for nobody\n  hint: give the gate a `default`, or let the step run `real-only`"
            ))),
        }
    }
    fn waits(&self) -> bool {
        false
    }
}

/// Sees every journal entry of every group after it is durable: progress on a terminal, and the place where tests
/// kill a driver.
pub trait Watch: Send + Sync {
    fn journaled(&self, group: &GroupName, number: u64, entry: &JournalEntry);
    /// A step is another driver's until `deadline`.
    fn waits(&self, group: &GroupName, step: &str, driver: &str, deadline: Timestamp) {
        let _ = (group, step, driver, deadline);
    }
}

impl Watch for () {
    fn journaled(&self, _: &GroupName, _: u64, _: &JournalEntry) {}
}
