//! What would fail at a MariaDB server, before it does. A database comes in, lines for `farsite check` go out. What must
//! hold: nothing is changed, and every line that is wrong says what to do.

use std::path::Path;
use std::time::Duration;

use farsite_model::policy::Log;

use super::base::BACKUP_PROGRAMS;
use super::server::Rows;
use super::stream::BINLOG_PROGRAMS;
use super::{Database, server};
use crate::{CheckLine, SourceError, commands};

const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// What a base needs, and what streaming needs besides; older names of the same rights behind them.
const BASE_RIGHTS: [&[&str]; 4] =
    [&["RELOAD"], &["PROCESS"], &["LOCK TABLES"], &["BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"]];
const STREAM_RIGHTS: [&[&str]; 1] = [&["REPLICATION SLAVE", "REPLICATION REPLICA"]];

pub(super) async fn check(database: &Database) -> Vec<CheckLine> {
    let mut lines = Vec::new();
    let mut say = |topic: &str, result: Result<String, String>| {
        lines.push(CheckLine { subject: format!("{}: {topic}", database.item), result });
    };
    if let Err(error) = database.refuse_partial() {
        say("databases", Err(error.to_string()));
    }
    let continuous = database.log == Log::Continuous;
    let version = database.server.query("SELECT VERSION() AS version").await;
    let version = match version {
        Ok(found) => found.first("version").unwrap_or_default().to_owned(),
        Err(error) => {
            say("server", Err(error.to_string()));
            return lines;
        }
    };
    say(
        "server",
        if version.contains("MariaDB") {
            Ok(format!("{} is MariaDB {version}", database.server.place()))
        } else {
            Err(format!("{} is {version}, and only MariaDB is read here", database.server.place()))
        },
    );
    let programs: &[&[&str]] =
        if continuous { &[&BACKUP_PROGRAMS, &BINLOG_PROGRAMS] } else { &[&BACKUP_PROGRAMS] };
    for names in programs {
        say(names[0], program(names, &version).await);
    }
    let asked = async |sql: &str| database.server.query(sql).await.map_err(|error| error.to_string());
    match asked("SHOW GRANTS").await {
        Ok(grants) => say("rights", rights(&grants, continuous, &database.server.user)),
        Err(error) => say("rights", Err(error)),
    }
    if continuous {
        match asked("SELECT @@log_bin AS log_bin, @@binlog_format AS format").await {
            Ok(found) => say("binary log", binary_log(&found)),
            Err(error) => say("binary log", Err(error)),
        }
    }
    match asked(OTHER_ENGINES).await {
        Ok(found) => say("storage engines", Ok(engines(&found))),
        Err(error) => say("storage engines", Err(error)),
    }
    match asked("SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_local_state_comment', 'wsrep_ready')")
        .await
    {
        Ok(found) => {
            if let Some(result) = galera(&found) {
                say("Galera", result);
            }
        }
        Err(error) => say("Galera", Err(error)),
    }
    lines
}

const OTHER_ENGINES: &str = "SELECT CONCAT(table_schema, '.', table_name, ' (', engine, ')') AS name \
    FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND engine <> 'InnoDB' \
    AND table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema') \
    ORDER BY 1 LIMIT 20";

async fn program(names: &[&str], server_version: &str) -> Result<String, String> {
    let path =
        commands::require(names, "mariadb-backup mariadb-client").map_err(|error| error.to_string())?;
    let mut command = commands::tied(&path);
    command.arg("--version");
    let what = format!("asking {} for its version", path.display());
    let said = commands::run(&what, command, VERSION_LIMIT).await.map_err(|error| error.to_string())?;
    let said = format!("{} {}", said.stdout.trim(), said.stderr.trim());
    // Only the backup program tells the server version that it belongs to.
    match series(&said) {
        Some(ours) if said.contains("server") && Some(&ours) != series(server_version).as_ref() => {
            Err(format!(
                "{} is of MariaDB {ours} and the server is {server_version}\n  hint: install the one of the server's series",
                path.display()
            ))
        }
        _ => Ok(said.trim().to_owned()),
    }
}

/// `10.11` of the first text that looks like `10.11.19`.
pub(super) fn series(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let mut parts = word.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(_))) => Some(format!("{major}.{minor}")),
            _ => None,
        }
    })
}

fn rights(grants: &Rows, continuous: bool, user: &str) -> Result<String, String> {
    let granted: Vec<String> = grants
        .rows
        .iter()
        .filter_map(|row| {
            let text = row.first()?.as_deref()?.strip_prefix("GRANT ")?;
            let (rights, _) = text.split_once(" ON *.* TO ")?;
            Some(rights.split(',').map(|r| r.trim().to_uppercase()).collect::<Vec<_>>())
        })
        .flatten()
        .collect();
    let has = |names: &&[&str]| granted.iter().any(|g| g == "ALL PRIVILEGES" || names.contains(&g.as_str()));
    let needed = BASE_RIGHTS.iter().chain(if continuous { STREAM_RIGHTS.iter() } else { [].iter() });
    let lacking: Vec<&str> = needed.filter(|names| !has(names)).map(|names| names[0]).collect();
    if lacking.is_empty() {
        return Ok(format!("{user} has what backups need"));
    }
    let lacking = lacking.join(", ");
    Err(format!("{user} lacks {lacking}\n  hint: GRANT {lacking} ON *.* TO that account"))
}

