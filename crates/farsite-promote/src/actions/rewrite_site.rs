//! `rewrite-site`: the lost site's names in the services' databases become this site's, in one transaction with a note of the
//! promotion that did it; and its accounts get the passwords that this site's services have.
//!
//! What must hold: passwords are fetched before anything is changed; what a second run finds done it leaves; counts from
//! before and after are kept.

use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome};
use serde_json::Value;

use super::{Held, no_parameters};
use crate::group_run::{GroupRun, failed};
use crate::site::{self, Accounts, Prepared};
use crate::sql::{Database, Rewrite, first};

/// The most attachments that are named; Cinder keeps all of them as deleted rows.
const LISTED: usize = 200;

pub(crate) struct RewriteSite(pub(super) Held);

/// The same for every run with these names: its note says that all of it was done.
fn named(run: &GroupRun, prepared: &Prepared) -> Rewrite {
    let mut hash = blake3::Hasher::new();
    hash.update(b"rewrite-site");
    for (kind, pairs) in site::names(&run.targets.rewrite) {
        for (old, new) in pairs {
            for part in [kind, &old, &new] {
                hash.update(part.as_bytes()).update(&[0]);
            }
        }
    }
    Rewrite {
        term: run.term.0,
        promotion: run.promotion.to_string(),
        hash: hash.finalize().to_hex().to_string(),
        statements: prepared.statements.clone(),
        schema: "farsite".to_owned(),
    }
}

async fn counted(database: &Database, prepared: &Prepared) -> Result<Vec<(String, u64)>, String> {
    let mut counted = Vec::new();
    for (place, sql) in &prepared.counts {
        let rows = database.query(sql).await?;
        counted.push((place.clone(), first(&rows).and_then(|n| n.parse().ok()).unwrap_or(0)));
    }
    Ok(counted)
}

/// Attachments that are about to end, as whoever is on call has to tell their owners of them.
async fn attached(database: &Database) -> Result<Vec<String>, String> {
    if !database.has_table("cinder", "volume_attachment").await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT volume_id, COALESCE(instance_uuid, attached_host, 'somebody'), attach_status FROM cinder.volume_attachment WHERE deleted = 0 ORDER BY volume_id";
    let rows = database.query(sql).await?.into_iter().filter_map(|row| match &row[..] {
        [Some(volume), Some(server), status] => {
            let status = status.as_deref().unwrap_or("in no state");
            Some(format!("volume {volume} of {server} ({status})"))
        }
        _ => None,
    });
    Ok(rows.collect())
}

#[async_trait]
impl Action for RewriteSite {
    fn name(&self) -> &'static str {
        "rewrite-site"
    }
    fn summary(&self) -> &'static str {
        "the lost site's names in the databases of Keystone, Glance and Cinder become this site's (`places.<group>.rewrite`)"
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
    async fn check(&self, context: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        let run = self.0.run()?;
        let (database, _) = run.database(None)?;
        let note = named(run, &Prepared::default());
        let noted = database.is_rewritten(&note).await.map_err(|e| failed(context, e))?;
        Ok(if noted { Done::Yes("the database holds its note".into()) } else { Done::No })
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let (database, item) = run.database(None)?;
        let fail = |e: String| failed(context, format!("{}: {e}", item.id));
        if !matches!(database, Database::Mariadb(_)) {
            return Ok(Outcome::said("the database is no server's: nothing in it names a site"));
        }
        let rewrite = &run.targets.rewrite;
        let accounts = Accounts::fetch(rewrite).map_err(fail)?;
        let prepared = site::prepare(&database, &site::names(rewrite)).await.map_err(fail)?;
        let note = named(run, &prepared);
        if database.is_rewritten(&note).await.map_err(fail)? {
            return Ok(Outcome::said("done already: the database holds its note"));
        }
        context.lease.check()?;
        site::set_accounts(&database, &accounts).await.map_err(fail)?;
        let before = counted(&database, &prepared).await.map_err(fail)?;
        // To be told of them is worth having, and nothing stops for it.
        let attached = attached(&database).await;
        context.lease.check()?;
        database.rewrite_once(&note).await.map_err(fail)?;
        let after = counted(&database, &prepared).await.map_err(fail)?;
        let rows: u64 = before.iter().map(|(_, rows)| rows).sum();
        let mut outcome = Outcome::said(format!(
            "{rows} rows, {} statements in one transaction",
            prepared.statements.len()
        ))
        .with("term", note.term);
        for ((place, before), (_, after)) in before.iter().zip(&after) {
            if *before > 0 || *after > 0 {
                outcome = outcome.with(place, format!("{before} rows before, {after} after"));
            }
        }
        let attached = attached.unwrap_or_else(|why| {
            outcome.evidence.insert("attachments not listed".to_owned(), why);
            Vec::new()
        });
        if !attached.is_empty() {
            let more = attached.len().saturating_sub(LISTED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let listed = attached[..attached.len().min(LISTED)].join("; ");
            outcome = outcome.with("attachments ended", format!("{}: {listed}{more}", attached.len()));
        }
        if !prepared.also.is_empty() {
            outcome = outcome.with("also", prepared.also.join(", "));
        }
        if !accounts.is_empty() {
            outcome = outcome.with("passwords", accounts.named());
        }
        if !prepared.unknown.is_empty() {
            outcome = outcome.with("schemas that were not tried", prepared.unknown.join(", "));
        }
        Ok(outcome)
    }
    async fn undo(&self, _: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        Ok(Outcome::said("the rows go with the restored copy that they are in"))
    }
    async fn dry_run(&self, _: &ActionContext, _: &Value) -> Result<Foreseen, ActionError> {
        let rewrite = &self.0.run()?.targets.rewrite;
        let accounts = Accounts::fetch(rewrite).map_err(ActionError::Failed)?;
        let names = site::names(rewrite);
        let pairs: Vec<String> = names
            .iter()
            .filter(|(_, pairs)| !pairs.is_empty())
            .map(|(kind, pairs)| {
                let pairs: Vec<String> = pairs.iter().map(|(old, new)| format!("{old} to {new}")).collect();
                format!("{kind}: {}", pairs.join(", "))
            })
            .collect();
        let said = if pairs.is_empty() {
            "the two sites use the same names: nothing is rewritten".to_owned()
        } else {
            format!("{}; names that are the same at both sites would save this", pairs.join("; "))
        };
        Ok(if accounts.is_empty() {
            said.into()
        } else {
            format!("{said}; passwords of {}", accounts.named()).into()
        })
    }
}
