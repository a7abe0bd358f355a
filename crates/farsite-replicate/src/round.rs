//! One round: a policy's items are frozen and captured once, and every standby that takes part makes its own point of them.
//!
//! What must hold: the members go through the captures side by side, and whoever holds the others up for longer than the
//! round's patience is cut off; a store that fails ends its own member and no other; a member commits only when the round says
//! so; a group that one store knows to be promoted elsewhere is committed to none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farsite_model::policy::{Item, Policy};
use farsite_model::{ItemId, SiteName};
use farsite_sources::{Capture, CaptureContext, Needed, Source};
use farsite_store::ingest::Press;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::databases;
use crate::group::{Group, Home};
use crate::hosts::Hosts;
use crate::lent::{Lent, Terms};
use crate::member::{Begin, Order, Step};
use crate::patience::Patience;
use crate::run::{RunOptions, RunReport, SOURCE_LIMIT};
use crate::run_clock::RunClock;
use crate::seat::{End, LeftBy, Seat, seated};
use crate::{ReplicateError, frozen, hooks, kept};

/// The longest that a database's commits wait for the storage.
const HOLD_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether all members were told to stop.
const LOOK: Duration = Duration::from_millis(200);

/// One standby that takes part.
pub struct Member {
    pub group: Arc<Group>,
    pub options: RunOptions,
}

/// How a member's run ended.
pub struct Ended {
    pub to: SiteName,
    pub result: Result<RunReport, ReplicateError>,
    /// It held the others up, and the round went on without it.
    pub was_cut: bool,
}

/// Makes one round of these standbys of one policy; `ended` hears of each as it ends. It is over when all have ended, but for
/// those that the others have waited for long enough: they go on by themselves, to an end of which `ended` hears.
pub async fn round(members: Vec<Member>, ended: mpsc::UnboundedSender<Ended>) {
    let Some(first) = members.first() else { return };
    let policy = first.group.policy.clone();
    let memory = policy.memory.0;
    let window_bytes = (memory / 16).clamp(4 << 20, 16 << 20);
    let pressed_bytes = (memory / 8).clamp(8 << 20, 32 << 20);
    let share = match members.len() as u64 {
        0 | 1 => memory,
        many => memory.saturating_sub(window_bytes + pressed_bytes) / many,
    };
    let clock = RunClock::begin(&*first.group.clock);
    let hosts = Arc::new(Hosts::of(&first.group.config, &policy, &first.group.cloud));
    let press = Press::new(pressed_bytes as usize);
    let (ends, end) = mpsc::unbounded_channel();
    let mut round = Round {
        seats: Vec::new(),
        patience: Arc::new(Patience::of(&policy)),
        policy: Arc::new(policy),
        hosts: hosts.clone(),
        window_bytes,
        clock,
        end,
        has_committed: false,
    };
    let mut ready = Vec::new();
    for (number, Member { group, options }) in members.into_iter().enumerate() {
        let (orders, queue) = mpsc::channel(1);
        let (is_ready, wait) = oneshot::channel();
        ready.push((number, wait));
        let begin = Begin {
            group: group.clone(),
            options: options.clone(),
            number,
            memory_bytes: share,
            clock,
            press: press.clone(),
            hosts: hosts.clone(),
            ready: is_ready,
            orders: queue,
        };
        let left_by: Arc<Mutex<Option<LeftBy>>> = Arc::default();
        tokio::spawn(seated(begin, number, left_by.clone(), ends.clone(), ended.clone()));
        round.seats.push(Seat { group, options, orders: Some(orders), left_by, has_ended: false });
    }
    drop((ends, ended, press, hosts));
    round.all(ready).await;
    round.heed_fences();
    round.captures().await;
    round.committed().await;
}

struct Round {
    policy: Arc<Policy>,
    seats: Vec<Seat>,
    patience: Arc<Patience>,
    hosts: Arc<Hosts>,
    window_bytes: u64,
    clock: RunClock,
    end: mpsc::UnboundedReceiver<End>,
    has_committed: bool,
}

