//! Log streaming: the server's own client, `mariadb-binlog --raw --stop-never`, writes the log into a spool, byte for
//! byte as the server has it. A position comes in, a running client goes out. What must hold: a log that is gone is a
//! gap, said before the client starts; the client never outlives its stream or the agent.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use farsite_model::ItemId;

use super::server::Server;
use crate::{LogPosition, LogStream, SourceError, commands};

/// What the client says, beside the log files.
pub(crate) const CLIENT_LOG: &str = ".client.log";
pub(crate) const BINLOG_PROGRAMS: [&str; 2] = ["mariadb-binlog", "mysqlbinlog"];

pub(super) async fn start(
    server: &Server,
    item: &ItemId,
    spool: PathBuf,
    from: &LogPosition,
) -> Result<LogStream, SourceError> {
    let what = format!("streaming the log of {item} from {from}");
    let program = commands::require(&BINLOG_PROGRAMS, "mariadb-client")?;
    refuse_gap(server, &what, from).await?;
    let stderr = prepare_spool(&spool)
        .map_err(|error| SourceError::new(format!("the log spool {}", spool.display()), error))?;
    let mut command = commands::tied(&program);
    server.connect_program(&mut command)?;
    command.args(["--read-from-remote-server", "--raw", "--stop-never"]);
    // The server ends an older client of the same id, so each one has its own.
    command.arg(format!("--stop-never-slave-server-id={}", random_id(&what)?));
    // A prefix, not a folder: the slash at its end matters.
    command.arg(format!("--result-file={}/", spool.display())).arg(&from.file);
    command.stdout(Stdio::null()).stderr(stderr);
    let child = commands::spawn(&what, command).await?;
    Ok(LogStream { child, spool })
}

/// The end of what a streaming client said, for the message about its end.
pub(crate) fn client_said(spool: &Path) -> String {
    let text = fs::read(spool.join(CLIENT_LOG)).unwrap_or_default();
    commands::shown(&String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]))
}

/// The size of a log file, as the server lists it.
pub(super) async fn log_bytes(server: &Server, file: &str) -> Result<Option<u64>, SourceError> {
    let logs = server.query("SHOW BINARY LOGS").await?;
    Ok(logs.rows.iter().find_map(|row| match row.as_slice() {
        [Some(name), Some(bytes), ..] if name == file => bytes.parse().ok(),
        _ => None,
    }))
}

/// The position must still be part of the history that the server has.
async fn refuse_gap(server: &Server, what: &str, from: &LogPosition) -> Result<(), SourceError> {
    let logs = server.query("SHOW BINARY LOGS").await?;
    let listed = logs.rows.iter().find_map(|row| match row.as_slice() {
        [Some(file), Some(bytes), ..] if *file == from.file => bytes.parse::<u64>().ok(),
        _ => None,
    });
    let names = || {
        let ends = [logs.rows.first(), logs.rows.last()].map(|row| row.and_then(|r| r.first()?.clone()));
        ends.map(Option::unwrap_or_default).join(" to ")
    };
    let hint = "the next run takes a new base by itself; keep logs longer (`binlog_expire_logs_seconds`)";
    match listed {
        None => {
            let why = format!("the server no longer has {}: it holds {}", from.file, names());
            Err(SourceError::gap(what, why).hint(hint))
        }
        Some(bytes) if bytes < from.offset => {
            let why = format!("{} has {bytes} bytes now: the server's log was begun anew", from.file);
            Err(SourceError::gap(what, why).hint(hint))
        }
        Some(_) => Ok(()),
    }
}

fn prepare_spool(spool: &Path) -> std::io::Result<File> {
    // Rows of the database stand in it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(spool)?;
    File::options().write(true).create(true).truncate(true).mode(0o600).open(spool.join(CLIENT_LOG))
}

/// A server id that no other replica of the server has, in all likelihood; never zero.
fn random_id(what: &str) -> Result<u32, SourceError> {
    let bytes = crate::random::bytes::<4>().map_err(|error| SourceError::new(what, error))?;
    Ok(u32::from_le_bytes(bytes) | 1)
}
