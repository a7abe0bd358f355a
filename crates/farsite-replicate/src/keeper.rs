//! Keeps one policy's group replicated to its standbys: rounds of those that are open and idle, when they are due. What was
//! missed while the agent was away is caught up once; logs ship between runs.
//!
//! What must hold: a standby that cannot be opened, fails or lags holds no other up; one that lags runs alone until a run of
//! its own has ended within the schedule; when one store knows that the group was promoted elsewhere, it is left alone at all
//! of them until that store gives it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::clock::Clock;
use farsite_model::config::Config;
use farsite_model::policy::{DiskFormat, Item, Policy};
use farsite_openstack::SiteCloud;
use farsite_store::StoreError;
use farsite_store::ingest::RunStats;
use farsite_store::ledger::Ledger;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::Board;
use crate::group::{Group, Home};
use crate::hosts::{self, Hosts};
use crate::patience::Patience;
use crate::record::Record;
use crate::round::{self, Ended, Member};
use crate::run::{Observer, RunOptions};
use crate::{ReplicateError, kept};

/// How long a run under way may take to end by itself when the agent is asked to stop; then it stops between two
/// batches, and its complete packs count when it is resumed.
const DRAIN: Duration = Duration::from_secs(10);
/// A wall clock that jumps must not make the agent sleep through a due run: it looks again this often.
const LOOK: Duration = Duration::from_millis(500);
/// How often an agent looks whether a group that was promoted elsewhere was given back.
const FENCED_LOOK: Duration = Duration::from_secs(5);
/// A group whose store or lock is not there is tried again after this long, doubled up to the limit.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LIMIT: Duration = Duration::from_mins(1);

