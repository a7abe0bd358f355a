//! Scratch folders that do not outlive their use. A parent folder comes in; a fresh folder that only this user can
//! read goes out, and is removed with everything in it when its guard is dropped.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::SourceError;

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub struct RemovedFolder(PathBuf);

impl RemovedFolder {
    /// A new folder below `parent` (which is made when it is missing), named after what it is for.
    pub fn create(parent: &Path, label: &str) -> Result<Self, SourceError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{label}-{}-{number}", std::process::id()));
        let made = fs::create_dir_all(parent).and_then(|()| fs::DirBuilder::new().mode(0o700).create(&path));
        made.map_err(|error| {
            SourceError::new(format!("creating the scratch folder {}", path.display()), error)
                .hint("the agent needs room and rights in its state folder")
        })?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RemovedFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("the scratch folder {} could not be removed: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let first = RemovedFolder::create(&dir.path().join("run"), "files").unwrap();
        let second = RemovedFolder::create(&dir.path().join("run"), "files").unwrap();
        assert_ne!(first.path(), second.path());
        fs::write(first.path().join("x"), b"x").unwrap();
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }
}
