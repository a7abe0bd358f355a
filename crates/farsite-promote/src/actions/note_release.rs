//! `note-release`: of which revision the schemas of this site's own services are, and what its volume services are called, written
//! into the journal while its own database can still be asked: nobody can, once that has made room. What must hold: a database that was there and told nothing is not taken
//! for one that was not there.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_runbook::action::{Action, ActionContext, ActionError, Foreseen, Outcome};
use farsite_sources::mariadb::revisions::{self, Revisions};
use serde_json::Value;

use super::{Held, no_parameters};
use crate::group_run::{GroupRun, failed};
use crate::own;
use crate::site::Accounts;

/// The key of the evidence that says why there was nothing to note.
pub(super) const NOTHING_BEFORE: &str = "nothing before";

pub(crate) struct NoteRelease(pub(super) Held);

enum Noted {
    /// Nothing in the point will ask for a revision.
    NotNeeded,
    NothingBefore(String),
    Revisions {
        own: Revisions,
        /// Of its volume services, where they are known.
        hosts: Option<BTreeSet<String>>,
        /// Schemas that stand there and told nothing, and why.
        silent: Option<String>,
    },
}

async fn look(run: &GroupRun) -> Result<Noted, String> {
    let place = run.standby.config.places.get(&run.group).and_then(|places| places.mariadb.as_ref());
    let Some(place) = place.filter(|_| run.items(&[ItemKind::Mariadb]).next().is_some()) else {
        return Ok(Noted::NotNeeded);
    };
    let accounts = Accounts::fetch(&run.targets.rewrite)?;
    let doors = own::doors(&run.standby.config, &run.group);
    let (own, why_not) = own::own(&accounts, &doors).await;
    let datadir = place.datadir.clone();
    let stands = tokio::task::spawn_blocking(move || revisions::on_disk(&datadir))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("which schemas are in {} cannot be seen: {error}", place.datadir.display()));
    let why_not = if why_not.is_empty() { String::new() } else { format!(": {}", why_not.join("; ")) };
    match stands {
        Ok(stands) if stands.is_empty() && own.is_empty() => Ok(Noted::NothingBefore(format!(
            "no service's schema was in {} before the promotion",
            place.datadir.display()
        ))),
        // What is seen there is all that there is to be known.
        stands if !own.is_empty() => {
            let silent: Vec<String> =
                stands.unwrap_or_default().into_iter().filter(|schema| !own.contains_key(schema)).collect();
            let silent = (!silent.is_empty()).then(|| format!("{}{why_not}", silent.join(", ")));
            let hosts = if own.contains_key("cinder") {
                own::hosts::volume_hosts(&accounts, &doors).await
            } else {
                None
            };
            Ok(Noted::Revisions { own, hosts, silent })
        }
        stands => {
            let stands = match stands {
                Ok(schemas) => format!("its database has {}", schemas.join(", ")),
                Err(why) => why,
            };
            Err(format!(
                "of which revision the schemas of {}'s own services are is not known: {stands}, and tells nothing{why_not}\n  hint: nothing is changed yet: start {0}'s database, or give `rewrite.database-passwords` an account that it lets in, and `--resume`; or compare the releases yourself and `farsite promotion skip` this step: `check-release` asks once more",
                run.standby.site
            ))
        }
    }
}

fn said(own: &Revisions) -> String {
    own.iter().map(|(schema, revision)| format!("{schema}: {revision}")).collect::<Vec<_>>().join(", ")
}

const NOT_NEEDED: &str = "the point holds no server's database: nothing notes a revision";

#[async_trait]
impl Action for NoteRelease {
    fn name(&self) -> &'static str {
        "note-release"
    }
    fn summary(&self) -> &'static str {
        "before anything is changed: of which revision the schemas of this site's own services are, noted for `check-release`, and what its volume services are called, for `reconcile`"
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
        Ok(match look(self.0.run()?).await.map_err(|e| failed(context, e))? {
            Noted::NotNeeded => Outcome::said(NOT_NEEDED),
            Noted::NothingBefore(why) => Outcome::said(&why).with(NOTHING_BEFORE, why),
            Noted::Revisions { own, hosts, silent } => {
                let mut outcome = Outcome::said(said(&own));
                outcome.evidence.extend(revisions::as_details(&own));
                outcome.evidence.extend(hosts.as_ref().map(own::hosts::as_detail));
                match silent {
                    Some(silent) => outcome.with("not noted", silent),
                    None => outcome,
                }
            }
        })
    }
    async fn dry_run(&self, _: &ActionContext, _: &Value) -> Result<Foreseen, ActionError> {
        Ok(match look(self.0.run()?).await.map_err(ActionError::Failed)? {
            Noted::NotNeeded => NOT_NEEDED.into(),
            Noted::NothingBefore(why) => why.into(),
            Noted::Revisions { own, silent, .. } => {
                let says = Foreseen::from(said(&own));
                match silent {
                    Some(silent) => says.noting(format!("not noted: {silent}")),
                    None => says,
                }
            }
        })
    }
}
