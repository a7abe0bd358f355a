//! A tree of files as one item: every file has its place in one address space, at a multiple of the block size, and
//! keeps it from run to run, so that an unchanged file has unchanged blocks whatever happens to its neighbours.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use farsite_model::content::{ReadAt, TreeEntry, TreeEntryKind, WriteAt};
use farsite_sources::tree::{LocalTree, Part, TreeFiles};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// Offset and reserved length of each file, by path: what the next run starts from.
pub type Layout = BTreeMap<String, (u64, u64)>;

/// Gives each file of a tree its place: where it lay before, if it still fits there.
pub fn place(mut entries: Vec<TreeEntry>, block_bytes: u64, previous: &Layout) -> (Vec<TreeEntry>, Layout) {
    let mut layout = Layout::new();
    let mut end = previous.values().map(|(offset, length)| offset + length).max().unwrap_or(0);
    for entry in &mut entries {
        let TreeEntryKind::File { size_bytes, offset } = &mut entry.kind else { continue };
        let needed = size_bytes.div_ceil(block_bytes) * block_bytes;
        let (start, length) = match previous.get(&entry.path) {
            Some((start, length)) if *length >= needed => (*start, *length),
            _ => {
                let place = (end, needed);
                end += needed;
                place
            }
        };
        *offset = start;
        layout.insert(entry.path.clone(), (start, length));
    }
    (entries, layout)
}

/// One file's stretch of the address space.
#[derive(Debug, Clone)]
struct Stretch {
    offset: u64,
    size_bytes: u64,
    /// Its number among the tree's entries.
    file: usize,
}

fn stretches(entries: &[TreeEntry]) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = entries
        .iter()
        .enumerate()
        .filter_map(|(file, entry)| match entry.kind {
            TreeEntryKind::File { size_bytes, offset } if size_bytes > 0 => {
                Some(Stretch { offset, size_bytes, file })
            }
            _ => None,
        })
        .collect();
    found.sort_by_key(|s| s.offset);
    found
}

/// The files of a tree, read as one address space; what no file covers is a hole.
pub struct TreeContent {
    stretches: Vec<Stretch>,
    files: Arc<dyn TreeFiles>,
}

impl TreeContent {
    /// Of files below a folder of this host.
    pub fn new(root: &Path, entries: &[TreeEntry]) -> Self {
        let paths = entries.iter().map(|entry| PathBuf::from(&entry.path)).collect();
        Self::of(Arc::new(LocalTree::new(root, paths)), entries)
    }

    /// `entries` are those of `files`, with their places.
    pub fn of(files: Arc<dyn TreeFiles>, entries: &[TreeEntry]) -> Self {
        Self { stretches: stretches(entries), files }
    }
}

