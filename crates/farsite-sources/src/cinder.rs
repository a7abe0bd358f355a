//! Cinder's volumes: a folder of a file back end (NFS and the like) or a Ceph pool comes in; each regular file or image in
//! it is one item, named as that is. What must hold: a place that cannot be read, or a selection that names alone cannot
//! answer, is an error and never a shorter list.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use farsite_model::policy::{self, DiskFormat, Item, Qmp, Rbd, Select};
use farsite_model::{CaptureTime, ItemId, ItemKind};

use crate::volume::{self, blocking};
use crate::{Capture, CaptureContext, CheckLine, KeptSpace, Source, SourceError};
use crate::{kept, qcow2, rbd, share};

/// A `cinder` entry.
pub(crate) struct Cinder {
    item: Item,
    path: Option<PathBuf>,
    format: DiskFormat,
    qmp: Option<Qmp>,
    rbd: Option<Rbd>,
    select: Option<Select>,
    /// A pool whose images are open, from the preparation on.
    ready: Mutex<Option<rbd::Ready>>,
}

impl Cinder {
    pub(crate) fn new(item: &Item, cinder: &policy::Cinder) -> Self {
        Self {
            item: item.clone(),
            path: cinder.path.clone(),
            format: cinder.format,
            qmp: cinder.qmp.clone(),
            rbd: cinder.rbd.clone(),
            select: cinder.select.clone(),
            ready: Mutex::new(None),
        }
    }

    async fn ready(&self, pool: &Rbd) -> Result<Option<rbd::Ready>, SourceError> {
        rbd::prepare(pool, self.images(pool).await?).await
    }

    /// Where the volumes are, when names alone can answer what is asked for.
    fn place(&self) -> Result<Place<'_>, SourceError> {
        let fail = |why: &str, hint: &str| {
            Err(SourceError::new(format!("listing the volumes of {}", self.item.id()), why).hint(hint))
        };
        if self.select.as_ref().is_some_and(|select| !select.metadata.is_empty()) {
            return fail(
                "`select.metadata` needs Cinder's API, which is not asked yet: no volume is captured",
                "select by `ids`, or leave `select` out to protect every volume in the folder",
            );
        }
        match (&self.path, &self.rbd) {
            (_, Some(rbd)) => Ok(Place::Pool(rbd)),
            (Some(path), None) => Ok(Place::Folder(path)),
            (None, None) => fail(
                "it has neither `path` nor `rbd`, and other back ends are not read yet",
                "name the folder in which the back end keeps its volumes' files (`path`), or its pool (`rbd`)",
            ),
        }
    }

    /// The selected images of a pool.
    async fn images(&self, pool: &Rbd) -> Result<Vec<String>, SourceError> {
        let mut names = rbd::list(pool).await?;
        names.retain(|name| self.select.as_ref().is_none_or(|select| selects(select, name)));
        Ok(names)
    }
}

enum Place<'a> {
    Folder(&'a Path),
    Pool(&'a Rbd),
}

/// What is in a folder of volumes.
#[derive(Debug, Default)]
struct Found {
    volumes: Vec<String>,
    /// What was skipped and should be known.
    odd: Vec<String>,
}

fn list(folder: &Path, select: Option<&Select>) -> Result<Found, SourceError> {
    let fail = |error: std::io::Error| {
        SourceError::new(format!("listing the volumes in {}", folder.display()), error)
            .hint("is its file system mounted, and may the agent's user read it?")
    };
    let mut found = Found::default();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        // Hidden files are nobody's volumes; our own snapshots are among them.
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = match entry.file_type() {
            // It went between the listing and this look.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            kind => kind.map_err(fail)?,
        };
        match name.to_str() {
            Some(name) if kind.is_file() => {
                if select.is_none_or(|select| selects(select, name)) {
                    found.volumes.push(name.to_owned());
                }
            }
            Some(name) if kind.is_symlink() => found.odd.push(format!("{name} is a symbolic link")),
            Some(_) => {}
            None => found.odd.push(format!("{} is not UTF-8", name.to_string_lossy())),
        }
    }
    found.volumes.sort();
    Ok(found)
}

/// The items in a folder.
async fn listed(folder: &Path, select: Option<&Select>) -> Result<Vec<ItemId>, SourceError> {
    let (owned, select) = (folder.to_owned(), select.cloned());
    let found = blocking(move || list(&owned, select.as_ref())).await?;
    for odd in &found.odd {
        tracing::warn!(folder = %folder.display(), "{odd}, and is not protected");
    }
    Ok(found.volumes.iter().map(|name| ItemId::new(ItemKind::Cinder, name)).collect())
}

