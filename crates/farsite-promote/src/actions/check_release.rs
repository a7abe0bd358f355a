//! `check-release`: the restored schemas are of the revision that this site's own services had until the promotion; in a drill,
//! that they have now. What must hold: what cannot be compared is said, and called neither the same nor different.

use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_runbook::action::{Action, ActionContext, ActionError, Foreseen, Outcome};
use farsite_runbook::journal::{JournalEntry, StepStatus};
use farsite_sources::mariadb::revisions::{self, Revisions};
use serde_json::Value;

use super::note_release::NOTHING_BEFORE;
use super::{Held, no_parameters};
use crate::group_run::{GroupRun, failed};
use crate::journal::StoreJournal;
use crate::own::{self, Compared};
use crate::site::Accounts;
use crate::sql::Database;

pub(crate) struct CheckRelease(pub(super) Held);

/// What this site's services had before its database made room.
#[derive(Default)]
struct Noted {
    own: Revisions,
    /// Why there was nothing to note. Where this and `own` are empty, nothing was noted, which says nothing.
    nothing_before: Option<String>,
}

/// `note-release` noted it in the journal.
async fn noted(run: &GroupRun) -> Result<Noted, String> {
    let journal = StoreJournal::reading(&run.standby.store, run.promotion, &run.group);
    let entries = journal.entries().await.map_err(|error| error.to_string())?;
    let mut noted = Noted::default();
    for (_, entry) in &entries {
        if let JournalEntry::Outcome { status: StepStatus::Completed, evidence, .. } = entry {
            noted.own.extend(revisions::of_details(evidence));
            noted.nothing_before = evidence.get(NOTHING_BEFORE).cloned().or(noted.nothing_before);
        }
    }
    Ok(noted)
}

async fn living(run: &GroupRun) -> Result<(Revisions, Vec<String>), String> {
    let accounts = Accounts::fetch(&run.targets.rewrite)?;
    Ok(own::own(&accounts, &own::doors(&run.standby.config, &run.group)).await)
}

fn never_noted(run: &GroupRun, restored: &Revisions) -> String {
    let theirs: Vec<String> = restored.iter().map(|(schema, at)| format!("{schema} at {at}")).collect();
    format!(
        "of which revision the schemas of {}'s own services were was not noted before their database made room: nothing is compared with {}'s ({})\n  hint: the restored database serves, and no service has started on it yet: compare its revisions with what {0}'s release wants (`glance-manage db_version`, say), bring its schema there where it differs, and then `farsite promotion skip` this step and `--resume`",
        run.standby.site,
        run.from,
        theirs.join(", ")
    )
}

fn not_compared(compared: &Compared) -> Option<String> {
    let names = compared.unknown.join(", ");
    (!names.is_empty())
        .then(|| format!("{names}: of which revision this site's own services are is not known"))
}

fn same(compared: &Compared) -> String {
    match compared.same.len() {
        0 => "no schema was compared".to_owned(),
        _ => format!("of the same revision: {}", compared.same.join(", ")),
    }
}

#[async_trait]
impl Action for CheckRelease {
    fn name(&self) -> &'static str {
        "check-release"
    }
    fn summary(&self) -> &'static str {
        "the restored databases' schemas are of the revision that this site's own services have, as `note-release` noted it; in a drill, as they have it now"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(5)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let fail = |error: String| failed(context, error);
        if !run.databases().iter().any(|item| item.kind == ItemKind::Mariadb) {
            return Ok(Outcome::said("the point holds no server's database: nothing notes a revision"));
        }
        let (database, item) = run.database(None)?;
        if !matches!(database, Database::Mariadb(_)) {
            return Ok(Outcome::said("the database is no server's: nothing notes a revision"));
        }
        let restored =
            own::of_database(&database).await.map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
        let (own, nothing_before) = if run.is_drill() {
            (living(run).await.map_err(fail)?.0, None)
        } else {
            let noted = noted(run).await.map_err(fail)?;
            if noted.own.is_empty() && noted.nothing_before.is_none() && !restored.is_empty() {
                return Err(failed(context, never_noted(run, &restored)));
            }
            (noted.own, noted.nothing_before)
        };
        let compared = own::compare(run.from.as_str(), &restored, run.standby.site.as_str(), &own);
        if !compared.differ.is_empty() {
            let next = if run.is_drill() {
                String::new()
            } else {
                "\n  hint: the restored database serves: bring its schema to this site's release and `--resume`; or when this site's services are of the other release by now, `farsite promotion skip` this step and `--resume`".to_owned()
            };
            return Err(failed(context, format!("{}{next}", compared.differ.join("\n"))));
        }
        let outcome = Outcome::said(same(&compared));
        Ok(match not_compared(&compared) {
            Some(note) => {
                let why = nothing_before.map(|why| format!(": {why}")).unwrap_or_default();
                outcome.with("not compared", format!("{note}{why}"))
            }
            None => outcome,
        })
    }
    async fn dry_run(&self, _: &ActionContext, _: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        let mut theirs = Revisions::new();
        for item in run.items(&[ItemKind::Mariadb]) {
            theirs.extend(revisions::of_details(&item.details));
        }
        if theirs.is_empty() {
            let has_server = run.databases().iter().any(|item| item.kind == ItemKind::Mariadb);
            let says = Foreseen::from("compared when the database is restored");
            return Ok(if has_server {
                says.noting(format!(
                    "of which revisions {}'s schemas are was not known at the capture: not compared",
                    run.from
                ))
            } else {
                "the point holds no server's database".into()
            });
        }
        let (own, why_not) = living(run).await.map_err(ActionError::Failed)?;
        let compared = own::compare(run.from.as_str(), &theirs, run.standby.site.as_str(), &own);
        if !compared.differ.is_empty() {
            return Err(ActionError::Failed(compared.differ.join("\n")));
        }
        let says = Foreseen::from(same(&compared));
        Ok(match not_compared(&compared) {
            Some(note) if why_not.is_empty() => says.noting(note),
            Some(note) => says.noting(format!("{note}: {}", why_not.join("; "))),
            None => says,
        })
    }
}
