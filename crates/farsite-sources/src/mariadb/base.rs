//! A base: `mariadb-backup` copies a running server's files, and says at which log position they stand. What must hold:
//! the capture time is read before anything is asked of the server, and the backup is left unprepared, so that pages
//! that did not change are the same bytes as in the base before.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use farsite_model::policy::Log;

use super::server::{self, QUERY_LIMIT};
use super::{Database, LogPosition, revisions};
use crate::{BaseBackup, CaptureContext, LoggedDatabase as _, SourceError, commands};

/// Where `mariadb-backup` notes the position; the second name is that of MariaDB 11.1 and later.
const POSITION_FILES: [&str; 2] = ["xtrabackup_binlog_info", "mariadb_backup_binlog_info"];
/// Threads that copy files.
const PARALLEL: u8 = 2;
pub(crate) const BACKUP_PROGRAMS: [&str; 2] = ["mariadb-backup", "mariabackup"];

pub(super) async fn back_up(
    database: &Database,
    context: &CaptureContext,
    target: PathBuf,
) -> Result<BaseBackup, SourceError> {
    let what = format!("backing up {} at {}", database.item, database.server.place());
    database.refuse_partial()?;
    let program = commands::require(&BACKUP_PROGRAMS, "mariadb-backup")?;
    let captured = context.clock.capture_time();
    let mut details = facts(database).await?;
    // The account of a backup may not see the services' tables: then they are not known.
    if let Ok(found) = database.revisions().await {
        details.extend(revisions::as_details(&found));
    }
    let continuous = database.log == Log::Continuous;
    if continuous {
        // A timeline begins with the file in which the base ends: let it be a short one.
        let mut connection = database.server.connect().await?;
        server::query(&mut connection, "FLUSH BINARY LOGS", QUERY_LIMIT).await?;
    }
    let mut command = commands::tied(&program);
    database.server.connect_program(&mut command)?;
    command.arg("--backup").arg(format!("--target-dir={}", target.display()));
    command.arg(format!("--parallel={PARALLEL}")).args(&database.backup_args);
    // Copied files have the mode of the process's mask; a database is nobody else's business.
    commands::run(&what, command, context.timeout).await?.success(&what).map_err(|error| {
        error.hint("nothing of it is used; `farsite check` looks at rights, programs and disk space")
    })?;
    let (position, gtid) = match read_position(&target) {
        Ok(found) => found,
        Err(error) if continuous => return Err(error),
        Err(_) => (LogPosition::new("", 0), None),
    };
    if let Some(gtid) = gtid {
        details.insert("gtid".to_owned(), gtid);
    }
    if !position.file.is_empty() {
        details.insert("log-position".to_owned(), position.to_string());
    }
    let paths =
        walk(&target).map_err(|error| SourceError::new(format!("listing {}", target.display()), error))?;
    Ok(BaseBackup { captured, position, root: target, paths, details })
}

/// What a sink must know about the server.
async fn facts(database: &Database) -> Result<BTreeMap<String, String>, SourceError> {
    let sql = "SELECT VERSION() AS version, @@innodb_page_size AS page_size, \
               @@lower_case_table_names AS lower_case_table_names";
    let found = database.server.query(sql).await?;
    let pairs = [
        ("server-version", "version"),
        ("page-size-bytes", "page_size"),
        ("lower-case-table-names", "lower_case_table_names"),
    ];
    Ok(pairs
        .iter()
        .filter_map(|(key, column)| Some(((*key).to_owned(), found.first(column)?.to_owned())))
        .collect())
}

/// File, offset and GTID, separated by tabs.
fn read_position(target: &Path) -> Result<(LogPosition, Option<String>), SourceError> {
    let fail = |why: String| {
        SourceError::new(format!("the log position of the backup in {}", target.display()), why)
            .hint("does the server write a binary log (`log_bin`)?")
    };
    let text = POSITION_FILES.iter().find_map(|name| fs::read_to_string(target.join(name)).ok());
    let text = text.ok_or_else(|| fail(format!("mariadb-backup left no {}", POSITION_FILES[0])))?;
    let mut fields = text.lines().next().unwrap_or_default().split('\t');
    match (fields.next(), fields.next().and_then(|offset| offset.trim().parse().ok())) {
        (Some(file), Some(offset)) if !file.is_empty() => {
            let gtid = fields.next().map(str::trim).filter(|gtid| !gtid.is_empty());
            Ok((LogPosition::new(file, offset), gtid.map(str::to_owned)))
        }
        _ => Err(fail(format!("it makes no sense: {text:?}"))),
    }
}

/// All files and folders below `root`, folders before what is in them, in an order that is the same every time.
pub(crate) fn walk(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/x", "b/c/y", "b.d/z", "a"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        let names: Vec<String> = walk(dir.path()).unwrap().iter().map(|p| p.display().to_string()).collect();
        assert_eq!(names, ["a", "b", "b/c", "b/c/y", "b/x", "b.d", "b.d/z"]);
    }

    #[test]
    fn the_position_is_read_under_both_names() {
        for name in POSITION_FILES {
            let dir = tempfile::tempdir().unwrap();
            assert!(read_position(dir.path()).is_err());
            fs::write(dir.path().join(name), "mariadb-bin.000007\t1468\t0-1-7\n").unwrap();
            let (position, gtid) = read_position(dir.path()).unwrap();
            assert_eq!(position, LogPosition::new("mariadb-bin.000007", 1468));
            assert_eq!(gtid.as_deref(), Some("0-1-7"));
            fs::write(dir.path().join(name), "nonsense\n").unwrap();
            assert!(read_position(dir.path()).is_err());
        }
    }
}
