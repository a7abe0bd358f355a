//! What stands in a folder, to the last byte and the last change of a name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An entry: when it was changed, and its bytes (of a link, where it points; of a folder, none).
type Entry = (SystemTime, Option<Vec<u8>>);

/// Every file and folder below a folder, by path relative to it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing(pub BTreeMap<PathBuf, Entry>);

impl Listing {
    /// A folder that does not exist is an empty one; what vanishes meanwhile is left out.
    pub fn of(folder: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut waiting = vec![folder.to_owned()];
        while let Some(path) = waiting.pop() {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let bytes = if metadata.is_dir() {
                waiting.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
                None
            } else if metadata.is_symlink() {
                std::fs::read_link(&path).ok().map(|to| to.as_os_str().as_encoded_bytes().to_vec())
            } else {
                std::fs::read(&path).ok()
            };
            let name = path.strip_prefix(folder).expect("it lies below the folder").to_owned();
            // Of the folder itself everything is said by what is in it.
            if name.as_os_str().is_empty() {
                continue;
            }
            let changed = metadata.modified().expect("the file system keeps times");
            found.insert(name, (changed, bytes));
        }
        Self(found)
    }

    /// Without a folder and what is in it.
    pub fn without(mut self, folder: &str) -> Self {
        self.0.retain(|path, _| !path.starts_with(folder));
        self
    }

    /// Without the folders, whose times change with every name that comes and goes.
    pub fn files(mut self) -> Self {
        self.0.retain(|_, (_, bytes)| bytes.is_some());
        self
    }

    /// What is new, gone or changed, in words.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut said = Vec::new();
        for (path, entry) in &self.0 {
            match before.0.get(path) {
                None => said.push(format!("{} is new", path.display())),
                Some(old) if old.1 != entry.1 => said.push(format!("{} has other bytes", path.display())),
                Some(old) if old.0 != entry.0 => said.push(format!("{} was written", path.display())),
                Some(_) => {}
            }
        }
        let gone = before.0.keys().filter(|path| !self.0.contains_key(*path));
        said.extend(gone.map(|path| format!("{} is gone", path.display())));
        said
    }
}
