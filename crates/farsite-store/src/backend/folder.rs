//! A replica store in a folder: the embedded default. Objects are files; creation is a temporary file, fsync,
//! `link(2)` (which fails when the name exists) and fsync of the directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::StoreTime;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{Backend, BackendError, Listed, Object};

const READING: &str = "reading";
/// Where temporary files lie: in the store's own file system, so that `link(2)` works.
const TEMPORARY: &str = ".tmp";

/// A temporary file that nobody holds any more is removed when it is older than this.
const ABANDONED: std::time::Duration = std::time::Duration::from_hours(1);

#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    /// Device and inode of the root when it was opened: when the file system is unmounted under a running process,
    /// nothing must be written into the bare mount point.
    identity: (u64, u64),
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Folder {
    /// An existing folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, BackendError> {
        let mut folder = Self { root: root.into(), identity: (0, 0) };
        if !folder.root.is_dir() {
            return Err(BackendError::Unreachable {
                store: folder.describe(),
                operation: "opening",
                key: "it".to_owned(),
                why: "there is no such folder (is it mounted? `farsite init` creates one)".into(),
            });
        }
        folder.identity = identity(&folder.root).map_err(|e| folder.error("opening", "it", &e))?;
        folder.sweep();
        Ok(folder)
    }

    /// Creates the folder when it is missing.
    pub fn create_root(root: impl Into<PathBuf>) -> Result<Self, BackendError> {
        let root = root.into();
        let folder = Self { root: root.clone(), identity: (0, 0) };
        fs::create_dir_all(&root)
            .and_then(|()| match root.parent() {
                // The name of a new store must survive a power cut as well as what is in it.
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => Ok(()),
            })
            .map_err(|e| folder.error("creating", "", &e))?;
        Self::open(root)
    }

    /// Removes what killed writers left: temporary files that no process holds locked. Best effort: a reader may have
    /// no right to.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.root.join(TEMPORARY)) else { return };
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED));
            if old
                && let Ok(file) = File::open(entry.path())
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn error(&self, operation: &'static str, key: &str, error: &io::Error) -> BackendError {
        let (store, key, why) = (self.describe(), key.to_owned(), error.to_string());
        match error.kind() {
            io::ErrorKind::NotFound => BackendError::Missing { store, key },
            io::ErrorKind::AlreadyExists => BackendError::Exists { store, key },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                BackendError::Denied { store, operation, key, why }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                BackendError::Full { store, key, why }
            }
            // Shorter than asked for, or the medium fails (EIO, EBADMSG, EUCLEAN).
            io::ErrorKind::UnexpectedEof => {
                BackendError::Unreadable { store, key, why: "the object is truncated".into() }
            }
            _ if operation == READING && matches!(error.raw_os_error(), Some(5 | 74 | 117)) => {
                BackendError::Unreadable { store, key, why }
            }
            _ => BackendError::Other { store, operation, key, why },
        }
    }

    /// Runs file work off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let folder = self.clone();
        let result = tokio::task::spawn_blocking(move || {
            let same = identity(&folder.root).is_ok_and(|now| now == folder.identity);
            same.then(|| work(&folder))
        })
        .await
        .map(Option::transpose);
        match result {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => Err(BackendError::Unreachable {
                store: self.describe(),
                operation,
                key: key.to_owned(),
                why: "the folder that was opened is not there any more (was its file system unmounted?)"
                    .into(),
            }),
            Ok(Err(error)) => Err(self.error(operation, key, &error)),
            Err(join) => Err(BackendError::Other {
                store: self.describe(),
                operation,
                key: key.to_owned(),
                why: join.to_string(),
            }),
        }
    }

    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        let dir = self.root.join(TEMPORARY);
        fs::create_dir_all(&dir)?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let nanos = Timestamp::now().as_nanosecond();
        let path = dir.join(format!("{}-{nanos}-{number}", std::process::id()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        // Says that a living process holds it. A file system without locks is no reason not to write.
        let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok((path, file))
    }
}

fn identity(root: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(root)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Keys come from names in policies and databases; none may lead out of the store.
fn check_key(key: &str) -> io::Result<()> {
    let odd = key.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part == TEMPORARY);
    if odd {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a name for an object"));
    }
    Ok(())
}

fn modified(metadata: &fs::Metadata) -> io::Result<StoreTime> {
    Timestamp::try_from(metadata.modified()?).map(StoreTime).map_err(io::Error::other)
}

fn sync_parents(root: &Path, path: &Path) -> io::Result<()> {
    let mut dir = path.parent();
    while let Some(current) = dir {
        File::open(current)?.sync_all()?;
        if current == root {
            break;
        }
        dir = current.parent();
    }
    Ok(())
}

#[async_trait]
impl Backend for Folder {
    fn describe(&self) -> String {
        format!("folder {}", self.root.display())
    }

