//! SQLite: the database's own online backup makes a copy of one committed state while others go on writing; the copy is
//! what is replicated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::policy;
use farsite_model::{Consistency, ItemId, ItemKind};
use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use crate::extent::FileContent;
use crate::{Capture, CaptureContext, CheckLine, Content, Source, SourceError};

/// Pages that are copied before writers get their turn.
const PAGES_A_STEP: std::ffi::c_int = 1024;
const PAUSE: Duration = Duration::from_millis(1);
/// How long a lock of a writer is waited for.
const BUSY: Duration = Duration::from_secs(10);

pub struct Sqlite {
    item: ItemId,
    path: PathBuf,
}

impl Sqlite {
    pub fn new(item: &policy::Item, sqlite: &policy::Sqlite) -> Self {
        Self { item: item.id(), path: sqlite.path.clone() }
    }

    fn open(&self) -> Result<Connection, SourceError> {
        let fail = |error| SourceError::new(format!("opening {}", self.path.display()), error);
        let connection =
            Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fail)?;
        connection.busy_timeout(BUSY).map_err(fail)?;
        Ok(connection)
    }

    fn copy(&self, to: &std::path::Path) -> Result<(), SourceError> {
        let fail = |error| SourceError::new(format!("copying {}", self.path.display()), error);
        let from = self.open()?;
        let mut copy = Connection::open(to).map_err(fail)?;
        Backup::new(&from, &mut copy)
            .and_then(|b| b.run_to_completion(PAGES_A_STEP, PAUSE, None))
            .map_err(fail)
    }
}

/// Removes the copy when the capture is done with.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[async_trait]
impl Source for Sqlite {
    fn describe(&self) -> String {
        format!("sqlite: {}", self.path.display())
    }
    async fn check(&self) -> Vec<CheckLine> {
        let looked = tokio::task::block_in_place(|| {
            let count = "SELECT count(*) FROM sqlite_master";
            let rows: i64 = self
                .open()?
                .query_row(count, [], |row| row.get(0))
                .map_err(|error| SourceError::new(format!("reading {}", self.path.display()), error))?;
            Ok::<_, SourceError>(format!("{} can be read, {rows} tables and indexes", self.path.display()))
        });
        vec![CheckLine { subject: self.item.to_string(), result: looked.map_err(|error| error.to_string()) }]
    }
    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.clone()])
    }
    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        // Before the copy begins: it holds everything that was committed by then.
        let captured = context.clock.capture_time();
        let to = context.scratch.join(format!("{}.sqlite", self.item.name()));
        let guard = Copy(to.clone());
        tokio::task::block_in_place(|| self.copy(&to))?;
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Sqlite,
            captured,
            consistency: Consistency::Application,
            content: Content::Volume(Arc::new(FileContent::open(&to)?)),
            still: true,
            ancestor: None,
            details: std::collections::BTreeMap::new(),
            guard: Some(Box::new(guard)),
        })
    }
}
