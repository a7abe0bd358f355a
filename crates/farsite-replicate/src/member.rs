//! One standby's part in a round: from its own ledger to its own recovery point, out of captures that it shares.
//!
//! The order is the promise: the clock is compared with the store's, the basis is pinned; then the round's captures are read
//! as they come; when every block and every log byte is durable, the manifest is written, and last of all the ledger entry
//! that makes it a recovery point. A member whose round ends without the order to commit has made none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use farsite_model::clock::Clock;
use farsite_model::policy::Item;
use farsite_model::{CaptureTime, Epoch, ItemId};
use farsite_sources::{CaptureContext, LogPosition};
use farsite_store::StoreError;
use farsite_store::ingest::{IngestOptions, Press, RunWriter};
use farsite_store::ledger::{Ledger, Refusal, Statement};
use farsite_store::local_map::LocalMap;
use farsite_store::seal::Sealer;
use farsite_store::shipped::Shipped;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::ReplicateError;
use crate::anomaly::{self, History};
use crate::basis::Basis;
use crate::capture::{EntryOutcome, Intake, Listed, Memory, directory_id};
use crate::databases::{self, Begun, Logs, TakenBase};
use crate::group::Group;
use crate::hosts::Hosts;
use crate::lent::Lent;
use crate::point;
use crate::record::RunRow;
use crate::run::{RunOptions, RunReport, SOURCE_LIMIT};
use crate::run_clock::RunClock;
use crate::run_state::RunState;

/// Why an item has failed that its source lists no more, and that was not deleted.
const LOST: &str = "its data is not where it was, and its service's own row says that it is there\n  hint: look for it in the \
                    store; `farsite restore` gives back what the point before holds; once it is deleted in its service it is \
                    left out";

/// What the round has for all its members.
#[derive(Clone)]
pub(crate) enum Step {
    Listed(Arc<Item>, Arc<Listed>),
    /// It exists, and could not be captured.
    Failed(ItemId, String),
    /// It was listed, and was deleted before it was read.
    Gone(Arc<Item>, ItemId),
    Take(Arc<Item>, Arc<Lent>),
    /// See to it that a database's log is shipped.
    Log(Arc<Item>),
    /// For those who said that they need one.
    Base(Arc<Item>, Result<Arc<TakenBase>, String>),
    /// What points of a database stand for.
    Position(Arc<Item>, Result<(CaptureTime, LogPosition), String>),
    /// The positions after the captures: all is there, make a point of it.
    Commit(Arc<BTreeMap<ItemId, Result<databases::End, String>>>),
}

/// A step, and where its end is waited for: whether a new base is needed to go on.
pub(crate) struct Order {
    pub(crate) step: Step,
    pub(crate) done: oneshot::Sender<bool>,
}

/// What a member is given when its round begins.
pub(crate) struct Begin {
    pub(crate) group: Arc<Group>,
    pub(crate) options: RunOptions,
    pub(crate) number: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) clock: RunClock,
    pub(crate) press: Arc<Press>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) ready: oneshot::Sender<()>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// Makes one recovery point of the group at this standby. Whatever happens, the run is noted in this host's record.
pub(crate) async fn run(begin: Begin) -> Result<RunReport, ReplicateError> {
    let group = begin.group.clone();
    let started = Timestamp::now();
    let mut run_id = String::new();
    let result = attempt(begin, &mut run_id).await;
    let empty = RunRow {
        group: group.policy.group.to_string(),
        to: group.to.to_string(),
        run: run_id,
        started,
        ended: Timestamp::now(),
        point: String::new(),
        whole: false,
        exposure_at_commit_s: 0.0,
        read_bytes: 0,
        changed_bytes: 0,
        shipped_bytes: 0,
        error: String::new(),
    };
    let row = match &result {
        Ok(report) => RunRow {
            point: report.point.to_string(),
            whole: report.whole,
            exposure_at_commit_s: report.exposure_at_commit_s,
            read_bytes: report.read_bytes,
            changed_bytes: report.changed_bytes,
            shipped_bytes: report.shipped_bytes,
            ..empty
        },
        Err(error) => RunRow { error: error.to_string(), ..empty },
    };
    if let Err(error) = group.record.add(&row) {
        tracing::warn!(group = %group.policy.group, "the run is not in the record: {error}");
    }
    result
}

