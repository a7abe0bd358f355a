//! The second half of restoring a database with a shipped log: the base is prepared, and the log is replayed up to the
//! point's own position or a moment. The server that this needs runs in the restored folder, on a socket of its own,
//! and is stopped again.

use std::path::Path;

use farsite_model::GroupName;
use farsite_replicate::restore_log;
use farsite_sources::mariadb::instance::{Instance, ReplayEnd};
use farsite_sources::{LogPosition, SourceError};
use farsite_store::logs;
use farsite_store::manifest::{ItemLog, LogPoint, ManifestItem};
use farsite_store::read::Reader;
use jiff::Timestamp;

use crate::failure::Failure;

/// Replays the log of `item` on top of its base in `datadir`; `until` goes further (or less far) than the point.
pub async fn replay(
    reader: &Reader,
    group: &GroupName,
    item: &ManifestItem,
    datadir: &Path,
    until: Option<Timestamp>,
) -> Result<(), Failure> {
    let Some(log) = &item.log else { return Ok(()) };
    // Short, because a socket's path may have 107 bytes only.
    let scratch = tempfile::Builder::new()
        .prefix("farsite-restore-")
        .tempdir()
        .map_err(Failure::io("making a folder for the log"))?;
    let files = restore_log::log_files(reader, group, log, None, &scratch.path().join("log")).await?;
    reaches(reader, group, item, log).await?;
    let end = match until {
        None => ReplayEnd::Position(position(&log.p1)),
        Some(time) => ReplayEnd::Time(time),
    };
    let instance = Instance {
        datadir: datadir.to_owned(),
        socket: scratch.path().join("s"),
        port: None,
        server_args: Vec::new(),
    };
    let failed = |error: SourceError| {
        Failure::failed(format!(
            "{error}\nthe recovery point is unharmed, and nothing was left in {}",
            datadir.display()
        ))
    };
    instance.prepare().await.map_err(failed)?;
    instance.start(&datadir.join("restore.err"), &["--skip-log-bin"]).await.map_err(failed)?;
    let replayed = async {
        instance.replay(&files, &position(&log.base), &end).await?;
        instance.drop_local_account().await
    }
    .await;
    // Whatever came of it, no server is left behind.
    instance.stop().await.map_err(failed)?;
    replayed.map_err(failed)
}

/// The point's own position must be in the log, or the restored database would be older than it is said to be.
async fn reaches(
    reader: &Reader,
    group: &GroupName,
    item: &ManifestItem,
    log: &ItemLog,
) -> Result<(), Failure> {
    let segments = logs::list(&reader.store, group, &log.timeline, None).await?;
    if logs::covers(&segments, &log.base, &log.p1) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the log of {} at the store does not reach {} {}, which the point needs",
        item.id, log.p1.file, log.p1.offset
    ))
    .hint("`farsite points verify` says which points are whole"))
}

fn position(point: &LogPoint) -> LogPosition {
    LogPosition { file: point.file.clone(), offset: point.offset }
}