impl ReadAt for TreeContent {
    fn size_bytes(&self) -> u64 {
        self.stretches.last().map_or(0, |s| s.offset + s.size_bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        let first = self.stretches.partition_point(|s| s.offset + s.size_bytes <= offset);
        let mut parts = Vec::new();
        let (mut rest, mut at) = (buffer, offset);
        for stretch in self.stretches[first..].iter().take_while(|s| s.offset < end) {
            let from = offset.max(stretch.offset);
            let to = end.min(stretch.offset + stretch.size_bytes);
            let (_, after) = rest.split_at_mut((from - at) as usize);
            let (part, after) = after.split_at_mut((to - from) as usize);
            parts.push(Part { file: stretch.file, offset: from - stretch.offset, buffer: part });
            (rest, at) = (after, to);
        }
        self.files.read(&mut parts)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let next = self.stretches.partition_point(|s| s.offset + s.size_bytes <= offset);
        Ok(self.stretches.get(next).map(|s| s.offset.max(offset)..s.offset + s.size_bytes))
    }
}

/// Writes a tree below a root that held nothing of it before.
pub struct TreeTarget {
    root: PathBuf,
    entries: Vec<TreeEntry>,
    stretches: Vec<Stretch>,
    open: Mutex<Option<(usize, File)>>,
}

/// A path that stays below its root whatever a hostile directory says.
fn checked(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if plain && path.components().next().is_some() {
        Ok(path)
    } else {
        Err(io::Error::other(format!("{}: a path that leaves its tree is refused", path.display())))
    }
}

impl TreeTarget {
    /// Creates folders and empty files; symbolic links come last, so that nothing is ever written through one.
    pub fn create(root: &Path, entries: Vec<TreeEntry>) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        for entry in &entries {
            let path = root.join(checked(&entry.path)?);
            if let Some(parent) = path.parent() {
                refuse_links(root, parent)?;
                fs::create_dir_all(parent)?;
            }
            match &entry.kind {
                TreeEntryKind::Directory => {
                    let made = fs::DirBuilder::new().mode(0o700).create(&path);
                    if let Err(error) = made
                        && !(error.kind() == io::ErrorKind::AlreadyExists
                            && fs::symlink_metadata(&path)?.is_dir())
                    {
                        return Err(error);
                    }
                }
                TreeEntryKind::File { size_bytes, .. } => {
                    // A fresh inode: never somebody else's open file, never the target of a link.
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                    let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
                    file.set_len(*size_bytes)?;
                }
                TreeEntryKind::Symlink { .. } => {}
            }
        }
        Ok(Self { stretches: stretches(&entries), root: root.to_owned(), entries, open: Mutex::new(None) })
    }

    fn path_of(&self, stretch: usize) -> PathBuf {
        self.root.join(&self.entries[self.stretches[stretch].file].path)
    }