async fn attempt(begin: Begin, run_id: &mut String) -> Result<RunReport, ReplicateError> {
    let Begin { group, options, number, memory_bytes, clock, press, hosts, ready, mut orders } = begin;
    let group = &*group;
    let begun = Instant::now();
    let mut logs = group.logs.lock().await;
    group.forget_noted_versions();
    let mut ledger = Ledger::open(&group.store, &group.policy.group).await?;
    let epoch = match admitted(group, &mut ledger).await {
        Err(error) if error.is_fenced() => {
            group.note_fenced(&error.to_string());
            return Err(error);
        }
        other => other?,
    };
    group.forget_fenced();
    let run_state = RunState::begin(group, ledger.state())?;
    let run = run_state.run;
    *run_id = run.to_string();

    let mut skews = vec![clock.compare(&group.store).await?.skew()];
    let started = clock.capture_time();
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
    LocalMap::sweep(&group.maps()).map_err(ReplicateError::io("sweeping old block maps"))?;

    let sealer =
        Sealer::begin(&group.store, &group.signer, &group.config.site, &group.policy.group, run).await?;
    let writer = RunWriter::begin(
        &group.store,
        sealer,
        group.secret.clone(),
        IngestOptions::within(memory_bytes, group.policy.compression.range()),
        &run_state.resume_log,
        options.cancel.clone(),
    )?
    .beside(&press);
    options.observer.counters(writer.stats.clone());
    let shipped = Shipped::open(&group.shipped(), group.policy.cache.0)
        .map_err(ReplicateError::io(format!("opening {}", group.shipped().display())))?;
    let intake = Intake {
        group,
        run,
        writer,
        shipped: &shipped,
        basis,
        memory: Memory::default(),
        full: options.full,
        number,
    };
    let context = CaptureContext {
        clock: Arc::new(clock),
        scratch: group.folder.join("scratch"),
        timeout: SOURCE_LIMIT,
        frozen: false,
        kept: group.home().kept(),
        owner: group.home().owner(),
    };
    let mut part = Part { intake, logs: &mut logs, epoch, context, hosts, begun: BTreeMap::new() };
    let _ = ready.send(());

    let mut outcome = EntryOutcome::default();
    let positions = loop {
        let Some(Order { step, done }) = orders.recv().await else {
            part.intake.memory.discard(group);
            return Err(StoreError::Cancelled.into());
        };
        if let Err(error) = stopped(&options) {
            part.intake.memory.discard(group);
            return Err(error);
        }
        match step {
            Step::Commit(positions) => {
                let _ = done.send(false);
                break positions;
            }
            step => match part.take(step, &mut outcome).await {
                Ok(needs_base) => {
                    let _ = done.send(needs_base);
                }
                Err(error) => {
                    part.intake.memory.discard(group);
                    return Err(error);
                }
            },
        }
    };
    if !part.begun.is_empty() {
        options.observer.stage("shipping the databases' logs");
    }
    for (id, begun) in std::mem::take(&mut part.begun) {
        let p2 = positions.get(&id).cloned().unwrap_or_else(|| Err("its position was not asked".into()));
        match databases::finish(part.logs, id, begun, p2).await {
            Ok(taken) => outcome.taken.push(taken),
            Err(failed) => outcome.failed.push(failed),
        }
    }
    options.observer.stage("making it durable");
    let Intake { mut writer, memory, basis, .. } = part.intake;
    let durable = async {
        writer.flush().await?;
        stopped(&options)?;
        skews.push(clock.compare(&group.store).await?.skew());
        // The latest moment that the told time can stand for: a clock that is right is not called ahead.
        Ok::<_, ReplicateError>(group.store.latest(group.store.backend.time().await?))
    };
    let store_now = match durable.await {
        Ok(store_now) => store_now,
        Err(error) => {
            memory.discard(group);
            return Err(error);
        }
    };

    let manifest =
        point::manifest(group, run, epoch, started, skews, store_now, &basis, outcome, &writer.stats);
    if manifest.items.is_empty() {
        let why =
            manifest.failed.iter().map(|f| format!("{}: {}", f.id, f.why)).collect::<Vec<_>>().join("\n  ");
        memory.discard(group);
        return Err(ReplicateError::Setup(format!(
            "group {}: no item could be captured, so there is no point\n  {why}",
            group.policy.group
        )));
    }
    let history = History::open(group)?;
    let committed = async {
        let hash = manifest.write(&group.store, &group.signer).await?;
        let suspicious =
            anomaly::suspicious(group, &history, ledger.state(), &manifest, basis.before()).await;
        for words in &suspicious {
            tracing::warn!(group = %group.policy.group, point = %manifest.point, "suspicious: {words}");
        }
        let committed = point::committed(&manifest, hash, suspicious);
        // The last moment at which it can be known that the group is another site's.
        if options.cancel.load(Ordering::Relaxed) {
            return Err(StoreError::Cancelled);
        }
        options.observer.stage("committing");
        let answer = ledger.append(&group.signer, |state| {
            state.refuse_damage()?;
            Ok(Statement::PointCommitted(committed.clone()))
        });
        let (_, written) = answer.await?;
        Ok::<_, StoreError>((committed, written))
    };
    let (committed, written) = match committed.await {
        Ok(committed) => committed,
        Err(error) => {
            memory.discard(group);
            if matches!(error, StoreError::Refused(Refusal::Fenced { .. })) {
                group.note_fenced(&error.to_string());
            }
            // A run whose pin was released, or whose epoch has ended, never goes on.
            if matches!(error, StoreError::Refused(Refusal::PinReleased { .. } | Refusal::Fenced { .. })) {
                run_state.end();
            }
            return Err(error.into());
        }
    };
    if let Err(error) = tokio::task::block_in_place(|| memory.commit(group)) {
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
    let report = point::report(
        &manifest,
        &committed.suspicious,
        group.store.latest(written),
        &writer.stats,
        run_state.resumed,
        begun.elapsed(),
    );
    run_state.end();
    Ok(report)
}

/// What a member works with between its preparation and its commit.
struct Part<'g> {
    intake: Intake<'g>,
    logs: &'g mut Logs,
    epoch: Epoch,
    context: CaptureContext,
    hosts: Arc<Hosts>,
    begun: BTreeMap<ItemId, Begun>,
}

