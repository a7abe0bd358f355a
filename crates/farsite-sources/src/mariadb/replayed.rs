//! A note beside the data that says which stretch of log was replayed into it: two positions come in; whether that is
//! still to be done, or done, goes out. What must hold: the note of a begin is durable before the first change is made,
//! so that no change is ever made twice.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{LogPosition, SourceError};

const NAME: &str = ".farsite-replayed";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    from: LogPosition,
    to: LogPosition,
    done: bool,
}

impl Mark {
    pub(super) fn new(from: &LogPosition, to: &LogPosition) -> Self {
        Self { from: from.clone(), to: to.clone(), done: false }
    }

    /// Whether this very stretch was replayed; another one, or half of one, cannot be replayed on top of it.
    pub(super) fn is_done(&self, datadir: &Path) -> Result<bool, SourceError> {
        let what = || format!("replaying the log into {}", datadir.display());
        let text = match fs::read(datadir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            read => read.map_err(|error| SourceError::new(what(), error))?,
        };
        let found: Self = serde_json::from_slice(&text).map_err(|error| {
            SourceError::new(what(), format!("{NAME} cannot be read: {error}")).hint(AGAIN)
        })?;
        if found.done && (&found.from, &found.to) == (&self.from, &self.to) {
            return Ok(true);
        }
        let how = if found.done { "was replayed" } else { "was begun and not ended" };
        let why = format!("the log from {} to {} {how} there already", found.from, found.to);
        Err(SourceError::new(what(), why).hint(AGAIN))
    }

    pub(super) fn begin(&self, datadir: &Path) -> Result<(), SourceError> {
        self.write(datadir)
    }

    pub(super) fn done(&self, datadir: &Path) -> Result<(), SourceError> {
        Self { done: true, ..self.clone() }.write(datadir)
    }

    fn write(&self, datadir: &Path) -> Result<(), SourceError> {
        let path = datadir.join(NAME);
        let write = || {
            let temporary = path.with_extension("new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(datadir)?.sync_all()
        };
        write().map_err(|error| SourceError::new(format!("writing {}", path.display()), error))
    }
}

const AGAIN: &str = "restore the base again, then replay: changes must not be made twice";

/// Removes the note, for data that is new.
pub(super) fn forget(datadir: &Path) -> Result<(), SourceError> {
    match fs::remove_file(datadir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SourceError::new(format!("removing {NAME} from {}", datadir.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_replayed_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |offset| LogPosition::new("b.000001", offset);
        let mark = Mark::new(&at(4), &at(9));
        assert!(!mark.is_done(dir.path()).unwrap());
        mark.begin(dir.path()).unwrap();
        let error = mark.is_done(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not ended") && error.contains("hint:"), "{error}");
        mark.done(dir.path()).unwrap();
        assert!(mark.is_done(dir.path()).unwrap());
        assert!(Mark::new(&at(4), &at(10)).is_done(dir.path()).is_err(), "another stretch");
        forget(dir.path()).unwrap();
        assert!(!mark.is_done(dir.path()).unwrap());
    }
}
