//! Statements in a restored database, whichever kind it is.
//!
//! What must hold: what changes rows does so in one transaction with a note of the promotion that did it. The note makes a
//! second attempt do nothing, and refuses a promotion that an newer one has overtaken.

use std::path::PathBuf;
use std::time::Duration;

use farsite_sources::mariadb::instance::Instance;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

/// The table of notes.
const TABLE: &str = "farsite_promotion";
/// MariaDB's number and state of a deadlock.
const DEADLOCK: &str = "1213 (40001)";
const DEADLOCK_TRIES: u32 = 5;
/// How long a statement waits for somebody else's lock on an SQLite file.
const BUSY: Duration = Duration::from_secs(10);

/// A database that can be asked.
pub enum Database {
    Mariadb(Instance),
    Sqlite(PathBuf),
}

/// Statements that run once.
pub struct Rewrite {
    pub term: u64,
    pub promotion: String,
    /// Names the statements; a second run of the same ones finds its note.
    pub hash: String,
    pub statements: Vec<String>,
    /// MariaDB: the database that the table of notes is in.
    pub schema: String,
}

/// A text as an SQL literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

impl Rewrite {
    fn schema(&self) -> Result<String, String> {
        let plain =
            !self.schema.is_empty() && self.schema.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain {
            Ok(format!("`{}`", self.schema))
        } else {
            Err(format!("{:?} is not a database's name", self.schema))
        }
    }
}

