//! `reconcile`: what the restored database says of images and volumes is compared with what lies in their places, before any
//! service starts. What must hold: all rows are put right in one transaction with its note, or none; everything that was not
//! as it should be is listed.

use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Outcome};
use serde_json::Value;

use super::{Held, no_parameters};
use crate::group_run::{GroupRun, failed};
use crate::reconcile::kept::{self, Kept};
use crate::reconcile::{Plan, look};
use crate::sql::{Database, Rewrite};

pub(crate) struct Reconcile(pub(super) Held);

/// The most that are listed one by one in the journal; the database has all.
const LISTED: usize = 500;

fn note(run: &GroupRun, statements: Vec<String>) -> Rewrite {
    Rewrite {
        term: run.term.0,
        promotion: run.promotion.to_string(),
        hash: blake3::hash(b"reconcile").to_hex().to_string(),
        statements,
        schema: "farsite".to_owned(),
    }
}

/// The gravest by their subjects, and where the others are.
fn told(said: &str, kept: Kept, all: &str) -> Outcome {
    let mut outcome = Outcome::said(match (kept.found, kept.held_back) {
        (0, _) => format!("{said}: all is as its row says"),
        (found, 0) => format!("{said}; {found} things not as they should be, none held back"),
        (found, held) => format!("{said}; {found} things not as they should be, {held} of them held back"),
    });
    let more = kept.found - kept.first.len().min(kept.found);
    for (subject, line) in kept.first {
        let said = outcome.evidence.remove(&subject).map(|before| format!("{before}; ")).unwrap_or_default();
        outcome = outcome.with(&subject, format!("{said}{line}"));
    }
    if more == 0 {
        return outcome;
    }
    outcome.with("more", format!("{more} less grave ones; {all}"))
}

#[async_trait]
impl Action for Reconcile {
    fn name(&self) -> &'static str {
        "reconcile"
    }
    fn summary(&self) -> &'static str {
        "puts rows of Glance and Cinder right that do not agree with the data that is here, and lists them"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
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
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        // What is done is found by its note, and told once more.
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let (database, item) = run.database(None)?;
        let fail = |e: String| failed(context, format!("{}: {e}", item.id));
        if !matches!(database, Database::Mariadb(_)) {
            return Ok(Outcome::said("the database is no server's: no row in it is looked at"));
        }
        let promotion = run.promotion.to_string();
        let said = if database.is_rewritten(&note(run, Vec::new())).await.map_err(fail)? {
            "done already: the database holds its note".to_owned()
        } else {
            let Plan { mut statements, mut lines, looked } = look(run, &database).await.map_err(fail)?;
            lines.sort();
            let changes = statements.len();
            statements.extend(kept::statements(&promotion, &lines));
            context.lease.check()?;
            kept::make_room(&database).await.map_err(fail)?;
            database.rewrite_once(&note(run, statements)).await.map_err(fail)?;
            format!("{looked} rows looked at, {changes} statements")
        };
        let lasts = if run.is_drill() { ", until the drill is cleaned up" } else { "" };
        let all = format!("the restored database has all of them{lasts}: {}", kept::question(&promotion));
        let kept = kept::read(&database, &promotion, LISTED).await.map_err(fail)?;
        Ok(kept.map_or_else(|| Outcome::said(&said), |kept| told(&said, kept, &all)))
    }
    async fn undo(&self, _: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        Ok(Outcome::said("the rows go with the restored copy that they are in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_says_how_many_more_there_are_and_where() {
        let first = vec![("volume a".to_owned(), "x".to_owned()), ("volume a".to_owned(), "y".to_owned())];
        let outcome = told("done", Kept { found: 7, held_back: 1, first }, "the rest is there");
        assert_eq!(outcome.detail, "done; 7 things not as they should be, 1 of them held back");
        assert_eq!(outcome.evidence["volume a"], "x; y");
        let more = &outcome.evidence["more"];
        assert!(more == "5 less grave ones; the rest is there", "{more}");
        let nothing = told("done", Kept::default(), "");
        assert_eq!((nothing.detail.as_str(), nothing.evidence.len()), ("done: all is as its row says", 0));
    }
}
