//! `restore-database`: the point's databases into their places. MariaDB: base, prepare, a private instance without TCP,
//! log replay, a look inside, stop. SQLite: the file and its own check.
//!
//! What must hold: a half-restored database is never taken for a whole one: without its stamp it begins anew from an empty
//! place; a database is never moved away from under its server.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_replicate::{restore, restore_log};
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome};
use farsite_sources::LogPosition;
use farsite_sources::mariadb::instance::{Instance, ReplayEnd, refuse_series};
use farsite_store::manifest::{ItemLog, LogPoint, ManifestItem};
use farsite_store::{Damage, StoreError, logs};
use serde_json::{Value, json};

use super::{Held, RESTORE_LIMIT, Serves};
use crate::aside::{Stamps, beside, exists, remove, root_of};
use crate::choose::Replay;
use crate::group_run::{GroupRun, failed, guard};
use crate::sql;

pub(crate) struct RestoreDatabase(pub(super) Held);

/// Files that belong to an SQLite database: an old one left standing would be taken for the restored one's.
const COMPANIONS: [&str; 4] = ["", "-wal", "-shm", "-journal"];
/// Says in a data directory that it is complete, and whose it is.
const STAMP: &str = ".farsite-restored";

fn io(context: &ActionContext, what: String) -> impl FnOnce(std::io::Error) -> ActionError + '_ {
    move |error| failed(context, format!("{what}: {error}"))
}

/// Names what is to stand in the place: the base, and how far its log is replayed.
fn version(run: &GroupRun, item: &ManifestItem) -> String {
    let log = item.log.as_ref().map(|log| {
        let accepted = run.logs.iter().find(|a| a.timeline == log.timeline).and_then(|a| a.last_sequence);
        let end = match run.replay {
            Replay::Point => format!("{}:{}", log.p1.file, log.p1.offset),
            Replay::LastAccepted => format!("segment {accepted:?}"),
            Replay::Until(moment) => moment.to_string(),
        };
        format!(" log {} to {end}", log.timeline)
    });
    format!("{}{}", root_of(item), log.unwrap_or_default())
}

fn companion(file: &Path, ending: &str) -> PathBuf {
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    file.with_file_name(format!("{name}{ending}"))
}

/// Everything that stands in the place of one database.
fn places(run: &GroupRun, item: &ManifestItem) -> Result<Vec<PathBuf>, ActionError> {
    let place = run.path(item)?;
    Ok(match item.kind {
        ItemKind::Sqlite => COMPANIONS.iter().map(|ending| companion(&place, ending)).collect(),
        _ => vec![place],
    })
}

fn stamps(run: &GroupRun, context: &ActionContext, item: &ManifestItem) -> Result<Stamps, ActionError> {
    let place = run.path(item)?;
    let folder = place.parent().unwrap_or(&place);
    Stamps::open(folder, item.kind, run.promotion)
        .map_err(io(context, format!("reading what was restored in {}", folder.display())))
}

fn is_complete(run: &GroupRun, item: &ManifestItem, stamps: &Stamps) -> Result<bool, ActionError> {
    let place = run.path(item)?;
    Ok(exists(&place) && stamps.is_done(&place, &version(run, item)))
}

impl RestoreDatabase {
    async fn one(
        &self,
        run: &GroupRun,
        context: &ActionContext,
        item: &ManifestItem,
    ) -> Result<Outcome, ActionError> {
        let place = run.path(item)?;
        let mut stamps = stamps(run, context, item)?;
        if is_complete(run, item, &stamps)? {
            return Ok(Outcome::said(format!("{} was restored already", item.id)));
        }
        context.lease.check()?;
        if item.kind == ItemKind::Mariadb {
            free_of_servers(run, context, &place, stamps.get(&place).is_some_and(|s| !s.kept)).await?;
        }
        for part in places(run, item)? {
            // Only the database itself is a version; what stands beside it goes when it goes.
            let hint = "if it is a mount point, name a folder below it";
            stamps
                .make_room(&part, item.id.as_str(), &version(run, item), &beside(&part, run.promotion))
                .map_err(io(context, format!("moving {} aside ({hint})", part.display())))?;
            context.lease.check()?;
            // What stands here now is half of an earlier attempt.
            remove(&part).map_err(io(context, format!("emptying {}", part.display())))?;
        }
        let outcome = if item.kind == ItemKind::Mariadb {
            self.mariadb(run, context, item, &place, stamps.moved_aside(&place).as_deref()).await?
        } else {
            restore::item(&run.standby.reader, item, &place, &guard(context), &run.stats)
                .await
                .map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
            sql::sqlite_quick_check(&place)
                .await
                .map_err(|e| failed(context, format!("{}: {}: {e}", item.id, place.display())))?;
            Outcome::said(format!("{} restored; its own check says ok", item.id))
        };
        context.lease.check()?;
        for part in places(run, item)? {
            stamps.done(&part).map_err(io(context, format!("stamping {}", part.display())))?;
        }
        Ok(match stamps.moved_aside(&place) {
            Some(aside) => outcome.with("moved-aside", aside.display()),
            None => outcome,
        })
    }