impl Database {
    /// Rows as text.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        match self {
            Self::Mariadb(instance) => instance.query(sql).await.map_err(|e| e.to_string()),
            Self::Sqlite(path) => {
                let (path, sql) = (path.clone(), sql.to_owned());
                blocking(move || sqlite_query(&open(&path, false)?, &sql)).await
            }
        }
    }

    /// Statements that may be run again and again; in one transaction as far as the server has them in one.
    pub async fn execute(&self, statements: &[String]) -> Result<(), String> {
        match self {
            Self::Mariadb(instance) => instance.execute(statements).await.map_err(|e| e.to_string()),
            Self::Sqlite(path) => {
                let (path, statements) = (path.clone(), statements.to_vec());
                blocking(move || {
                    let batch = format!("BEGIN; {}; COMMIT", statements.join("; "));
                    open(&path, true)?.execute_batch(&batch).map_err(|e| e.to_string())
                })
                .await
            }
        }
    }

    /// Whether a server's database has that table; one in a file has none of its kind.
    pub async fn has_table(&self, schema: &str, table: &str) -> Result<bool, String> {
        let Self::Mariadb(instance) = self else { return Ok(false) };
        let sql = format!(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {} AND table_name = {}",
            quoted(schema),
            quoted(table)
        );
        Ok(first(&instance.query(&sql).await.map_err(|e| e.to_string())?) == Some("1"))
    }

    /// Whether the note of these statements is there.
    pub async fn is_rewritten(&self, rewrite: &Rewrite) -> Result<bool, String> {
        match self {
            Self::Mariadb(instance) => {
                let schema = rewrite.schema()?;
                if !self.has_table(&rewrite.schema, TABLE).await? {
                    return Ok(false);
                }
                let noted = instance
                    .query(&format!(
                        "SELECT COUNT(*) FROM {schema}.{TABLE} WHERE promotion = {} AND statement_hash = {}",
                        quoted(&rewrite.promotion),
                        quoted(&rewrite.hash)
                    ))
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(first(&noted) != Some("0"))
            }
            Self::Sqlite(path) => {
                let (path, promotion, hash) = (path.clone(), rewrite.promotion.clone(), rewrite.hash.clone());
                blocking(move || {
                    let connection = open(&path, false)?;
                    let exists = sqlite_query(
                        &connection,
                        &format!("SELECT COUNT(*) FROM sqlite_schema WHERE name = '{TABLE}'"),
                    )?;
                    if first(&exists) != Some("1") {
                        return Ok(false);
                    }
                    connection
                        .query_row(
                            &format!(
                                "SELECT COUNT(*) FROM {TABLE} WHERE promotion = ?1 AND statement_hash = ?2"
                            ),
                            [&promotion, &hash],
                            |row| row.get::<_, i64>(0),
                        )
                        .map(|count| count > 0)
                        .map_err(|e| e.to_string())
                })
                .await
            }
        }
    }

    /// The same, unless their note is there already, by this or by another driver of the promotion. Whether it was done now.
    pub async fn rewrite_once(&self, rewrite: &Rewrite) -> Result<bool, String> {
        if self.is_rewritten(rewrite).await? {
            return Ok(false);
        }
        match self.rewrite(rewrite).await {
            Ok(()) => Ok(true),
            // Another driver may have been quicker: then it is done.
            Err(why) => {
                if self.is_rewritten(rewrite).await? {
                    Ok(false)
                } else {
                    Err(why)
                }
            }
        }
    }

    /// Runs the statements and writes their note, or neither.
    pub async fn rewrite(&self, rewrite: &Rewrite) -> Result<(), String> {
        match self {
            Self::Mariadb(instance) => {
                let schema = rewrite.schema()?;
                // Tables cannot be made inside of a transaction: it would be committed.
                instance
                    .execute(&[
                        format!("CREATE DATABASE IF NOT EXISTS {schema}"),
                        format!(
                            "CREATE TABLE IF NOT EXISTS {schema}.{TABLE} (term BIGINT NOT NULL, promotion VARCHAR(32) NOT NULL, statement_hash CHAR(64) NOT NULL, PRIMARY KEY (promotion, statement_hash)) ENGINE=InnoDB"
                        ),
                    ])
                    .await
                    .map_err(|e| e.to_string())?;
                let mut statements = vec![
                    format!(
                        "BEGIN NOT ATOMIC IF (SELECT COALESCE(MAX(term), 0) FROM {schema}.{TABLE} FOR UPDATE) > {} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'a newer promotion has rewritten this database; nothing was changed'; END IF; END",
                        rewrite.term
                    ),
                    format!(
                        "INSERT INTO {schema}.{TABLE} (term, promotion, statement_hash) VALUES ({}, {}, {})",
                        rewrite.term,
                        quoted(&rewrite.promotion),
                        quoted(&rewrite.hash)
                    ),
                ];
                statements.extend(rewrite.statements.iter().cloned());
                let mut tries = 0;
                loop {
                    match instance.execute(&statements).await.map_err(|e| e.to_string()) {
                        // Another step's transaction was chosen to go first; nothing of this one was kept.
                        Err(why) if why.contains(DEADLOCK) && tries < DEADLOCK_TRIES => tries += 1,
                        ended => return ended,
                    }
                }
            }
            Self::Sqlite(path) => {
                let (path, term) = (path.clone(), rewrite.term);
                let (promotion, hash) = (rewrite.promotion.clone(), rewrite.hash.clone());
                let statements = rewrite.statements.clone();
                blocking(move || {
                    let fail = |e: rusqlite::Error| e.to_string();
                    let mut connection = open(&path, true)?;
                    let change =
                        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
                    change
                        .execute_batch(&format!(
                            "CREATE TABLE IF NOT EXISTS {TABLE} (term BIGINT NOT NULL, promotion TEXT NOT NULL, statement_hash TEXT NOT NULL, PRIMARY KEY (promotion, statement_hash))"
                        ))
                        .map_err(fail)?;
                    let newest: i64 = change
                        .query_row(&format!("SELECT COALESCE(MAX(term), 0) FROM {TABLE}"), [], |row| row.get(0))
                        .map_err(fail)?;
                    if newest > term as i64 {
                        return Err("a newer promotion has rewritten this database; nothing was changed".into());
                    }
                    change
                        .execute(
                            &format!("INSERT INTO {TABLE} (term, promotion, statement_hash) VALUES (?1, ?2, ?3)"),
                            rusqlite::params![term as i64, promotion, hash],
                        )
                        .map_err(fail)?;
                    for statement in &statements {
                        change.execute_batch(statement).map_err(|e| format!("{e} in: {statement}"))?;
                    }
                    change.commit().map_err(fail)
                })
                .await
            }
        }
    }

    /// Runs the undoing statements and takes the note away, or neither.
    pub async fn unwrite(&self, rewrite: &Rewrite, undo: &[String]) -> Result<(), String> {
        let gone = |table: &str| {
            format!(
                "DELETE FROM {table} WHERE promotion = {} AND statement_hash = {}",
                quoted(&rewrite.promotion),
                quoted(&rewrite.hash)
            )
        };
        match self {
            Self::Mariadb(instance) => {
                let mut statements = vec![gone(&format!("{}.{TABLE}", rewrite.schema()?))];
                statements.extend(undo.iter().cloned());
                instance.execute(&statements).await.map_err(|e| e.to_string())
            }
            Self::Sqlite(path) => {
                let (path, first, undo) = (path.clone(), gone(TABLE), undo.to_vec());
                blocking(move || {
                    let fail = |e: rusqlite::Error| e.to_string();
                    let mut connection = open(&path, true)?;
                    let change =
                        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
                    for statement in std::iter::once(&first).chain(&undo) {
                        change.execute_batch(statement).map_err(|e| format!("{e} in: {statement}"))?;
                    }
                    change.commit().map_err(fail)
                })
                .await
            }
        }
    }
}

