//! One run: from a group's policy to one committed recovery point.
//!
//! The order is the promise: the clock is compared with the store's, the basis is pinned, databases tell their position,
//! everything else is captured, databases tell their position again; when every block and every log byte is durable, the
//! manifest is written, and last of all the ledger entry that makes it a recovery point.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farsite_model::policy::Item;
use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Consistency, Epoch, ItemId, PointId};
use farsite_sources::CaptureContext;
use farsite_store::StoreError;
use farsite_store::hex::Hex;
use farsite_store::ingest::{IngestOptions, RunStats, RunWriter};
use farsite_store::ledger::{Committed, Ledger, Refusal, Statement};
use farsite_store::local_map::LocalMap;
use farsite_store::manifest::{FailedItem, MANIFEST_VERSION, Manifest, ManifestItem};
use farsite_store::seal::Sealer;
use farsite_store::shipped::Shipped;
use jiff::Timestamp;
use serde::Serialize;

use crate::anomaly::{self, History};
use crate::basis::Basis;
use crate::capture::{EntryOutcome, Intake, Memory, Taken, directory_id};
use crate::databases::{self, Logs};
use crate::group::Group;
use crate::record::RunRow;
use crate::run_clock::RunClock;
use crate::run_state::RunState;
use crate::{ReplicateError, frozen, hooks, kept};

/// Longest time that one listing, query or external command of a source may take.
const SOURCE_LIMIT: Duration = Duration::from_hours(6);

/// Sees a run from outside: progress on a terminal, the dashboard's progression.
pub trait Observer: Send + Sync {
    /// A new stretch of work, in a few words.
    fn stage(&self, words: &str);
    /// The run's counters, which go on counting.
    fn counters(&self, stats: Arc<RunStats>);
}
impl Observer for () {
    fn stage(&self, _: &str) {}
    fn counters(&self, _: Arc<RunStats>) {}
}

/// How a run is made.
#[derive(Clone)]
pub struct RunOptions {
    /// Trust nothing that was sent before: read and send everything.
    pub full: bool,
    /// Set: the run stops between two batches; what is complete counts when it is resumed.
    pub cancel: Arc<AtomicBool>,
    pub observer: Arc<dyn Observer>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { full: false, cancel: Arc::default(), observer: Arc::new(()) }
    }
}

/// What a run achieved.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    pub point: PointId,
    pub whole: bool,
    pub items: usize,
    pub weakest: Consistency,
    pub failed: Vec<FailedItem>,
    pub absent: Vec<ItemId>,
    /// What looks unusual, in words: such a point is never taken by default.
    pub suspicious: Vec<String>,
    /// Age of the oldest item when the point became visible, at worst, in seconds.
    pub exposure_at_commit_s: f64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
    pub packs: u64,
    /// The run was begun by a process before this one.
    pub resumed: bool,
    pub seconds: f64,
}

/// Makes one recovery point of the group. Whatever happens, the run is noted in this host's record.
pub async fn run(group: &Group, logs: &mut Logs, options: &RunOptions) -> Result<RunReport, ReplicateError> {
    let started = Timestamp::now();
    let mut run_id = String::new();
    kept::bound(&group.policy, &group.to, &group.folder, group.clock.clone(), &group.record).await;
    let result = attempt(group, logs, options, &mut run_id).await;
    let row = match &result {
        Ok(report) => RunRow {
            group: group.policy.group.to_string(),
            run: run_id,
            started,
            ended: Timestamp::now(),
            point: report.point.to_string(),
            whole: report.whole,
            exposure_at_commit_s: report.exposure_at_commit_s,
            read_bytes: report.read_bytes,
            changed_bytes: report.changed_bytes,
            shipped_bytes: report.shipped_bytes,
            error: String::new(),
        },
        Err(error) => RunRow {
            group: group.policy.group.to_string(),
            run: run_id,
            started,
            ended: Timestamp::now(),
            point: String::new(),
            whole: false,
            exposure_at_commit_s: 0.0,
            read_bytes: 0,
            changed_bytes: 0,
            shipped_bytes: 0,
            error: error.to_string(),
        },
    };
    if let Err(error) = group.record.add(&row) {
        tracing::warn!(group = %group.policy.group, "the run is not in the record: {error}");
    }
    result
}

