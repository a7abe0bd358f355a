//! MariaDB: a physical base backup and the binary log behind it come in from a running server ([`Database`]); at the
//! standby both go back into a server of one's own ([`instance::Instance`]). What must hold: a base and its position
//! belong together, the log behind a base has no gap that is not reported as one, and nothing is changed at the source
//! but the number of its log files.

pub mod account;
mod base;
mod binlog;
mod check;
pub mod instance;
mod launch;
mod local_account;
mod process;
mod replay;
mod replayed;
pub mod revisions;
pub(crate) mod server;
mod stream;

use std::path::PathBuf;

use async_trait::async_trait;
use farsite_model::clock::Clock;
use farsite_model::policy::{self, Databases, Log};
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind};
use sqlx::Connection as _;
use sqlx::mysql::MySqlConnection;
use tokio::sync::Mutex;

use crate::guards::RemovedFolder;
use crate::{
    BaseBackup, Capture, CaptureContext, CheckLine, Content, LogPosition, LogStream, LoggedDatabase, Source,
    SourceError,
};
use revisions::Revisions;
pub use server::literal;
use server::{QUERY_LIMIT, Server};
pub(crate) use stream::client_said;

/// How long a statement that runs may keep all others waiting for the moment of a point.
const COMMITS_WAIT_S: u32 = 2;

/// One MariaDB server of a policy.
pub struct Database {
    item: ItemId,
    server: Server,
    log: Log,
    databases: Databases,
    backup_args: Vec<String>,
    /// Kept open: a shipper asks for the position several times a second.
    connection: Mutex<Option<MySqlConnection>>,
}

impl Database {
    pub fn new(item: &policy::Item, mariadb: &policy::Mariadb) -> Self {
        Self {
            item: item.id(),
            server: Server::of(mariadb),
            log: mariadb.log,
            databases: mariadb.databases.clone(),
            backup_args: mariadb.backup_args.clone(),
            connection: Mutex::new(None),
        }
    }

    /// A physical backup holds all databases; one of some of them could not be followed by the log.
    fn refuse_partial(&self) -> Result<(), SourceError> {
        match &self.databases {
            Databases::All => Ok(()),
            Databases::Named(names) => Err(SourceError::new(
                format!("backing up {}", self.item),
                format!("only {} are asked for, and a physical backup holds all databases", names.join(", ")),
            )
            .hint("write `databases: all`")),
        }
    }

    async fn ask_position(&self) -> Result<LogPosition, SourceError> {
        let mut kept = self.connection.lock().await;
        // Taken out while it is used: a query that is cut off leaves no half-used connection behind.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.server.connect().await?,
        };
        let status = server::query(&mut connection, "SHOW MASTER STATUS", QUERY_LIMIT).await?;
        *kept = Some(connection);
        match (status.first("File"), status.first("Position").and_then(|p| p.parse().ok())) {
            (Some(file), Some(offset)) => Ok(LogPosition::new(file, offset)),
            _ => Err(SourceError::new(
                format!("the log position of {} at {}", self.item, self.server.place()),
                "the server writes no binary log",
            )
            .hint("set `log_bin` in its configuration and restart it, or write `log: none` in the policy")),
        }
    }
}

#[async_trait]
impl LoggedDatabase for Database {
    fn item(&self) -> ItemId {
        self.item.clone()
    }

    async fn check(&self) -> Vec<CheckLine> {
        check::check(self).await
    }

    async fn position(&self, clock: &dyn Clock) -> Result<(CaptureTime, LogPosition), SourceError> {
        let captured = clock.capture_time();
        // A kept connection may have died with an earlier server.
        match self.ask_position().await {
            Ok(position) => Ok((captured, position)),
            Err(_) => Ok((captured, self.ask_position().await?)),
        }
    }

    async fn revisions(&self) -> Result<Revisions, SourceError> {
        let mut connection = self.server.connect().await?;
        let places = server::query(&mut connection, &revisions::question(), QUERY_LIMIT).await?;
        let Some(second) = revisions::second_question(&places.rows) else { return Ok(Revisions::new()) };
        let found = server::query(&mut connection, &second, QUERY_LIMIT).await?;
        let _ = connection.close().await;
        Ok(revisions::answered(&found.rows))
    }

    async fn hold_commits(&self) -> Result<Box<dyn Send + Sync>, SourceError> {
        let mut connection = self.server.connect().await?;
        let lock =
            format!("SET STATEMENT lock_wait_timeout = {COMMITS_WAIT_S} FOR FLUSH TABLES WITH READ LOCK");
        server::query(&mut connection, &lock, QUERY_LIMIT).await?;
        // The server lets go when the connection ends.
        Ok(Box::new(connection))
    }

    async fn base_backup(
        &self,
        context: &CaptureContext,
        target: PathBuf,
    ) -> Result<BaseBackup, SourceError> {
        base::back_up(self, context, target).await
    }

    async fn log_bytes(&self, file: &str) -> Result<Option<u64>, SourceError> {
        stream::log_bytes(&self.server, file).await
    }

    async fn stream_log(&self, spool: PathBuf, from: &LogPosition) -> Result<LogStream, SourceError> {
        stream::start(&self.server, &self.item, spool, from).await
    }
}

#[async_trait]
impl Source for Database {
    fn describe(&self) -> String {
        format!("{}: {}", self.item, self.server.place())
    }

    async fn check(&self) -> Vec<CheckLine> {
        check::check(self).await
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.clone()])
    }

    /// A base for this run alone, without log shipping.
    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let folder = RemovedFolder::create(&context.scratch, "mariadb")?;
        let backup = base::back_up(self, context, folder.path().to_owned()).await?;
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Mariadb,
            captured: backup.captured,
            consistency: Consistency::Application,
            content: Content::Tree { root: backup.root, paths: backup.paths },
            still: true,
            ancestor: None,
            details: backup.details,
            tracking: None,
            guard: Some(Box::new(folder)),
        })
    }
}
