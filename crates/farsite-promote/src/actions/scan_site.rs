//! `scan-site`: looks for the lost site's names in all databases and in the configuration. What must hold: it fails when
//! anything that is in use names the lost site; what is not in use, and what people wrote, is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::config::Site;
use farsite_openstack::Clouds;
use farsite_runbook::action::{Action, ActionContext, ActionError, Foreseen, Outcome, parameters};
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
    let example =
        if found.example.is_empty() { String::new() } else { format!(", such as {:?}", found.example) };
    format!("{} holds {} ({} rows or lines){example}", found.place, found.name, found.rows)
}

/// By place, what is no fault: deleted rows, and free texts, whose words are their writers' and are not repeated.
fn notes(found: &[Found]) -> BTreeMap<&str, String> {
    let mut notes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for find in found {
        let kinds = [(find.rows, "rows of free text hold"), (find.gone, "deleted rows still hold")];
        let said = kinds.into_iter().filter(|(rows, _)| *rows > 0);
        let said = said.map(|(rows, what)| format!("{rows} {what} {}", find.name));
        notes.entry(&find.place).or_default().extend(said);
    }
    notes.into_iter().map(|(place, notes)| (place, notes.join("; "))).collect()
}

/// What helps: a rewrite that is completed is not done again.
fn hint(step: &str, is_drill: bool, in_database: bool, in_files: bool) -> String {
    let mut hints = Vec::new();
    if in_database && is_drill {
        hints.push("names of the lost site belong into `rewrite` of farsite.yaml".to_owned());
    } else if in_database {
        hints.push("names of the lost site belong into `rewrite` of farsite.yaml (then `farsite promotion cancel` and promote again, because `--resume` does not rewrite again), or are put right by hand in the restored database, which serves (then `--resume`)".to_owned());
    }
    if in_files {
        hints.push(
            "this site's configuration is given this site's own names".to_owned()
                + if is_drill { "" } else { " (then `--resume`)" },
        );
    }
    if !is_drill {
        hints.push(format!(
            "what only looks like a name of the site is no fault: `farsite promotion skip --step {step}`"
        ));
    }
    hints.join("; ")
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
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(10)
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
        let in_database = match database {
            Database::Mariadb(_) => site::scan_databases(&database, &names)
                .await
                .map_err(|e| failed(context, format!("{}: {e}", item.id)))?,
            Database::Sqlite(_) => Vec::new(),
        };
        let (paths, wanted) = (with.paths(), names.clone());
        let in_files = tokio::task::spawn_blocking(move || site::scan_files(&paths, &wanted));
        let in_files = in_files.await.map_err(|e| failed(context, e))?.map_err(|e| failed(context, e))?;
        let is_used = |find: &&Found| find.rows > 0 && !find.is_free_text;
        let used: Vec<String> = in_database.iter().chain(&in_files).filter(is_used).map(line).collect();
        if !used.is_empty() {
            let is_there = |found: &[Found]| found.iter().any(|find| is_used(&find));
            let hint = hint(&context.step, run.is_drill(), is_there(&in_database), is_there(&in_files));
            return Err(failed(
                context,
                format!("the lost site is still named:\n  {}\n  hint: {hint}", used.join("\n  ")),
            ));
        }
        let outcome = Outcome::said(format!("nothing in use names the lost site ({})", looked.join(", ")));
        Ok(notes(&in_database).into_iter().fold(outcome, |outcome, (place, note)| outcome.with(place, note)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_and_what_is_deleted_is_told_without_their_words() {
        let find = |name: &str, rows, gone| Found {
            place: "cinder.volumes.display_name".into(),
            name: name.into(),
            rows,
            gone,
            is_free_text: true,
            example: "our secret plan for ctl-north".into(),
        };
        let found = [find("ctl-north", 2, 1), find("RegionNorth", 0, 3)];
        let notes = notes(&found);
        assert_eq!(
            notes["cinder.volumes.display_name"],
            "2 rows of free text hold ctl-north; 1 deleted rows still hold ctl-north; 3 deleted rows still hold RegionNorth"
        );
    }

    #[test]
    fn the_hint_says_what_helps_where_the_name_was_found() {
        let database = hint("scan-site", false, true, false);
        for word in ["`rewrite`", "promotion cancel", "by hand", "--resume", "skip --step scan-site"] {
            assert!(database.contains(word), "{database}");
        }
        let files = hint("scan-site", false, false, true);
        assert!(!files.contains("cancel") && files.contains("--resume"), "{files}");
        let drill = hint("scan-site", true, true, true);
        assert!(!drill.contains("--resume") && !drill.contains("cancel"), "{drill}");
    }
}