async fn attempt(
    group: &Group,
    logs: &mut Logs,
    options: &RunOptions,
    run_id: &mut String,
) -> Result<RunReport, ReplicateError> {
    let begun = std::time::Instant::now();
    frozen::thaw_left_over(group).await?;
    let mut ledger = Ledger::open(&group.store, &group.policy.group).await?;
    let epoch = admitted(group, &mut ledger).await?;
    let run_state = RunState::begin(group, ledger.state())?;
    let run = run_state.run;
    *run_id = run.to_string();

    let clock = Arc::new(RunClock::anchored(&group.store, &*group.clock).await?);
    let mut skews = vec![clock.skew()];
    let started = CaptureTime(farsite_model::clock::Clock::now(&*clock));
    let mut basis = Basis::of(group, ledger.state()).await?;
    if !ledger.state().pins.contains_key(&run) {
        let points = basis.points();
        let pin = |_: &_| Ok(Statement::PinBegun { run, points: points.clone() });
        ledger.append(&group.signer, pin).await?;
    }
    // Collection may have ended it meanwhile: then the commit is refused, so nothing is built on it.
    let Some(pinned) = ledger.state().pins.get(&run) else {
        run_state.end();
        return Err(Refusal::PinReleased { run }.into());
    };
    basis = basis.only(pinned);
    let scratch = group.folder.join("scratch");
    fresh_folder(&scratch)?;
    LocalMap::sweep(&group.maps()).map_err(ReplicateError::io("sweeping old block maps"))?;

    let sealer =
        Sealer::begin(&group.store, &group.signer, &group.config.site, &group.policy.group, run).await?;
    let writer = RunWriter::begin(
        &group.store,
        sealer,
        group.secret.clone(),
        IngestOptions::within(group.policy.memory.0, group.policy.compression.range()),
        &run_state.resume_log,
        options.cancel.clone(),
    )?;
    options.observer.counters(writer.stats.clone());
    let shipped = Shipped::open(&group.shipped(), group.policy.cache.0)
        .map_err(ReplicateError::io(format!("opening {}", group.shipped().display())))?;
    let mut intake = Intake {
        group,
        run,
        writer,
        shipped: &shipped,
        basis,
        memory: Memory::default(),
        full: options.full,
    };
    let context = CaptureContext {
        clock: clock.clone(),
        scratch: scratch.clone(),
        timeout: SOURCE_LIMIT,
        frozen: false,
        kept: group.folder.join("kept"),
        owner: group.owner(),
    };

    let captured = all_items(&mut intake, logs, epoch, &clock, &context, options).await;
    let _ = std::fs::remove_dir_all(&scratch);
    let captured = match captured {
        Ok(captured) => captured,
        Err(error) => {
            intake.memory.discard();
            return Err(error);
        }
    };
    options.observer.stage("making it durable");
    let Intake { mut writer, memory, basis, .. } = intake;
    writer.flush().await?;
    stopped(options)?;
    skews.push(clock.anchor_again(&group.store, &*group.clock).await?);
    let store_now = group.store.backend.time().await?;

    let manifest = manifest(group, run, epoch, started, skews, store_now, &basis, captured, &writer.stats);
    if manifest.items.is_empty() {
        let why =
            manifest.failed.iter().map(|f| format!("{}: {}", f.id, f.why)).collect::<Vec<_>>().join("\n  ");
        memory.discard();
        return Err(ReplicateError::Setup(format!(
            "group {}: no item could be captured, so there is no point\n  {why}",
            group.policy.group
        )));
    }
    let hash = manifest.write(&group.store, &group.signer).await?;
    let history = History::open(group)?;
    let suspicious = anomaly::suspicious(group, &history, ledger.state(), &manifest, basis.newest()).await;
    for words in &suspicious {
        tracing::warn!(group = %group.policy.group, point = %manifest.point, "suspicious: {words}");
    }
    let committed = committed(&manifest, hash, suspicious);
    options.observer.stage("committing");
    let answer = ledger
        .append(&group.signer, |state| {
            state.refuse_damage()?;
            Ok(Statement::PointCommitted(committed.clone()))
        })
        .await;
    let (_, written) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            memory.discard();
            // A run whose pin was released, or whose epoch has ended, never goes on.
            if matches!(error, StoreError::Refused(Refusal::PinReleased { .. } | Refusal::Fenced { .. })) {
                run_state.end();
            }
            return Err(error.into());
        }
    };
    if let Err(error) = memory.commit() {
        tracing::warn!(group = %group.policy.group, "the local block maps were not kept ({error}): the next run sends more");
    }
    for gone in &manifest.absent {
        for id in [gone.clone(), directory_id(gone)] {
            let _ = LocalMap::remove(&group.maps(), &id);
            shipped.remove(&id);
        }
    }
    if let Err(error) = history.add(&manifest, &committed.suspicious) {
        tracing::warn!(group = %group.policy.group, "what was seen of its items is not in the record: {error}");
    }
    let report = report(
        &manifest,
        &committed.suspicious,
        group.store.latest(written),
        &writer.stats,
        run_state.resumed,
        begun.elapsed(),
    );
    run_state.end();
    if let Err(why) = hooks::run(&group.policy.hooks.after_commit).await {
        tracing::warn!(group = %group.policy.group, "after-commit: {why}");
    }
    Ok(report)
}

