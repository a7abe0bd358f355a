//! After the disaster: the real `farsite failover`, as a person on call would type it; what its report says; and what the
//! restored site holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::compare::Restored;
use super::database::{Connection, Kind};
use super::figures::{Range, Reported, Step};
use super::layout::Layout;
use crate::context::Context;
use crate::failure::{DONE, Failure, TARGET_MISSED};

/// How long the failover of so little data may take.
const FAILOVER_LIMIT: Duration = Duration::from_mins(3);
/// The reason that stands in the ledger and in the report.
const REASON: &str = "demo: the northern site was destroyed";

/// The words of the command, without the program.
pub fn words(layout: &Layout) -> Vec<String> {
    let config = layout.south_config();
    [
        "failover",
        "--site",
        "north",
        "--level",
        "application",
        "--assume-site-lost",
        "--reason",
        REASON,
        "--yes",
        "--config",
    ]
    .iter()
    .map(|word| (*word).to_owned())
    .chain([config.display().to_string()])
    .collect()
}

/// The same as a person types it.
pub fn shown(layout: &Layout) -> String {
    let quoted = |word: String| if word.contains([' ', ':']) { format!("'{word}'") } else { word };
    words(layout).into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Runs the failover; what it says is shown. True when it says that a target was missed.
pub async fn fail_over(layout: &Layout, this: &Path, context: &Context) -> Result<bool, Failure> {
    let mut command = tokio::process::Command::new(this);
    command.args(words(layout)).stdin(Stdio::null()).kill_on_drop(true).env_remove("FARSITE_CONFIG");
    command.env("TMPDIR", layout.temporary());
    if context.out.json {
        // Standard output is for one document.
        let stderr = std::io::stderr();
        let clone = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned();
        command.stdout(Stdio::from(clone.map_err(Failure::io("sharing standard error"))?));
    }
    let mut child = command.spawn().map_err(Failure::io("starting `farsite failover`"))?;
    let status = tokio::time::timeout(FAILOVER_LIMIT, child.wait())
        .await
        .map_err(|_| {
            Failure::failed(format!("the failover did not end within {}s", FAILOVER_LIMIT.as_secs()))
        })?
        .map_err(Failure::io("waiting for the failover"))?;
    match status.code() {
        Some(code) if code == i32::from(DONE) => Ok(false),
        Some(code) if code == i32::from(TARGET_MISSED) => Ok(true),
        _ => Err(Failure::failed(format!("the failover ended with {status}"))),
    }
}

/// The newest report that the failover left, as HTML and as JSON.
pub fn find_report(layout: &Layout) -> Result<(PathBuf, PathBuf), Failure> {
    let folder = layout.south_state().join("reports");
    let entries = std::fs::read_dir(&folder).map_err(Failure::io(format!("listing {}", folder.display())))?;
    let json = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .max()
        .ok_or_else(|| Failure::failed(format!("the failover left no report in {}", folder.display())))?;
    Ok((json.with_extension("html"), json))
}

/// What south has now.
pub async fn restored(layout: &Layout, kind: Kind) -> Result<Restored, Failure> {
    let place = layout.south_database(kind);
    let fail =
        |why: String| Failure::failed(format!("reading the restored database at {}: {why}", place.display()));
    let mut database = Connection::open(kind, &place).await.map_err(fail)?;
    let heartbeats =
        database.rows(&format!("SELECT n FROM {}", kind.table("demo", "heartbeat"))).await.map_err(fail)?;
    let images =
        format!("SELECT id, os_hash_value FROM {} WHERE deleted = 0", kind.table("glance", "images"));
    let images = database.rows(&images).await.map_err(fail)?;
    let first = |row: &[Option<String>]| row.first().cloned().flatten();
    Ok(Restored {
        heartbeats: heartbeats.iter().filter_map(|row| first(row)?.parse().ok()).collect::<BTreeSet<u64>>(),
        images: images
            .iter()
            .filter_map(|row| Some((first(row)?, row.get(1).cloned().flatten()?)))
            .collect::<BTreeMap<String, String>>(),
        glance: layout.south_cloud().join("glance/images"),
        cinder: layout.south_cloud().join("cinder/volumes"),
        keystone: layout.south_keystone(),
    })
}

/// Reads the figures out of the promotion's own report.
pub fn read_report(path: &Path) -> Result<Reported, Failure> {
    let fail = |why: String| Failure::failed(format!("the report {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let report: Value = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    reported(&report).ok_or_else(|| fail("it does not say what the RPO was".to_owned()))
}

fn range(value: &Value) -> Option<Range> {
    Some(Range { at_least_s: value["at_least_s"].as_f64()?, at_most_s: value["at_most_s"].as_f64()? })
}

/// The demo has one group.
fn reported(report: &Value) -> Option<Reported> {
    let group = report.get("groups").and_then(|groups| groups.get(0)).unwrap_or(report);
    let rpo = &group["rpo"];
    let steps = group["steps"].as_array()?;
    Some(Reported {
        rpo: range(&rpo["total"])?,
        rpo_by_kind: rpo["by_kind"]
            .as_object()?
            .iter()
            .filter_map(|(kind, value)| Some((kind.clone(), range(value)?)))
            .collect(),
        rpo_target_s: group["rpo_target_s"].as_f64(),
        rto_s: group["rto_s"].as_f64()?,
        rto_target_s: group["rto_target_s"].as_f64(),
        steps: steps
            .iter()
            .map(|step| Step {
                id: step["id"].as_str().unwrap_or_default().to_owned(),
                status: step["status"].as_str().unwrap_or_default().to_owned(),
                seconds: step["seconds"].as_f64().unwrap_or_default(),
            })
            .collect(),
    })
}
