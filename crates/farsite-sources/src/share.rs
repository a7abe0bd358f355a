//! A whole folder of volumes at one instant, where it is a Btrfs subvolume: a read-only snapshot of all of it, beside which
//! the live files go on. Files that belong together (a disk, its overlays, the file that says which of them is active) are then
//! of one moment, which no copying of one after the other gives. What must hold: no snapshot outlives its capture; what a
//! killed process left behind is removed by the next one.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::{SourceError, commands, snapshot};

/// Hidden, so that no listing takes it for volumes; and Cinder's NFS driver leaves `*snapshot*` out when it counts what is used.
const PREFIX: &str = ".farsite-snapshot-";
/// The root of a subvolume has this inode number (btrfs(5)).
const SUBVOLUME_INODE: u64 = 256;
const BTRFS: i64 = 0x9123_683E;
/// One command on a file system that does much else.
const LIMIT: Duration = Duration::from_mins(1);

/// Snapshots of this process that something still reads.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().expect("no holder of this lock panics")
}

/// A read-only snapshot of a folder; it goes with this.
#[derive(Debug)]
pub(crate) struct Snapshot {
    program: PathBuf,
    path: PathBuf,
}

/// Whether a folder can be snapshotted as a whole.
pub(crate) fn is_subvolume(folder: &Path) -> bool {
    let is_root = std::fs::metadata(folder).is_ok_and(|found| found.ino() == SUBVOLUME_INODE);
    is_root && rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == BTRFS)
}

/// Whether [`take`] will do, and much of what it would have to wait for done already: what was written is on the disk.
pub(crate) fn prepare(folder: &Path) -> bool {
    if !is_subvolume(folder) || commands::find(&["btrfs"]).is_none() {
        return false;
    }
    remove_left_over(folder);
    File::open(folder).is_ok_and(|opened| rustix::fs::syncfs(opened).is_ok())
}

/// A snapshot of all that is in the folder.
pub(crate) async fn take(folder: &Path) -> Result<Snapshot, SourceError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let what = || format!("a snapshot of {}", folder.display());
    let program = commands::require(&["btrfs"], "btrfs-progs")?;
    let (own, _) = snapshot::names(PREFIX)
        .ok_or_else(|| SourceError::new(what(), "/proc does not tell who this process is"))?;
    let path = folder.join(format!("{own}{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let mut command = commands::tied(&program);
    command.args(["subvolume", "snapshot", "-r"]).arg(folder).arg(&path);
    // Before it is made: a snapshot whose making was cut off is removed as well, by the next one if it comes to be even later.
    live().insert(path.clone());
    let snapshot = Snapshot { program, path };
    commands::run(&what(), command, LIMIT).await?.success(&what())?;
    Ok(snapshot)
}

impl Snapshot {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if self.path.exists() {
            delete(&self.program, &self.path);
        }
        live().remove(&self.path);
    }
}

fn delete(program: &Path, path: &Path) {
    let limit = LIMIT.as_secs().to_string();
    let mut command = std::process::Command::new("timeout");
    command.arg(limit).arg(program).args(["subvolume", "delete"]).arg(path).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => tracing::warn!(
            "the snapshot {} could not be removed: {}; `btrfs subvolume delete` does it",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(error) => tracing::warn!("the snapshot {} could not be removed: {error}", path.display()),
    }
}

/// Removes the snapshots of processes of this host that have ended, and those of this one that nothing reads.
fn remove_left_over(folder: &Path) {
    let (Some((own, ours)), Some(program)) = (snapshot::names(PREFIX), commands::find(&["btrfs"])) else {
        return;
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(&ours));
        let is_forgotten =
            name.to_str().is_some_and(|name| name.starts_with(&own)) && !live().contains(&entry.path());
        let is_left_over = is_forgotten || rest.is_some_and(snapshot::is_left_over);
        if is_left_over && is_subvolume(&entry.path()) {
            tracing::warn!("removing {}, which nothing reads any more", entry.path().display());
            delete(&program, &entry.path());
        }
    }
}
