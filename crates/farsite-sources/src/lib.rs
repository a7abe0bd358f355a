//! Reads one kind of thing at a site, and writes it back at the standby. A policy's item comes in; frozen bytes
//! with a capture time and an honest consistency class go out ([`Capture`]). What is read one way is written back
//! in the same file's sight: each module holds a source and its sink.
//!
//! What must hold: the capture time is read *before* the first byte is frozen or read; a capture is never called
//! more consistent than it is; nothing that a source leaves behind (snapshot, freeze, child process) outlives it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use farsite_model::clock::Clock;
use farsite_model::content::ReadAt;
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};
use serde::{Deserialize, Serialize};

/// What went wrong at a source, for the person who reads it at 3 a.m.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}{}", hint.as_ref().map(|h| format!("\n  hint: {h}")).unwrap_or_default())]
pub struct SourceError {
    /// Operation and object: `reading /var/lib/glance/images/4f…`.
    pub what: String,
    pub why: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl SourceError {
    pub fn new(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), hint: None }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
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
}

/// One item, frozen.
pub struct Capture {
    pub item: ItemId,
    pub kind: ItemKind,
    pub captured: CaptureTime,
    pub consistency: Consistency,
    pub content: Content,
    /// The image, snapshot or volume that this item was made from.
    pub ancestor: Option<ItemId>,
    /// Facts that a sink or a check needs: `disk_format`, `sha512`, database positions. No secrets.
    pub details: BTreeMap<String, String>,
    /// Dropped when the last byte was read: thaws, deletes the snapshot, ends the child process.
    pub guard: Option<Box<dyn Send + Sync>>,
}

/// The bytes of a capture.
pub enum Content {
    Volume(Arc<dyn ReadAt>),
    /// All files below `root` that `entries` lists, paths relative to it.
    Tree { root: PathBuf, paths: Vec<PathBuf> },
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
    /// Freezes one item. The capture holds its bytes still until it is dropped.
    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError>;
}

/// A position in a database's log: file and byte offset, ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// `mariadb-bin.000017`; MariaDB pads numbers, and [`LogPosition`] compares by number, then offset.
    pub file: String,
    pub offset: u64,
}

/// A database whose log is shipped between base snapshots.
#[async_trait]
pub trait LoggedDatabase: Send + Sync {
    fn item(&self) -> ItemId;
    async fn check(&self) -> Vec<CheckLine>;
    /// Source time read *before* the server is asked for its position: once everything up to the position is
    /// durable at the standby, the database is covered up to that time.
    async fn position(&self, clock: &dyn Clock) -> Result<(CaptureTime, LogPosition), SourceError>;
    /// A physical hot backup into `target` (an empty folder): the tree to replicate, and the log position from which replay
    /// starts.
    async fn base_backup(&self, context: &CaptureContext, target: PathBuf) -> Result<BaseBackup, SourceError>;
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