impl Round {
    fn taking_part(&self) -> impl Iterator<Item = (usize, &Seat)> {
        self.seats.iter().enumerate().filter(|(_, seat)| seat.orders.is_some())
    }
    fn leader(&self) -> Option<Arc<Group>> {
        self.taking_part().next().map(|(_, seat)| seat.group.clone())
    }
    fn stage(&self, words: &str) {
        self.taking_part().for_each(|(_, seat)| seat.options.observer.stage(words));
    }
    fn terms(&self, group: &Group) -> Terms {
        Terms {
            members: self.seats.iter().map(|seat| seat.orders.is_some()).collect(),
            window_bytes: self.window_bytes,
            patience: self.patience.clone(),
            home: group.home(),
        }
    }

    /// Waits for all of these. From the first one on, those who are done wait no longer than there is patience: who is not
    /// done by then is cut off.
    async fn all<T: Send + 'static>(
        &mut self,
        waits: Vec<(usize, oneshot::Receiver<T>)>,
    ) -> BTreeMap<usize, T> {
        let mut open: BTreeSet<usize> = waits.iter().map(|(number, _)| *number).collect();
        let mut set = JoinSet::new();
        for (number, wait) in waits {
            set.spawn(async move { (number, wait.await.ok()) });
        }
        let mut done = BTreeMap::new();
        let patience = self.patience.clone();
        loop {
            let next = if done.is_empty() {
                set.join_next().await
            } else {
                let _waits = patience.waits();
                match tokio::time::timeout(patience.left(), set.join_next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                }
            };
            let Some(next) = next else { break };
            let Ok((number, said)) = next else { continue };
            open.remove(&number);
            match said {
                Some(said) => {
                    done.insert(number, said);
                }
                None => self.until_ended(number).await,
            }
        }
        for number in open {
            let seat = &mut self.seats[number];
            if seat.orders.is_some() {
                tracing::warn!(
                    group = %self.policy.group, to = %seat.group.to,
                    "its store holds the others up: the round goes on without it"
                );
                seat.leave(LeftBy::Cut);
            }
        }
        done.retain(|number, _| self.seats[*number].orders.is_some());
        done
    }

    /// The step of all who take part; who has done it is told.
    async fn step(&mut self, step: Step) -> BTreeMap<usize, bool> {
        let mut waits = Vec::new();
        for (number, seat) in self.seats.iter().enumerate() {
            let Some(orders) = &seat.orders else { continue };
            let (done, wait) = oneshot::channel();
            // Who has ended drops it, which is found out below.
            let _ = orders.send(Order { step: step.clone(), done }).await;
            waits.push((number, wait));
        }
        self.all(waits).await
    }

    /// A member has ended by itself: what that means for the others.
    async fn until_ended(&mut self, number: usize) {
        self.seats[number].orders = None;
        while !self.seats[number].has_ended {
            let Some(end) = self.end.recv().await else { return };
            self.note(end);
        }
    }

    fn note(&mut self, end: End) {
        let at = self.seats[end.number].group.to.clone();
        self.seats[end.number].has_ended = true;
        self.seats[end.number].orders = None;
        self.has_committed |= end.has_committed;
        if let Some(why) = end.fenced {
            for seat in self.seats.iter_mut().filter(|seat| !seat.has_ended) {
                seat.leave(LeftBy::Fenced { at: at.clone(), why: why.clone() });
            }
        }
    }

    /// A store that said that another site is primary, and cannot be asked again now, still counts.
    fn heed_fences(&mut self) {
        let Some((at, why)) = self.leader().and_then(|leader| leader.home().fenced_at()) else { return };
        for seat in self.seats.iter_mut().filter(|seat| seat.orders.is_some()) {
            seat.leave(LeftBy::Fenced { at: at.clone(), why: why.clone() });
        }
    }

    fn fail(&mut self, why: &str) {
        for seat in self.seats.iter_mut().filter(|seat| seat.orders.is_some()) {
            seat.leave(LeftBy::Failed(why.to_owned()));
        }
    }

    /// All items, and the order to commit.
    async fn captures(&mut self) {
        let Some(leader) = self.leader() else { return };
        if let Err(error) = frozen::thaw_left_over(&leader).await {
            return self.fail(&error.to_string());
        }
        self.hosts.begin().await;
        kept::bound(&self.policy, &leader.home(), &self.hosts, leader.clock.clone(), &leader.record).await;
        let scratch = leader.folder.join("scratch");
        let was_killed = scratch.exists();
        if let Err(error) = fresh_folder(&scratch) {
            return self.fail(&error.to_string());
        }
        let context = CaptureContext {
            clock: Arc::new(self.clock),
            scratch: scratch.clone(),
            timeout: SOURCE_LIMIT,
            frozen: false,
            kept: leader.home().kept(),
            owner: leader.home().owner(),
        };
        if was_killed {
            self.tidy(&leader.home(), &context).await;
        }
        let positions = self.items(&leader, &context).await;
        let _ = std::fs::remove_dir_all(&scratch);
        if let Some(positions) = positions {
            self.step(Step::Commit(Arc::new(positions))).await;
        }
    }

    /// An agent that is killed again and again would heap up what it holds at the source, until one of its runs ends.
    async fn tidy(&self, home: &Home, context: &CaptureContext) {
        let needed: Needed = {
            let home = home.clone();
            Arc::new(move |item: &ItemId, tidy: &dyn Fn(&[String])| match home.hold_versions() {
                Ok(_held) => tidy(&home.needed_versions(item)),
                Err(error) => tracing::warn!(item = %item, "what a killed run left of it stays: {error}"),
            })
        };
        for item in &self.policy.items {
            let Ok(source) = self.hosts.source(item).await else { continue };
            let tidied = tokio::time::timeout(context.timeout, source.tidy(needed.clone(), context)).await;
            let why = match tidied {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "its storage does not answer".to_owned(),
            };
            tracing::warn!(item = %item.id(), "what a killed run left stays until this one ends: {why}");
        }
    }

    /// Databases first, so that their position is older than every image and volume; then all else.
    async fn items(
        &mut self,
        leader: &Group,
        context: &CaptureContext,
    ) -> Option<BTreeMap<ItemId, Result<databases::End, String>>> {
        let policy = self.policy.clone();
        let hooks = &policy.hooks;
        let frozen = frozen::freeze(leader, frozen::GROUP, &hooks.before_capture, &hooks.after_capture).await;
        let frozen = match frozen {
            Ok(frozen) => frozen,
            Err(why) => {
                self.fail(&format!("group {}: nothing was captured: {why}", policy.group));
                return None;
            }
        };
        let (databases, others): (Vec<&Item>, Vec<&Item>) =
            policy.items.iter().partition(|item| item.kind().is_database());
        let (logged, dumped): (Vec<&Item>, Vec<&Item>) =
            databases.into_iter().partition(|item| item.ships_log());
        for item in &logged {
            self.stage(&format!("the log of {}", item.id()));
            self.database(&Arc::new((*item).clone()), leader, context).await;
        }
        let mut held = self.instants(&logged, &others, context).await;
        for item in dumped.into_iter().chain(others) {
            if self.leader().is_none() {
                break;
            }
            self.stage(&format!("capturing {}", item.id()));
            let held = held.remove(&item.id());
            self.entry(&Arc::new(item.clone()), held, leader, context).await;
        }
        frozen::thaw(leader, frozen::GROUP, &hooks.after_capture, frozen).await;
        self.leader()?;
        let mut positions = BTreeMap::new();
        for database in policy.items.iter().filter_map(farsite_sources::logged) {
            positions.insert(database.item(), databases::end(&*database, context).await);
        }
        Some(positions)
    }

    /// The position that the points stand for, of every database, and the items of all entries whose storage can hold them at
    /// that very moment. Commits wait meanwhile, so that no row is newer or older than what it tells of.
    async fn instants(
        &mut self,
        logged: &[&Item],
        others: &[&Item],
        context: &CaptureContext,
    ) -> BTreeMap<ItemId, Box<dyn Source>> {
        let mut offered = Vec::new();
        // An entry with hooks of its own is held only while they have frozen it.
        for item in others.iter().filter(|item| item.hooks().before_capture.is_empty()) {
            let Ok(source) = self.hosts.source(item).await else { continue };
            if tokio::time::timeout(context.timeout, source.prepare()).await == Ok(true) {
                offered.push((item.id(), source));
            }
        }
        let logged: Vec<_> = logged
            .iter()
            .filter_map(|item| Some((Arc::new((*item).clone()), farsite_sources::logged(item)?)))
            .collect();
        let mut commits = Vec::new();
        for (item, database) in logged.iter().filter(|_| !offered.is_empty()) {
            match tokio::time::timeout(HOLD_LIMIT, database.hold_commits()).await {
                Ok(Ok(hold)) => commits.push(hold),
                Ok(Err(why)) => {
                    tracing::warn!(item = %item.id(), "its rows and the volumes are not of one moment: {why}");
                }
                Err(_) => tracing::warn!(
                    item = %item.id(),
                    "its rows and the volumes are not of one moment: its commits could not be held in {} s",
                    HOLD_LIMIT.as_secs()
                ),
            }
        }
        let mut told = Vec::new();
        for (item, database) in &logged {
            told.push((item.clone(), databases::position(&**database, context).await));
        }
        let begun = Instant::now();
        let mut held = BTreeMap::new();
        for (id, source) in offered {
            let left =
                if commits.is_empty() { context.timeout } else { HOLD_LIMIT.saturating_sub(begun.elapsed()) };
            // By itself: what it has begun when the time is over is ended there, and commits do not wait for that.
            let context = context.clone();
            let taking = tokio::spawn(async move { source.instant(&context).await });
            let ended = taking.abort_handle();
            let taken = tokio::time::timeout(left, taking).await.map(|joined| match joined {
                Ok(taken) => taken.map_err(|error| error.to_string()),
                Err(stopped) => Err(stopped.to_string()),
            });
            match taken {
                Ok(Ok(Some(instant))) => drop(held.insert(id, instant)),
                Ok(Ok(None)) => {}
                Ok(Err(why)) => tracing::warn!(item = %id, "not all of it is of one moment: {why}"),
                Err(_) => {
                    ended.abort();
                    tracing::warn!(item = %id, "not all of it is of one moment: its storage took too long");
                }
            }
        }
        drop(commits);
        for (item, told) in told {
            self.step(Step::Position(item, told)).await;
        }
        held
    }

    /// A base where one is needed, and running shippers.
    async fn database(&mut self, item: &Arc<Item>, leader: &Group, context: &CaptureContext) {
        let Some(database) = farsite_sources::logged(item) else {
            let why = format!("{} has no log that can be shipped", item.id());
            self.step(Step::Failed(item.id(), why)).await;
            return;
        };
        let need_base = self.step(Step::Log(item.clone())).await;
        if need_base.values().any(|needs| *needs) {
            let (block_bytes, terms) = (self.policy.block_size.0 as u32, self.terms(leader));
            let base = databases::take_base(&*database, block_bytes, &terms, context).await.map(Arc::new);
            self.step(Step::Base(item.clone(), base.clone())).await;
            if let Ok(base) = base {
                base.lent.take_back();
                let stem = farsite_store::local_map::stem(&base.lent.item);
                let _ = std::fs::remove_dir_all(context.scratch.join(stem));
            }
        }
    }

    /// Captures all items of an entry, from what `held` holds where it is held already. A failed item never stops the others.
    async fn entry(
        &mut self,
        item: &Arc<Item>,
        held: Option<Box<dyn Source>>,
        leader: &Group,
        context: &CaptureContext,
    ) {
        let listed = self.listed(item, held, context).await;
        let (source, listed) = match listed {
            Ok((source, ids)) => {
                let from = source.describe();
                (Some(source), Ok((from, ids)))
            }
            Err(why) => (None, Err(why)),
        };
        let ids = listed.as_ref().map(|(_, ids)| ids.clone()).unwrap_or_default();
        self.step(Step::Listed(item.clone(), Arc::new(listed))).await;
        let Some(source) = source.filter(|_| !ids.is_empty()) else { return };

        let hooks = item.hooks();
        let mut context = context.clone();
        context.frozen = !hooks.before_capture.is_empty();
        let name = item.id();
        let frozen = frozen::freeze(leader, name.as_str(), &hooks.before_capture, &hooks.after_capture).await;
        let frozen = match frozen {
            Ok(frozen) => frozen,
            Err(why) => {
                for id in ids {
                    self.step(Step::Failed(id, why.clone())).await;
                }
                return;
            }
        };
        let instant = if context.frozen { instant_of(&*source, &context).await } else { None };
        let source = instant.as_deref().unwrap_or(&*source);
        // What is still by itself is read after the thaw.
        let (mut still, mut missed) = (Vec::new(), Missed::default());
        for id in ids {
            if self.leader().is_none() {
                break;
            }
            match self.capture(source, item, &id, leader, &context).await {
                Ok(capture) if capture.still => still.push(capture),
                Ok(capture) => missed.note(self.lend(item, capture, leader).await),
                Err(why) => drop(missed.uncaptured.insert(id, why)),
            }
        }
        frozen::thaw(leader, name.as_str(), &hooks.after_capture, frozen).await;
        for capture in still {
            missed.note(self.lend(item, capture, leader).await);
        }
        self.settle(item, missed, &context).await;
    }

    /// What could not be captured or read has failed, unless a second listing has it no more: then it was deleted meanwhile, as
    /// if it had been before the first one. A list that cannot be had, or is empty, settles nothing.
    async fn settle(&mut self, item: &Arc<Item>, missed: Missed, context: &CaptureContext) {
        // Who is told to stop makes no point.
        if missed.is_none() || self.taking_part().all(|(_, seat)| seat.options.cancel.load(Ordering::Relaxed))
        {
            return;
        }
        let now = self.listed(item, None, context).await;
        let now = now.map(|(_, ids)| ids).ok().filter(|ids| !ids.is_empty());
        let is_gone = |id: &ItemId| now.as_ref().is_some_and(|now| !now.contains(id));
        for (id, why) in missed.uncaptured {
            let step = if is_gone(&id) { Step::Gone(item.clone(), id) } else { Step::Failed(id, why) };
            self.step(step).await;
        }
        for id in missed.unread {
            if is_gone(&id) {
                self.step(Step::Gone(item.clone(), id)).await;
            }
        }
    }

    /// An entry's source, and its items now.
    async fn listed(
        &self,
        item: &Item,
        held: Option<Box<dyn Source>>,
        context: &CaptureContext,
    ) -> Result<(Box<dyn Source>, BTreeSet<ItemId>), String> {
        if self.hosts.is_elsewhere(item) && !item.hooks().before_capture.is_empty() {
            return Err(format!(
                "its hooks would run on this host, and it is read on {}\n  hint: have hooks of the group do it from here, or make a group of its own of it",
                item.on().unwrap_or_default()
            ));
        }
        let source = match held {
            Some(held) => held,
            None => self.hosts.source(item).await.map_err(|error| error.to_string())?,
        };
        match tokio::time::timeout(context.timeout, source.items()).await {
            Ok(Ok(ids)) => Ok((source, ids.into_iter().collect())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{} could not be listed in time", source.describe())),
        }
    }

    async fn capture(
        &self,
        source: &dyn Source,
        item: &Item,
        id: &ItemId,
        leader: &Group,
        context: &CaptureContext,
    ) -> Result<Capture, String> {
        let home = leader.home();
        // Another run of the group must not take the new version for one that nobody needs.
        let has_versions = matches!(item, Item::Cinder(_) | Item::Volume(_));
        let held = has_versions.then(|| tokio::task::block_in_place(|| home.hold_versions()));
        let _held = held.transpose().map_err(|error| error.to_string())?;
        let capture = source.capture(id, context).await.map_err(|error| error.to_string())?;
        if let Some(least) = item.consistency()
            && capture.consistency < least
        {
            return Err(format!(
                "its capture is {}, and the policy demands {least}: it is not used",
                capture.consistency
            ));
        }
        if let Some(token) = capture.tracking.as_ref().and_then(|tracking| tracking.token()) {
            for (_, seat) in self.taking_part() {
                if let Err(error) = seat.group.note_version(id, token) {
                    tracing::warn!(item = %id, to = %seat.group.to, "its version is not noted: {error}");
                }
            }
        }
        Ok(capture)
    }

    /// All read a capture side by side; then it is let go. Some: not all of them could read it.
    async fn lend(&mut self, item: &Arc<Item>, capture: Capture, leader: &Group) -> Option<ItemId> {
        let block_bytes = match &**item {
            Item::Volume(volume) => volume.block_size.unwrap_or(self.policy.block_size),
            _ => self.policy.block_size,
        };
        let lent = Lent::new(capture, block_bytes.0 as u32, self.terms(leader));
        let unheard = self.taken_back_when_cancelled(lent.clone());
        let took = self.step(Step::Take(item.clone(), lent.clone())).await;
        unheard.abort();
        tokio::task::block_in_place(|| {
            lent.take_back();
            let who = took.iter().filter(|(_, took)| **took).map(|(number, _)| *number);
            let groups: Vec<_> = who.map(|number| self.seats[number].group.clone()).collect();
            if let Some(version) = lent.version.as_ref().filter(|_| !groups.is_empty()) {
                version.keep(&groups);
            }
        });
        took.values().any(|took| !took).then(|| lent.item.clone())
    }

    /// Who is told to stop while all of them wait for bytes that do not come would hear it only with the next ones.
    fn taken_back_when_cancelled(&self, lent: Arc<Lent>) -> AbortHandle {
        let cancels: Vec<_> = self.taking_part().map(|(_, seat)| seat.options.cancel.clone()).collect();
        let hosts = self.hosts.clone();
        let watch = async move {
            while !cancels.iter().all(|cancel| cancel.load(Ordering::Relaxed)) {
                tokio::time::sleep(LOOK).await;
            }
            hosts.stop();
            tokio::task::block_in_place(|| lent.take_back());
        };
        tokio::spawn(watch).abort_handle()
    }

    /// Each makes its own point; when the last one exists, the policy's hooks hear of it.
    async fn committed(&mut self) {
        // Without orders there is nothing more to come; who was told to commit has ended its part.
        let patience = self.patience.clone();
        loop {
            if !self.seats.iter().any(Seat::is_awaited) {
                break;
            }
            let end = if self.has_committed {
                let _waits = patience.waits();
                match tokio::time::timeout(patience.left(), self.end.recv()).await {
                    Ok(end) => end,
                    Err(_) => break,
                }
            } else {
                self.end.recv().await
            };
            let Some(end) = end else { break };
            self.note(end);
        }
        if self.has_committed
            && let Err(why) = hooks::run(&self.policy.hooks.after_commit).await
        {
            tracing::warn!(group = %self.policy.group, "after-commit: {why}");
        }
    }
}

