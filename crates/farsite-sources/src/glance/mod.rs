//! The images of Glance's file store or Ceph pool, or of its API: every file or RBD image whose name is an image's id is one item. What must
//! hold: an image is called `application` only when Glance's own database says that it is complete and of this length; one
//! that may still be uploaded is `fuzzy`; a place that cannot be read is an error and never empty.
//!
//! Images are not hashed here, which would read them twice: what Glance expects goes along in the details, and is
//! compared when they are proven at the standby.

mod api;
mod catalog;
mod digest;
mod download;
mod immutable;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use farsite_model::content::ReadAt;
use farsite_model::policy::{self, Checksums, Rbd};
use farsite_model::{Consistency, ItemId, ItemKind};
use farsite_openstack::SiteCloud;

use crate::extent::FileContent;
use crate::folder::{self, Folder, file_mode};
use crate::tracking::ChangeTracking;
use crate::{Capture, CaptureContext, CheckLine, Content, Source, SourceError, rbd};
use api::Api;
use catalog::Row;
use immutable::Immutable;

/// A file that was written this recently may still be written. Images are written once, from begin to end.
const QUIET: Duration = Duration::from_secs(2);
/// Glance's own snapshot of an image in a pool (`DEFAULT_SNAPNAME` of its RBD store): protected, so that clones can be made.
const SNAPSHOT: &str = "snap";
/// At most so many names stand in one line of a check.
const SHOWN: usize = 5;

/// The key in an image's details that says what it was read through, where that is not its store's own files.
pub const BACKEND: &str = "backend";
/// Through the API an image comes out of whatever store it lies in.
pub const BACKEND_API: &str = "api";

/// One image store of a policy.
pub(crate) struct Glance {
    item: ItemId,
    store: Store,
    checksums: Option<Checksums>,
}

/// Where the images are.
enum Store {
    Folder(PathBuf),
    Pool(Rbd),
    Api(Api),
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Pool(rbd) => rbd::shown(rbd).fmt(f),
            Self::Api(api) => api.shown().fmt(f),
        }
    }
}

impl Glance {
    pub(crate) fn new(item: &policy::Item, glance: &policy::Glance, cloud: &Arc<SiteCloud>) -> Self {
        let store = match &glance.rbd {
            Some(rbd) => Store::Pool(rbd.clone()),
            None if glance.api => Store::Api(Api::new(cloud)),
            // A policy without any of them is refused when it is read.
            None => Store::Folder(glance.store.clone().unwrap_or_default()),
        };
        Self { item: item.id(), store, checksums: glance.checksums.clone() }
    }

    /// What Glance knows about an image, where it can be asked.
    async fn row(&self, id: &str) -> Result<Option<Row>, SourceError> {
        match &self.checksums {
            Some(checksums) => catalog::image(checksums, id).await,
            None => Ok(None),
        }
    }

    async fn check_catalog(&self, checksums: &Checksums, images: &[String]) -> Vec<CheckLine> {
        let line = |topic: &str, result| CheckLine { subject: format!("{}: {topic}", self.item), result };
        let known = match catalog::complete_images(checksums).await {
            Ok(known) => known,
            Err(error) => return vec![line("Glance's database", Err(error.to_string()))],
        };
        let mut lines =
            vec![line("Glance's database", Ok(format!("knows {} images with data", known.len())))];
        let there: BTreeSet<&str> = images.iter().map(String::as_str).collect();
        let missing: Vec<String> = known.iter().filter(|id| !there.contains(id.as_str())).cloned().collect();
        if !missing.is_empty() {
            let why = format!(
                "with data by Glance's database and not in {}: {}\n  hint: they may be in another store, or lost",
                self.store,
                few(&missing)
            );
            lines.push(line("missing images", Err(why)));
        }
        lines
    }
}

#[async_trait]
impl Source for Glance {
    fn describe(&self) -> String {
        format!("{}: {}", self.item, self.store)
    }