/// SQLite's own check of a whole file; nothing is written beside it.
pub async fn sqlite_quick_check(path: &std::path::Path) -> Result<(), String> {
    let path = path.to_owned();
    blocking(move || {
        // Immutable: no journal is looked for and no file is made, so that a file that is compared later stays as it is.
        let uri = format!("file:{}?immutable=1", percent(&path));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags).map_err(|e| e.to_string())?;
        let rows = sqlite_query(&connection, "PRAGMA quick_check")?;
        match first(&rows) {
            Some("ok") => Ok(()),
            other => Err(format!("quick_check says: {}", other.unwrap_or("nothing"))),
        }
    })
    .await
}

fn percent(path: &std::path::Path) -> String {
    path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

pub(crate) fn first(rows: &[Vec<Option<String>>]) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

fn open(path: &std::path::Path, write: bool) -> Result<Connection, String> {
    // Never creates a file: a database that is not there is an error, not an empty database. To read as well it is opened for
    // writing, where that may be: what a killed driver began can then be rolled back (SQLITE_READONLY_ROLLBACK otherwise).
    let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let opened = match opened {
        Err(_) if !write => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY),
        opened => opened,
    };
    let connection = opened.map_err(|e| format!("{}: {e}", path.display()))?;
    connection.busy_timeout(BUSY).map_err(|e| e.to_string())?;
    if !write {
        // A question changes nothing, whatever it says.
        connection.pragma_update(None, "query_only", true).map_err(|e| e.to_string())?;
    }
    Ok(connection)
}

fn sqlite_query(connection: &Connection, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
    let fail = |e: rusqlite::Error| e.to_string();
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(fail)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(fail)? {
        let cells = (0..columns).map(|index| {
            row.get_ref(index).map(|value| match value {
                rusqlite::types::ValueRef::Null => None,
                rusqlite::types::ValueRef::Integer(n) => Some(n.to_string()),
                rusqlite::types::ValueRef::Real(x) => Some(x.to_string()),
                rusqlite::types::ValueRef::Text(text) | rusqlite::types::ValueRef::Blob(text) => {
                    Some(String::from_utf8_lossy(text).into_owned())
                }
            })
        });
        found.push(cells.collect::<Result<Vec<_>, _>>().map_err(fail)?);
    }
    Ok(found)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("stopped: {error}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cloud.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1)").unwrap();
        (dir, Database::Sqlite(path))
    }

    fn rewrite(term: u64, promotion: &str) -> Rewrite {
        Rewrite {
            term,
            promotion: promotion.into(),
            hash: "h".into(),
            statements: vec!["UPDATE t SET n = n + 1".into()],
            schema: "farsite".into(),
        }
    }

    #[tokio::test]
    async fn statements_run_once_whatever_is_tried() {
        let (_dir, database) = world();
        let once = rewrite(2, "a");
        assert!(!database.is_rewritten(&once).await.unwrap());
        database.rewrite(&once).await.unwrap();
        assert!(database.is_rewritten(&once).await.unwrap());
        assert!(database.rewrite(&once).await.is_err(), "the note is there already");
        assert_eq!(first(&database.query("SELECT n FROM t").await.unwrap()), Some("2"));
        database.unwrite(&once, &["UPDATE t SET n = n - 1".into()]).await.unwrap();
        assert!(!database.is_rewritten(&once).await.unwrap());
        assert_eq!(first(&database.query("SELECT n FROM t").await.unwrap()), Some("1"));
    }

    #[tokio::test]
    async fn a_promotion_that_was_overtaken_changes_nothing() {
        let (_dir, database) = world();
        database.rewrite(&rewrite(3, "newer")).await.unwrap();
        let error = database.rewrite(&rewrite(2, "older")).await.unwrap_err();
        assert!(error.contains("a newer promotion"), "{error}");
        assert_eq!(first(&database.query("SELECT n FROM t").await.unwrap()), Some("2"));
    }

    #[tokio::test]
    async fn a_question_changes_nothing_whatever_it_says() {
        let (_dir, database) = world();
        assert!(database.query("UPDATE t SET n = 7").await.is_err());
        assert_eq!(first(&database.query("SELECT n FROM t").await.unwrap()), Some("1"));
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.db");
        assert!(Database::Sqlite(path.clone()).query("SELECT 1").await.is_err());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_cut_file_does_not_pass_the_quick_check() {
        let (dir, _) = world();
        let path = dir.path().join("cloud.db");
        sqlite_quick_check(&path).await.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4096]).unwrap();
        assert!(sqlite_quick_check(&path).await.is_err());
    }
}
