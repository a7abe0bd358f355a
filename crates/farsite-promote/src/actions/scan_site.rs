//! `scan-site`: looks for the lost site's names in all databases and in the configuration. What must hold: it fails when
//! anything that is in use names the lost site; what is not in use is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::config::Site;
use farsite_openstack::Clouds;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome, parameters};
use serde::Deserialize;
use serde_json::Value;

use super::Held;
use crate::group_run::{GroupRun, failed};
use crate::site::{self, Found};
use crate::sql::Database;

pub(crate) struct ScanSite(pub(super) Held);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// Files and folders of configuration, with a `:` between them.
    #[serde(default)]
    paths: String,
}

impl With {
    fn paths(&self) -> Vec<PathBuf> {
        self.paths.split(':').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
    }
}

/// What is rewritten, and where clouds.yaml says that the lost site's Keystone is, unless this site's own is there too: an address
/// that nobody thought of rewriting would be found nowhere else.
fn names(run: &GroupRun) -> BTreeMap<&'static str, Vec<(String, String)>> {
    let mut names = site::names(&run.targets.rewrite);
    let keystone = |site| {
        let about: Site = run.standby.config.sites.get(site).cloned().unwrap_or_default();
        let cloud = Clouds::load().ok()?.find(about.cloud.as_deref()?).ok()?;
        let scheme = if cloud.auth_url.is_tls() { "https" } else { "http" };
        Some(format!("{scheme}://{}", cloud.auth_url.host()))
    };
    let lost = keystone(&run.from).filter(|lost| keystone(&run.standby.site).as_ref() != Some(lost));
    let urls = names.entry("urls").or_default();
    // Another host's name may begin like this one's.
    for behind in [":", "/"] {
        let begin = lost.as_ref().map(|lost| format!("{lost}{behind}"));
        urls.extend(
            begin
                .filter(|begin| urls.iter().all(|(old, _)| old != begin))
                .map(|begin| (begin, String::new())),
        );
    }
    names
}

fn line(found: &Found) -> String {
    format!(
        "{} holds {} ({} rows or lines), such as {:?}",
        found.place, found.name, found.rows, found.example
    )
}

#[async_trait]
impl Action for ScanSite {
    fn name(&self) -> &'static str {
        "scan-site"
    }
    fn summary(&self) -> &'static str {
        "looks for the lost site's names in all columns of the databases and in configuration (`paths`, with `:` between)"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(10)
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let names = names(run);
        let looked: Vec<&str> = names.values().flatten().map(|(old, _)| old.as_str()).collect();
        if looked.is_empty() {
            return Ok(Outcome::said("the two sites use the same names: there is nothing to look for"));
        }
        let (database, item) = run.database(None)?;
        let mut found = match database {
            Database::Mariadb(_) => site::scan_databases(&database, &names)
                .await
                .map_err(|e| failed(context, format!("{}: {e}", item.id)))?,
            Database::Sqlite(_) => Vec::new(),
        };
        let (paths, wanted) = (with.paths(), names.clone());
        let in_files = tokio::task::spawn_blocking(move || site::scan_files(&paths, &wanted));
        found.extend(in_files.await.map_err(|e| failed(context, e))?.map_err(|e| failed(context, e))?);
        let used: Vec<String> = found.iter().filter(|find| find.rows > 0).map(line).collect();
        if !used.is_empty() {
            return Err(failed(
                context,
                format!(
                    "the lost site is still named:\n  {}\n  hint: what is a name of the site belongs into `rewrite` in farsite.yaml, or into this site's own configuration",
                    used.join("\n  ")
                ),
            ));
        }
        let outcome = Outcome::said(format!("nothing in use names the lost site ({})", looked.join(", ")));
        Ok(found.iter().filter(|find| find.gone > 0).fold(outcome, |outcome, find| {
            outcome.with(&find.place, format!("{} deleted rows still hold {}", find.gone, find.name))
        }))
    }
    async fn dry_run(&self, _: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let paths = with.paths();
        // What this site's configuration says is known before anything is promoted.
        let found = site::scan_files(&paths, &names(run)).map_err(ActionError::Failed)?;
        match found.first() {
            Some(find) => Err(ActionError::failed(format!(
                "this site's configuration names the site that is to be promoted here: {}\n  hint: give it this site's own",
                line(find)
            ))),
            None => {
                Ok(format!("{} paths of configuration name nothing of the other site", paths.len()).into())
            }
        }
    }
}
