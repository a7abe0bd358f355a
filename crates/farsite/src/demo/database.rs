//! The demo's control-plane database, as MariaDB or as SQLite: its tables, and the writer's connection to it.

use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

/// Which database the demo runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Mariadb,
    Sqlite,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Self::Mariadb => "MariaDB",
            Self::Sqlite => "SQLite",
        }
    }

    /// A table as statements name it: SQLite has one database a file.
    pub fn table(self, database: &str, table: &str) -> String {
        match self {
            Self::Mariadb => format!("{database}.{table}"),
            Self::Sqlite => format!("{database}_{table}"),
        }
    }

    /// Where it is at the northern site.
    pub fn place(self, site: &Path) -> PathBuf {
        match self {
            Self::Mariadb => site.join("mysql.sock"),
            Self::Sqlite => site.join("cloud.db"),
        }
    }

    /// Statements that make what OpenStack's services would have made.
    pub fn schema(self) -> Vec<String> {
        let databases = ["keystone", "glance", "cinder", "demo"];
        let mut statements: Vec<String> = match self {
            Self::Mariadb => databases.iter().map(|name| format!("CREATE DATABASE {name}")).collect(),
            Self::Sqlite => Vec::new(),
        };
        for (database, table, columns) in [
            ("keystone", "endpoint", "id VARCHAR(64) PRIMARY KEY, interface VARCHAR(8), url TEXT"),
            (
                "glance",
                "images",
                "id VARCHAR(36) PRIMARY KEY, name VARCHAR(255), status VARCHAR(30), size BIGINT, \
                 os_hash_algo VARCHAR(64), os_hash_value VARCHAR(128), deleted INT",
            ),
            (
                "cinder",
                "volumes",
                "id VARCHAR(36) PRIMARY KEY, name VARCHAR(255), size_bytes BIGINT, status VARCHAR(30)",
            ),
            ("demo", "heartbeat", "n BIGINT PRIMARY KEY, at_ms BIGINT"),
        ] {
            statements.push(format!("CREATE TABLE {} ({columns})", self.table(database, table)));
        }
        if self == Self::Sqlite {
            // The name that Glance itself gives the table.
            statements.push("CREATE VIEW images AS SELECT * FROM glance_images".to_owned());
        }
        for (n, (service, port)) in
            [("identity", 5000), ("image", 9292), ("volumev3", 8776)].iter().enumerate()
        {
            for interface in ["public", "internal"] {
                statements.push(format!(
                    "INSERT INTO {} VALUES ('{service}-{interface}-{n}', '{interface}', 'http://north.demo:{port}/{service}')",
                    self.table("keystone", "endpoint")
                ));
            }
        }
        statements
    }
}

/// The writer's connection.
pub enum Connection {
    Mariadb(sqlx::MySqlConnection),
    Sqlite(rusqlite::Connection),
}

impl Connection {
    pub async fn open(kind: Kind, place: &Path) -> Result<Self, String> {
        match kind {
            Kind::Mariadb => {
                let options = sqlx::mysql::MySqlConnectOptions::new().socket(place).username("root");
                let connection = sqlx::MySqlConnection::connect_with(&options).await;
                connection.map(Self::Mariadb).map_err(|error| error.to_string())
            }
            Kind::Sqlite => {
                let open = || {
                    let connection = rusqlite::Connection::open(place)?;
                    connection.busy_timeout(std::time::Duration::from_secs(5))?;
                    connection.pragma_update(None, "journal_mode", "WAL")?;
                    connection.pragma_update(None, "synchronous", "FULL")?;
                    Ok(connection)
                };
                open().map(Self::Sqlite).map_err(|error: rusqlite::Error| error.to_string())
            }
        }
    }

    /// Every row as text. Only the demo's own texts come here.
    pub async fn rows(&mut self, query: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        match self {
            Self::Mariadb(connection) => {
                let text = |row: &sqlx::mysql::MySqlRow| {
                    (0..row.len()).map(|column| row.try_get_unchecked::<Option<String>, _>(column)).collect()
                };
                // The text protocol: every value comes as a person would write it.
                let rows = sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_all(&mut *connection).await;
                let rows = rows.and_then(|rows| rows.iter().map(text).collect::<Result<_, sqlx::Error>>());
                rows.map_err(|error| error.to_string())
            }
            Self::Sqlite(connection) => sqlite_rows(connection, query).map_err(|error| error.to_string()),
        }
    }

    /// The one number that a query answers; 0 for nothing.
    pub async fn number(&mut self, query: &str) -> Result<u64, String> {
        let rows = self.rows(query).await?;
        let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        value.map_or(Ok(0), |text| text.parse().map_err(|_| format!("{query}: {text:?} is no number")))
    }

    /// Runs one statement and commits it; durable when this returns. Only the demo's own texts come here.
    pub async fn execute(&mut self, statement: &str) -> Result<(), String> {
        match self {
            Self::Mariadb(connection) => connection
                .execute(AssertSqlSafe(statement))
                .await
                .map(|_| ())
                .map_err(|error| error.to_string()),
            Self::Sqlite(connection) => {
                connection.execute_batch(statement).map_err(|error| error.to_string())
            }
        }
    }
}

fn sqlite_rows(connection: &rusqlite::Connection, query: &str) -> rusqlite::Result<Vec<Vec<Option<String>>>> {
    use rusqlite::types::ValueRef;
    let mut statement = connection.prepare(query)?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let mut texts = Vec::with_capacity(width);
        for column in 0..width {
            texts.push(match row.get_ref(column)? {
                ValueRef::Null => None,
                ValueRef::Integer(number) => Some(number.to_string()),
                ValueRef::Real(number) => Some(number.to_string()),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    Some(String::from_utf8_lossy(bytes).into_owned())
                }
            });
        }
        out.push(texts);
    }
    Ok(out)
}
