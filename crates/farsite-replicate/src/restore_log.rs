//! A shipped log back to files: segments of one timeline come in, the database's own log files go out, byte for
//! byte, for its replay tool.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use farsite_model::GroupName;
use farsite_store::logs;
use farsite_store::manifest::ItemLog;
use farsite_store::read::Reader;
use farsite_store::{Damage, StoreError};

use crate::ReplicateError;

/// Writes the unbroken run of segments into files of their own names below `into` (made when missing), and returns them in
/// the order of the log. `last_sequence` cuts at what an epoch accepted; `None` takes all. Every length is checked: a
/// gap or a changed segment is damage, and named.
pub async fn log_files(
    reader: &Reader,
    group: &GroupName,
    log: &ItemLog,
    last_sequence: Option<u64>,
    into: &Path,
) -> Result<Vec<PathBuf>, ReplicateError> {
    std::fs::create_dir_all(into).map_err(ReplicateError::io(format!("creating {}", into.display())))?;
    let segments = logs::list(&reader.store, group, &log.timeline, last_sequence).await?;
    let mut files: Vec<PathBuf> = Vec::new();
    let mut open: Option<(File, u64)> = None;
    for segment in segments {
        let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&segment.key, why)]);
        if segment.file.contains('/') || segment.file.starts_with('.') {
            return Err(damaged(format!("{:?} is no name of a log file", segment.file)).into());
        }
        let path = into.join(&segment.file);
        if files.last() != Some(&path) {
            if files.contains(&path) {
                return Err(damaged(format!("the log comes back to {}", segment.file)).into());
            }
            close(open.take(), into)?;
            let file =
                File::create(&path).map_err(ReplicateError::io(format!("creating {}", path.display())))?;
            open = Some((file, 0));
            files.push(path.clone());
        }
        let (_, bytes) = logs::read(&reader.store, &reader.opener, &segment).await?;
        let Some((file, length)) = open.as_mut() else { continue };
        if segment.first != *length {
            return Err(damaged(format!(
                "it starts at {}, and {length} bytes stand before it",
                segment.first
            ))
            .into());
        }
        file.write_all(&bytes).map_err(ReplicateError::io(format!("writing {}", path.display())))?;
        *length += bytes.len() as u64;
    }
    close(open.take(), into)?;
    Ok(files)
}

fn close(open: Option<(File, u64)>, into: &Path) -> Result<(), ReplicateError> {
    let Some((file, _)) = open else { return Ok(()) };
    file.sync_all().map_err(ReplicateError::io(format!("syncing a log file in {}", into.display())))
}
