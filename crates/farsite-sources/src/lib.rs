//! Reads one kind of thing at a site, and writes it back at the standby. A policy's item comes in; frozen bytes
//! with a capture time and an honest consistency class go out ([`Capture`]). What is read one way is written back
//! in the same file's sight: each module holds a source and its sink.
//!
//! What must hold: the capture time is read *before* the first byte is frozen or read; a capture is never called
//! more consistent than it is; nothing that a source leaves behind (snapshot, freeze, child process) outlives it.

pub mod cinder;
mod claim;
pub mod commands;
pub mod extent;
mod files;
mod folder;
pub mod glance;
mod guards;
mod kept;
mod log_position;
pub mod mariadb;
mod qcow2;
mod random;
pub mod rbd;
pub mod remote;
mod share;
mod snapshot;
pub mod sqlite;
mod target;
#[cfg(test)]
mod tests;
pub mod tracking;
pub mod tree;
mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use farsite_model::clock::Clock;
use farsite_model::content::ReadAt;
use farsite_model::policy::Item;
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};
use farsite_openstack::SiteCloud;
use serde::{Deserialize, Serialize};

pub use folder::MODE;
pub use log_position::LogPosition;

/// The source of one entry of a policy, at a site with this cloud. Nothing is opened or asked yet.
pub fn source(item: &Item, cloud: &Arc<SiteCloud>) -> Result<Box<dyn Source>, SourceError> {
    Ok(match item {
        Item::Mariadb(mariadb) => Box::new(mariadb::Database::new(item, mariadb)),
        Item::Sqlite(sqlite) => Box::new(sqlite::Sqlite::new(item, sqlite)),
        Item::Glance(glance) => Box::new(glance::Glance::new(item, glance, cloud)),
        Item::Cinder(cinder) => Box::new(cinder::Cinder::new(item, cinder, cloud)),
        Item::Files(files) => Box::new(files::Files::new(item, files)?),
        Item::Volume(volume) => Box::new(volume::Volume::new(item, volume)),
    })
}

/// The database whose log is shipped, where the entry is one.
pub fn logged(item: &Item) -> Option<Arc<dyn LoggedDatabase>> {
    match item {
        Item::Mariadb(mariadb) if item.ships_log() => Some(Arc::new(mariadb::Database::new(item, mariadb))),
        _ => None,
    }
}

/// The name of an item that stands for one file of a folder.
fn plain_name(item: &ItemId) -> Result<&str, SourceError> {
    let name = item.name();
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(SourceError::new(format!("reading {item}"), "its name is no file's name"));
    }
    Ok(name)
}

/// What went wrong at a source, for the person who reads it at 3 a.m.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {why}{}", hint.as_ref().map(|h| format!("\n  hint: {h}")).unwrap_or_default())]
pub struct SourceError {
    /// Operation and object: `reading /var/lib/glance/images/4f…`.
    pub what: String,
    pub why: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The database no longer has the log that was asked for: only a new base closes this gap.
    pub gap: bool,
}

impl SourceError {
    pub fn new(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), hint: None, gap: false }
    }
    /// A stretch of a database's log is gone for good.
    pub fn gap(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { gap: true, ..Self::new(what, why) }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn is_gap(&self) -> bool {
        self.gap
    }
}

/// One line of `farsite check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckLine {
    /// What was looked at: `mariadb/main: binary log`.
    pub subject: String,
    /// `Ok` says what was seen; `Err` says what is wrong and what to do.
    pub result: Result<String, String>,
}

/// What a run lends to its sources.
#[derive(Clone)]
pub struct CaptureContext {
    pub clock: Arc<dyn Clock>,
    /// A folder of this run for scratch files (backups, copies); removed when the run ends.
    pub scratch: PathBuf,
    /// Longest time that one external command or query may take.
    pub timeout: std::time::Duration,
    /// The policy's hooks have stopped whatever writes to these items, and hold it until the run lets go.
    pub frozen: bool,
    /// A folder of this group that outlives its runs, for versions that are kept.
    pub kept: PathBuf,
    /// Tells this group's kept versions, and this host's, from all others: letters and digits.
    pub owner: String,
}

/// One item, frozen.
pub struct Capture {
    pub item: ItemId,
    pub kind: ItemKind,
    pub captured: CaptureTime,
    pub consistency: Consistency,
    pub content: Content,
    /// The bytes can no longer change (a snapshot, a copy, an immutable image): hooks may thaw before they are read.
    pub still: bool,
    /// The image, snapshot or volume that this item was made from.
    pub ancestor: Option<ItemId>,
    /// Facts that a sink or a check needs: `disk_format`, `sha512`, database positions. No secrets.
    pub details: BTreeMap<String, String>,
    /// What has changed since an earlier capture, where the source can tell.
    pub tracking: Option<Box<dyn tracking::ChangeTracking>>,
    /// Dropped when the last byte was read: thaws, deletes the snapshot, ends the child process.
    pub guard: Option<Box<dyn Send + Sync>>,
}

