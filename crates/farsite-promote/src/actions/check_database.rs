//! `check-database`: one question to the restored database, and what its answer must be.

use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Outcome, parameters};
use serde::Deserialize;
use serde_json::Value;

use super::Held;
use crate::group_run::failed;
use crate::sql::first;

pub(crate) struct CheckDatabase(pub(super) Held);

/// Cells of an answer that are kept for the report.
const KEPT_CELLS: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// A statement whose first value is compared with `expect`; without one it only has to succeed.
    #[serde(default)]
    query: Option<String>,
    /// A statement whose first value must be true: neither NULL nor 0 nor empty.
    #[serde(default)]
    assert: Option<String>,
    #[serde(default)]
    expect: Option<String>,
    /// Which database, where the point holds several.
    #[serde(default)]
    item: Option<String>,
}

impl With {
    fn statement(&self) -> Result<&str, String> {
        match (&self.query, &self.assert) {
            (None, Some(_)) if self.expect.is_some() => Err("`expect` belongs to `query`".into()),
            (Some(sql), None) | (None, Some(sql)) => Ok(sql),
            _ => Err("needs `query` or `assert`, and not both".into()),
        }
    }
}

#[async_trait]
impl Action for CheckDatabase {
    fn name(&self) -> &'static str {
        "check-database"
    }
    fn summary(&self) -> &'static str {
        "asks the database: `query` with what its first value must be (`expect`), or `assert` whose first value must be true"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with)?.statement().map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(10)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let sql = with.statement().map_err(ActionError::Failed)?;
        let (database, item) = run.database(with.item.as_deref())?;
        let rows =
            database.query(sql).await.map_err(|e| failed(context, format!("{}: {sql}: {e}", item.id)))?;
        let seen = first(&rows);
        let shown = seen.unwrap_or("NULL");
        let cells: Vec<&str> =
            rows.iter().flatten().take(KEPT_CELLS).map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
        let outcome =
            |detail: String| Outcome::said(detail).with("statement", sql).with("answer", cells.join(" | "));
        if with.assert.is_some() {
            return match seen {
                None | Some("" | "0") => {
                    Err(failed(context, format!("{}: not true ({shown}): {sql}", item.id)))
                }
                Some(_) => Ok(outcome("true".into())),
            };
        }
        match with.expect.as_deref() {
            Some(expected) if seen != Some(expected) => {
                Err(failed(context, format!("{}: the answer is {shown}, not {expected}: {sql}", item.id)))
            }
            _ => Ok(outcome(format!("the answer is {shown}"))),
        }
    }
}
