//! The note beside a copy that is being made another one in place. What it is to become comes in; whoever finds the copy
//! later learns that it is neither. What must hold: the note is durable before the first byte of the copy changes, and
//! goes only when the copy is whole and durable. Nothing in it is believed of the copy: that is compared by its hashes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use farsite_model::{ItemId, PointId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a copy is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub point: PointId,
    pub item: ItemId,
    pub began: Timestamp,
}

/// Where the note lies: beside the copy.
pub fn note_beside(copy: &Path) -> PathBuf {
    let name = copy.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    copy.with_file_name(format!(".{name}.farsite-unfinished"))
}

impl Unfinished {
    /// The note beside a copy, if there is one. One that cannot be read counts as well: something was begun.
    pub fn beside(copy: &Path) -> io::Result<Option<Result<Self, String>>> {
        match fs::read(note_beside(copy)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| error.to_string()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Durable when this returns.
    pub fn write(&self, copy: &Path) -> io::Result<()> {
        let path = note_beside(copy);
        let mut file = File::create(&path)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        sync_folder(&path)
    }

    /// The copy is whole and durable.
    pub fn remove(copy: &Path) -> io::Result<()> {
        let path = note_beside(copy);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_folder(&path),
        }
    }
}

/// Makes a name in its folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