    fn write_file(&self, index: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut open = self.open.lock().expect("no holder of this lock panics");
        if open.as_ref().is_none_or(|(which, _)| *which != index) {
            *open = Some((index, File::options().write(true).open(self.path_of(index))?));
        }
        match open.as_ref() {
            Some((_, file)) => file.write_all_at(bytes, offset),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// No component of `path` below `root` is a symbolic link.
fn refuse_links(root: &Path, path: &Path) -> io::Result<()> {
    let Ok(below) = path.strip_prefix(root) else { return Ok(()) };
    let mut current = root.to_owned();
    for component in below.components() {
        current.push(component);
        if fs::symlink_metadata(&current).is_ok_and(|m| m.is_symlink()) {
            return Err(io::Error::other(format!(
                "{}: a symbolic link stands in the way",
                current.display()
            )));
        }
    }
    Ok(())
}

impl WriteAt for TreeTarget {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let first = self.stretches.partition_point(|s| s.offset + s.size_bytes <= offset);
        for (index, stretch) in
            self.stretches.iter().enumerate().skip(first).take_while(|(_, s)| s.offset < end)
        {
            let from = offset.max(stretch.offset);
            let to = end.min(stretch.offset + stretch.size_bytes);
            self.write_file(
                index,
                &bytes[(from - offset) as usize..(to - offset) as usize],
                from - stretch.offset,
            )?;
        }
        Ok(())
    }

    fn punch_hole(&self, _: Range<u64>) -> io::Result<()> {
        // Files were created empty: what is not written is a hole.
        Ok(())
    }

    fn finish(&self, _: u64) -> io::Result<()> {
        *self.open.lock().expect("no holder of this lock panics") = None;
        let is_root = rustix::process::geteuid().is_root();
        // Children before their folders, so that a folder's own times and mode are set last.
        for entry in self.entries.iter().rev() {
            let path = self.root.join(checked(&entry.path)?);
            match &entry.kind {
                TreeEntryKind::Symlink { target } => {
                    if fs::symlink_metadata(&path).is_ok() {
                        fs::remove_file(&path)?;
                    }
                    std::os::unix::fs::symlink(target, &path)?;
                    let at = Timespec {
                        tv_sec: entry.modified_ns.div_euclid(1_000_000_000),
                        tv_nsec: entry.modified_ns.rem_euclid(1_000_000_000),
                    };
                    let times = Timestamps { last_access: at, last_modification: at };
                    utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                    if is_root {
                        std::os::unix::fs::lchown(&path, Some(entry.uid), Some(entry.gid))?;
                    }
                }
                TreeEntryKind::Directory | TreeEntryKind::File { .. } => {
                    if is_root {
                        std::os::unix::fs::chown(&path, Some(entry.uid), Some(entry.gid))?;
                    }
                    let file = File::open(&path)?;
                    let nanos = u64::try_from(entry.modified_ns).unwrap_or(0);
                    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos))?;
                    file.set_permissions(fs::Permissions::from_mode(entry.mode))?;
                    file.sync_all()?;
                }
            }
        }
        File::open(&self.root)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(root: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut stack = vec![PathBuf::new()];
        while let Some(dir) = stack.pop() {
            let mut names: Vec<_> =
                fs::read_dir(root.join(&dir)).unwrap().map(|e| dir.join(e.unwrap().file_name())).collect();
            names.sort();
            for name in names {
                if fs::symlink_metadata(root.join(&name)).unwrap().is_dir() {
                    stack.push(name.clone());
                }
                found.push(name);
            }
        }
        found
    }

    fn scan(root: &Path, paths: Vec<PathBuf>, previous: &Layout) -> (Vec<TreeEntry>, Layout) {
        place(LocalTree::new(root, paths).entries().unwrap(), 4096, previous)
    }

    #[test]
    fn a_tree_survives_its_address_space() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/a"), vec![1; 5000]).unwrap();
        fs::write(from.path().join("b"), b"").unwrap();
        fs::write(from.path().join("c"), vec![3; 100]).unwrap();
        std::os::unix::fs::symlink("d/a", from.path().join("l")).unwrap();
        fs::set_permissions(from.path().join("c"), fs::Permissions::from_mode(0o640)).unwrap();
        let (entries, layout) = scan(from.path(), walk(from.path()), &Layout::new());
        let content = TreeContent::new(from.path(), &entries);
        let mut bytes = vec![0; content.size_bytes() as usize];
        content.read_exact_at(&mut bytes, 0).unwrap();
        let target = TreeTarget::create(to.path(), entries.clone()).unwrap();
        for (i, chunk) in bytes.chunks(1000).enumerate() {
            target.write_all_at(chunk, i as u64 * 1000).unwrap();
        }
        target.finish(0).unwrap();
        let (again, _) = scan(to.path(), walk(to.path()), &layout);
        assert_eq!(again, entries, "modes, times, links and places are the same");
        assert_eq!(fs::read(to.path().join("d/a")).unwrap(), vec![1; 5000]);
        assert_eq!(fs::read(to.path().join("l")).unwrap(), vec![1; 5000]);
    }

    #[test]
    fn a_file_keeps_its_place_when_its_neighbours_grow_or_go() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(dir.path().join(name), vec![1; 5000]).unwrap();
        }
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (_, first) = scan(dir.path(), paths(&["a", "b", "c"]), &Layout::new());
        fs::write(dir.path().join("a"), vec![1; 50_000]).unwrap();
        let (_, second) = scan(dir.path(), paths(&["a", "c"]), &first);
        assert_eq!(second["c"], first["c"]);
        assert!(second["a"].0 >= first["c"].0 + first["c"].1, "the grown file moves to the end");
    }

    #[test]
    fn a_hostile_directory_cannot_leave_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let entry = |path: &str, kind| TreeEntry {
            path: path.into(),
            kind,
            mode: 0o600,
            uid: 0,
            gid: 0,
            modified_ns: 0,
        };
        let file = || TreeEntryKind::File { size_bytes: 1, offset: 0 };
        for path in ["../x", "/etc/x", "a/../../x", "", "."] {
            assert!(TreeTarget::create(dir.path(), vec![entry(path, file())]).is_err(), "{path:?}");
        }
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        assert!(TreeTarget::create(dir.path(), vec![entry("link/x", file())]).is_err());
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    }
}
