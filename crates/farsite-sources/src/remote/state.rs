//! Folders at the serving host, below its own state folder: what is kept for a coordinator's group outlives every process
//! that serves it; scratch files do not, and what a killed process left of them is removed by the next one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::Hello;

/// The folders of one serving process.
pub(super) struct Folders {
    pub(super) kept: PathBuf,
    pub(super) scratch: PathBuf,
    /// Held as long as this process lives.
    _lock: File,
}

impl Folders {
    /// `<state>/served/<group>/<owner>/`: `kept`, and `runs/PID` with a lock beside it.
    pub(super) fn open(state: &Path, hello: &Hello) -> io::Result<Self> {
        let home = state.join("served").join(hello.group.as_str()).join(&hello.owner);
        let runs = home.join("runs");
        fs::create_dir_all(&runs)?;
        remove_left_over(&runs)?;
        let name = std::process::id().to_string();
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(runs.join(format!("{name}.lock")))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let scratch = runs.join(name);
        fs::create_dir_all(&scratch)?;
        Ok(Self { kept: home.join("kept"), scratch, _lock: lock })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.scratch) {
            tracing::warn!("the scratch folder {} could not be removed: {error}", self.scratch.display());
        }
        let _ = fs::remove_file(self.scratch.with_extension("lock"));
    }
}

/// Of processes that have ended: their locks are free.
fn remove_left_over(runs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runs)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "lock") {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let scratch = path.with_extension("");
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}, which a killed process left, stays: {error}", scratch.display());
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
    Ok(())
}