/// The epoch to work in; a group that does not exist yet is founded.
async fn admitted(group: &Group, ledger: &mut Ledger) -> Result<Epoch, ReplicateError> {
    ledger.state().refuse_damage()?;
    let (name, site) = (group.policy.group.clone(), group.config.site.clone());
    if ledger.state().epochs.is_empty() {
        let founded = |state: &farsite_store::ledger::GroupState| {
            if state.epochs.is_empty() {
                Ok(Statement::GroupFounded { group: name.clone(), primary: site.clone() })
            } else {
                Err(Refusal::Other(format!("group {name} was founded by somebody else just now; run again")))
            }
        };
        ledger.append(&group.signer, founded).await?;
    }
    let Some(current) = ledger.state().current() else {
        return Err(Refusal::Other(format!("group {name} could not be founded")).into());
    };
    if current.primary != site {
        // What this agent worked in is over; the epoch before the current one was its last.
        return Err(Refusal::Fenced {
            group: name,
            mine: Epoch(current.epoch.0.saturating_sub(1)),
            current: current.epoch,
            primary: current.primary.clone(),
            begun: current.begun,
        }
        .into());
    }
    Ok(current.epoch)
}

fn fresh_folder(path: &std::path::Path) -> Result<(), ReplicateError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ReplicateError::Io { what: format!("emptying {}", path.display()), source: error });
        }
        _ => {}
    }
    std::fs::create_dir_all(path).map_err(ReplicateError::io(format!("creating {}", path.display())))
}

fn stopped(options: &RunOptions) -> Result<(), ReplicateError> {
    if options.cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled.into()) } else { Ok(()) }
}

/// Databases first, so that their position is older than every image and volume; then all else.
async fn all_items(
    intake: &mut Intake<'_>,
    logs: &mut Logs,
    epoch: Epoch,
    clock: &RunClock,
    context: &CaptureContext,
    options: &RunOptions,
) -> Result<EntryOutcome, ReplicateError> {
    let group = intake.group;
    let hooks = &group.policy.hooks;
    frozen::freeze(group, frozen::GROUP, &hooks.before_capture, &hooks.after_capture).await.map_err(
        |why| ReplicateError::Setup(format!("group {}: nothing was captured: {why}", group.policy.group)),
    )?;
    let mut outcome = EntryOutcome::default();
    let mut begun = Vec::new();
    let mut captured: Result<(), ReplicateError> = Ok(());
    let (databases, others): (Vec<&Item>, Vec<&Item>) =
        group.policy.items.iter().partition(|item| item.kind().is_database());
    for item in databases.into_iter().chain(others) {
        captured = async {
            stopped(options)?;
            options.observer.stage(&format!("capturing {}", item.id()));
            if item.ships_log() {
                match databases::begin(intake, logs, item, epoch, clock, context).await? {
                    Ok(one) => begun.push(one),
                    Err(why) => outcome.failed.push((item.id(), why)),
                }
            } else {
                let one = intake.entry(item, context).await?;
                outcome.taken.extend(one.taken);
                outcome.failed.extend(one.failed);
                outcome.absent.extend(one.absent);
            }
            Ok(())
        }
        .await;
        if captured.is_err() {
            break;
        }
    }
    frozen::thaw(group, frozen::GROUP, &hooks.after_capture).await;
    captured?;
    options.observer.stage("shipping the databases' logs");
    for one in begun {
        match databases::finish(logs, one, clock, context).await {
            Ok(taken) => outcome.taken.push(taken),
            Err(failed) => outcome.failed.push(failed),
        }
    }
    Ok(outcome)
}

