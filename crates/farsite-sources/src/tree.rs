//! The files of a tree item: a root and paths below it come in; what each of them is and its bytes go out, whether they are
//! of this host or of another. What must hold: a path whose name cannot be kept is an error, and so is a file that is neither
//! file, folder nor link.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use farsite_model::content::{TreeEntry, TreeEntryKind};

/// A stretch of one of a tree's files, to be filled completely.
pub struct Part<'b> {
    /// Its number among [`TreeFiles::entries`].
    pub file: usize,
    /// From the file's beginning.
    pub offset: u64,
    pub buffer: &'b mut [u8],
}

/// Files, folders and links.
pub trait TreeFiles: Send + Sync {
    /// What they are, folders before what is in them. All files stand at offset 0: their places are not given here.
    fn entries(&self) -> io::Result<Vec<TreeEntry>>;
    /// Fills all parts.
    fn read(&self, parts: &mut [Part<'_>]) -> io::Result<()>;
}

/// Those of this host.
pub struct LocalTree {
    root: PathBuf,
    paths: Vec<PathBuf>,
    /// The file that was read last stays open: reading goes file by file.
    open: Mutex<Option<(usize, Arc<File>)>>,
}

impl LocalTree {
    /// `paths` are relative to `root`.
    pub fn new(root: &Path, paths: Vec<PathBuf>) -> Self {
        Self { root: root.to_owned(), paths, open: Mutex::new(None) }
    }

    fn path_of(&self, file: usize) -> io::Result<PathBuf> {
        Ok(self.root.join(self.paths.get(file).ok_or(io::ErrorKind::NotFound)?))
    }

    fn open(&self, file: usize) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().expect("no holder of this lock panics");
        if let Some((which, opened)) = &*open
            && *which == file
        {
            return Ok(opened.clone());
        }
        let opened = Arc::new(File::open(self.path_of(file)?)?);
        *open = Some((file, opened.clone()));
        Ok(opened)
    }
}

impl TreeFiles for LocalTree {
    fn entries(&self) -> io::Result<Vec<TreeEntry>> {
        self.paths.iter().map(|path| entry(&self.root, path)).collect()
    }

    fn read(&self, parts: &mut [Part<'_>]) -> io::Result<()> {
        for part in parts {
            self.open(part.file)?.read_exact_at(part.buffer, part.offset).map_err(|error| {
                let path = self.path_of(part.file).unwrap_or_default();
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
        }
        Ok(())
    }
}

fn entry(root: &Path, path: &Path) -> io::Result<TreeEntry> {
    let name = path.to_str().ok_or_else(|| {
        io::Error::other(format!("{}: its name is not UTF-8, which a tree item cannot hold", path.display()))
    })?;
    let metadata = fs::symlink_metadata(root.join(path))?;
    let kind = if metadata.is_dir() {
        TreeEntryKind::Directory
    } else if metadata.is_symlink() {
        let target = fs::read_link(root.join(path))?;
        let target = target
            .to_str()
            .ok_or_else(|| io::Error::other(format!("{name}: its link's target is not UTF-8")))?
            .to_owned();
        TreeEntryKind::Symlink { target }
    } else if metadata.is_file() {
        TreeEntryKind::File { size_bytes: metadata.len(), offset: 0 }
    } else {
        return Err(io::Error::other(format!("{name}: neither file, folder nor symbolic link")));
    };
    Ok(TreeEntry {
        path: name.to_owned(),
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
    })
}
