//! `rewrite-database`: statements that run once, in one transaction with a note of the promotion that ran them.
//!
//! What must hold: a second run of the same statements changes nothing; a promotion that a newer one has overtaken changes
//! nothing.

use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Outcome, parameters};
use serde::Deserialize;
use serde_json::Value;

use super::Held;
use crate::group_run::{GroupRun, failed};
use crate::sql::{Database, Rewrite, first};

pub(crate) struct RewriteDatabase(pub(super) Held);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    statements: Vec<String>,
    /// A question whose first value is kept from before and from after, as evidence.
    #[serde(default)]
    count: Option<String>,
    /// What undoes the statements. Without any the undo does nothing: the database itself is a restored copy, which goes
    /// when the restore is undone.
    #[serde(default)]
    undo: Vec<String>,
    /// MariaDB: where the notes are kept; a database of that name is made.
    #[serde(default = "farsite")]
    database: String,
    /// Which database, where the point holds several.
    #[serde(default)]
    item: Option<String>,
}

fn farsite() -> String {
    "farsite".to_owned()
}

fn rewrite(run: &GroupRun, with: &With) -> Rewrite {
    let mut hash = blake3::Hasher::new();
    for statement in &with.statements {
        hash.update(statement.as_bytes()).update(&[0]);
    }
    Rewrite {
        term: run.term.0,
        promotion: run.promotion.to_string(),
        hash: hash.finalize().to_hex().to_string(),
        statements: with.statements.clone(),
        schema: with.database.clone(),
    }
}

async fn counted(database: &Database, with: &With) -> Result<Option<String>, String> {
    match &with.count {
        None => Ok(None),
        Some(sql) => Ok(Some(first(&database.query(sql).await?).unwrap_or("NULL").to_owned())),
    }
}

#[async_trait]
impl Action for RewriteDatabase {
    fn name(&self) -> &'static str {
        "rewrite-database"
    }
    fn summary(&self) -> &'static str {
        "changes rows once: `statements` in one transaction with a note of the promotion; optional `count`, `undo`"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let with: With = parameters(with)?;
        if with.statements.is_empty() { Err("`statements` is empty".into()) } else { Ok(()) }
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(30)
    }
    async fn check(&self, context: &ActionContext, with: &Value) -> Result<Done, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let (database, _) = run.database(with.item.as_deref())?;
        let noted = database.is_rewritten(&rewrite(run, &with)).await.map_err(|e| failed(context, e))?;
        Ok(if noted { Done::Yes("the database holds its note".into()) } else { Done::No })
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let (database, item) = run.database(with.item.as_deref())?;
        let rewrite = rewrite(run, &with);
        let fail = |e: String| failed(context, format!("{}: {e}", item.id));
        if database.is_rewritten(&rewrite).await.map_err(fail)? {
            return Ok(Outcome::said("done already: the database holds its note"));
        }
        let before = counted(&database, &with).await.map_err(fail)?;
        context.lease.check()?;
        if !database.rewrite_once(&rewrite).await.map_err(fail)? {
            return Ok(Outcome::said("done already: the database holds its note"));
        }
        let after = counted(&database, &with).await.map_err(fail)?;
        let outcome = Outcome::said(match rewrite.statements.len() {
            1 => "one statement, in one transaction with its note".to_owned(),
            many => format!("{many} statements in one transaction with their note"),
        })
        .with("term", rewrite.term)
        .with("statements", rewrite.statements.join(";\n"));
        Ok(match (before, after) {
            (Some(before), Some(after)) => outcome.with("before", before).with("after", after),
            _ => outcome,
        })
    }
    async fn undo(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        if with.undo.is_empty() {
            return Ok(Outcome::said("the rows go with the restored copy that they are in"));
        }
        let (database, item) = run.database(with.item.as_deref())?;
        let rewrite = rewrite(run, &with);
        let fail = |e: String| failed(context, format!("{}: {e}", item.id));
        if !database.is_rewritten(&rewrite).await.map_err(fail)? {
            return Ok(Outcome::said("nothing was changed"));
        }
        context.lease.check()?;
        database.unwrite(&rewrite, &with.undo).await.map_err(fail)?;
        Ok(Outcome::said("changed back").with("statements", with.undo.join(";\n")))
    }
}
