//! Databases whose log is shipped: each has a timeline (a base and the log behind it) that lives from run to run. A run
//! asks for the position before it captures images and volumes, and for the one after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Consistency, Epoch, ItemId, ItemKind};
use farsite_sources::mariadb::revisions::{self, Revisions};
use farsite_sources::{Capture, CaptureContext, Content, LogPosition, LoggedDatabase};
use farsite_store::hex::Hex;
use farsite_store::logs::TimelineId;
use farsite_store::manifest::{ItemLog, LogPoint, ManifestItem};
use farsite_store::seal::{Sealer, Seals};
use jiff::Timestamp;

use crate::ReplicateError;
use crate::capture::{ENTRY, Intake, Taken};
use crate::group::Group;
use crate::lent::{Lent, Terms};
use crate::logship::{Progress, Reconcile, Shipper, Timeline, Work, reconcile, to_point};

/// A base older than this is replaced by a new one, which ships changed pages only: replay stays short.
const BASE_AGE: Duration = Duration::from_hours(24);
/// The log up to a run's second position must be durable within this.
const LOG_WAIT: Duration = Duration::from_mins(1);
/// Two small questions.
const REVISIONS_LIMIT: Duration = Duration::from_secs(10);

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

    pub(crate) fn is_shipping(&self, id: &ItemId) -> bool {
        self.live.contains_key(id)
    }

    /// Ends all shippers: the group was promoted elsewhere, or its agent ends.
    pub fn stop(&mut self) {
        self.live.clear();
    }
}

/// A database between its two positions.
pub(crate) struct Begun {
    pub(crate) entry: ItemId,
    pub(crate) captured: CaptureTime,
    pub(crate) p1: LogPosition,
}

/// A base backup that the round has taken for all members who need one.
pub(crate) struct TakenBase {
    pub(crate) lent: Arc<Lent>,
    pub(crate) position: LogPosition,
}

/// Where a database's log stands when images and volumes are captured, and of which revisions its schemas are then: the base
/// may be from before an upgrade of the services.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) position: LogPosition,
    pub(crate) revisions: Revisions,
}

/// The second position of a run.
pub(crate) async fn end(database: &dyn LoggedDatabase, context: &CaptureContext) -> Result<End, String> {
    let (_, position) = position(database, context).await?;
    // Nothing depends on them but a comparison, which then says that they are not known.
    let revisions = match tokio::time::timeout(REVISIONS_LIMIT, database.revisions()).await {
        Ok(Ok(revisions)) => revisions,
        Ok(Err(error)) => {
            tracing::info!(item = %database.item(), "the revisions of its schemas are not known: {error}");
            Revisions::new()
        }
        Err(_) => Revisions::new(),
    };
    Ok(End { position, revisions })
}

/// The position that a server tells now, and the time that was read before it was asked.
pub(crate) async fn position(
    database: &dyn LoggedDatabase,
    context: &CaptureContext,
) -> Result<(CaptureTime, LogPosition), String> {
    match tokio::time::timeout(context.timeout, database.position(&*context.clock)).await {
        Err(_) => Err("the server did not tell its log position in time".to_owned()),
        Ok(told) => told.map_err(|error| error.to_string()),
    }
}