    async fn mariadb(
        &self,
        run: &GroupRun,
        context: &ActionContext,
        item: &ManifestItem,
        datadir: &Path,
        before: Option<&Path>,
    ) -> Result<Outcome, ActionError> {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(datadir)
            .map_err(io(context, format!("creating {}", datadir.display())))?;
        restore::item(&run.standby.reader, item, datadir, &guard(context), &run.stats)
            .await
            .map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
        give_to_owner(datadir, before)
            .map_err(io(context, format!("giving {} its owner", datadir.display())))?;
        context.lease.check()?;
        let private = run.private_instance()?;
        run.socket_folder(&private.socket)
            .map_err(io(context, format!("making the folder of {}", private.socket.display())))?;
        private.prepare().await.map_err(|e| failed(context, e))?;
        let replay = match &item.log {
            Some(log) => Some(log_files(run, context, datadir, log).await?),
            None => None,
        };
        context.lease.check()?;
        let server_log = datadir.join("farsite-mariadbd.log");
        let checked = match private.start(&server_log, &[]).await {
            Ok(()) => replay_and_look(context, &private, item, replay.as_ref()).await,
            Err(error) => Err(failed(context, error)),
        };
        // Stopped whatever came of it: the step leaves no server of its own.
        let stopped = private.stop().await;
        let outcome = checked?;
        stopped.map_err(|e| failed(context, e))?;
        if !run.is_drill() {
            // Best effort: an empty folder that stays is nobody's trouble.
            let _ = std::fs::remove_file(&private.socket);
            let _ = std::fs::remove_dir(&run.targets.sockets);
        }
        if replay.is_some() {
            let folder = log_folder(datadir);
            remove(&folder).map_err(io(context, format!("removing {}", folder.display())))?;
        }
        let stamp = json!({ "promotion": run.promotion, "point": run.point, "replay": run.replay });
        std::fs::write(datadir.join(STAMP), format!("{stamp}\n"))
            .map_err(io(context, format!("stamping {}", datadir.display())))?;
        match private.version_note().await {
            Ok(Some(note)) => Ok(outcome.with("version", note)),
            _ => Ok(outcome),
        }
    }
}

/// A server that this promotion started and lost is stopped; anybody else's is left alone, and the step fails.
async fn free_of_servers(
    run: &GroupRun,
    context: &ActionContext,
    datadir: &Path,
    is_ours: bool,
) -> Result<(), ActionError> {
    let instance = run.private_instance()?;
    if !exists(datadir) || !instance.is_running().await.map_err(|e| failed(context, e))? {
        return Ok(());
    }
    if is_ours {
        return instance.stop().await.map_err(|e| failed(context, e));
    }
    Err(failed(
        context,
        format!(
            "a server runs on {}; nothing was changed\n  hint: stop it and run this again: its data is then moved aside and kept",
            datadir.display()
        ),
    ))
}

