//! The YAML of a runbook.

use std::collections::BTreeMap;
use std::path::Path;

use farsite_model::quantity::Span;
use farsite_model::yaml::{self, At, YamlError};
use farsite_model::{Level, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A file in `runbooks/`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Runbook {
    /// Its name.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// A runbook whose stages come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub include: Option<At<String>>,
    /// Variables that steps may use as `{{ name }}`, with their defaults. A place's `variables` override them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// In their order.
    pub stages: Vec<Stage>,
}

/// Steps that run together; a stage begins when the one before it has ended.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stage {
    /// Its name, for people.
    pub name: String,
    /// How many steps run at the same time.
    #[serde(default = "four")]
    pub parallel: usize,
    /// What is done in it.
    pub steps: Vec<Step>,
}

fn four() -> usize {
    4
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Its name, of its own in the runbook and all that it includes.
    #[schemars(with = "String")]
    pub id: At<String>,
    /// What it does: one of the actions.
    #[schemars(with = "String")]
    pub action: At<String>,
    /// The action's parameters; strings may hold `{{ variables }}`.
    #[serde(default = "empty")]
    #[schemars(with = "Value")]
    pub with: At<Value>,
    /// Steps of the same or an earlier stage that must have completed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub needs: Vec<At<String>>,
    #[serde(default)]
    pub when: When,
    /// In drills only, in real promotions only, or in both.
    #[serde(default)]
    pub runs: Runs,
    /// By default the action's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    #[serde(default)]
    pub retry: Retry,
    /// What a failure means after the last attempt.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Another action that undoes this step, where the action itself cannot; `none` says that nothing has to be undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// A person must agree before the step begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

fn empty() -> At<Value> {
    At::from(Value::Object(serde_json::Map::new()))
}

/// When a step is part of a run; what is empty does not restrict.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct When {
    /// Only in these modes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mode: Vec<Mode>,
    /// Only at these levels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub level: Vec<Level>,
    /// Only where this variable is not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    #[default]
    Always,
    DrillOnly,
    RealOnly,
}

/// Further attempts after a failure.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retry {
    /// How many.
    #[serde(default)]
    pub count: u32,
    /// The pause before each.
    #[serde(default = "one_second")]
    pub backoff: Span,
}
impl Default for Retry {
    fn default() -> Self {
        Self { count: 0, backoff: one_second() }
    }
}
fn one_second() -> Span {
    Span::from_secs(1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Dependants do not start; siblings go on; the run ends after its stage.
    #[default]
    Stop,
    /// The failure is recorded, and everything goes on.
    Continue,
    /// A person decides; without one, as `stop`.
    Ask,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Undo {
    /// `none`
    Nothing(NoUndo),
    Action(UndoAction),
}
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoUndo {
    None,
}
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UndoAction {
    /// One of the actions.
    pub action: String,
    /// Its parameters.
    #[serde(default)]
    pub with: Value,
}

/// A named person's confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Gate {
    /// Role or name.
    pub who: String,
    /// The question, answered with yes or no.
    pub prompt: String,
    /// How long the person has.
    pub timeout: Span,
    /// The answer when the time is over; without one the step times out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<bool>,
}

impl Runbook {
    pub fn parse(file: &str, text: &str) -> Result<Self, YamlError> {
        yaml::parse(file, text)
    }
    pub fn load(path: &Path) -> Result<(Self, String), YamlError> {
        let text = yaml::read(path)?;
        Ok((Self::parse(&path.display().to_string(), &text)?, text))
    }
    /// JSON Schema for editors.
    pub fn json_schema() -> schemars::Schema {
        schemars::schema_for!(Runbook)
    }
}
