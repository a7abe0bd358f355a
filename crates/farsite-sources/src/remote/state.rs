//! Folders at the serving host, below its own state folder: what is kept for a coordinator's group outlives every process
//! that serves it; scratch files do not, and what a killed process left of them is removed by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Hello;
use crate::claim::{Claim, claimed};

/// The folders of one serving process.
pub(super) struct Folders {
    pub(super) kept: PathBuf,
    pub(super) scratch: PathBuf,
    /// Held as long as this process lives.
    _claim: Claim,
}

impl Folders {
    /// `<state>/served/<group>/<owner>/`: `kept`, and `runs/PID` with a lock beside it.
    pub(super) fn open(state: &Path, hello: &Hello) -> io::Result<Self> {
        let home = state.join("served").join(hello.group.as_str()).join(&hello.owner);
        let runs = home.join("runs");
        claimed(&runs, |name| is_removed(&runs.join(name)))?;
        let name = std::process::id().to_string();
        let claim = Claim::new(&runs, &name)?;
        let scratch = runs.join(name);
        fs::create_dir_all(&scratch)?;
        Ok(Self { kept: home.join("kept"), scratch, _claim: claim })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.scratch) {
            tracing::warn!("the scratch folder {} could not be removed: {error}", self.scratch.display());
        }
    }
}

/// What a killed process left.
fn is_removed(scratch: &Path) -> bool {
    match fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{}, which a killed process left, stays: {error}", scratch.display());
            false
        }
        _ => true,
    }
}