    async fn check(&self) -> Vec<CheckLine> {
        let line = |topic: &str, result| CheckLine { subject: format!("{}: {topic}", self.item), result };
        let found = match &self.store {
            Store::Folder(folder) => images(folder).map(|(listed, images, others)| {
                let unreadable = listed.unreadable(&images);
                (images, others, unreadable)
            }),
            Store::Pool(rbd) => in_pool(rbd).await.map(|(images, others)| (images, others, Vec::new())),
            Store::Api(api) => return api.check(line).await,
        };
        let (images, oddities, unreadable) = match found {
            Ok(found) => found,
            Err(error) => return vec![line("images", Err(error.to_string()))],
        };
        let mut said = format!("{} images in {}", images.len(), self.store);
        if !oddities.is_empty() {
            said = format!("{said}; no images, left out: {}", few(&oddities));
        }
        let mut lines = vec![line("images", Ok(said))];
        if !unreadable.is_empty() {
            let why = format!("{}\n  hint: let the agent's user read them", few(&unreadable));
            lines.push(line("rights", Err(why)));
        }
        if let Some(checksums) = &self.checksums {
            lines.extend(self.check_catalog(checksums, &images).await);
        }
        lines
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        let images = match &self.store {
            Store::Folder(folder) => images(folder)?.1,
            Store::Pool(rbd) => in_pool(rbd).await?.0,
            Store::Api(api) => api.list().await?,
        };
        // What is not uploaded yet is no image, and the row that says so travels with the database.
        let unfinished: BTreeSet<String> = match &self.checksums {
            Some(checksums) => catalog::unfinished_images(checksums).await?.into_iter().collect(),
            None => BTreeSet::new(),
        };
        let images: Vec<String> = images.into_iter().filter(|image| !unfinished.contains(image)).collect();
        Ok(images.iter().map(|name| ItemId::new(ItemKind::Glance, name)).collect())
    }

    /// A file that is gone while Glance's row says that its image has data was deleted by nobody's order.
    async fn lost(&self, gone: &[ItemId]) -> Result<Vec<ItemId>, SourceError> {
        let Some(checksums) = self.checksums.as_ref().filter(|_| !gone.is_empty()) else {
            return Ok(Vec::new());
        };
        let complete: BTreeSet<String> = catalog::complete_images(checksums).await?.into_iter().collect();
        Ok(gone.iter().filter(|item| complete.contains(item.name())).cloned().collect())
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let captured = context.clock.capture_time();
        // Asked before the image is looked at: what is active then is complete now.
        let row = self.row(item.name()).await?;
        let mut details = Details::new();
        let (content, tracking, is_quiet): (Arc<dyn ReadAt>, Option<Box<dyn ChangeTracking>>, _) =
            match &self.store {
                Store::Folder(folder) => {
                    let path = folder::file_of(folder, item)?;
                    let content = FileContent::open(&path)?;
                    let has_settled = is_quiet(&path, SystemTime::now());
                    // Before its first byte is read: what is written meanwhile gives it another stamp.
                    let stamp =
                        content.metadata().map_err(|error| SourceError::new("reading an image", error))?;
                    details.extend([file_mode(&stamp)]);
                    let tracking =
                        has_settled.then(|| Box::new(Immutable::by_stamp(&stamp)) as Box<dyn ChangeTracking>);
                    (Arc::new(content), tracking, context.frozen || has_settled)
                }
                // Glance makes its snapshot when the last byte is there.
                Store::Pool(rbd) => {
                    let (content, tracking) = rbd::standing(rbd, crate::plain_name(item)?, SNAPSHOT).await?;
                    let is_whole = tracking.is_some();
                    (content, tracking, is_whole)
                }
                Store::Api(api) => return api.capture(item, context).await,
            };
        let consistency = class(row.as_ref(), content.size_bytes(), is_quiet);
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Glance,
            captured,
            consistency,
            content: Content::Volume(content),
            still: consistency > Consistency::Fuzzy && is_quiet,
            ancestor: None,
            details: details.into_iter().chain(row.map(Row::into_details).unwrap_or_default()).collect(),
            tracking,
            guard: None,
        })
    }
}

/// The image ids of a pool, and what else is in it.
async fn in_pool(rbd: &Rbd) -> Result<(Vec<String>, Vec<String>), SourceError> {
    Ok(rbd::list(rbd).await?.into_iter().partition(|name| is_image_id(name)))
}

