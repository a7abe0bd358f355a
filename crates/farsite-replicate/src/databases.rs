//! Databases whose log is shipped: each has a timeline (a base and the log behind it) that lives from run to run. A run
//! asks for the position before it captures images and volumes, and for the one after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::policy::Item;
use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Consistency, Epoch, ItemId, ItemKind};
use farsite_sources::{Capture, CaptureContext, Content, LogPosition, LoggedDatabase};
use farsite_store::hex::Hex;
use farsite_store::logs::TimelineId;
use farsite_store::manifest::{ItemLog, LogPoint, ManifestItem};
use farsite_store::seal::{Sealer, Seals};
use jiff::Timestamp;

use crate::ReplicateError;
use crate::capture::{ENTRY, Intake, Taken};
use crate::group::Group;
use crate::logship::{Progress, Reconcile, Shipper, Timeline, Work, reconcile, to_point};
use crate::run_clock::RunClock;

/// A base older than this is replaced by a new one, which ships changed pages only: replay stays short.
const BASE_AGE: Duration = Duration::from_hours(24);
/// The log up to a run's second position must be durable within this.
const LOG_WAIT: Duration = Duration::from_mins(1);

/// The shippers of one group; they go on between runs and end when this is dropped.
#[derive(Default)]
pub struct Logs {
    live: BTreeMap<ItemId, Live>,
}

struct Live {
    shipper: Shipper,
    epoch: Epoch,
    /// Those that the shipper's content key is wrapped for.
    recipients: Vec<String>,
    timeline: TimelineId,
    base: ManifestItem,
    base_position: LogPoint,
    begun: Timestamp,
}

impl Logs {
    /// How far each database's log has come.
    pub fn progress(&self) -> Vec<(ItemId, Progress)> {
        self.live.iter().map(|(id, live)| (id.clone(), live.shipper.progress.borrow().clone())).collect()
    }

    /// Ends all shippers: the group was promoted elsewhere, or its agent ends.
    pub fn stop(&mut self) {
        self.live.clear();
    }
}

/// A database between its two positions.
pub(crate) struct Begun {
    id: ItemId,
    entry: ItemId,
    database: Arc<dyn LoggedDatabase>,
    captured: CaptureTime,
    p1: LogPosition,
}

/// First half: a base where one is needed, a running shipper, and the position that the point stands for.
pub(crate) async fn begin(
    intake: &mut Intake<'_>,
    logs: &mut Logs,
    item: &Item,
    epoch: Epoch,
    clock: &RunClock,
    context: &CaptureContext,
) -> Result<Result<Begun, String>, ReplicateError> {
    let Some(database) = farsite_sources::logged(item) else {
        return Ok(Err(format!("{} has no log that can be shipped", item.id())));
    };
    let id = database.item();
    let usable = logs.live.get(&id).is_some_and(|live| {
        live.epoch == epoch
            && live.recipients == intake.group.store.format().recipients
            && live.shipper.progress.borrow().broken.is_none()
            && is_young(live.begun, context)
            && is_held(intake, &id, live.timeline, live.base.data.root == held_root(intake, &id))
    });
    if !usable || intake.full {
        logs.live.remove(&id);
        let timeline = match saved(intake, &id, epoch, context).await? {
            Some(timeline) if !intake.full => timeline,
            _ => match new_base(intake, &*database, &id, epoch, context).await? {
                Ok(timeline) => timeline,
                Err(why) => return Ok(Err(why)),
            },
        };
        let live = start(intake, database.clone(), timeline, epoch).await?;
        logs.live.insert(id.clone(), live);
    }
    Ok(match tokio::time::timeout(context.timeout, database.position(clock)).await {
        Err(_) => Err("the server did not tell its log position in time".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok((captured, p1))) => Ok(Begun { id, entry: item.id(), database, captured, p1 }),
    })
}

/// Second half, when images and volumes are captured: the position now, and the log up to it durable at the standby.
pub(crate) async fn finish(
    logs: &mut Logs,
    begun: Begun,
    clock: &RunClock,
    context: &CaptureContext,
) -> Result<Taken, (ItemId, String)> {
    let Begun { id, entry, database, captured, p1 } = begun;
    let p2 = match tokio::time::timeout(context.timeout, database.position(clock)).await {
        Err(_) => return Err((id, "the server did not tell its log position in time".to_owned())),
        Ok(Err(error)) => return Err((id, error.to_string())),
        Ok(Ok((_, p2))) => p2,
    };
    let Some(live) = logs.live.get_mut(&id) else {
        return Err((id, "its log is not being shipped".to_owned()));
    };
    if let Err(why) = live.shipper.wait_for(&p2, LOG_WAIT).await {
        return Err((id, why));
    }
    let mut details = live.base.details.clone();
    details.insert(ENTRY.to_owned(), entry.to_string());
    Ok(Taken {
        id,
        kind: ItemKind::Mariadb,
        captured,
        consistency: Consistency::Application,
        data: live.base.data.clone(),
        directory: live.base.directory.clone(),
        ancestor: None,
        details,
        log: Some(ItemLog {
            timeline: live.timeline,
            base: live.base_position.clone(),
            p1: to_point(&p1),
            p2: to_point(&p2),
        }),
        // Of the base, in the first point that stands on it and in no other.
        signals: live.base.signals.take(),
    })
}

fn is_young(begun: Timestamp, context: &CaptureContext) -> bool {
    let age = context.clock.now().duration_since(begun);
    // A clock that was set back makes the age negative: then it is not known.
    age >= jiff::SignedDuration::ZERO && age < jiff::SignedDuration::try_from(BASE_AGE).unwrap_or_default()
}

