//! A folder of items, one regular file each. A path comes in, file names go out. What must hold: a folder that cannot
//! be read is an error and never an empty list; hidden files (our own snapshots among them) are no items.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use farsite_model::ItemId;

use crate::SourceError;

/// What stands in a folder.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Regular files that are not hidden, sorted.
    pub(crate) files: Vec<String>,
    /// Everything else that is not hidden, in words.
    pub(crate) oddities: Vec<String>,
}

impl Folder {
    /// Which of these files this process may not read.
    pub(crate) fn unreadable(&self, names: &[String]) -> Vec<String> {
        let closed = |name: &&String| File::open(self.path.join(name)).is_err();
        names.iter().filter(closed).cloned().collect()
    }
}

pub(crate) fn list(path: &Path) -> Result<Folder, SourceError> {
    let fail = |error: std::io::Error| {
        SourceError::new(format!("listing {}", path.display()), error)
            .hint("is the folder right, its file system mounted, and may the agent's user read it?")
    };
    let mut found = Folder { path: path.to_owned(), ..Folder::default() };
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let is_file = entry.file_type().map_err(fail)?.is_file();
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with('.') => {}
            Ok(name) if is_file => found.files.push(name),
            Ok(name) => found.oddities.push(format!("{name} (no regular file)")),
            Err(name) => found.oddities.push(format!("{} (its name is not UTF-8)", name.to_string_lossy())),
        }
    }
    found.files.sort();
    found.oddities.sort();
    Ok(found)
}

/// The key in the details of an item that was a file: its mode, in octal, as `chmod` takes it.
pub const MODE: &str = "mode";

/// That detail.
pub(crate) fn file_mode(file: &fs::Metadata) -> (String, String) {
    (MODE.to_owned(), format!("{:o}", file.mode() & 0o777))
}

/// The file of an item that was listed before.
pub(crate) fn file_of(folder: &Path, item: &ItemId) -> Result<PathBuf, SourceError> {
    let name = Path::new(item.name());
    let is_plain = matches!(name.components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]);
    let path = folder.join(name);
    if is_plain && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(path);
    }
    Err(SourceError::new(format!("reading {item}"), format!("there is no such file in {}", folder.display()))
        .hint("it was removed since it was listed; the next run leaves it out"))
}