    fn clock_grain_ms(&self) -> u64 {
        // The kernel stamps files with its tick: 4 ms at 250 Hz, 10 ms at 100 Hz.
        10
    }

    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.blocking("asking the time of", "", |folder| {
            // The file system's clock, not this machine's: on NFS they differ. An empty file is enough, and can be made
            // where there is no room for a byte.
            let (path, file) = folder.temporary()?;
            let time = file.metadata().and_then(|metadata| modified(&metadata));
            fs::remove_file(&path)?;
            time
        })
        .await
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        let name = key.to_owned();
        self.blocking("creating", key, move |folder| {
            check_key(&name)?;
            let target = folder.path(&name);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            let (path, mut file) = folder.temporary()?;
            let result = (|| {
                file.write_all(&bytes)?;
                file.sync_all()?;
                let time = modified(&file.metadata()?)?;
                if let Err(error) = fs::hard_link(&path, &target) {
                    // Its writer may have been killed before it synced the name: whoever is told that the object
                    // exists may rely on it, so the name is made durable here too.
                    if error.kind() == io::ErrorKind::AlreadyExists {
                        sync_parents(&folder.root, &target)?;
                    }
                    return Err(error);
                }
                sync_parents(&folder.root, &target)?;
                Ok(time)
            })();
            let _ = fs::remove_file(&path);
            result
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        let name = key.to_owned();
        self.blocking(READING, key, move |folder| {
            let mut file = File::open(folder.path(&name))?;
            let metadata = file.metadata()?;
            let mut bytes = Vec::with_capacity(metadata.len() as usize);
            file.read_to_end(&mut bytes)?;
            Ok(Object { bytes: bytes.into(), written: modified(&metadata)? })
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        let name = key.to_owned();
        self.blocking(READING, key, move |folder| {
            let file = File::open(folder.path(&name))?;
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok(bytes.into())
        })
        .await
    }

    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        let name = key.to_owned();
        self.blocking("looking at", key, move |folder| Ok(fs::metadata(folder.path(&name))?.len())).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        let (prefix_owned, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.blocking("listing", prefix, move |folder| {
            // Only the deepest folder that the prefix names has to be walked.
            let start = prefix_owned.rsplit_once('/').map_or("", |(dir, _)| dir);
            let mut found = Vec::new();
            walk(&folder.root, start, &prefix_owned, after.as_deref(), &mut found)?;
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        let name = key.to_owned();
        self.blocking("deleting", key, move |folder| fs::remove_file(folder.path(&name))).await
    }

    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        let name = key.to_owned();
        self.blocking("overwriting", key, move |folder| fs::write(folder.path(&name), &bytes)).await
    }
}

fn walk(
    root: &Path,
    dir: &str,
    prefix: &str,
    after: Option<&str>,
    found: &mut Vec<Listed>,
) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if dir.is_empty() && name == TEMPORARY {
            continue;
        }
        let key = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        if entry.file_type()?.is_dir() {
            let inside = format!("{key}/");
            if inside.starts_with(prefix) || prefix.starts_with(&inside) {
                walk(root, &key, prefix, after, found)?;
            }
        } else if key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after) {
            // A file may go while it is listed (collection, probes).
            if let Ok(metadata) = entry.metadata() {
                found.push(Listed { key, size_bytes: metadata.len(), written: modified(&metadata)? });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.create("a/b", Bytes::from_static(b"one")).await.unwrap();
        let again = folder.create("a/b", Bytes::from_static(b"two")).await;
        assert!(matches!(again, Err(BackendError::Exists { .. })));
        assert_eq!(&folder.get("a/b").await.unwrap().bytes[..], b"one");
        assert_eq!(&folder.get_range("a/b", 1..3).await.unwrap()[..], b"ne");
        assert_eq!(folder.size("a/b").await.unwrap(), 3);
    }

    #[tokio::test]
    async fn listings_are_ordered_and_start_after_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for key in ["l/0002", "l/0001", "l/sub/x", "m/1"] {
            folder.create(key, Bytes::new()).await.unwrap();
        }
        let keys = |listed: Vec<Listed>| listed.into_iter().map(|l| l.key).collect::<Vec<_>>();
        assert_eq!(keys(folder.list("l/", None).await.unwrap()), ["l/0001", "l/0002", "l/sub/x"]);
        assert_eq!(keys(folder.list("l/", Some("l/0001")).await.unwrap()), ["l/0002", "l/sub/x"]);
        assert_eq!(keys(folder.list("l/00", None).await.unwrap()), ["l/0001", "l/0002"]);
        assert_eq!(keys(folder.list("none/", None).await.unwrap()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_missing_folder_is_said_at_once() {
        let error = Folder::open("/nonexistent/replica").unwrap_err().to_string();
        assert!(error.contains("no such folder"), "{error}");
    }
}