impl Part<'_> {
    /// What is gone was deleted, and its source keeps nothing of it any more, or it was lost: then it has failed, and what the
    /// point before has of it goes on standing for it.
    async fn told_from_lost(&self, item: &Item, gone: Vec<ItemId>, outcome: &mut EntryOutcome) {
        if gone.is_empty() {
            return;
        }
        let source = self.hosts.source(item).await;
        let lost = match &source {
            Ok(source) => source.lost(&gone).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (lost, why) = match lost {
            Ok(lost) => (lost, LOST.to_owned()),
            Err(error) => (gone.clone(), format!("whether it was deleted cannot be told: {error}")),
        };
        outcome.absent.retain(|id| !lost.contains(id));
        for id in gone {
            if lost.contains(&id) {
                outcome.failed.push((id, why.clone()));
            } else if let Ok(source) = &source {
                source.forget(&id, &self.context).await;
            }
        }
    }

    /// One step of the round. True: the item was taken, or of a log: it needs a new base to go on. Only a failing store is an
    /// error.
    async fn take(&mut self, step: Step, outcome: &mut EntryOutcome) -> Result<bool, ReplicateError> {
        match step {
            Step::Listed(item, listed) => {
                let gone = self.intake.listed(&item, &listed, outcome);
                self.told_from_lost(&item, gone, outcome).await;
            }
            Step::Gone(item, id) => {
                let gone = self.intake.gone(&item, &id, outcome);
                self.told_from_lost(&item, gone.into_iter().collect(), outcome).await;
            }
            Step::Failed(id, why) => outcome.failed.push((id, why)),
            Step::Take(item, lent) => return self.intake.take_or_fail(&item, &lent, outcome),
            Step::Log(item) => {
                let Some(database) = farsite_sources::logged(&item) else { return Ok(false) };
                let (epoch, context) = (self.epoch, &self.context);
                return Ok(!databases::ships(&self.intake, self.logs, &database, epoch, context).await?);
            }
            Step::Base(item, base) => {
                let Some(database) = farsite_sources::logged(&item) else { return Ok(false) };
                if self.logs.is_shipping(&database.item()) {
                    return Ok(false);
                }
                let made = match base {
                    Ok(base) => {
                        let (intake, epoch) = (&mut self.intake, self.epoch);
                        databases::stand_on(intake, self.logs, &database, &base, epoch).await?
                    }
                    Err(why) => Err(why),
                };
                if let Err(why) = made {
                    outcome.failed.push((database.item(), why));
                }
            }
            Step::Position(item, told) => {
                let Some(database) = farsite_sources::logged(&item) else { return Ok(false) };
                let id = database.item();
                match told {
                    // Without a shipper it has failed already.
                    _ if !self.logs.is_shipping(&id) => {}
                    Ok((captured, p1)) => {
                        self.begun.insert(id, Begun { entry: item.id(), captured, p1 });
                    }
                    Err(why) => outcome.failed.push((id, why)),
                }
            }
            Step::Commit(_) => {}
        }
        Ok(false)
    }
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

fn stopped(options: &RunOptions) -> Result<(), ReplicateError> {
    if options.cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled.into()) } else { Ok(()) }
}
