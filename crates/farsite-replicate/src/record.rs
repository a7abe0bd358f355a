//! What this host remembers of its runs, in SQLite: for `status`, forecasts and reports. The truth about points is in
//! the store; losing this file loses history, never data.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use farsite_model::status::KeptVersions;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;

use crate::ReplicateError;

const FILE: &str = "record.sqlite";

/// One run, as it ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRow {
    pub group: String,
    /// The standby's site; empty in rows of a time when it was not noted.
    pub to: String,
    pub run: String,
    pub started: Timestamp,
    pub ended: Timestamp,
    /// Empty when the run committed nothing.
    pub point: String,
    pub whole: bool,
    /// Age of the oldest item when the point became visible, at worst, in seconds.
    pub exposure_at_commit_s: f64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
    /// Empty when the run did what it should.
    pub error: String,
}

/// The record of one host.
pub struct Record {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Record {
    /// The record of a host that has one.
    pub(crate) fn open_existing(state: &Path) -> Option<Self> {
        if state.join(FILE).exists() { Self::open(state).ok() } else { None }
    }

    pub fn open(state: &Path) -> Result<Self, ReplicateError> {
        std::fs::create_dir_all(state)
            .map_err(ReplicateError::io(format!("creating {}", state.display())))?;
        let path = state.join(FILE);
        let fail = |source| ReplicateError::Record { path: path.display().to_string(), source };
        let connection = Connection::open(&path).map_err(fail)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(fail)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE IF NOT EXISTS runs (
                   group_name TEXT NOT NULL, run TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL,
                   point TEXT NOT NULL, whole INTEGER NOT NULL, exposure_at_commit_s REAL NOT NULL,
                   read_bytes INTEGER NOT NULL, changed_bytes INTEGER NOT NULL, shipped_bytes INTEGER NOT NULL,
                   error TEXT NOT NULL);
                 CREATE TABLE IF NOT EXISTS kept (
                   group_name TEXT PRIMARY KEY, measured_ms INTEGER NOT NULL, versions INTEGER NOT NULL,
                   bytes INTEGER NOT NULL, let_go INTEGER NOT NULL);
                 CREATE INDEX IF NOT EXISTS runs_by_group ON runs (group_name, started_ms);",
            )
            .map_err(fail)?;
        let noted = connection.prepare("SELECT standby FROM runs").map(|_| ());
        if noted.is_err() {
            let add = "ALTER TABLE runs ADD COLUMN standby TEXT NOT NULL DEFAULT ''";
            connection.execute_batch(add).map_err(fail)?;
        }
        Ok(Self { connection: Mutex::new(connection), path })
    }

    /// Work on the record that belongs to another file.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, ReplicateError> {
        let connection = self.connection.lock().expect("no holder of this lock panics");
        work(&connection).map_err(self.fail())
    }

    fn fail(&self) -> impl Fn(rusqlite::Error) -> ReplicateError {
        let path = self.path.display().to_string();
        move |source| ReplicateError::Record { path: path.clone(), source }
    }

    pub fn add(&self, row: &RunRow) -> Result<(), ReplicateError> {
        let connection = self.connection.lock().expect("no holder of this lock panics");
        connection
            .execute(
                "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    row.group,
                    row.run,
                    row.started.as_millisecond(),
                    row.ended.as_millisecond(),
                    row.point,
                    row.whole,
                    row.exposure_at_commit_s,
                    row.read_bytes as i64,
                    row.changed_bytes as i64,
                    row.shipped_bytes as i64,
                    row.error,
                    row.to
                ],
            )
            .map_err(self.fail())?;
        Ok(())
    }

    /// What the group keeps at its source, as it was measured last.
    pub(crate) fn note_kept(&self, group: &str, kept: &KeptVersions) -> Result<(), ReplicateError> {
        let figures =
            [kept.measured.as_millisecond(), kept.versions as i64, kept.bytes as i64, kept.let_go as i64];
        let [measured, versions, bytes, let_go] = figures;
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO kept VALUES (?1, ?2, ?3, ?4, ?5)",
                params![group, measured, versions, bytes, let_go],
            )
        })?;
        Ok(())
    }

    pub(crate) fn kept(&self, group: &str) -> Result<Option<KeptVersions>, ReplicateError> {
        self.with(|connection| {
            let mut statement = connection
                .prepare("SELECT measured_ms, versions, bytes, let_go FROM kept WHERE group_name = ?1")?;
            let mut rows = statement.query([group])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            Ok(Some(KeptVersions {
                measured: Timestamp::from_millisecond(row.get(0)?).unwrap_or(Timestamp::UNIX_EPOCH),
                versions: row.get::<_, i64>(1)? as u64,
                bytes: row.get::<_, i64>(2)? as u64,
                let_go: row.get::<_, i64>(3)? as u64,
            }))
        })
    }

    /// When the group's last run to a standby began that committed a point.
    pub fn last_success(&self, group: &str, to: &str) -> Result<Option<Timestamp>, ReplicateError> {
        let connection = self.connection.lock().expect("no holder of this lock panics");
        let ms: Option<i64> = connection
            .query_row(
                "SELECT max(started_ms) FROM runs WHERE group_name = ?1 AND standby = ?2 AND point <> ''",
                [group, to],
                |row| row.get(0),
            )
            .map_err(self.fail())?;
        Ok(ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()))
    }

    /// The newest runs, newest first.
    pub fn newest(&self, group: &str, limit: u32) -> Result<Vec<RunRow>, ReplicateError> {
        let connection = self.connection.lock().expect("no holder of this lock panics");
        let mut statement = connection
            .prepare("SELECT * FROM runs WHERE group_name = ?1 ORDER BY started_ms DESC LIMIT ?2")
            .map_err(self.fail())?;
        let moment = |ms: i64| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let rows = statement
            .query_map(params![group, limit], |row| {
                Ok(RunRow {
                    group: row.get(0)?,
                    run: row.get(1)?,
                    started: moment(row.get(2)?),
                    ended: moment(row.get(3)?),
                    point: row.get(4)?,
                    whole: row.get(5)?,
                    exposure_at_commit_s: row.get(6)?,
                    read_bytes: row.get::<_, i64>(7)? as u64,
                    changed_bytes: row.get::<_, i64>(8)? as u64,
                    shipped_bytes: row.get::<_, i64>(9)? as u64,
                    error: row.get(10)?,
                    to: row.get(11)?,
                })
            })
            .map_err(self.fail())?;
        rows.collect::<Result<_, _>>().map_err(self.fail())
    }
}