/// A base may be built on when a pinned point holds it, or this very run wrote it.
fn is_held(intake: &Intake<'_>, id: &ItemId, timeline: TimelineId, same_root: bool) -> bool {
    let held = intake.basis.manifests.iter().filter_map(|m| m.item(id)?.log.as_ref());
    same_root && held.clone().any(|log| log.timeline == timeline)
}

fn held_root(intake: &Intake<'_>, id: &ItemId) -> Option<farsite_store::blob::BlobRef> {
    intake.basis.manifests.iter().find_map(|m| m.item(id)).and_then(|item| item.data.root)
}

fn state_file(group: &Group, id: &ItemId) -> std::path::PathBuf {
    group.file_of("timelines", id, ".json")
}

/// The timeline that a process before this one shipped, if it can go on.
async fn saved(
    intake: &Intake<'_>,
    id: &ItemId,
    epoch: Epoch,
    context: &CaptureContext,
) -> Result<Option<Timeline>, ReplicateError> {
    let Some(mut timeline) = Timeline::load(&state_file(intake.group, id)) else { return Ok(None) };
    let held = is_held(intake, id, timeline.id, timeline.base.data.root == held_root(intake, id));
    if timeline.epoch != epoch || !(held || timeline.run == intake.run) {
        return Ok(None);
    }
    if !is_young(timeline.base.stamp.captured.0, context) {
        return Ok(None);
    }
    match reconcile(&intake.group.store, &intake.group.policy.group, &intake.group.config.site, &mut timeline)
        .await
    {
        Ok(()) => Ok(Some(timeline)),
        Err(Reconcile::Gap(why)) => {
            tracing::error!(item = %id, "its log has a gap, a new base is taken: {why}");
            Ok(None)
        }
        Err(Reconcile::Unknown(error)) => Err(error),
    }
}

/// A new physical base, and with it a new timeline. The inner error is the database's own.
async fn new_base(
    intake: &mut Intake<'_>,
    database: &dyn LoggedDatabase,
    id: &ItemId,
    epoch: Epoch,
    context: &CaptureContext,
) -> Result<Result<Timeline, String>, ReplicateError> {
    let target = context.scratch.join(farsite_store::local_map::stem(id));
    std::fs::create_dir_all(&target).map_err(ReplicateError::io(format!("creating {}", target.display())))?;
    let backup = match database.base_backup(context, target.clone()).await {
        Ok(backup) => backup,
        Err(error) => return Ok(Err(error.to_string())),
    };
    tracing::info!(item = %id, "a new base was taken at {}:{}", backup.position.file, backup.position.offset);
    let capture = Capture {
        item: id.clone(),
        kind: ItemKind::Mariadb,
        captured: backup.captured,
        consistency: Consistency::Application,
        content: Content::Tree { root: backup.root, paths: backup.paths },
        still: true,
        ancestor: None,
        details: backup.details,
        tracking: None,
        guard: None,
    };
    let block_bytes = intake.group.policy.block_size.0 as u32;
    let taken = match intake.take(capture, block_bytes).await {
        Ok(taken) => taken,
        Err(ReplicateError::Store(error @ farsite_store::StoreError::Content { .. })) => {
            return Ok(Err(error.to_string()));
        }
        Err(other) => return Err(other),
    };
    let _ = std::fs::remove_dir_all(&target);
    let position = to_point(&backup.position);
    let base = ManifestItem {
        id: taken.id,
        kind: taken.kind,
        // Replaced by the stamp of each point's own position.
        stamp: CaptureStamp {
            captured: taken.captured,
            skew: farsite_model::rpo::ClockSkew::ZERO,
            clamped: false,
        },
        consistency: taken.consistency,
        data: taken.data,
        directory: taken.directory,
        ancestor: None,
        details: taken.details,
        carried_from: None,
        signals: None,
        log: None,
    };
    let mut timeline = Timeline {
        id: Hex::random(),
        epoch,
        run: intake.run,
        base,
        // Log files begin with what replay needs to read the rest: the first one ships from its beginning.
        shipped: LogPoint { file: position.file.clone(), offset: 0 },
        base_position: position,
        next_sequence: 0,
    };
    // The note says that this run may go on with the base after a restart: so the base is durable first.
    intake.writer.flush().await?;
    timeline.save(&state_file(intake.group, id))?;
    timeline.base.signals = taken.signals;
    Ok(Ok(timeline))
}

async fn start(
    intake: &Intake<'_>,
    database: Arc<dyn LoggedDatabase>,
    timeline: Timeline,
    epoch: Epoch,
) -> Result<Live, ReplicateError> {
    let group = intake.group;
    let id = database.item();
    let spool = group.file_of("spool", &id, "");
    // The client writes files from their beginning; what lies here may be of another timeline.
    match std::fs::remove_dir_all(&spool) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ReplicateError::Io { what: format!("emptying {}", spool.display()), source: error });
        }
        _ => {}
    }
    let sealer = Sealer::begin_for(
        &group.store,
        &group.signer,
        &group.config.site,
        &group.policy.group,
        intake.run,
        Seals::Log(timeline.id),
    )
    .await?;
    let work = Work {
        store: group.store.clone(),
        signer: group.signer.clone(),
        sealer,
        clock: group.clock.clone(),
        group: group.policy.group.clone(),
        site: group.config.site.clone(),
        epoch,
        database,
        timeline: timeline.clone(),
        state_file: state_file(group, &id),
        spool,
    };
    Ok(Live {
        epoch,
        recipients: group.store.format().recipients.clone(),
        timeline: timeline.id,
        begun: timeline.base.stamp.captured.0,
        base: timeline.base,
        base_position: timeline.base_position,
        shipper: Shipper::start(work),
    })
}