/// The store's files, the image ids among them, and what is neither, in words.
fn images(store: &Path) -> Result<(Folder, Vec<String>, Vec<String>), SourceError> {
    let listed = folder::list(store)?;
    let (images, mut others): (Vec<String>, Vec<String>) =
        listed.files.iter().cloned().partition(|name| is_image_id(name));
    others.extend(listed.oddities.iter().cloned());
    Ok((listed, images, others))
}

/// Glance's ids are UUIDs in their usual form.
fn is_image_id(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a file has not been written for a while. Its times come from the kernel's clock, so they are compared with
/// that one and not with a run's.
fn is_quiet(path: &Path, now: SystemTime) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    // A time ahead of the clock says nothing about when it was written.
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age >= QUIET))
}

/// What a capture may be called.
fn class(row: Option<&Row>, size_bytes: u64, is_quiet: bool) -> Consistency {
    match row {
        Some(row) if row.is_complete() && row.size_bytes == Some(size_bytes) => Consistency::Application,
        // Queued, saving, importing: its bytes are still coming.
        Some(row) if row.is_uploading() => Consistency::Fuzzy,
        _ if is_quiet => Consistency::Crash,
        _ => Consistency::Fuzzy,
    }
}

fn few(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

type Details = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::tests::{context, item};

    const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
    const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
    const C: &str = "0a1b2c3d-0000-4000-8000-00000000000c";

    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        for (name, size) in [(A, 1000), (B, 2000)] {
            let path = dir.path().join("images").join(name);
            fs::write(&path, vec![1; size]).unwrap();
            let old = SystemTime::now() - Duration::from_mins(1);
            File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        }
        dir
    }

    fn source(dir: &Path, more: &str) -> Box<dyn Source> {
        crate::tests::source(&item(&format!("glance: {{ store: {}/images{more} }}", dir.display()))).unwrap()
    }

    fn with_catalog(dir: &Path, rows: &[(&str, &str, u64)]) -> Box<dyn Source> {
        let path = dir.join("glance.db");
        let database = rusqlite::Connection::open(&path).unwrap();
        let table = "CREATE TABLE images (id TEXT, status TEXT, size INTEGER, os_hash_algo TEXT, \
                     os_hash_value TEXT, checksum TEXT, deleted INTEGER)";
        database.execute(table, []).unwrap();
        for (id, status, size) in rows {
            let insert = "INSERT INTO images VALUES (?1, ?2, ?3, 'sha512', 'abc', 'md', 0)";
            database.execute(insert, (id, status, *size as i64)).unwrap();
        }
        source(dir, &format!(", checksums: {{ sqlite: {} }}", path.display()))
    }

    async fn capture(source: &dyn Source, id: &str, scratch: &Path) -> Capture {
        source.capture(&ItemId::new(ItemKind::Glance, id), &context(scratch)).await.unwrap()
    }

    #[tokio::test]
    async fn only_files_named_by_an_id_are_images() {
        let dir = store();
        fs::write(dir.path().join("images/notes.txt"), b"x").unwrap();
        fs::write(dir.path().join(format!("images/{C}.part")), b"x").unwrap();
        let source = source(dir.path(), "");
        let ids: Vec<String> = source.items().await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ids, [format!("glance/{A}"), format!("glance/{B}")]);
        let lines = source.check().await;
        assert!(matches!(&lines[0].result, Ok(said) if said.contains("notes.txt") && said.contains(".part")));
    }

    #[tokio::test]
    async fn a_young_image_is_fuzzy_and_an_old_one_is_still() {
        let dir = store();
        fs::write(dir.path().join("images").join(C), b"young").unwrap();
        let source = source(dir.path(), "");
        let old = capture(&*source, A, dir.path()).await;
        assert_eq!((old.consistency, old.still), (Consistency::Crash, true));
        let young = capture(&*source, C, dir.path()).await;
        assert_eq!((young.consistency, young.still), (Consistency::Fuzzy, false));
        assert!(young.tracking.is_none(), "it may still be written");
    }

    #[tokio::test]
    async fn an_image_that_nobody_wrote_since_is_not_read_again() {
        let dir = store();
        let source = source(dir.path(), "");
        let tracking = capture(&*source, A, dir.path()).await.tracking.unwrap();
        let token = tracking.keep().unwrap();
        let now = async || {
            let tracking = capture(&*source, A, dir.path()).await.tracking.unwrap();
            tracking.changed_since(&token).unwrap()
        };
        assert_eq!(now().await, Some(Vec::new()));
        // Whatever a program makes of the time of its change, the kernel notes another one.
        let file = File::options().write(true).open(dir.path().join("images").join(A)).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"new", 7).unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(now().await, None);
    }

    #[tokio::test]
    async fn an_image_is_complete_when_glance_says_so_and_the_length_agrees() {
        let dir = store();
        fs::write(dir.path().join("images").join(C), vec![1; 10]).unwrap();
        let source = with_catalog(dir.path(), &[(A, "active", 1000), (B, "active", 2001), (C, "saving", 10)]);
        let good = capture(&*source, A, dir.path()).await;
        assert_eq!((good.consistency, good.still), (Consistency::Application, true));
        assert_eq!((good.details["sha512"].as_str(), good.details["status"].as_str()), ("abc", "active"));
        let short = capture(&*source, B, dir.path()).await;
        assert_eq!(short.consistency, Consistency::Crash, "its length is another one");
        let coming = capture(&*source, C, dir.path()).await;
        assert_eq!((coming.consistency, coming.still), (Consistency::Fuzzy, false));
    }

    #[tokio::test]
    async fn an_image_is_captured_while_its_data_is_there_and_not_before_it_is_uploaded() {
        for status in ["active", "deactivated", "pending_delete"] {
            let dir = store();
            let source = with_catalog(dir.path(), &[(A, status, 1000), (B, "active", 2000)]);
            let database = rusqlite::Connection::open(dir.path().join("glance.db")).unwrap();
            database.execute("UPDATE images SET deleted = 1 WHERE status = 'pending_delete'", []).unwrap();
            assert_eq!(source.items().await.unwrap().len(), 2, "{status}");
            let there = capture(&*source, A, dir.path()).await;
            assert_eq!((there.consistency, there.still), (Consistency::Application, true), "{status}");
            assert_eq!(there.details["status"], status);
        }
        for status in ["queued", "saving", "importing", "uploading"] {
            let dir = store();
            let source = with_catalog(dir.path(), &[(A, status, 1000), (B, "active", 2000)]);
            assert_eq!(source.items().await.unwrap(), [ItemId::new(ItemKind::Glance, B)], "{status}");
        }
        for status in ["killed", "deleted"] {
            // Nobody will ask for it; what is not known to be nothing is kept.
            let dir = store();
            let source = with_catalog(dir.path(), &[(A, status, 1000), (B, "active", 2000)]);
            assert_eq!(source.items().await.unwrap().len(), 2, "{status}");
            assert_eq!(capture(&*source, A, dir.path()).await.consistency, Consistency::Crash, "{status}");
        }
    }

    #[tokio::test]
    async fn an_active_image_without_a_file_is_reported() {
        let dir = store();
        let source = with_catalog(dir.path(), &[(A, "active", 1000), (C, "active", 10)]);
        let lines = source.check().await;
        assert!(lines.iter().any(|l| matches!(&l.result, Err(why) if why.contains(C))), "{lines:?}");
    }

    #[tokio::test]
    async fn an_image_whose_file_is_gone_is_lost_as_long_as_glance_has_its_row() {
        let dir = store();
        let source =
            with_catalog(dir.path(), &[(A, "active", 1000), (B, "deleted", 2000), (C, "deactivated", 10)]);
        let gone = [A, B, C].map(|id| ItemId::new(ItemKind::Glance, id));
        assert_eq!(source.lost(&gone).await.unwrap(), [gone[0].clone(), gone[2].clone()]);
        assert_eq!(super::tests::source(dir.path(), "").lost(&gone).await.unwrap(), [], "nobody tells");
    }

    #[tokio::test]
    async fn a_catalog_that_cannot_be_asked_is_an_error_and_no_lower_class() {
        let dir = store();
        let source = source(dir.path(), ", checksums: { sqlite: /nonexistent/glance.db }");
        let id = ItemId::new(ItemKind::Glance, A);
        assert!(source.capture(&id, &context(dir.path())).await.is_err());
        assert!(source.check().await.iter().any(|line| line.result.is_err()));
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_is_an_error_and_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(source(dir.path(), "").items().await.is_err());
    }
}
