//! Any file or block device as one item. A path comes in; its bytes go out, frozen by a reflink snapshot where the file
//! system has them, or by the policy's hooks. What must hold: what was neither is called fuzzy, even when nobody
//! happened to write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use farsite_model::policy::{self, DiskFormat, Item, Qmp};
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};

use crate::extent::FileContent;
use crate::folder::file_mode;
use crate::kept::{self, Kept};
use crate::tracking::ChangeTracking;
use crate::{Capture, CaptureContext, CheckLine, Content, KeptSpace, Source, SourceError, qcow2, snapshot};

/// Captures one file or device as one item; the sources of file volumes share it.
pub(crate) async fn capture(
    path: &Path,
    item: &ItemId,
    kind: ItemKind,
    context: &CaptureContext,
) -> Result<Capture, SourceError> {
    let captured = context.clock.capture_time();
    captured_from(path, path, captured, item, kind, context).await
}

/// The same of a file that something else holds still at `frozen` since `captured`, while the volume itself is `path`.
pub(crate) async fn captured_from(
    frozen: &Path,
    path: &Path,
    captured: CaptureTime,
    item: &ItemId,
    kind: ItemKind,
    context: &CaptureContext,
) -> Result<Capture, SourceError> {
    let (from, live, scratch) = (frozen.to_owned(), path.to_owned(), context.scratch.clone());
    // A file system that hangs must not hold a thread that others need.
    let (content, snapshot) = blocking(move || freeze(&from, &live, &scratch)).await?;
    let is_snapshot = snapshot.is_some() || frozen != path;
    let tracking = snapshot
        .map(|snapshot| -> Box<dyn ChangeTracking> { Box::new(Kept::new(snapshot, path, item, context)) });
    let consistency = match (is_snapshot, context.frozen) {
        (false, false) => Consistency::Fuzzy,
        _ => Consistency::Crash,
    };
    Ok(Capture {
        item: item.clone(),
        kind,
        captured,
        consistency,
        content: Content::Volume(Arc::new(content)),
        still: is_snapshot,
        ancestor: None,
        details: mode_of(path),
        tracking,
        guard: None,
    })
}

/// What is kept of a file beside its bytes; a device has nothing of the kind.
pub(crate) fn mode_of(path: &Path) -> BTreeMap<String, String> {
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    file.as_ref().map(file_mode).into_iter().collect()
}

/// The bytes to read, and the snapshot that they are of, if there is one.
fn freeze(path: &Path, live: &Path, scratch: &Path) -> Result<(FileContent, Option<File>), SourceError> {
    let content = FileContent::open(path)?;
    if !content.is_file() {
        return Ok((content, None));
    }
    // The scratch folder first: it is our own. Only one on the same file system will do.
    let folders: Vec<&Path> = [Some(scratch), live.parent()].into_iter().flatten().collect();
    let fail = |error| SourceError::new(format!("reading {}", path.display()), error);
    match snapshot::reflink(path, &folders).map_err(fail)? {
        Some(snapshot) => {
            let read = snapshot.try_clone().map_err(fail)?;
            Ok((FileContent::of(read, path)?, Some(snapshot)))
        }
        None => Ok((content, None)),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SourceError::new("reading an item", error)),
    }
}

/// What the versions of some volumes take.
pub(crate) async fn kept_in(
    volumes: Vec<(ItemId, PathBuf)>,
    context: &CaptureContext,
) -> Result<Vec<KeptSpace>, SourceError> {
    let context = context.clone();
    blocking(move || {
        let space = |(item, path): (ItemId, PathBuf)| match kept::space(&path, &item, &context) {
            // It went meanwhile, and its versions with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            space => {
                space.map_err(|error| SourceError::new(format!("measuring what is kept of {item}"), error))
            }
        };
        volumes.into_iter().filter_map(|volume| space(volume).transpose()).collect()
    })
    .await
}

/// What `farsite check` says of how still a file volume can be held.
pub(crate) fn stillness(
    path: &Path,
    item: &Item,
    format: DiskFormat,
    qmp: Option<&Qmp>,
) -> Result<String, String> {
    if format == DiskFormat::Qcow2 {
        return qcow2::stillness(path, qmp);
    }
    if looks_like_qcow2(path) {
        return Err(format!(
            "{} begins as a qcow2 image does, and is copied as the raw file that the policy calls it\n  hint: if it is one of \
             yours, say `format: qcow2`; if a guest may write to its first bytes, leave it",
            path.display()
        ));
    }
    let has_hooks = !item.hooks().before_capture.is_empty();
    let may_reflink = path.is_file() && has_reflinks(path);
    match (may_reflink, has_hooks, item.consistency()) {
        (true, _, _) => Ok("its file system makes snapshots: captures are crash consistent".to_owned()),
        (false, true, _) => Ok("its hooks freeze it: captures are crash consistent".to_owned()),
        (false, false, Some(least)) if least > Consistency::Fuzzy => Err(format!(
            "the policy demands {least}, and nothing holds {} still\n  hint: give it a before-capture hook that freezes \
             what writes to it (and an after-capture hook that thaws), or keep it on XFS or Btrfs",
            path.display()
        )),
        (false, false, _) => {
            Ok("nothing holds it still while it is read: captures are called fuzzy".to_owned())
        }
    }
}

