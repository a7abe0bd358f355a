//! Cinder's volumes: a folder of a file back end (NFS and the like) or a Ceph pool comes in; each regular file or image in
//! it is one item, named as that is. What must hold: a place that cannot be read, or a selection that is not answered, is an
//! error and never a shorter list.

mod chosen;
mod told;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use farsite_model::policy::{self, DiskFormat, Item, Qmp, Rbd};
use farsite_model::{CaptureTime, ItemId, ItemKind};
use farsite_openstack::SiteCloud;

use crate::volume::{self, blocking};
use crate::{Capture, CaptureContext, CheckLine, KeptSpace, Needed, Source, SourceError};
use crate::{kept, qcow2, rbd, share};
use chosen::{Chooser, Chosen};
use told::Facts;
pub use told::{ENCRYPTED, ENCRYPTED_BY_CINDER, ENCRYPTED_BY_SOMEBODY, ENCRYPTION_KEYS};

/// A `cinder` entry.
pub(crate) struct Cinder {
    item: Item,
    path: Option<PathBuf>,
    format: DiskFormat,
    qmp: Option<Qmp>,
    rbd: Option<Rbd>,
    chooser: Chooser,
    cloud: Arc<SiteCloud>,
    /// The items that hold the keys of encrypted volumes.
    keys: Vec<String>,
    /// What was selected when all its volumes were about to be held.
    prepared: tokio::sync::Mutex<Option<Chosen>>,
    /// A pool whose images are open, from the preparation on.
    ready: Mutex<Option<rbd::Ready>>,
}

impl Cinder {
    pub(crate) fn new(item: &Item, cinder: &policy::Cinder, cloud: &Arc<SiteCloud>) -> Self {
        Self {
            item: item.clone(),
            path: cinder.path.clone(),
            format: cinder.format,
            qmp: cinder.qmp.clone(),
            rbd: cinder.rbd.clone(),
            chooser: Chooser::new(item.id(), cinder, cloud.clone()),
            cloud: cloud.clone(),
            keys: cinder.encryption_keys.clone(),
            prepared: tokio::sync::Mutex::default(),
            ready: Mutex::new(None),
        }
    }

    async fn ready(&self, pool: &Rbd) -> Result<Option<rbd::Ready>, SourceError> {
        rbd::prepare(pool, self.found().await?.volumes).await
    }

    /// Where the volumes are.
    fn place(&self) -> Result<Place<'_>, SourceError> {
        let fail = |why: &str, hint: &str| {
            Err(SourceError::new(format!("listing the volumes of {}", self.item.id()), why).hint(hint))
        };
        match (&self.path, &self.rbd) {
            (_, Some(rbd)) => Ok(Place::Pool(rbd)),
            (Some(path), None) => Ok(Place::Folder(path)),
            (None, None) => fail(
                "it has neither `path` nor `rbd`, and other back ends are not read yet",
                "name the folder in which the back end keeps its volumes' files (`path`), or its pool (`rbd`)",
            ),
        }
    }

    /// The names of the selected files or images, and what was skipped and should be known.
    async fn found(&self) -> Result<Found, SourceError> {
        let chosen = self.chooser.choose().await?;
        let all = match self.place()? {
            Place::Folder(folder) => listed(folder).await?,
            Place::Pool(pool) => Found { volumes: rbd::list(pool).await?, odd: Vec::new() },
        };
        Ok(Found { volumes: self.chooser.pick(&chosen, all.volumes).await?, odd: all.odd })
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

fn list(folder: &Path) -> Result<Found, SourceError> {
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
            Some(name) if kind.is_file() => found.volumes.push(name.to_owned()),
            Some(name) if kind.is_symlink() => found.odd.push(format!("{name} is a symbolic link")),
            Some(_) => {}
            None => found.odd.push(format!("{} is not UTF-8", name.to_string_lossy())),
        }
    }
    found.volumes.sort();
    Ok(found)
}

/// What is in a folder.
async fn listed(folder: &Path) -> Result<Found, SourceError> {
    let owned = folder.to_owned();
    blocking(move || list(&owned)).await
}

fn warn(folder: &Path, odd: &[String]) {
    for odd in odd {
        tracing::warn!(folder = %folder.display(), "{odd}, and is not protected");
    }
}