#[allow(clippy::too_many_arguments, reason = "everything that a manifest says comes together here")]
fn manifest(
    group: &Group,
    run: farsite_model::RunId,
    epoch: Epoch,
    started: CaptureTime,
    skews: Vec<farsite_model::rpo::ClockSkew>,
    store_now: farsite_model::StoreTime,
    basis: &Basis,
    captured: EntryOutcome,
    stats: &RunStats,
) -> Manifest {
    let parent = basis.newest();
    let mut items: Vec<ManifestItem> = captured
        .taken
        .into_iter()
        .map(|Taken { id, kind, captured, consistency, data, directory, ancestor, details, log, signals }| {
            ManifestItem {
                id,
                kind,
                stamp: CaptureStamp::at_commit(captured, &skews, store_now),
                consistency,
                data,
                directory,
                ancestor,
                details,
                carried_from: None,
                log,
                signals,
            }
        })
        .collect();
    let mut failed = Vec::new();
    for (id, why) in captured.failed {
        tracing::error!(group = %group.policy.group, item = %id, "not captured: {why}");
        // The version of the newest point stands in, with its own capture time.
        if let Some(old) = parent.and_then(|p| Some((p.point, p.item(&id)?))) {
            let (point, old) = old;
            let carried_from = Some(old.carried_from.unwrap_or(point));
            items.push(ManifestItem { carried_from, ..old.clone() });
        }
        failed.push(FailedItem { id, why });
    }
    items.sort_by(|a, b| a.id.cmp(&b.id));
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    Manifest {
        version: MANIFEST_VERSION,
        point: PointId::from_random(u64::from_le_bytes(Hex::<8>::random().0)),
        group: group.policy.group.clone(),
        site: group.config.site.clone(),
        epoch,
        run,
        parent: parent.map(|p| p.point),
        started,
        skews,
        items,
        absent: captured.absent,
        failed,
        read_bytes: load(&stats.read_bytes),
        changed_bytes: load(&stats.changed_bytes),
        shipped_bytes: load(&stats.shipped_bytes),
    }
}

fn committed(manifest: &Manifest, hash: Hex<32>, suspicious: Vec<String>) -> Committed {
    Committed {
        point: manifest.point,
        epoch: manifest.epoch,
        run: manifest.run,
        manifest: hash,
        by_kind: manifest.by_kind(),
        whole: manifest.is_whole(),
        items: manifest.items.len() as u64,
        weakest: manifest.weakest(),
        changed_bytes: manifest.changed_bytes,
        shipped_bytes: manifest.shipped_bytes,
        suspicious,
        timelines: manifest.items.iter().filter_map(|i| Some(i.log.as_ref()?.timeline)).collect(),
    }
}

fn report(
    manifest: &Manifest,
    suspicious: &[String],
    written: farsite_model::StoreTime,
    stats: &RunStats,
    resumed: bool,
    took: Duration,
) -> RunReport {
    let oldest = manifest.items.iter().map(|i| i.stamp.exposure(written)).max().unwrap_or_default();
    RunReport {
        point: manifest.point,
        whole: manifest.is_whole(),
        items: manifest.items.len(),
        weakest: manifest.weakest(),
        failed: manifest.failed.clone(),
        absent: manifest.absent.clone(),
        suspicious: suspicious.to_vec(),
        exposure_at_commit_s: oldest.as_secs_f64(),
        read_bytes: manifest.read_bytes,
        changed_bytes: manifest.changed_bytes,
        shipped_bytes: manifest.shipped_bytes,
        packs: stats.packs.load(Ordering::Relaxed),
        resumed,
        seconds: took.as_secs_f64(),
    }
}

/// What a run would look at, without freezing or writing anything.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    pub entry: ItemId,
    /// The items that exist now, or why they cannot be listed.
    pub items: Result<Vec<ItemId>, String>,
    pub ships_log: bool,
}

/// Lists what a run would capture.
pub async fn dry_run(group: &Group) -> Vec<Planned> {
    let mut planned = Vec::new();
    for item in &group.policy.items {
        let items = match farsite_sources::source(item) {
            Ok(source) => match tokio::time::timeout(Duration::from_mins(1), source.items()).await {
                Ok(items) => items.map_err(|error| error.to_string()),
                Err(_) => Err("could not be listed within 60s".to_owned()),
            },
            Err(error) => Err(error.to_string()),
        };
        planned.push(Planned { entry: item.id(), items, ships_log: item.ships_log() });
    }
    planned
}
