//! Who works on a hydrated copy: one process at a time. A promotion that wants the copy says so, and whoever hydrates it
//! lets go between two blocks. What must hold: both locks are the kernel's, so that a killed process holds neither.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::restore::Guard;

/// How often somebody who waits for a lock tries again.
const AGAIN: Duration = Duration::from_millis(20);

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// `None`: somebody else works on it.
    pub(super) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits up to `limit`; `None` when it was not to be had in that time.
    pub(super) async fn take(path: &Path, limit: Duration) -> io::Result<Option<Self>> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            if tokio::time::Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Stops whoever hydrates as soon as somebody holds the lock `wanted`, and whenever `other` says so.
pub(super) fn until_wanted(wanted: PathBuf, other: Guard) -> io::Result<Guard> {
    let file = open(&wanted)?;
    Ok(std::sync::Arc::new(move || {
        other()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                flock(&file, FlockOperation::Unlock)?;
                Ok(())
            }
            Err(_) => Err(io::Error::new(io::ErrorKind::Interrupted, "a promotion wants this copy")),
        }
    }))
}