/// A hint for a person and nothing more: a guest may have written it.
fn looks_like_qcow2(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && &magic == b"QFI\xfb"
}

/// Whether the file system is one that commonly has reflinks; only the capture itself finds out for sure.
fn has_reflinks(path: &Path) -> bool {
    const BTRFS: i64 = 0x9123_683E;
    const XFS: i64 = 0x5846_5342;
    const BCACHEFS: i64 = 0xCA45_1A4E;
    rustix::fs::statfs(path).is_ok_and(|found| [BTRFS, XFS, BCACHEFS].contains(&found.f_type))
}

/// A `volume` entry.
pub(crate) struct Volume {
    item: Item,
    path: PathBuf,
    format: DiskFormat,
    qmp: Option<Qmp>,
}

impl Volume {
    pub(crate) fn new(item: &Item, volume: &policy::Volume) -> Self {
        Self { item: item.clone(), path: volume.path.clone(), format: volume.format, qmp: volume.qmp.clone() }
    }
}

#[async_trait]
impl Source for Volume {
    fn describe(&self) -> String {
        format!("volume: {}", self.path.display())
    }

    async fn check(&self) -> Vec<CheckLine> {
        let path = self.path.clone();
        let (item, format, qmp) = (self.item.clone(), self.format, self.qmp.clone());
        let looked = blocking(move || {
            let size = farsite_model::content::ReadAt::size_bytes(&FileContent::open(&path)?);
            let still = stillness(&path, &item, format, qmp.as_ref());
            Ok((format!("{} can be read, {size} bytes", path.display()), still))
        });
        let line =
            |topic: &str, result| CheckLine { subject: format!("{}: {topic}", self.item.id()), result };
        match looked.await {
            Ok((read, still)) => vec![line("reading", Ok(read)), line("consistency", still)],
            Err(error) => vec![line("reading", Err(error.to_string()))],
        }
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.id()])
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        match self.format {
            DiskFormat::Raw => capture(&self.path, item, ItemKind::Volume, context).await,
            DiskFormat::Qcow2 => {
                qcow2::capture(&self.path, self.qmp.as_ref(), item, ItemKind::Volume, context).await
            }
        }
    }

    async fn kept(&self, context: &CaptureContext) -> Result<Vec<KeptSpace>, SourceError> {
        kept_in(vec![(self.item.id(), self.path.clone())], context).await
    }

    async fn forget(&self, item: &ItemId, context: &CaptureContext) {
        kept::forget(&self.path, item, context);
        if self.format == DiskFormat::Qcow2 {
            qcow2::forget(&self.path, self.qmp.as_ref(), item, context).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::context;

    fn entry(yaml: serde_json::Value) -> Item {
        serde_json::from_value(yaml).unwrap()
    }

    #[tokio::test]
    async fn a_file_that_nothing_holds_still_is_never_called_consistent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![3; 5000]).unwrap();
        let item = entry(serde_json::json!({"volume": {"path": path}}));
        let source = crate::tests::source(&item).unwrap();
        let ids = source.items().await.unwrap();
        assert_eq!(ids, [ItemId::parse("volume/disk.raw")]);
        let mut context = context(&dir.path().join("scratch"));
        let capture = source.capture(&ids[0], &context).await.unwrap();
        let expected = if capture.still { Consistency::Crash } else { Consistency::Fuzzy };
        assert_eq!(capture.consistency, expected);
        let Content::Volume(content) = &capture.content else { panic!("it is a volume") };
        let mut bytes = vec![0; 5000];
        content.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, vec![3; 5000]);
        context.frozen = true;
        assert_eq!(source.capture(&ids[0], &context).await.unwrap().consistency, Consistency::Crash);
    }

    #[tokio::test]
    async fn a_demand_that_cannot_be_met_is_said_by_the_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, b"x").unwrap();
        let plain = entry(serde_json::json!({"volume": {"path": path, "consistency": "crash"}}));
        let lines = crate::tests::source(&plain).unwrap().check().await;
        assert_eq!(lines[1].result.is_ok(), has_reflinks(&path), "{lines:?}");
        let hooked = serde_json::json!({"volume": {"path": path, "consistency": "crash",
            "hooks": {"before-capture": ["true"], "after-capture": ["true"]}}});
        assert!(
            crate::tests::source(&entry(hooked))
                .unwrap()
                .check()
                .await
                .iter()
                .all(|line| line.result.is_ok())
        );
        let missing = entry(serde_json::json!({"volume": {"path": dir.path().join("gone")}}));
        let lines = crate::tests::source(&missing).unwrap().check().await;
        assert!(lines[0].result.as_ref().unwrap_err().contains("gone"));
    }
}