fn binary_log(found: &Rows) -> Result<String, String> {
    let format = found.first("format").unwrap_or_default();
    match found.first("log_bin") {
        Some("1") if matches!(format, "ROW" | "MIXED") => Ok(format!("on, in format {format}")),
        Some("1") => Err(format!(
            "its format is {format}, which may write other rows at the standby than here\n  \
             hint: set binlog_format=ROW (or MIXED)"
        )),
        _ => Err("off, and the policy ships it\n  \
                  hint: set `log_bin` in the server's configuration and restart it"
            .to_owned()),
    }
}

fn engines(found: &Rows) -> String {
    let names: Vec<&str> = found.rows.iter().filter_map(|row| row.first()?.as_deref()).collect();
    if names.is_empty() {
        return "all tables are InnoDB".to_owned();
    }
    format!(
        "these are copied while writers wait, because they are not InnoDB: {} (ALTER TABLE … ENGINE=InnoDB ends that)",
        names.join(", ")
    )
}

fn galera(found: &Rows) -> Option<Result<String, String>> {
    let value = |name: &str| {
        found.rows.iter().find_map(|row| match row.as_slice() {
            [Some(key), Some(value)] if key.eq_ignore_ascii_case(name) => Some(value.as_str()),
            _ => None,
        })
    };
    let state = value("wsrep_local_state_comment")?;
    match (state, value("wsrep_ready")) {
        ("Synced" | "Donor/Desynced", Some("ON")) => Some(Ok(format!(
            "this node is {state}; a backup slows it down: where that slows the cluster, set wsrep_desync=ON in a \
             before-capture hook and OFF in an after-capture hook"
        ))),
        // Galera is compiled in and not in use.
        (_, Some("OFF") | None) if state.is_empty() || state == "Initialized" => None,
        (state, _) => Some(Err(format!(
            "this node is {state} and not in step with its cluster\n  hint: read from a node that is Synced"
        ))),
    }
}

/// The series of the server program at `path`, such as `10.11`, for messages about old and new.
pub(super) async fn program_version(path: &Path) -> Result<String, SourceError> {
    let what = format!("asking {} for its version", path.display());
    let mut command = commands::tied(path);
    command.args(["--no-defaults", "--version"]);
    let said = commands::run(&what, command, VERSION_LIMIT).await?.success(&what)?;
    // mariadb-backup says it on its standard error.
    Ok(server::shortened(&format!("{} {}", said.stdout, said.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(columns: &[&str], rows: &[&[&str]]) -> Rows {
        Rows {
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            rows: rows.iter().map(|r| r.iter().map(|v| Some((*v).to_owned())).collect()).collect(),
        }
    }

    #[test]
    fn lacking_rights_are_named_and_nothing_else() {
        let all = rows(&["g"], &[&["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"]]);
        assert!(rights(&all, true, "root").is_ok());
        let some = rows(
            &["g"],
            &[
                &[
                    "GRANT RELOAD, PROCESS, BINLOG MONITOR ON *.* TO `b`@`localhost` IDENTIFIED BY PASSWORD '*A'",
                ],
                &["GRANT LOCK TABLES ON `x`.* TO `b`@`localhost`"],
            ],
        );
        let error = rights(&some, true, "b").unwrap_err();
        assert!(error.contains("lacks LOCK TABLES, REPLICATION SLAVE\n"), "{error}");
        assert!(!error.contains("*A"), "a password's hash is not shown");
    }

    #[test]
    fn a_log_that_is_off_or_of_statements_is_refused() {
        let log = |on: &str, format: &str| binary_log(&rows(&["log_bin", "format"], &[&[on, format]]));
        assert!(log("1", "ROW").is_ok());
        assert!(log("1", "MIXED").is_ok());
        assert!(log("1", "STATEMENT").unwrap_err().contains("binlog_format=ROW"));
        assert!(log("0", "ROW").unwrap_err().contains("log_bin"));
    }

    #[test]
    fn a_version_is_compared_by_its_series() {
        assert_eq!(series("10.11.19-MariaDB-0+deb12u1-log").as_deref(), Some("10.11"));
        assert_eq!(
            series("mariadb-backup based on MariaDB server 11.4.2-MariaDB Linux").as_deref(),
            Some("11.4")
        );
        assert_eq!(series("no version"), None);
    }

    #[test]
    fn a_galera_node_that_is_behind_is_named() {
        let status = |state: &str, ready: &str| {
            let columns = ["Variable_name", "Value"];
            galera(&rows(&columns, &[&["wsrep_local_state_comment", state], &["wsrep_ready", ready]]))
        };
        assert!(status("Synced", "ON").unwrap().unwrap().contains("wsrep_desync"));
        assert!(status("Joining", "OFF").unwrap().is_err());
        assert!(status("Initialized", "OFF").is_none());
        assert!(galera(&rows(&[], &[])).is_none());
    }
}
