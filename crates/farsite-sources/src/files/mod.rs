//! Files and folders, such as Keystone's keys, as one tree item. Paths come in, a copy of one consistent state goes
//! out. What must hold: `crash` is only said of a copy during which nothing changed (or that a hook held still);
//! owners, modes and times are those of the originals; a path that is missing is an error and never an empty tree.
//!
//! The tree's root stands for `/`, and its paths are the originals' without their first slash.

mod listing;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use farsite_model::policy;
use farsite_model::{Consistency, ItemId, ItemKind};

use crate::guards::RemovedFolder;
use crate::{Capture, CaptureContext, CheckLine, Content, Source, SourceError};
use listing::{Kind, Listing, Stat};

/// More than this is not copied first.
const COPIED_BYTES: u64 = 1 << 30;
/// How often a copy is tried anew because something changed meanwhile.
const TRIES: u32 = 5;
/// File times advance by the kernel's tick (4 ms or 10 ms): two writes closer than that can leave one time. What was
/// written this recently is not yet believed to be at rest.
const TICK: Duration = Duration::from_millis(50);

/// One set of files of a policy.
pub(crate) struct Files {
    item: ItemId,
    /// Relative to `/`.
    paths: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn new(item: &policy::Item, files: &policy::Files) -> Result<Self, SourceError> {
        let paths = files.paths.iter().map(|path| below_root(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { item: item.id(), paths })
    }
}

/// `/etc/keystone/./keys/` as `etc/keystone/keys`.
fn below_root(path: &Path) -> Result<PathBuf, SourceError> {
    let mut parts = PathBuf::new();
    let mut is_plain = path.is_absolute();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => is_plain = false,
        }
    }
    if is_plain && parts.components().next().is_some() {
        return Ok(parts);
    }
    Err(SourceError::new(
        format!("the path {}", path.display()),
        "files are named by absolute paths without `..`",
    )
    .hint("correct `paths` in the policy"))
}

#[async_trait]
impl Source for Files {
    fn describe(&self) -> String {
        let shown: Vec<String> = self.paths.iter().map(|path| format!("/{}", path.display())).collect();
        format!("{}: {}", self.item, shown.join(", "))
    }

    async fn check(&self) -> Vec<CheckLine> {
        let paths = self.paths.clone();
        let looked = crate::volume::blocking(move || {
            let listing = Listing::take(&paths)?;
            let mut said = format!("{} files, {} bytes", listing.files(), listing.bytes());
            if !listing.skipped.is_empty() {
                said =
                    format!("{said}; neither file, folder nor link, left out: {}", words(&listing.skipped));
            }
            let closed: Vec<PathBuf> = listing
                .entries
                .iter()
                .filter(|(path, stat)| matches!(stat.kind, Kind::File) && File::open(absolute(path)).is_err())
                .map(|(path, _)| path.clone())
                .collect();
            if closed.is_empty() {
                return Ok(said);
            }
            Err(SourceError::new("reading", words(&closed)).hint("let the agent's user read them"))
        })
        .await;
        vec![CheckLine { subject: self.item.to_string(), result: looked.map_err(|error| error.to_string()) }]
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.clone()])
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let (item, paths, context) = (item.clone(), self.paths.clone(), context.clone());
        crate::volume::blocking(move || capture(item, &paths, &context)).await
    }
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn words(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().take(5).map(|path| absolute(path).display().to_string()).collect();
    let more = paths.len().saturating_sub(5);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn capture(item: ItemId, paths: &[PathBuf], context: &CaptureContext) -> Result<Capture, SourceError> {
    let mut captured = context.clock.capture_time();
    let mut why = None;
    for attempt in 1..=TRIES {
        if attempt > 1 {
            captured = context.clock.capture_time();
        }
        let begun = SystemTime::now();
        let before = Listing::take(paths)?;
        if before.bytes() > COPIED_BYTES {
            why = Some(format!("more than {} MiB are not copied first", COPIED_BYTES >> 20));
            break;
        }
        // At rest before it was listed: then every later write gives its file another time.
        if !context.frozen && !before.is_at_rest(begun, TICK) {
            std::thread::sleep(TICK);
            continue;
        }
        let folder = RemovedFolder::create(&context.scratch, "files")?;
        match copy(&before, folder.path()) {
            Ok(()) => {}
            // What vanishes while it is copied has changed: the next try sees it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && can_read(&before) => {
                why = Some(format!("their owners cannot be kept in a copy ({error})"));
                break;
            }
            Err(error) => {
                return Err(SourceError::new(format!("copying the files of {item}"), error)
                    .hint("let the agent's user read them, and leave room in its state folder"));
            }
        }
        if before.entries == Listing::take(paths)?.entries {
            let mut copied =
                tree(item, captured, folder.path().to_owned(), &before, Consistency::Crash, true);
            copied.guard = Some(Box::new(folder));
            return Ok(copied);
        }
    }
    // In place: the class is what a hook makes of it.
    let listing = Listing::take(paths)?;
    let class = if context.frozen { Consistency::Crash } else { Consistency::Fuzzy };
    let mut in_place = tree(item, captured, PathBuf::from("/"), &listing, class, false);
    let why =
        why.unwrap_or_else(|| format!("they did not stay the same during any of {TRIES} tries to copy them"));
    in_place.details.insert("read-in-place".to_owned(), why);
    Ok(in_place)
}

