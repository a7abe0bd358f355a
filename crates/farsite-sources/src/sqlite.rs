//! SQLite: a database file that may be written to comes in; a copy of one of its transactions' ends goes out, through
//! SQLite's own online backup. At the standby the restored file is checked, asked and written to here. What must hold:
//! whoever writes to the database is never kept waiting for long, and a file that is not there is never made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farsite_model::policy::{self, Item};
use farsite_model::{Consistency, ItemId, ItemKind};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::extent::FileContent;
use crate::guards::RemovedFolder;
use crate::mariadb::server::{Rows, shortened};
use crate::volume::blocking;
use crate::{Capture, CaptureContext, CheckLine, Content, Source, SourceError};

/// Pages copied in one go: at 4 KiB a page a few milliseconds, in which a writer waits.
const STEP_PAGES: i32 = 512;
const STEP_PAUSE: Duration = Duration::from_millis(2);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// A backup begins anew whenever somebody has written. After so many times the rest is copied in one go.
const RESTARTS: u32 = 3;
/// How long a query waits for another's lock.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// A `sqlite` entry.
pub(crate) struct Sqlite {
    item: ItemId,
    path: PathBuf,
}

impl Sqlite {
    pub(crate) fn new(item: &Item, sqlite: &policy::Sqlite) -> Self {
        Self { item: item.id(), path: sqlite.path.clone() }
    }
}

#[async_trait]
impl Source for Sqlite {
    fn describe(&self) -> String {
        format!("sqlite: {}", self.path.display())
    }

    async fn check(&self) -> Vec<CheckLine> {
        let path = self.path.clone();
        let looked = blocking(move || {
            let pages = query(&path, "PRAGMA page_count")?;
            let mode = query(&path, "PRAGMA journal_mode")?;
            let first = |rows: Vec<Vec<Option<String>>>| {
                rows.into_iter().flatten().flatten().next().unwrap_or_default()
            };
            Ok(format!("{} can be read: {} pages, journal {}", path.display(), first(pages), first(mode)))
        });
        let result = looked.await.map_err(|error| error.to_string());
        vec![CheckLine { subject: format!("{}: reading", self.item), result }]
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(vec![self.item.clone()])
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        // The copy is of its end; a time before its begin is never better than the truth.
        let captured = context.clock.capture_time();
        let folder = RemovedFolder::create(&context.scratch, "sqlite")?;
        let (path, limit) = (self.path.clone(), context.timeout);
        let (folder, content, details) = blocking(move || {
            let copy = folder.path().join("copy");
            let details = back_up(&path, &copy, limit)?;
            Ok((folder, FileContent::open(&copy)?, details))
        })
        .await?;
        Ok(Capture {
            item: item.clone(),
            kind: ItemKind::Sqlite,
            captured,
            consistency: Consistency::Application,
            content: Content::Volume(Arc::new(content)),
            still: true,
            ancestor: None,
            details,
            tracking: None,
            guard: Some(Box::new(folder)),
        })
    }
}

