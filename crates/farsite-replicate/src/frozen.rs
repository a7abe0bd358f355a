//! What hooks have frozen is thawed, whatever happens: a note is written before a freeze and removed after the thaw,
//! and a run that finds the note of a killed one thaws first.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farsite_model::policy::{Hook, Policy};
use rustix::fs::{FlockOperation, flock};

use crate::ReplicateError;
use crate::group::Group;
use crate::hooks;

/// The name under which the group's own hooks are noted; items are noted by their id.
pub(crate) const GROUP: &str = "group";
/// How long a run waits for another one that holds the same frozen.
const WAIT: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(50);

/// What is frozen. Its note is locked for as long, so that two runs of one group never freeze and thaw across each other.
pub(crate) struct Frozen(Option<(PathBuf, File)>);

fn note(group: &Group, name: &str) -> PathBuf {
    let stem = farsite_store::local_map::stem(&farsite_model::ItemId::parse(name));
    group.home().frozen().join(stem)
}

/// The note's lock; `None` while another run holds it.
fn locked(path: &Path, create: bool) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    // Whoever held it before may have removed it.
    let is_it =
        path.metadata().is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok(is_it.then_some(file))
}

async fn noted(path: &Path, name: &str) -> Result<File, String> {
    let cannot = |error: io::Error| {
        format!("nothing is frozen without a note of it, and {} cannot be written: {error}", path.display())
    };
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(cannot)?;
    let begun = tokio::time::Instant::now();
    let mut file = loop {
        match locked(path, true).map_err(cannot)? {
            Some(file) => break file,
            None if begun.elapsed() > WAIT => {
                return Err(format!("another run has held {name} frozen for {}s", WAIT.as_secs()));
            }
            None => tokio::time::sleep(LOOK).await,
        }
    };
    file.set_len(0)
        .and_then(|()| file.write_all(name.as_bytes()))
        .and_then(|()| file.sync_all())
        .map_err(cannot)?;
    Ok(file)
}

/// Runs hooks that freeze, with a note; when one fails, what the others froze is thawed.
pub(crate) async fn freeze(
    group: &Group,
    name: &str,
    before: &[Hook],
    after: &[Hook],
) -> Result<Frozen, String> {
    if before.is_empty() {
        return Ok(Frozen(None));
    }
    let path = note(group, name);
    let file = noted(&path, name).await?;
    let frozen = Frozen(Some((path, file)));
    if let Err(why) = hooks::run(before).await {
        thaw(group, name, after, frozen).await;
        return Err(why);
    }
    Ok(frozen)
}

/// Runs the hooks that thaw. A failure is loud, keeps the note, and is tried again before the next run.
pub(crate) async fn thaw(group: &Group, name: &str, after: &[Hook], frozen: Frozen) {
    match hooks::run_all(after).await {
        Ok(()) => {
            if let Some((path, _file)) = frozen.0 {
                let _ = std::fs::remove_file(path);
            }
        }
        Err(why) => {
            tracing::error!(group = %group.policy.group, "thawing {name}: {why}; it may still be frozen");
        }
    }
}

/// Thaws what a killed process left frozen; what another run holds now is its own.
pub(crate) async fn thaw_left_over(group: &Group) -> Result<(), ReplicateError> {
    let folder = group.home().frozen();
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(ReplicateError::io(format!("reading {}", folder.display())))?,
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(Some(file)) = locked(&path, false) else { continue };
        let name = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(hooks) = after_hooks(&group.policy, &name) {
            tracing::warn!(group = %group.policy.group, "a run was killed while {name} was frozen: thawing it");
            thaw(group, &name, hooks, Frozen(Some((path, file)))).await;
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
