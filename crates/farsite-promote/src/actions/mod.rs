//! The actions of promotions and drills, one file each: what a runbook can say beyond the engine's own words.
//!
//! What must hold: every effect asks the lease first; what stood in a place before is moved aside, never deleted; an
//! action that was cut off anywhere can be run again.

mod check_catalog;
mod check_database;
mod check_keys;
mod check_release;
mod check_site;
mod install_files;
mod note_release;
mod pool_items;
mod reconcile;
mod restore_database;
mod restore_items;
mod rewrite_database;
mod rewrite_site;
mod scan_site;
mod start_database;
mod verify_contents;

use std::sync::Arc;
use std::time::Duration;

use farsite_model::ItemKind;
use farsite_runbook::action::{ActionError, Registry};

use crate::group_run::GroupRun;
use restore_items::RestoreItems;

/// Copying is bounded by the data's size, which a runbook may not know: a generous day.
const RESTORE_LIMIT: Duration = Duration::from_hours(24);

/// All actions that a runbook may name. Without a group's run they can be checked and not run.
pub fn registry(run: Option<Arc<GroupRun>>) -> Registry {
    let held = Held(run);
    let mut registry = Registry::standard();
    registry.add(restore_database::RestoreDatabase(held.clone()));
    registry.add(start_database::StartDatabase(held.clone()));
    registry.add(check_database::CheckDatabase(held.clone()));
    registry.add(rewrite_database::RewriteDatabase(held.clone()));
    registry.add(rewrite_site::RewriteSite(held.clone()));
    registry.add(reconcile::Reconcile(held.clone()));
    registry.add(scan_site::ScanSite(held.clone()));
    registry.add(check_keys::CheckKeys(held.clone()));
    registry.add(check_site::CheckSite(held.clone()));
    registry.add(note_release::NoteRelease(held.clone()));
    registry.add(check_catalog::CheckCatalog(held.clone()));
    registry.add(check_release::CheckRelease(held.clone()));
    registry.add(install_files::InstallFiles(held.clone()));
    registry.add(RestoreItems { held: held.clone(), name: "restore-images", kinds: &[ItemKind::Glance] });
    let volumes = &[ItemKind::Cinder, ItemKind::Volume];
    registry.add(RestoreItems { held: held.clone(), name: "restore-volumes", kinds: volumes });
    registry.add(RestoreItems { held: held.clone(), name: "restore-files", kinds: &[ItemKind::Files] });
    registry.add(verify_contents::VerifyContents(held));
    registry
}

/// The run that an action belongs to.
#[derive(Clone)]
struct Held(Option<Arc<GroupRun>>);

impl Held {
    fn run(&self) -> Result<&Arc<GroupRun>, ActionError> {
        self.0
            .as_ref()
            .ok_or_else(|| ActionError::failed("this action was loaded to be checked, not to be run"))
    }
}

/// Whether the standby's own server may stand where the restored database comes.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Serves {
    /// What an earlier step stops it with; empty where there is no such step.
    #[serde(default)]
    stopped_by: String,
}

impl Serves {
    fn of(with: &serde_json::Value) -> Result<Self, String> {
        farsite_runbook::action::parameters(with)
    }

    fn is_stopped_before(&self) -> bool {
        !self.stopped_by.trim().is_empty()
    }
}

/// An action that takes no parameters.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn no_parameters(with: &serde_json::Value) -> Result<(), String> {
    farsite_runbook::action::parameters::<Nothing>(with).map(|_| ())
}