/// The new data belongs to whom the old data belongs to; without any, to whom it belonged at its source.
fn give_to_owner(datadir: &Path, before: Option<&Path>) -> std::io::Result<()> {
    let model = match before {
        Some(before) => before.to_owned(),
        None => datadir.join("mysql"),
    };
    let (own, wanted) = (std::fs::metadata(datadir)?, std::fs::metadata(model)?);
    // Only root can give files away; for anybody else both are the same user.
    if own.uid() == 0 && wanted.uid() != 0 {
        std::os::unix::fs::chown(datadir, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    Ok(())
}

async fn replay_and_look(
    context: &ActionContext,
    private: &Instance,
    item: &ManifestItem,
    replay: Option<&LogFiles>,
) -> Result<Outcome, ActionError> {
    let mut outcome = Outcome::said(format!("{} restored", item.id));
    if let Some(replay) = replay {
        context.lease.check()?;
        private
            .replay(&replay.files, &replay.from, &replay.up_to)
            .await
            .map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
        outcome = Outcome::said(format!("{} restored, its log replayed {}", item.id, replay.said))
            .with("log-files", replay.files.len());
    }
    let tables = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')";
    let rows = private.query(tables).await.map_err(|e| failed(context, e))?;
    Ok(outcome.with("tables", sql::first(&rows).unwrap_or("unknown")))
}

struct LogFiles {
    files: Vec<PathBuf>,
    from: LogPosition,
    up_to: ReplayEnd,
    said: String,
}

fn log_folder(datadir: &Path) -> PathBuf {
    companion(datadir, ".farsite-log")
}

/// The accepted log as files, and how far it is replayed.
async fn log_files(
    run: &GroupRun,
    context: &ActionContext,
    datadir: &Path,
    log: &ItemLog,
) -> Result<LogFiles, ActionError> {
    let accepted = run.accepted(log.timeline)?;
    let segments =
        logs::list_of_site(&run.standby.store, &run.group, &log.timeline, accepted, &run.manifest.site)
            .await
            .map_err(|e| failed(context, e))?;
    if !logs::covers(&segments, &log.base, &log.p1) {
        let stretch = |s: &logs::SegmentName| format!("{}:{}-{}", s.file, s.first, s.last);
        let there = match segments.as_slice() {
            [] => "nothing is there".to_owned(),
            all => format!(
                "{} segments are there without a gap: {}",
                all.len(),
                all.iter().take(20).map(stretch).collect::<Vec<_>>().join(", ")
            ),
        };
        let damage = Damage::new(
            format!("logs/{}/{}", run.group, log.timeline),
            format!(
                "the point needs it from {}:{} to {}:{}, and {there}",
                log.base.file, log.base.offset, log.p1.file, log.p1.offset
            ),
        );
        return Err(failed(context, StoreError::Damaged(vec![damage])));
    }
    let folder = log_folder(datadir);
    remove(&folder).map_err(io(context, format!("emptying {}", folder.display())))?;
    context.lease.check()?;
    let files = restore_log::log_files(&run.standby.reader, &run.group, log, accepted, &folder)
        .await
        .map_err(|e| failed(context, e))?;
    let position = |point: &LogPoint| LogPosition::new(point.file.clone(), point.offset);
    let (up_to, said) = match run.replay {
        Replay::Point => {
            (ReplayEnd::Position(position(&log.p1)), format!("to {}:{}", log.p1.file, log.p1.offset))
        }
        Replay::LastAccepted => (ReplayEnd::End, "as far as it was accepted".to_owned()),
        Replay::Until(moment) => (ReplayEnd::Time(moment), format!("up to {moment}")),
    };
    Ok(LogFiles { files, from: position(&log.base), up_to, said })
}

#[async_trait]
impl Action for RestoreDatabase {
    fn name(&self) -> &'static str {
        "restore-database"
    }
    fn summary(&self) -> &'static str {
        "the point's database into its place: log replayed, looked at, and stopped again"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        Serves::of(with).map(|_| ())
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        RESTORE_LIMIT
    }
    async fn check(&self, context: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        let run = self.0.run()?;
        for item in run.databases() {
            if !is_complete(run, item, &stamps(run, context, item)?)? {
                return Ok(Done::No);
            }
        }
        Ok(Done::Yes("its stamp says that it is complete".into()))
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let mut whole = Outcome::default();
        let mut said = Vec::new();
        for item in run.databases() {
            let Outcome { detail, evidence } = self.one(run, context, item).await?;
            said.push(detail);
            whole
                .evidence
                .extend(evidence.into_iter().map(|(key, value)| (format!("{} {key}", item.id), value)));
        }
        whole.detail = if said.is_empty() { "the point holds no database".into() } else { said.join("; ") };
        Ok(whole)
    }
    async fn undo(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let mut kept = Vec::new();
        for item in run.databases() {
            context.lease.check()?;
            let place = run.path(item)?;
            let mut stamps = stamps(run, context, item)?;
            if item.kind == ItemKind::Mariadb && stamps.get(&place).is_some_and(|s| !s.kept) {
                free_of_servers(run, context, &place, true).await?;
                let folder = log_folder(&place);
                remove(&folder).map_err(io(context, format!("removing {}", folder.display())))?;
            }
            for part in places(run, item)? {
                context.lease.check()?;
                let undone = stamps
                    .give_back(&part, run.is_drill())
                    .map_err(io(context, format!("giving {} back", part.display())))?;
                kept.extend(undone.map(|path| path.display().to_string()));
            }
            stamps.forget().map_err(io(context, "removing the list of what was restored".into()))?;
        }
        Ok(undone(&kept))
    }
    async fn dry_run(&self, _: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        let is_stopped_before = Serves::of(with).map_err(ActionError::Failed)?.is_stopped_before();
        let mut said = Vec::new();
        for item in run.databases() {
            let place = run.path(item)?;
            if item.kind == ItemKind::Mariadb
                && !is_stopped_before
                && exists(&place)
                && run.private_instance()?.is_running().await.map_err(ActionError::failed)?
            {
                return Err(ActionError::failed(format!(
                    "a server runs on {}: stop it first; its data is then moved aside and kept",
                    place.display()
                )));
            }
            if let Some(version) =
                item.details.get("server-version").filter(|_| item.kind == ItemKind::Mariadb)
            {
                refuse_series(version).await.map_err(ActionError::failed)?;
            }
            let aside = if exists(&place) { "; what stands there is moved aside" } else { "" };
            said.push(format!("{} ({} bytes) to {}{aside}", item.id, item.data.size_bytes, place.display()));
        }
        Ok(if said.is_empty() { "the point holds no database".into() } else { said.join("; ").into() })
    }
}

/// What an undo says about what the promotion had made.
pub(super) fn undone(kept: &[String]) -> Outcome {
    match kept {
        [] => Outcome::said("the places are as they were before"),
        [one] => {
            Outcome::said(format!("the place is as it was before; what the promotion made is kept as {one}"))
        }
        [first, ..] => Outcome::said("the places are as they were before; what the promotion made is kept")
            .with("kept", format!("{} paths, such as {first}", kept.len())),
    }
}