/// Everything that is given must hold: one of the ids, and one of the names.
fn selects(select: &Select, file: &str) -> bool {
    let by_id = select.ids.is_empty() || select.ids.iter().any(|id| is_volume(file, id));
    let by_name = select.names.is_empty() || select.names.iter().any(|name| fits(name, file));
    by_id && by_name
}

/// A name with `*` for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            name.char_indices().map(|(at, _)| &name[at..]).chain([""]).any(|end| fits(rest, end))
        }),
    }
}

/// Cinder names a volume's file `volume-ID`, some back ends with an ending behind it.
fn is_volume(file: &str, id: &str) -> bool {
    let rest = file.strip_prefix("volume-").unwrap_or(file).strip_prefix(id);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[async_trait]
impl Source for Cinder {
    fn describe(&self) -> String {
        match (&self.path, &self.rbd) {
            (_, Some(rbd)) => format!("cinder: the pool {}", rbd.pool),
            (Some(path), None) => format!("cinder: {}", path.display()),
            (None, None) => format!("cinder: {}", self.item.name()),
        }
    }

    async fn check(&self) -> Vec<CheckLine> {
        let mut lines = Vec::new();
        let mut say = |topic: &str, result: Result<String, String>| {
            lines.push(CheckLine { subject: format!("{}: {topic}", self.item.id()), result });
        };
        let folder = match self.place() {
            Ok(Place::Folder(folder)) => folder.to_owned(),
            Ok(Place::Pool(pool)) => {
                match self.images(pool).await {
                    Ok(names) => {
                        say("volumes", Ok(format!("{} volumes in the pool {}", names.len(), pool.pool)));
                        say(
                            "consistency",
                            Ok("snapshots of the pool: captures are crash consistent".to_owned()),
                        );
                    }
                    Err(error) => say("volumes", Err(error.to_string())),
                }
                return lines;
            }
            Err(error) => {
                say("selection", Err(error.to_string()));
                return lines;
            }
        };
        let (path, select) = (folder.clone(), self.select.clone());
        match blocking(move || list(&path, select.as_ref())).await {
            Err(error) => say("volumes", Err(error.to_string())),
            Ok(found) => {
                for id in self.select.iter().flat_map(|select| &select.ids) {
                    if !found.volumes.iter().any(|file| is_volume(file, id)) {
                        let why = format!("no file in {} is volume {id}", folder.display());
                        say("selection", Err(format!("{why}\n  hint: look at the id and at the back end")));
                    }
                }
                for odd in found.odd {
                    say(
                        "volumes",
                        Err(format!("{odd}, and is not protected\n  hint: replace it by a plain file")),
                    );
                }
                say("volumes", Ok(format!("{} volumes in {}", found.volumes.len(), folder.display())));
                if let Some(first) = found.volumes.first() {
                    let (path, item, format) = (folder.join(first), self.item.clone(), self.format);
                    let qmp = self.qmp.clone();
                    // A process that is asked may hang.
                    let still = blocking(move || Ok(volume::stillness(&path, &item, format, qmp.as_ref())));
                    say("consistency", still.await.unwrap_or_else(|error| Err(error.to_string())));
                }
            }
        }
        lines
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        let folder = match self.place()? {
            Place::Folder(folder) => folder.to_owned(),
            Place::Pool(pool) => {
                let names = self.images(pool).await?;
                return Ok(names.iter().map(|name| ItemId::new(ItemKind::Cinder, name)).collect());
            }
        };
        listed(&folder, self.select.as_ref()).await
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let name = crate::plain_name(item)?;
        let path = match self.place()? {
            Place::Folder(folder) => folder.join(name),
            Place::Pool(pool) => return rbd::capture(pool, name, item, context).await,
        };
        match self.format {
            DiskFormat::Raw => volume::capture(&path, item, ItemKind::Cinder, context).await,
            DiskFormat::Qcow2 => {
                qcow2::capture(&path, self.qmp.as_ref(), item, ItemKind::Cinder, context).await
            }
        }
    }

    async fn prepare(&self) -> bool {
        match self.place() {
            Ok(Place::Folder(folder)) if self.format == DiskFormat::Raw => {
                let folder = folder.to_owned();
                blocking(move || Ok(share::prepare(&folder))).await.unwrap_or(false)
            }
            Ok(Place::Pool(pool)) => match self.ready(pool).await {
                Ok(ready) => {
                    let is_ready = ready.is_some();
                    *self.ready.lock().expect("no holder of this lock panics") = ready;
                    is_ready
                }
                Err(error) => {
                    tracing::warn!("{}: not all of it can be of one moment: {error}", self.describe());
                    false
                }
            },
            _ => false,
        }
    }

    async fn instant(&self, context: &CaptureContext) -> Result<Option<Box<dyn Source>>, SourceError> {
        let folder = match self.place()? {
            Place::Folder(folder) => folder,
            Place::Pool(_) => {
                let ready = self.ready.lock().expect("no holder of this lock panics").take();
                return match ready {
                    Some(ready) => ready.take(context).await.map(Some),
                    None => Ok(None),
                };
            }
        };
        if self.format != DiskFormat::Raw || !share::is_subvolume(folder) {
            return Ok(None);
        }
        let captured = context.clock.capture_time();
        let snapshot = share::take(folder).await?;
        Ok(Some(Box::new(Held { live: folder.to_owned(), select: self.select.clone(), captured, snapshot })))
    }

    async fn kept(&self, context: &CaptureContext) -> Result<Vec<KeptSpace>, SourceError> {
        match self.place()? {
            Place::Folder(folder) => {
                let items = self.items().await?;
                let volumes = items.into_iter().map(|item| (item.clone(), folder.join(item.name())));
                volume::kept_in(volumes.collect(), context).await
            }
            Place::Pool(pool) => rbd::kept(pool, self.images(pool).await?, context).await,
        }
    }

    async fn forget(&self, item: &ItemId, context: &CaptureContext) {
        let Ok(name) = crate::plain_name(item) else { return };
        match self.place() {
            Ok(Place::Folder(folder)) => {
                let path = folder.join(name);
                kept::forget(&path, item, context);
                if self.format == DiskFormat::Qcow2 {
                    qcow2::forget(&path, self.qmp.as_ref(), item, context).await;
                }
            }
            Ok(Place::Pool(pool)) => rbd::forget(pool, name, context).await,
            Err(_) => {}
        }
    }
}

/// A folder of volumes at one instant.
struct Held {
    live: PathBuf,
    select: Option<Select>,
    captured: CaptureTime,
    snapshot: share::Snapshot,
}

#[async_trait]
impl Source for Held {
    fn describe(&self) -> String {
        format!("cinder: {}", self.live.display())
    }

    async fn check(&self) -> Vec<CheckLine> {
        Vec::new()
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        listed(self.snapshot.path(), self.select.as_ref()).await
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let name = crate::plain_name(item)?;
        let (frozen, live) = (self.snapshot.path().join(name), self.live.join(name));
        volume::captured_from(&frozen, &live, self.captured, item, ItemKind::Cinder, context).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::context;

    fn source(path: &Path, select: serde_json::Value) -> Box<dyn Source> {
        let entry = serde_json::json!({"cinder": {"path": path, "select": select}});
        crate::source(&serde_json::from_value(entry).unwrap()).unwrap()
    }

    async fn names(source: &dyn Source) -> Vec<String> {
        source.items().await.unwrap().iter().map(|id| id.name().to_owned()).collect()
    }

    #[tokio::test]
    async fn every_plain_file_is_a_volume_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["volume-b", "volume-a", "volume-a.qcow2", ".farsite-snap-x", ".hidden"] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        std::os::unix::fs::symlink("volume-a", dir.path().join("volume-link")).unwrap();
        let all = source(dir.path(), serde_json::Value::Null);
        assert_eq!(names(&*all).await, ["volume-a", "volume-a.qcow2", "volume-b"]);
        let lines = all.check().await;
        assert!(
            lines.iter().any(|l| l.result.as_ref().is_err_and(|e| e.contains("volume-link"))),
            "{lines:?}"
        );
        let some = source(dir.path(), serde_json::json!({"ids": ["a", "zz"]}));
        assert_eq!(names(&*some).await, ["volume-a", "volume-a.qcow2"]);
        assert!(some.check().await.iter().any(|l| l.result.as_ref().is_err_and(|e| e.contains("zz"))));
        let alike = source(dir.path(), serde_json::json!({"names": ["vol*-a*"]}));
        assert_eq!(names(&*alike).await, ["volume-a", "volume-a.qcow2"]);
        let named = source(dir.path(), serde_json::json!({"names": ["volume-b"]}));
        assert_eq!(names(&*named).await, ["volume-b"]);
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_an_error_and_no_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        assert!(source(&dir.path().join("gone"), serde_json::Value::Null).items().await.is_err());
        let by_metadata = source(dir.path(), serde_json::json!({"metadata": {"tier": "gold"}}));
        let error = by_metadata.items().await.unwrap_err().to_string();
        assert!(error.contains("select.metadata"), "{error}");
        assert!(by_metadata.check().await[0].result.is_err());
    }

    #[tokio::test]
    async fn an_item_never_leaves_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("volumes");
        fs::create_dir(&folder).unwrap();
        fs::write(dir.path().join("secret"), b"x").unwrap();
        let source = source(&folder, serde_json::Value::Null);
        let item = ItemId::new(ItemKind::Cinder, "../secret");
        assert!(source.capture(&item, &context(&dir.path().join("scratch"))).await.is_err());
    }
}