pub(crate) async fn keep(
    config: Arc<Config>,
    policy: Policy,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    board: Arc<Board>,
) {
    for missing in policy.not_yet() {
        tracing::warn!(group = %policy.group, "{missing}");
    }
    if let Some(why) = hosts::not_ours(&policy) {
        tracing::info!(group = %policy.group, "nothing to replicate here: {why}");
        for to in &policy.to {
            board.says(&policy, to, why.clone());
        }
        return stop.cancelled().await;
    }
    let (opened, mut openings) = mpsc::unbounded_channel();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let policy = Arc::new(policy);
    for to in &policy.to {
        let opening = Opening {
            config: config.clone(),
            policy: policy.clone(),
            to: to.clone(),
            clock: clock.clone(),
            board: board.clone(),
        };
        let (opened, stop) = (opened.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = opening.open(opened) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    drop(opened);
    let mut keeper = Keeper {
        unopened: policy.to.iter().cloned().collect(),
        patience: Patience::of(&policy).total(),
        began: tokio::time::Instant::now(),
        standbys: BTreeMap::new(),
        fenced: BTreeMap::new(),
        rounds: JoinSet::new(),
        common: None,
        config,
        policy,
        clock,
        stop,
        board,
        ended,
    };
    let mut fenced_look = tokio::time::interval(FENCED_LOOK);
    fenced_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !keeper.stop.is_cancelled() {
        keeper.begin_what_is_due();
        let (pause, is_fenced, stop) = (keeper.pause(), !keeper.fenced.is_empty(), keeper.stop.clone());
        tokio::select! {
            // A run's end is heard of before that of its round.
            biased;
            () = stop.cancelled() => {}
            Some(opened) = openings.recv() => keeper.opened(opened),
            Some(ended) = ends.recv() => keeper.run_ended(ended).await,
            Some(over) = keeper.rounds.join_next_with_id() => {
                let id = match over {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                keeper.common.take_if(|common| common.id == id);
            }
            _ = fenced_look.tick(), if is_fenced => keeper.look_for_primary().await,
            () = tokio::time::sleep(pause) => {}
        }
    }
    keeper.drain(&mut ends).await;
}

/// A standby on its way to be opened.
struct Opening {
    config: Arc<Config>,
    policy: Arc<Policy>,
    to: SiteName,
    clock: Arc<dyn Clock>,
    board: Arc<Board>,
}

enum Opened {
    Open(Box<Group>),
    /// The first try failed; others follow.
    NotYet(SiteName),
}

impl Opening {
    /// Opens the group at its standby, trying again for as long as it takes.
    async fn open(self, opened: mpsc::UnboundedSender<Opened>) {
        let mut pause = RETRY_FIRST;
        loop {
            match Group::open(&self.config, &self.policy, &self.to, self.clock.clone()).await {
                Ok(group) => {
                    let _ = opened.send(Opened::Open(Box::new(group)));
                    return;
                }
                Err(error) => {
                    tracing::error!(group = %self.policy.group, to = %self.to, "not replicating: {error}");
                    self.board.change(&self.policy, &self.to, |doing| {
                        doing.words = "cannot begin; trying again".into();
                        doing.since = Some(Timestamp::now());
                        doing.last_error = error.to_string();
                    });
                    let _ = opened.send(Opened::NotYet(self.to.clone()));
                    if !matches!(error, ReplicateError::Busy { .. }) {
                        self.bound_kept().await;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LIMIT);
        }
    }

    /// What is kept at the source grows as long as no run succeeds.
    async fn bound_kept(&self) {
        let home = Home::of(&self.config, &self.policy);
        match Record::open(&self.config.state_dir()) {
            Ok(record) => {
                let cloud = Arc::new(SiteCloud::of(&self.config, &self.policy.site));
                let hosts = Hosts::of(&self.config, &self.policy, &cloud);
                kept::bound(&self.policy, &home, &hosts, self.clock.clone(), &record).await;
            }
            Err(error) => tracing::warn!(group = %self.policy.group, "{error}"),
        }
    }
}

/// One standby that is open.
struct Standby {
    group: Arc<Group>,
    /// When its last run began; none when it has no point.
    last: Option<Timestamp>,
    /// The run under way, to be stopped.
    running: Option<Arc<AtomicBool>>,
    /// It makes its own rounds.
    lags: bool,
}

/// The round that is not a single laggard's.
struct Common {
    id: tokio::task::Id,
    /// Those that began it, whether they still take part or not.
    members: BTreeSet<SiteName>,
}

struct Keeper {
    config: Arc<Config>,
    policy: Arc<Policy>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    board: Arc<Board>,
    patience: Duration,
    began: tokio::time::Instant,
    /// Of which it is not known whether they can be opened.
    unopened: BTreeSet<SiteName>,
    standbys: BTreeMap<SiteName, Standby>,
    /// Stores that say that another site is primary, and what they say.
    fenced: BTreeMap<SiteName, String>,
    rounds: JoinSet<()>,
    common: Option<Common>,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Keeper {
    fn opened(&mut self, opened: Opened) {
        match opened {
            Opened::NotYet(to) => {
                self.unopened.remove(&to);
            }
            Opened::Open(group) => {
                self.unopened.remove(&group.to);
                let last = group.record.last_success(self.policy.group.as_str(), group.to.as_str());
                // A group without a point is unprotected: it does not wait for its schedule.
                let last = last.unwrap_or_else(|error| {
                    tracing::warn!(group = %self.policy.group, "{error}");
                    None
                });
                let to = group.to.clone();
                let standby = Standby { group: Arc::new(*group), last, running: None, lags: false };
                self.standbys.insert(to, standby);
            }
        }
    }

    /// Whether a run fell due since the last one began. A clock that was set back is believed.
    fn is_due(&self, standby: &Standby, now: Timestamp) -> bool {
        let Some(last) = standby.last else { return true };
        self.policy.schedule().missed_between(last.min(now), now).next().is_some()
    }

    /// Those that are due and idle make a round together, but for those that lag, and those that come while a round is on.
    fn begin_what_is_due(&mut self) {
        if !self.fenced.is_empty() {
            return;
        }
        // Those that are being opened right now come along.
        if !self.unopened.is_empty() && self.began.elapsed() < self.patience {
            return;
        }
        let now = self.clock.now();
        for standby in self.standbys.values_mut() {
            standby.last = standby.last.map(|last| last.min(now));
        }
        let due: Vec<SiteName> = self
            .standbys
            .iter()
            .filter(|(_, standby)| standby.running.is_none() && self.is_due(standby, now))
            .map(|(to, _)| to.clone())
            .collect();
        // A first copy would only be cut off from those that have points.
        let any_has_points = self.standbys.values().any(|standby| !standby.lags && standby.last.is_some());
        let is_apart = |to: &&SiteName| {
            let standby = &self.standbys[*to];
            self.common.is_some() || standby.lags || (any_has_points && standby.last.is_none())
        };
        let alone: Vec<SiteName> = due.iter().filter(is_apart).cloned().collect();
        let together: BTreeSet<SiteName> = due.iter().filter(|to| !is_apart(to)).cloned().collect();
        if !together.is_empty() {
            for standby in self.standbys.values_mut() {
                let Some(cancel) = &standby.running else { continue };
                standby.lags = true;
                // Two runs must not get in each other's way; what it has is complete and counts when it goes on.
                if is_exclusive(&self.policy) {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
            let id = self.begin(together.clone(), now);
            self.common = Some(Common { id, members: together });
        }
        for to in alone {
            // The round may still use what lies in its folder.
            let waits = self
                .common
                .as_ref()
                .is_some_and(|common| common.members.contains(&to) || is_exclusive(&self.policy));
            if waits {
                continue;
            }
            if let Some(standby) = self.standbys.get_mut(&to) {
                standby.lags = true;
            }
            self.begin(BTreeSet::from([to]), now);
        }
    }

    fn begin(&mut self, standbys: BTreeSet<SiteName>, now: Timestamp) -> tokio::task::Id {
        let mut members = Vec::new();
        for to in standbys {
            let Some(standby) = self.standbys.get_mut(&to) else { continue };
            let cancel = Arc::new(AtomicBool::new(false));
            standby.running = Some(cancel.clone());
            standby.last = Some(now);
            let observer = OnBoard { board: self.board.clone(), policy: self.policy.clone(), to };
            let options = RunOptions { full: false, cancel, observer: Arc::new(observer) };
            members.push(Member { group: standby.group.clone(), options });
        }
        self.rounds.spawn(round::round(members, self.ended.clone())).id()
    }

    /// Until something may be due.
    fn pause(&self) -> Duration {
        let now = self.clock.now();
        let idle = self.standbys.iter().filter(|(_, standby)| standby.running.is_none());
        let mut pause = LOOK;
        if self.fenced.is_empty()
            && let Some(due) = self.policy.schedule().next_after(now)
        {
            for (to, _) in idle {
                self.board.says_once(&self.policy, to, format!("waiting for {due:.0}"));
            }
            pause = pause.min(Duration::try_from(due.duration_since(now)).unwrap_or_default());
        }
        pause.max(Duration::from_millis(1))
    }

    async fn run_ended(&mut self, ended: Ended) {
        let Ended { to, result, was_cut } = ended;
        let now = self.clock.now();
        let schedule = self.policy.schedule();
        if let Some(standby) = self.standbys.get_mut(&to) {
            standby.running = None;
            let began = standby.last.unwrap_or(now);
            let took = now.duration_since(began);
            let kept_up = schedule.missed_between(began.min(now), now).next().is_none()
                || took <= SignedDuration::try_from(self.patience).unwrap_or_default();
            if was_cut {
                standby.lags = true;
                // Not caught up: it goes on at once.
                standby.last = None;
            } else if result.is_ok() && kept_up {
                standby.lags = false;
            }
        }
        match result {
            Ok(report) => {
                tracing::info!(
                    group = %self.policy.group,
                    to = %to,
                    point = %report.point,
                    whole = report.whole,
                    items = report.items,
                    changed_bytes = report.changed_bytes,
                    shipped_bytes = report.shipped_bytes,
                    exposure_s = report.exposure_at_commit_s,
                    "recovery point committed"
                );
                let failed = report.failed.iter().map(|f| format!("{}: {}", f.id, f.why)).collect::<Vec<_>>();
                self.board.change(&self.policy, &to, |doing| doing.last_error = failed.join("; "));
            }
            Err(ReplicateError::FencedAt { at, why, .. }) => self.fenced_at(at, why).await,
            Err(error) if error.is_fenced() => self.fenced_at(to, error.to_string()).await,
            Err(ReplicateError::Store(StoreError::Cancelled)) => {
                tracing::info!(group = %self.policy.group, to = %to, "the run stops here; the next start goes on with it");
            }
            Err(error) => {
                tracing::error!(group = %self.policy.group, to = %to, "no recovery point: {error}");
                self.board.change(&self.policy, &to, |doing| doing.last_error = error.to_string());
            }
        }
        self.says_fenced();
    }

    /// One store knows that the group was promoted elsewhere: nothing goes to any of them.
    async fn fenced_at(&mut self, at: SiteName, why: String) {
        if !self.fenced.contains_key(&at) {
            tracing::error!(group = %self.policy.group, to = %at, "{why}");
            self.fenced.insert(at, why);
        }
        for standby in self.standbys.values() {
            match &standby.running {
                Some(cancel) => cancel.store(true, Ordering::Relaxed),
                None => standby.group.logs.lock().await.stop(),
            }
        }
    }

    fn says_fenced(&self) {
        for to in &self.policy.to {
            let group = self.policy.group.to_string();
            let said = match (self.fenced.get(to), self.fenced.first_key_value()) {
                (Some(why), _) => why.clone(),
                (None, Some((at, why))) => {
                    ReplicateError::FencedAt { group, at: at.clone(), why: why.clone() }.to_string()
                }
                (None, None) => return,
            };
            self.board.change(&self.policy, to, |doing| {
                if !doing.fenced {
                    doing.since = Some(Timestamp::now());
                }
                doing.words = "fenced: another site is primary".into();
                doing.last_error = said;
                doing.fenced = true;
            });
        }
    }

    /// A rollback gives this site its group back: then it must not stay unprotected.
    async fn look_for_primary(&mut self) {
        // What was cancelled ends first, and with it what it ships of logs.
        if self.standbys.values().any(|standby| standby.running.is_some()) {
            return;
        }
        for standby in self.standbys.values() {
            standby.group.logs.lock().await.stop();
        }
        let fenced: Vec<SiteName> = self.fenced.keys().cloned().collect();
        for at in fenced {
            let Some(standby) = self.standbys.get(&at) else { continue };
            match Ledger::open(&standby.group.store, &self.policy.group).await {
                Ok(ledger) if ledger.state().primary() == Some(&self.config.site) => {
                    standby.group.forget_fenced();
                    self.fenced.remove(&at);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(group = %self.policy.group, to = %at, "looking for the primary: {error}");
                }
            }
        }
        if self.fenced.is_empty() {
            tracing::warn!(group = %self.policy.group, "this site is primary again: replication goes on");
            for (to, standby) in &mut self.standbys {
                standby.last = None;
                self.board.change(&self.policy, to, |doing| {
                    doing.fenced = false;
                    doing.last_error.clear();
                });
            }
        }
    }

    /// Lets what runs come to its end, for as long as there is time.
    async fn drain(mut self, ends: &mut mpsc::UnboundedReceiver<Ended>) {
        let drained = tokio::time::sleep(DRAIN);
        tokio::pin!(drained);
        let mut in_time = true;
        while self.standbys.values().any(|standby| standby.running.is_some()) || !self.rounds.is_empty() {
            tokio::select! {
                Some(ended) = ends.recv() => self.run_ended(ended).await,
                Some(_) = self.rounds.join_next() => {}
                () = &mut drained, if in_time => {
                    in_time = false;
                    for cancel in self.standbys.values().filter_map(|standby| standby.running.as_ref()) {
                        cancel.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        for to in &self.policy.to {
            self.board.says(&self.policy, to, "stopped");
        }
    }
}

/// Whether captures get in each other's way: hooks stop what writes to the items, or an image is locked while it is read.
fn is_exclusive(policy: &Policy) -> bool {
    let is_locked = |item: &Item| match item {
        Item::Volume(volume) => volume.format == DiskFormat::Qcow2,
        Item::Cinder(cinder) => cinder.format == DiskFormat::Qcow2,
        _ => false,
    };
    let freezes = |item: &Item| !item.hooks().before_capture.is_empty();
    !policy.hooks.before_capture.is_empty()
        || policy.items.iter().any(|item| is_locked(item) || freezes(item))
}

/// Tells the board what a run does.
struct OnBoard {
    board: Arc<Board>,
    policy: Arc<Policy>,
    to: SiteName,
}

impl Observer for OnBoard {
    fn stage(&self, words: &str) {
        self.board.says(&self.policy, &self.to, words);
    }
    fn counters(&self, stats: Arc<RunStats>) {
        self.board.change(&self.policy, &self.to, |doing| doing.counters = Some(stats));
    }
}