/// The bytes of a capture.
pub enum Content {
    Volume(Arc<dyn ReadAt>),
    /// Files, folders and links that `paths` names, relative to `root`, folders before what is in them.
    Tree {
        root: PathBuf,
        paths: Vec<PathBuf>,
    },
    /// The same at another host.
    FarTree(Arc<dyn tree::TreeFiles>),
}

/// What the versions take that are kept to tell an item's changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSpace {
    pub item: ItemId,
    /// Held for them alone, at most.
    pub bytes: u64,
    /// What is free where they are, where that can be told.
    pub free_bytes: Option<u64>,
}

/// Reads the items of one entry of a policy.
#[async_trait]
pub trait Source: Send + Sync {
    /// The policy's own words for it, for messages: `glance: /var/lib/glance/images`.
    fn describe(&self) -> String;
    /// What would fail, before it does. Never changes anything.
    async fn check(&self) -> Vec<CheckLine>;
    /// The items that exist now. One that has gone since the last point is absent, not failed.
    async fn items(&self) -> Result<Vec<ItemId>, SourceError>;
    /// Of items that are listed no more: those of which somebody who should know says that they are there still, so that they
    /// are lost and not deleted.
    async fn lost(&self, _gone: &[ItemId]) -> Result<Vec<ItemId>, SourceError> {
        Ok(Vec::new())
    }
    /// Freezes one item. The capture holds its bytes still until it is dropped.
    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError>;
    /// Whether all its items can be held at one instant by [`Source::instant`]; what would make that slow is done now.
    async fn prepare(&self) -> bool {
        false
    }
    /// All its items at this very moment, as a source of the same items that holds them until it is dropped. `None`: each
    /// is frozen by itself.
    async fn instant(&self, _context: &CaptureContext) -> Result<Option<Box<dyn Source>>, SourceError> {
        Ok(None)
    }
    /// What is kept to tell the changes of its items, of those of which something is.
    async fn kept(&self, _context: &CaptureContext) -> Result<Vec<KeptSpace>, SourceError> {
        Ok(Vec::new())
    }
    /// The item is gone for good, or takes too much: what was kept to tell its changes is removed.
    async fn forget(&self, _item: &ItemId, _context: &CaptureContext) {}
    /// A run was killed: what it made and nobody needs is removed, where the next would only come to it at its end. `needed`
    /// tells what was kept of an item. One that cannot be tidied keeps no other from it.
    async fn tidy(&self, _needed: Needed, _context: &CaptureContext) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Tells which versions of an item some next run stands on. While it is told, no other run makes versions or lets them go.
pub type Needed = Arc<dyn Fn(&ItemId, &dyn Fn(&[String])) + Send + Sync>;

/// A database whose log is shipped between base snapshots.
#[async_trait]
pub trait LoggedDatabase: Send + Sync {
    fn item(&self) -> ItemId;
    async fn check(&self) -> Vec<CheckLine>;
    /// Source time read *before* the server is asked for its position: once everything up to the position is
    /// durable at the standby, the database is covered up to that time.
    async fn position(&self, clock: &dyn Clock) -> Result<(CaptureTime, LogPosition), SourceError>;
    /// The revisions that the schemas in it have now, by database, as far as the account may see them.
    async fn revisions(&self) -> Result<BTreeMap<String, String>, SourceError>;
    /// Keeps every commit back until what is returned is dropped. It waits for running statements no longer than two seconds,
    /// while new ones already wait for it.
    async fn hold_commits(&self) -> Result<Box<dyn Send + Sync>, SourceError>;
    /// A physical hot backup into `target` (an empty folder): the tree to replicate, and the log position from which replay
    /// starts.
    async fn base_backup(&self, context: &CaptureContext, target: PathBuf)
    -> Result<BaseBackup, SourceError>;
    /// The size of a log file at the server, in bytes; `None` when the server no longer has it. The size of a file that
    /// has a successor is final.
    async fn log_bytes(&self, file: &str) -> Result<Option<u64>, SourceError>;
    /// Starts the database's own streaming client, which writes log files into `spool` from `from.file` on.
    /// The child ends when the returned stream is dropped.
    async fn stream_log(&self, spool: PathBuf, from: &LogPosition) -> Result<LogStream, SourceError>;
}

/// What [`LoggedDatabase::base_backup`] leaves in its target folder.
#[derive(Debug, Clone)]
pub struct BaseBackup {
    pub captured: CaptureTime,
    pub position: LogPosition,
    pub root: PathBuf,
    pub paths: Vec<PathBuf>,
    /// Server version, cluster GTID and the like.
    pub details: BTreeMap<String, String>,
}

/// A running streaming client.
#[derive(Debug)]
pub struct LogStream {
    pub child: tokio::process::Child,
    pub spool: PathBuf,
}

impl LogStream {
    /// The last lines of what the client said, for the message about its end; empty when it said nothing.
    pub fn said(&self) -> String {
        mariadb::client_said(&self.spool)
    }
}