/// Takes a new physical base into the round's scratch folder.
pub(crate) async fn take_base(
    database: &dyn LoggedDatabase,
    block_bytes: u32,
    terms: &Terms,
    context: &CaptureContext,
) -> Result<TakenBase, String> {
    let id = database.item();
    let target = context.scratch.join(farsite_store::local_map::stem(&id));
    std::fs::create_dir_all(&target).map_err(|error| format!("creating {}: {error}", target.display()))?;
    let backup = database.base_backup(context, target).await.map_err(|error| error.to_string())?;
    tracing::info!(item = %id, "a new base was taken at {}:{}", backup.position.file, backup.position.offset);
    let capture = Capture {
        item: id,
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
    Ok(TakenBase { lent: Lent::new(capture, block_bytes, terms.clone()), position: backup.position })
}

/// Sees to a running shipper. False: a new base is needed first.
pub(crate) async fn ships(
    intake: &Intake<'_>,
    logs: &mut Logs,
    database: &Arc<dyn LoggedDatabase>,
    epoch: Epoch,
    context: &CaptureContext,
) -> Result<bool, ReplicateError> {
    let id = database.item();
    let usable = logs.live.get(&id).is_some_and(|live| {
        live.epoch == epoch
            && live.recipients == intake.group.store.format().recipients
            && live.shipper.progress.borrow().broken.is_none()
            && is_young(live.begun, context)
            && is_held(intake, &id, live.timeline, live.base.data.root == held_root(intake, &id))
    });
    if usable && !intake.full {
        return Ok(true);
    }
    logs.live.remove(&id);
    if intake.full {
        return Ok(false);
    }
    let Some(timeline) = saved(intake, &id, epoch, context).await? else { return Ok(false) };
    let live = start(intake, database.clone(), timeline, epoch).await?;
    logs.live.insert(id, live);
    Ok(true)
}

/// A new base comes in, and with it a new timeline. The inner error is the database's own.
pub(crate) async fn stand_on(
    intake: &mut Intake<'_>,
    logs: &mut Logs,
    database: &Arc<dyn LoggedDatabase>,
    base: &TakenBase,
    epoch: Epoch,
) -> Result<Result<(), String>, ReplicateError> {
    let timeline = match new_timeline(intake, base, epoch).await? {
        Ok(timeline) => timeline,
        Err(why) => return Ok(Err(why)),
    };
    let live = start(intake, database.clone(), timeline, epoch).await?;
    logs.live.insert(database.item(), live);
    Ok(Ok(()))
}

/// When images and volumes are captured: the position then, and the log up to it durable at the standby.
pub(crate) async fn finish(
    logs: &mut Logs,
    id: ItemId,
    begun: Begun,
    end: Result<End, String>,
) -> Result<Taken, (ItemId, String)> {
    let Begun { entry, captured, p1 } = begun;
    let End { position: p2, revisions } = match end {
        Ok(end) => end,
        Err(why) => return Err((id, why)),
    };
    let Some(live) = logs.live.get_mut(&id) else {
        return Err((id, "its log is not being shipped".to_owned()));
    };
    if let Err(why) = live.shipper.wait_for(&p2, LOG_WAIT).await {
        return Err((id, why));
    }
    let mut details = live.base.details.clone();
    details.retain(|key, _| !key.starts_with(revisions::DETAIL));
    details.extend(revisions::as_details(&revisions));
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

/// A base may be built on when a pinned and undamaged point holds it, or this very run wrote it. Its blocks are not looked at
/// again, so one of a damaged point is taken anew; that sends only what is damaged and what has changed.
fn is_held(intake: &Intake<'_>, id: &ItemId, timeline: TimelineId, same_root: bool) -> bool {
    let mut held = intake.basis.sound().filter_map(|m| m.item(id)?.log.as_ref());
    same_root && held.any(|log| log.timeline == timeline)
}

fn held_root(intake: &Intake<'_>, id: &ItemId) -> Option<farsite_store::blob::BlobRef> {
    intake.basis.sound().find_map(|m| m.item(id)).and_then(|item| item.data.root)
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

async fn new_timeline(
    intake: &mut Intake<'_>,
    base: &TakenBase,
    epoch: Epoch,
) -> Result<Result<Timeline, String>, ReplicateError> {
    let id = &base.lent.item;
    let taken = match intake.take(&base.lent) {
        Ok(taken) => taken,
        Err(ReplicateError::Store(error @ farsite_store::StoreError::Content { .. })) => {
            return Ok(Err(error.to_string()));
        }
        Err(other) => return Err(other),
    };
    let position = to_point(&base.position);
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
