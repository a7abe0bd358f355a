//! What hooks have frozen is thawed, whatever happens: a note is written before a freeze and removed after the thaw,
//! and a run that finds the note of a killed one thaws first.

use std::path::PathBuf;

use farsite_model::policy::{Hook, Policy};

use crate::ReplicateError;
use crate::group::Group;
use crate::hooks;

/// The name under which the group's own hooks are noted; items are noted by their id.
pub(crate) const GROUP: &str = "group";

fn note(group: &Group, name: &str) -> PathBuf {
    group.folder.join("frozen").join(blake3_name(name))
}

fn blake3_name(name: &str) -> String {
    farsite_store::local_map::stem(&farsite_model::ItemId::parse(name))
}

/// Runs hooks that freeze, with a note; when one fails, what the others froze is thawed.
pub(crate) async fn freeze(group: &Group, name: &str, before: &[Hook], after: &[Hook]) -> Result<(), String> {
    if before.is_empty() {
        return Ok(());
    }
    let path = note(group, name);
    let noted = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&path, name))
        .and_then(|()| std::fs::File::open(&path)?.sync_all());
    if let Err(error) = noted {
        return Err(format!(
            "nothing is frozen without a note of it, and {} cannot be written: {error}",
            path.display()
        ));
    }
    if let Err(why) = hooks::run(before).await {
        thaw(group, name, after).await;
        return Err(why);
    }
    Ok(())
}

/// Runs the hooks that thaw. A failure is loud, keeps the note, and is tried again before the next run.
pub(crate) async fn thaw(group: &Group, name: &str, after: &[Hook]) {
    let path = note(group, name);
    match hooks::run_all(after).await {
        Ok(()) => {
            let _ = std::fs::remove_file(path);
        }
        Err(why) => {
            tracing::error!(group = %group.policy.group, "thawing {name}: {why}; it may still be frozen");
        }
    }
}

/// Thaws what a killed process left frozen.
pub(crate) async fn thaw_left_over(group: &Group) -> Result<(), ReplicateError> {
    let folder = group.folder.join("frozen");
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(ReplicateError::io(format!("reading {}", folder.display())))?,
    };
    for entry in entries.flatten() {
        let name = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(hooks) = after_hooks(&group.policy, &name) {
            tracing::warn!(group = %group.policy.group, "a run was killed while {name} was frozen: thawing it");
            thaw(group, &name, hooks).await;
        } else {
            tracing::error!(
                group = %group.policy.group,
                "a run was killed while {name:?} was frozen, and the policy names it no more: look whether it still is"
            );
        }
    }
    Ok(())
}

fn after_hooks<'p>(policy: &'p Policy, name: &str) -> Option<&'p [Hook]> {
    if name == GROUP {
        return Some(&policy.hooks.after_capture);
    }
    policy.items.iter().find(|i| i.id().as_str() == name).map(|i| i.hooks().after_capture.as_slice())
}
