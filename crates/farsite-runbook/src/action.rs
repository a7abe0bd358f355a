//! What a step can do: one trait, one file for each action.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farsite_model::{Level, Mode};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// What an action leaves for the report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One line for people.
    pub detail: String,
    pub evidence: BTreeMap<String, String>,
}

impl Outcome {
    pub fn said(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), evidence: BTreeMap::new() }
    }
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.evidence.insert(key.to_owned(), value.to_string());
        self
    }
}

/// What a dry run found of a step that nothing stands in the way of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// One line for people.
    pub says: String,
    /// What could not be looked at, and what a person should know: never to be taken for good answers.
    pub notes: Vec<String>,
}

impl Foreseen {
    pub fn noting(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl<T: Into<String>> From<T> for Foreseen {
    fn from(says: T) -> Self {
        Self { says: says.into(), notes: Vec::new() }
    }
}

/// Why an action did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// What failed, what was kept safe, what to do next.
    #[error("{0}")]
    Failed(String),
    /// The driver's time for this step is over: somebody else may be at it, so nothing more is done.
    #[error("the time for this step is over; nothing more is done")]
    LeaseLost,
    #[error("cancelled")]
    Cancelled,
    /// A person has not answered yet and this run does not wait.
    #[error("waiting for {who}: {prompt}")]
    WaitingForPerson { who: String, prompt: String },
}

impl ActionError {
    pub fn failed(why: impl std::fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }
}

/// Whether a step's effect is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Yes(String),
    No,
    /// The action cannot tell; it runs again if it is idempotent.
    Unknown,
}

/// The right to act until a deadline, which the journal shows to everybody. Monotonic time goes on while a process is
/// frozen, so a thawed driver finds its lease over.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    wall: Timestamp,
    monotonic: Instant,
}

impl Lease {
    pub fn until(length: Duration) -> Self {
        let wall =
            Timestamp::now() + jiff::SignedDuration::try_from(length).unwrap_or(jiff::SignedDuration::MAX);
        Self { wall, monotonic: Instant::now() + length }
    }
    pub fn deadline(&self) -> Timestamp {
        self.wall
    }
    /// Ask this before every effect.
    pub fn check(&self) -> Result<(), ActionError> {
        if Instant::now() >= self.monotonic || Timestamp::now() >= self.wall {
            Err(ActionError::LeaseLost)
        } else {
            Ok(())
        }
    }
}

/// A person's answers to gates, and where to look for new ones.
#[async_trait]
pub trait People: Send + Sync {
    /// `Ok(Some(yes))`: answered. `Ok(None)`: not yet. Called again and again until the gate's time is over.
    async fn answer(&self, step: &str, who: &str, prompt: &str) -> Result<Option<bool>, ActionError>;
    /// False: nobody will answer during this run; the run ends waiting, and can be resumed.
    fn waits(&self) -> bool;
}

/// What an action sees of the run.
#[derive(Clone)]
pub struct ActionContext {
    pub step: String,
    pub mode: Mode,
    pub level: Level,
    pub lease: Lease,
    pub timeout: Duration,
    pub cancel: CancellationToken,
    pub people: Arc<dyn People>,
}

/// One kind of step.
#[async_trait]
pub trait Action: Send + Sync {
    /// The word in runbooks.
    fn name(&self) -> &'static str;
    /// One line for `farsite runbook check` and the reference.
    fn summary(&self) -> &'static str;
    /// Checks parameters before the run; strings in it may still hold templates.
    fn validate(&self, with: &Value) -> Result<(), String>;
    /// It only looks, waits or tells: it may run as often as anybody likes, and there is nothing to undo.
    fn changes_nothing(&self) -> bool {
        false
    }
    /// Running it twice is as good as once.
    fn idempotent(&self) -> bool {
        self.changes_nothing()
    }
    /// It can undo itself, or there is nothing to undo.
    fn undoable(&self) -> bool {
        self.changes_nothing()
    }
    fn default_timeout(&self) -> Duration;
    async fn check(&self, context: &ActionContext, with: &Value) -> Result<Done, ActionError> {
        let _ = (context, with);
        Ok(if self.changes_nothing() { Done::No } else { Done::Unknown })
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError>;
    async fn undo(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let _ = (context, with);
        Ok(Outcome::said("nothing to undo"))
    }
    /// What `--dry-run` can say without changing anything: every precondition.
    async fn dry_run(&self, context: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let _ = (context, with);
        Ok("no precondition".into())
    }
}

/// Reads an action's parameters.
pub fn parameters<T: DeserializeOwned>(with: &Value) -> Result<T, String> {
    let value = if with.is_null() { Value::Object(serde_json::Map::new()) } else { with.clone() };
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// All actions that a runbook may name.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Arc<dyn Action>>);

impl Registry {
    /// The actions of this crate.
    pub fn standard() -> Self {
        let mut registry = Self::default();
        crate::actions::register(&mut registry);
        registry
    }
    pub fn add(&mut self, action: impl Action + 'static) {
        self.0.insert(action.name(), Arc::new(action));
    }
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Action>> {
        self.0.get(name)
    }
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().copied()
    }
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Action>> {
        self.0.values()
    }
}
