//! Glance's own table of images, in SQLite or MariaDB: an id comes in, what Glance knows about it goes out. Columns are
//! found by their names, because Glance's releases differ in them.

use std::path::Path;
use std::time::Duration;

use farsite_model::policy::{Checksums, ChecksumsInMariadb};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::Details;
use crate::SourceError;
use crate::mariadb::server::{self, Password, Rows, Server};

/// How long another's lock on an SQLite file is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// Image statuses in which the file is still being written (Glance, "Image statuses").
const UPLOADING: [&str; 4] = ["queued", "saving", "uploading", "importing"];

/// One row of `images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    status: String,
    pub(super) size_bytes: Option<u64>,
    details: Details,
}

impl Row {
    /// Whether all of its data is there: a deactivated image keeps it, and one that was deleted until the scrubber comes.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.status.as_str(), "active" | "deactivated" | "pending_delete")
    }

    pub(super) fn is_uploading(&self) -> bool {
        UPLOADING.contains(&self.status.as_str())
    }

    pub(super) fn into_details(self) -> Details {
        self.details
    }

    fn of(rows: &Rows) -> Option<Self> {
        rows.rows.first()?;
        let value = |column| rows.first(column).filter(|text| !text.is_empty()).map(str::to_owned);
        let mut details = Details::new();
        for (key, column) in [
            ("status", "status"),
            ("disk_format", "disk_format"),
            ("container_format", "container_format"),
            ("md5", "checksum"),
        ] {
            details.extend(value(column).map(|text| (key.to_owned(), text)));
        }
        if let (Some(algorithm), Some(hash)) = (value("os_hash_algo"), value("os_hash_value")) {
            details.insert(algorithm, hash);
        }
        Some(Self {
            status: value("status").unwrap_or_default(),
            size_bytes: value("size").and_then(|text| text.parse().ok()),
            details,
        })
    }
}

/// Rows of images whose data may be there. With Glance's delayed deletion a row counts as deleted before its data does.
const THERE: &str = "(deleted = 0 OR status = 'pending_delete')";

pub(super) async fn image(checksums: &Checksums, id: &str) -> Result<Option<Row>, SourceError> {
    // The caller has seen that it is a UUID; written so that it would do no harm if it were not.
    let sql = match checksums {
        Checksums::Sqlite(_) => {
            format!("SELECT * FROM images WHERE id = '{}' AND {THERE}", id.replace('\'', "''"))
        }
        Checksums::Mariadb(at) => {
            format!("SELECT * FROM {} WHERE id = {} AND {THERE}", table(at), server::literal(id))
        }
    };
    Ok(Row::of(&ask(checksums, sql).await?))
}

/// Ids of all images that should have a file.
pub(super) async fn complete_images(checksums: &Checksums) -> Result<Vec<String>, SourceError> {
    ids(checksums, &["active", "deactivated"]).await
}

/// Ids of all images whose files, where they have some, are no images yet.
pub(super) async fn unfinished_images(checksums: &Checksums) -> Result<Vec<String>, SourceError> {
    ids(checksums, &UPLOADING).await
}

async fn ids(checksums: &Checksums, statuses: &[&str]) -> Result<Vec<String>, SourceError> {
    let images = match checksums {
        Checksums::Sqlite(_) => "images".to_owned(),
        Checksums::Mariadb(at) => table(at),
    };
    let sql = format!(
        "SELECT id FROM {images} WHERE status IN ('{}') AND deleted = 0 ORDER BY id",
        statuses.join("', '")
    );
    let rows = ask(checksums, sql).await?;
    Ok(rows.rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

async fn ask(checksums: &Checksums, sql: String) -> Result<Rows, SourceError> {
    match checksums {
        Checksums::Sqlite(path) => {
            let path = path.clone();
            crate::volume::blocking(move || ask_sqlite(&path, &sql)).await
        }
        Checksums::Mariadb(at) => {
            let server = Server {
                socket: Some(at.socket.clone()),
                host: None,
                port: None,
                user: at.user.clone().unwrap_or_else(server::process_user),
                password: at.password.clone().map_or(Password::None, Password::At),
            };
            server.query(&sql).await
        }
    }
}

/// The table with its database, quoted.
fn table(at: &ChecksumsInMariadb) -> String {
    format!("`{}`.images", at.database.replace('`', "``"))
}

fn ask_sqlite(path: &Path, sql: &str) -> Result<Rows, SourceError> {
    let fail = |error: rusqlite::Error| {
        SourceError::new(format!("asking Glance's database {}", path.display()), error)
            .hint("is `checksums.sqlite` the right file, and may the agent's user read it?")
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(fail)?;
    connection.busy_timeout(BUSY).map_err(fail)?;
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = Rows { columns, rows: Vec::new() };
    let mut rows = statement.query([]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let values = (0..found.columns.len()).map(|index| row.get::<_, Value>(index).map(text));
        found.rows.push(values.collect::<Result<_, _>>().map_err(fail)?);
    }
    Ok(found)
}

/// What no column of interest holds, a blob, is nothing.
fn text(value: Value) -> Option<String> {
    match value {
        Value::Null | Value::Blob(_) => None,
        Value::Integer(number) => Some(number.to_string()),
        Value::Real(number) => Some(number.to_string()),
        Value::Text(text) => Some(text),
    }
}