/// Items of an entry that were listed, and are not in everybody's point.
#[derive(Default)]
struct Missed {
    /// And why.
    uncaptured: BTreeMap<ItemId, String>,
    /// Who could not read it has noted why.
    unread: Vec<ItemId>,
}

impl Missed {
    fn note(&mut self, unread: Option<ItemId>) {
        self.unread.extend(unread);
    }
    fn is_none(&self) -> bool {
        self.uncaptured.is_empty() && self.unread.is_empty()
    }
}

/// All items of an entry whose hooks have frozen it, at one instant.
async fn instant_of(source: &dyn Source, context: &CaptureContext) -> Option<Box<dyn Source>> {
    if tokio::time::timeout(context.timeout, source.prepare()).await != Ok(true) {
        return None;
    }
    let taken = tokio::time::timeout(context.timeout, source.instant(context)).await;
    let why = match taken {
        Ok(Ok(instant)) => return instant,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its storage took too long".to_owned(),
    };
    tracing::warn!("{}: not all of it is of one moment: {why}", source.describe());
    None
}

fn fresh_folder(path: &Path) -> Result<(), ReplicateError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ReplicateError::Io { what: format!("emptying {}", path.display()), source: error });
        }
        _ => {}
    }
    std::fs::create_dir_all(path).map_err(ReplicateError::io(format!("creating {}", path.display())))
}