fn can_read(listing: &Listing) -> bool {
    listing
        .entries
        .iter()
        .all(|(path, stat)| !matches!(stat.kind, Kind::File) || File::open(absolute(path)).is_ok())
}

fn tree(
    item: ItemId,
    captured: farsite_model::CaptureTime,
    root: PathBuf,
    listing: &Listing,
    consistency: Consistency,
    still: bool,
) -> Capture {
    let mut details = BTreeMap::new();
    if !listing.skipped.is_empty() {
        details.insert("left-out".to_owned(), words(&listing.skipped));
    }
    Capture {
        item,
        kind: ItemKind::Files,
        captured,
        consistency,
        content: Content::Tree { root, paths: listing.entries.keys().cloned().collect() },
        still,
        ancestor: None,
        details,
        tracking: None,
        guard: None,
    }
}

/// Copies what is listed below `to`, with owners, modes and times. Folders get theirs last, from the inside out.
fn copy(listing: &Listing, to: &Path) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", absolute(path).display()))
    };
    for (path, stat) in &listing.entries {
        copy_one(path, stat, to).map_err(|error| named(path, error))?;
    }
    for (path, stat) in listing.entries.iter().rev() {
        keep_attributes(&to.join(path), stat).map_err(|error| named(path, error))?;
    }
    Ok(())
}

fn copy_one(path: &Path, stat: &Stat, to: &Path) -> io::Result<()> {
    let target = to.join(path);
    if let Some(parent) = target.parent() {
        // Ancestors of what is named: they are no part of the tree, and nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match &stat.kind {
        Kind::Folder => match fs::DirBuilder::new().mode(0o700).create(&target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        },
        Kind::Link(destination) => std::os::unix::fs::symlink(destination, &target),
        Kind::File => {
            // Not through a link that has taken its place, and not waiting for a pipe's writer.
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            let mut from =
                File::options().read(true).custom_flags(flags.bits().cast_signed()).open(absolute(path))?;
            let mut into = File::options().write(true).create_new(true).mode(0o600).open(&target)?;
            io::copy(&mut from, &mut into).map(|_| ())
        }
    }
}

fn keep_attributes(target: &Path, stat: &Stat) -> io::Result<()> {
    let there = fs::symlink_metadata(target)?;
    if (there.uid(), there.gid()) != (stat.uid, stat.gid) {
        std::os::unix::fs::lchown(target, Some(stat.uid), Some(stat.gid))?;
    }
    if matches!(stat.kind, Kind::Link(_)) {
        let time = rustix::fs::Timespec { tv_sec: stat.modified.0, tv_nsec: stat.modified.1 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        return Ok(());
    }
    let time = rustix::fs::Timespec { tv_sec: stat.modified.0, tv_nsec: stat.modified.1 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, target, &times, rustix::fs::AtFlags::empty())?;
    fs::set_permissions(target, fs::Permissions::from_mode(stat.mode))
}

#[cfg(test)]
mod tests;
