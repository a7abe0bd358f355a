//! Names that processes of this host have claimed in a folder they share: a file for each, which its process holds a lock on.
//!
//! What must hold: everybody sees a claim from when it is made until it is dropped, other processes as well; one whose process
//! was killed counts no more, and is removed by the next who looks.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long others may take to make a claim, or to clear away what killed processes left.
const WAIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);
const ENDING: &str = "lock";

pub(crate) struct Claim {
    path: PathBuf,
    /// The kernel lets go of it when the process dies, however it dies.
    _lock: File,
}

impl Claim {
    /// An error where a living process has claimed that name.
    pub(crate) fn new(folder: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let _alone = alone(folder)?;
        let path = folder.join(format!("{name}.{ENDING}"));
        let lock = File::options().write(true).create(true).truncate(false).open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it can be seen.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{}, which counts no more, stays: {error}", self.path.display());
        }
    }
}

/// The names that are claimed. Those of killed processes are cleared away: `is_clear` does what else is to be done for one, and
/// says whether it is.
pub(crate) fn claimed(folder: &Path, is_clear: impl Fn(&str) -> bool) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        there => there?,
    };
    let _alone = alone(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) else {
            continue;
        };
        let lock = match File::open(&path) {
            // It was dropped just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            names.insert(name.to_owned());
        } else if is_clear(name) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(names)
}

/// Between a claim's file and its lock nobody may look: it would be taken for one of a process that was killed.
fn alone(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    let begun = Instant::now();
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(error.into());
        }
        if begun.elapsed() > WAIT {
            let why = format!("another process holds {} for too long", folder.display());
            return Err(io::Error::other(why));
        }
        std::thread::sleep(LOOK);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_seen_until_it_is_dropped_and_one_that_nobody_holds_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("claims");
        assert!(claimed(&folder, |_| true).unwrap().is_empty());
        let mine = Claim::new(&folder, "mine").unwrap();
        assert!(Claim::new(&folder, "mine").is_err());
        fs::write(folder.join("left.lock"), b"").unwrap();
        assert_eq!(claimed(&folder, |_| false).unwrap(), BTreeSet::from(["mine".to_owned()]));
        assert!(folder.join("left.lock").exists(), "what cannot be cleared away is tried again");
        claimed(&folder, |name| name == "left").unwrap();
        assert!(!folder.join("left.lock").exists());
        drop(mine);
        assert!(claimed(&folder, |_| true).unwrap().is_empty());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn processes_that_start_together_do_not_take_each_others_claims_for_left_over() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for n in 0..200 {
                        let name = format!("{thread}-{n}");
                        claimed(folder, |_| true).unwrap();
                        let claim = Claim::new(folder, &name).unwrap();
                        assert!(claimed(folder, |_| true).unwrap().contains(&name));
                        drop(claim);
                    }
                });
            }
        });
    }
}