fn items_of(files: &[String]) -> Vec<ItemId> {
    files.iter().map(|name| ItemId::new(ItemKind::Cinder, name)).collect()
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
        let place = match self.place() {
            Ok(place) => place,
            Err(error) => {
                say("selection", Err(error.to_string()));
                return lines;
            }
        };
        let found = match self.found().await {
            Ok(found) => found,
            Err(error) => {
                say("volumes", Err(error.to_string()));
                return lines;
            }
        };
        for why in self.chooser.in_vain(&found.volumes).await {
            say("selection", Err(why));
        }
        for odd in &found.odd {
            say("volumes", Err(format!("{odd}, and is not protected\n  hint: replace it by a plain file")));
        }
        let count = found.volumes.len();
        match place {
            Place::Pool(pool) => {
                say("volumes", Ok(format!("{count} volumes in the pool {}", pool.pool)));
                say("consistency", Ok("snapshots of the pool: captures are crash consistent".to_owned()));
                if self.cloud.name().is_none() {
                    let words = "what users delete stays in the pool's trash, and keeps its room: whether Cinder deleted it is not told without `cloud:` of the site";
                    say("deleted volumes", Ok(words.to_owned()));
                }
            }
            Place::Folder(folder) => {
                say("volumes", Ok(format!("{count} volumes in {}", folder.display())));
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
        // Before versions are held, which others wait for.
        self.cloud.look_at_volumes().await;
        let found = self.found().await?;
        if let Some(folder) = &self.path {
            warn(folder, &found.odd);
        }
        Ok(items_of(&found.volumes))
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let name = crate::plain_name(item)?;
        // Asked before anything is frozen.
        let facts = Facts::ask(&self.cloud, self.path.as_deref(), name).await;
        let kind = ItemKind::Cinder;
        let capture = match (self.place()?, self.format) {
            (Place::Pool(pool), _) => rbd::capture(pool, name, item, context).await,
            (Place::Folder(folder), DiskFormat::Raw) => {
                volume::capture(&folder.join(name), item, kind, context).await
            }
            (Place::Folder(folder), DiskFormat::Qcow2) => {
                qcow2::capture(&folder.join(name), self.qmp.as_ref(), item, kind, context).await
            }
        }?;
        facts.note(capture, &self.keys).await
    }

    async fn prepare(&self) -> bool {
        match self.place() {
            Ok(Place::Folder(folder)) if self.format == DiskFormat::Raw => {
                let folder = folder.to_owned();
                if !blocking(move || Ok(share::prepare(&folder))).await.unwrap_or(false) {
                    return false;
                }
                // A cloud is not waited for while commits are; what is wrong with it is said when the items are listed.
                let Ok(chosen) = self.chooser.choose().await else { return false };
                *self.prepared.lock().await = Some(chosen);
                true
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
                let Some(ready) = ready else { return Ok(None) };
                let held = ready.take(context).await?;
                return Ok(Some(Box::new(HeldPool {
                    held,
                    cloud: self.cloud.clone(),
                    keys: self.keys.clone(),
                })));
            }
        };
        if self.format != DiskFormat::Raw || !share::is_subvolume(folder) {
            return Ok(None);
        }
        let chosen = match self.prepared.lock().await.take() {
            Some(chosen) => chosen,
            None => self.chooser.choose().await?,
        };
        let captured = context.clock.capture_time();
        let snapshot = share::take(folder).await?;
        Ok(Some(Box::new(Held {
            live: folder.to_owned(),
            cloud: self.cloud.clone(),
            keys: self.keys.clone(),
            chooser: self.chooser.clone(),
            chosen,
            captured,
            snapshot,
        })))
    }

    async fn kept(&self, context: &CaptureContext) -> Result<Vec<KeptSpace>, SourceError> {
        match self.place()? {
            Place::Folder(folder) => {
                let items = self.items().await?;
                let volumes = items.into_iter().map(|item| (item.clone(), folder.join(item.name())));
                volume::kept_in(volumes.collect(), context).await
            }
            Place::Pool(pool) => rbd::kept(pool, self.found().await?.volumes, context, &self.cloud).await,
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
            Ok(Place::Pool(pool)) => rbd::forget(pool, name, context, &self.cloud).await,
            Err(_) => {}
        }
    }

    async fn tidy(&self, needed: Needed, context: &CaptureContext) -> Result<(), SourceError> {
        match &self.rbd {
            Some(pool) => rbd::tidy(pool, needed, context).await,
            None => Ok(()),
        }
    }
}

/// A folder of volumes at one instant.
struct Held {
    live: PathBuf,
    cloud: Arc<SiteCloud>,
    keys: Vec<String>,
    chooser: Chooser,
    /// What was selected just before that instant.
    chosen: Chosen,
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
        self.cloud.look_at_volumes().await;
        let found = listed(self.snapshot.path()).await?;
        warn(&self.live, &found.odd);
        Ok(items_of(&self.chooser.pick(&self.chosen, found.volumes).await?))
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let name = crate::plain_name(item)?;
        let (frozen, live) = (self.snapshot.path().join(name), self.live.join(name));
        let facts = Facts::ask(&self.cloud, Some(self.snapshot.path()), name).await;
        let kind = ItemKind::Cinder;
        let capture = volume::captured_from(&frozen, &live, self.captured, item, kind, context).await?;
        facts.note(capture, &self.keys).await
    }
}

/// A pool at one instant.
struct HeldPool {
    held: Box<dyn Source>,
    cloud: Arc<SiteCloud>,
    keys: Vec<String>,
}

#[async_trait]
impl Source for HeldPool {
    fn describe(&self) -> String {
        self.held.describe()
    }

    async fn check(&self) -> Vec<CheckLine> {
        self.held.check().await
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        self.cloud.look_at_volumes().await;
        self.held.items().await
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let facts = Facts::ask(&self.cloud, None, crate::plain_name(item)?).await;
        facts.note(self.held.capture(item, context).await?, &self.keys).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::context;

    fn source(path: &Path, select: serde_json::Value) -> Box<dyn Source> {
        let entry = serde_json::json!({"cinder": {"path": path, "select": select}});
        crate::tests::source(&serde_json::from_value(entry).unwrap()).unwrap()
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
        let alike = source(dir.path(), serde_json::json!({"files": ["vol*-a*"]}));
        assert_eq!(names(&*alike).await, ["volume-a", "volume-a.qcow2"]);
        let named = source(dir.path(), serde_json::json!({"files": ["volume-b"]}));
        assert_eq!(names(&*named).await, ["volume-b"]);
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_an_error_and_no_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        assert!(source(&dir.path().join("gone"), serde_json::Value::Null).items().await.is_err());
        let by_metadata = source(dir.path(), serde_json::json!({"metadata": {"tier": "gold"}}));
        let error = by_metadata.items().await.unwrap_err().to_string();
        assert!(error.contains("no `cloud:`"), "{error}");
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