/// Copies a database that may be in use.
fn back_up(from: &Path, to: &Path, limit: Duration) -> Result<BTreeMap<String, String>, SourceError> {
    let what = format!("backing up {}", from.display());
    let fail = |error: rusqlite::Error| {
        SourceError::new(&what, error)
            .hint("see the disk space and the agent's rights; the database is unharmed")
    };
    let source = open(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let one = |pragma: &str| source.query_row(pragma, [], |row| row.get::<_, String>(0)).map_err(fail);
    // A reader of a write-ahead log keeps no writer waiting: then one step copies all.
    let is_wal = one("PRAGMA journal_mode")?.eq_ignore_ascii_case("wal");
    let page_bytes: i64 = source.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(fail)?;
    let mut target = Connection::open(to).map_err(fail)?;
    // Nobody needs this copy after a crash.
    target.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY").map_err(fail)?;
    let backup = Backup::new(&source, &mut target).map_err(fail)?;
    let deadline = Instant::now() + limit;
    let (mut restarts, mut left) = (0, i32::MAX);
    loop {
        let pages = if is_wal || restarts >= RESTARTS { -1 } else { STEP_PAGES };
        match backup.step(pages).map_err(fail)? {
            StepResult::Done => break,
            StepResult::More => std::thread::sleep(STEP_PAUSE),
            // Busy and locked: somebody writes.
            _ => std::thread::sleep(BUSY_PAUSE),
        }
        let remaining = backup.progress().remaining;
        restarts += u32::from(remaining > left);
        left = remaining;
        if Instant::now() > deadline {
            return Err(crate::commands::timed_out(&what, limit));
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| fail(error))?;
    Ok(BTreeMap::from([("page-size-bytes".to_owned(), page_bytes.to_string())]))
}

/// What SQLite says of a database file's structure: `ok`, or what is wrong with it.
pub fn check_file(path: &Path) -> Result<String, SourceError> {
    let rows = query(path, "PRAGMA quick_check")?;
    let said: Vec<String> = rows.into_iter().flatten().flatten().collect();
    Ok(said.join("\n"))
}

/// Rows of one statement, as text. Nothing is written.
pub fn query(path: &Path, sql: &str) -> Result<Vec<Vec<Option<String>>>, SourceError> {
    rows(path, sql).map(|found| found.rows)
}

/// The same, with the columns' names.
pub(crate) fn rows(path: &Path, sql: &str) -> Result<Rows, SourceError> {
    let what = || format!("asking {}: {}", path.display(), shortened(sql));
    let fail = |error: rusqlite::Error| SourceError::new(what(), error);
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut answer = statement.query([]).map_err(fail)?;
    let mut found = Rows { columns, rows: Vec::new() };
    while let Some(row) = answer.next().map_err(fail)? {
        let values = (0..found.columns.len()).map(|index| row.get_ref(index).map(text));
        found.rows.push(values.collect::<Result<_, _>>().map_err(fail)?);
    }
    Ok(found)
}

/// Statements in one transaction: all of them, or none.
pub fn execute<S: AsRef<str>>(path: &Path, sql: &[S]) -> Result<(), SourceError> {
    let what = |sql: &str| format!("at {}: {}", path.display(), shortened(sql));
    let hint = "nothing of this transaction was kept";
    let fail = |sql: &str, error: rusqlite::Error| SourceError::new(what(sql), error).hint(hint);
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let behaviour = TransactionBehavior::Immediate;
    let change = connection.transaction_with_behavior(behaviour).map_err(|error| fail("BEGIN", error))?;
    for statement in sql.iter().map(AsRef::as_ref) {
        change.execute_batch(statement).map_err(|error| fail(statement, error))?;
        if change.is_autocommit() {
            return Err(SourceError::new(what(statement), "it ended the transaction that it was part of")
                .hint("leave COMMIT and ROLLBACK out; look at what is in the database now"));
        }
    }
    change.commit().map_err(|error| fail("COMMIT", error))
}

fn open(path: &Path, access: OpenFlags) -> Result<Connection, SourceError> {
    let fail = |error: rusqlite::Error| {
        SourceError::new(format!("opening {}", path.display()), error)
            .hint("is it there, an SQLite database, and may this user open it?")
    };
    // Never SQLITE_OPEN_CREATE, and no URIs: a path is a path.
    let connection =
        Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(fail)?;
    connection.busy_timeout(BUSY_LIMIT).map_err(fail)?;
    Ok(connection)
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(format!("{number:?}")),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::context;

    fn source(path: &Path) -> Box<dyn Source> {
        let entry = serde_json::json!({"sqlite": {"path": path}});
        crate::tests::source(&serde_json::from_value(entry).unwrap()).unwrap()
    }

    fn restore(capture: &Capture, to: &Path) {
        let Content::Volume(content) = &capture.content else { panic!("it is a volume") };
        let mut bytes = vec![0; content.size_bytes() as usize];
        content.read_exact_at(&mut bytes, 0).unwrap();
        std::fs::write(to, bytes).unwrap();
    }

    async fn is_copied_under_writes(journal: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keystone.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!("PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF;"))
            .unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER, twin INTEGER, pad BLOB)").unwrap();
        let fill = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 4000) \
                    INSERT INTO t SELECT n, n, randomblob(1000) FROM c";
        connection.execute_batch(fill).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            connection.busy_timeout(BUSY_LIMIT).unwrap();
            let mut rounds = 0_u64;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                connection
                    .execute_batch("UPDATE t SET n = n + 1, twin = twin + 1 WHERE rowid % 7 = 0")
                    .unwrap();
                rounds += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            rounds
        });
        let source = source(&path);
        let item = ItemId::parse("sqlite/keystone");
        let capture = source.capture(&item, &context(&dir.path().join("scratch"))).await.unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
        assert_eq!((capture.consistency, capture.still), (Consistency::Application, true));
        let copy = dir.path().join("restored.db");
        restore(&capture, &copy);
        assert_eq!(check_file(&copy).unwrap(), "ok");
        let odd = query(&copy, "SELECT count(*), sum(n <> twin) FROM t").unwrap();
        assert_eq!(odd, [[Some("4000".to_owned()), Some("0".to_owned())]]);
        drop(capture);
        let left = std::fs::read_dir(dir.path().join("scratch")).unwrap().count();
        assert_eq!(left, 0, "the scratch copy is gone");
    }

    #[tokio::test]
    async fn a_database_under_writes_is_copied_as_one_transaction_left_it() {
        is_copied_under_writes("DELETE").await;
        is_copied_under_writes("WAL").await;
    }

    #[tokio::test]
    async fn what_is_not_there_or_no_database_is_an_error_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone.db");
        let item = ItemId::parse("sqlite/gone");
        let error = source(&gone)
            .capture(&item, &context(&dir.path().join("scratch")))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("gone.db") && error.contains("hint:"), "{error}");
        assert!(source(&gone).check().await[0].result.is_err());
        assert!(execute(&gone, &["CREATE TABLE t (n)"]).is_err());
        assert!(!gone.exists());
        let text = dir.path().join("text.db");
        std::fs::write(&text, "no database, but long enough to be looked at as one".repeat(100)).unwrap();
        assert!(check_file(&text).is_err());
        assert!(source(&text).capture(&item, &context(&dir.path().join("scratch"))).await.is_err());
    }

    #[test]
    fn statements_are_all_kept_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (n, x)").unwrap();
        execute(&path, &["INSERT INTO t VALUES (1, 2.5)", "INSERT INTO t VALUES (2, NULL)"]).unwrap();
        assert!(execute(&path, &["INSERT INTO t VALUES (3, 3)", "INSERT INTO nowhere VALUES (1)"]).is_err());
        let rows = query(&path, "SELECT n, x FROM t ORDER BY n").unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(rows, [[some("1"), some("2.5")], [some("2"), None]]);
        assert!(query(&path, "DELETE FROM t").is_err(), "a query writes nothing");
        let error = execute(&path, &["COMMIT; INSERT INTO t VALUES (4, 4)"]).unwrap_err().to_string();
        assert!(error.contains("ended the transaction"), "{error}");
    }

    #[test]
    fn a_damaged_page_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.db");
        let fill = "CREATE TABLE t (n, x); WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 500) \
                    INSERT INTO t SELECT n, randomblob(100) FROM c";
        Connection::open(&path).unwrap().execute_batch(fill).unwrap();
        assert_eq!(check_file(&path).unwrap(), "ok");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..8192].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(check_file(&path).unwrap_or_default(), "ok");
    }
}
