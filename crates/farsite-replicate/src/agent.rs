//! The agent: policies come in, runs go out when they are due. One run per group at a time; what was missed while the
//! agent was away is caught up once; logs ship between runs; a group that was promoted elsewhere is left alone until it
//! is given back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farsite_model::clock::Clock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{GroupName, SiteName};
use farsite_store::StoreError;
use farsite_store::ingest::RunStats;
use farsite_store::ledger::Ledger;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::databases::Logs;
use crate::group::{self, Group};
use crate::record::Record;
use crate::run::{self, Observer, RunOptions};
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

/// Reads the configuration anew: at the start and at every reload.
pub type Load = Arc<dyn Fn() -> Result<(Config, Vec<Policy>), ReplicateError> + Send + Sync>;

/// What the agent is given.
pub struct AgentOptions {
    pub load: Load,
    pub clock: Arc<dyn Clock>,
    /// Drains and ends.
    pub cancel: CancellationToken,
    /// Reads the configuration again.
    pub reload: Arc<Notify>,
    pub board: Arc<Board>,
}

/// What each group does now, as this agent knows it; the store knows nothing of runs under way.
#[derive(Default)]
pub struct Board {
    groups: Mutex<BTreeMap<(GroupName, SiteName), Doing>>,
}

/// One group's line on the board.
#[derive(Clone, Default)]
pub struct Doing {
    /// `waiting for 12:15:00`, `capturing mariadb/main`, …
    pub words: String,
    pub since: Option<Timestamp>,
    /// The last run's error; empty when it did what it should.
    pub last_error: String,
    /// Promoted elsewhere: this agent does nothing for it any more.
    pub fenced: bool,
    pub counters: Option<Arc<RunStats>>,
}

impl Board {
    pub fn read(&self) -> BTreeMap<(GroupName, SiteName), Doing> {
        self.groups.lock().expect("no holder of this lock panics").clone()
    }
    fn change(&self, policy: &Policy, to: &SiteName, change: impl FnOnce(&mut Doing)) {
        let mut groups = self.groups.lock().expect("no holder of this lock panics");
        change(groups.entry((policy.group.clone(), to.clone())).or_default());
    }
    fn says(&self, policy: &Policy, to: &SiteName, words: impl Into<String>) {
        self.change(policy, to, |doing| {
            doing.words = words.into();
            doing.since = Some(Timestamp::now());
        });
    }
    fn clear(&self) {
        self.groups.lock().expect("no holder of this lock panics").clear();
    }
}

/// Serves until it is cancelled. Only a configuration that cannot be read at the start is an error.
pub async fn run(options: AgentOptions) -> Result<(), ReplicateError> {
    let (mut config, mut policies) = (options.load)()?;
    loop {
        let stop = options.cancel.child_token();
        let mut tasks = JoinSet::new();
        options.board.clear();
        let shared = Arc::new(config.clone());
        for policy in policies.iter().filter(|p| p.site == config.site) {
            for to in &policy.to {
                let keeper = Keeper {
                    config: shared.clone(),
                    policy: policy.clone(),
                    to: to.clone(),
                    clock: options.clock.clone(),
                    stop: stop.clone(),
                    board: options.board.clone(),
                };
                tasks.spawn(keeper.keep());
            }
        }
        if tasks.is_empty() {
            tracing::info!(site = %config.site, "no policy replicates from this site: nothing to replicate here");
        }
        let reloaded = loop {
            tokio::select! {
                () = options.cancel.cancelled() => break None,
                () = options.reload.notified() => match (options.load)() {
                    Ok(new) => break Some(new),
                    // What runs goes on: a typing error must not end protection.
                    Err(error) => tracing::error!("the configuration was not reloaded, the old one goes on: {error}"),
                },
            }
        };
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a group's task ended badly: {error}");
            }
        }
        match reloaded {
            None => return Ok(()),
            Some(new) => {
                (config, policies) = new;
                tracing::info!(policies = policies.len(), "configuration reloaded");
            }
        }
    }
}

/// Keeps one group replicated to one standby.
struct Keeper {
    config: Arc<Config>,
    policy: Policy,
    to: SiteName,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    board: Arc<Board>,
}

/// What a run leaves for the keeper to decide.
enum After {
    GoOn,
    Fenced,
}

impl Keeper {
    async fn keep(self) {
        for missing in self.policy.not_yet() {
            tracing::warn!(group = %self.policy.group, "{missing}");
        }
        let Some(group) = self.open().await else { return };
        let group = Arc::new(group);
        let mut logs = Logs::default();
        let mut catch_up = self.missed(&group);
        while !self.stop.is_cancelled() {
            if !catch_up && !self.wait_until_due().await {
                break;
            }
            let began = self.clock.now();
            match self.one_run(&group, &mut logs).await {
                After::GoOn => {}
                After::Fenced => {
                    logs.stop();
                    if !self.wait_until_primary(&group).await {
                        break;
                    }
                    catch_up = true;
                    continue;
                }
            }
            // Whatever fell due while the run went on is caught up once.
            catch_up = self.policy.schedule().missed_between(began, self.clock.now()).next().is_some();
        }
        self.board.says(&self.policy, &self.to, "stopped");
    }

    /// Opens the group, trying again for as long as it takes.
    async fn open(&self) -> Option<Group> {
        let mut pause = RETRY_FIRST;
        loop {
            match Group::open(&self.config, &self.policy, &self.to, self.clock.clone()).await {
                Ok(group) => return Some(group),
                Err(error) => {
                    tracing::error!(group = %self.policy.group, to = %self.to, "not replicating: {error}");
                    self.board.change(&self.policy, &self.to, |doing| {
                        doing.words = "cannot begin; trying again".into();
                        doing.since = Some(Timestamp::now());
                        doing.last_error = error.to_string();
                    });
                    if !matches!(error, ReplicateError::Busy { .. }) {
                        self.bound_kept().await;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LIMIT),
                () = self.stop.cancelled() => return None,
            }
        }
    }

    /// What is kept at the source grows as long as no run succeeds.
    async fn bound_kept(&self) {
        let folder = group::folder(&self.config, &self.policy, &self.to);
        match Record::open(&self.config.state_dir()) {
            Ok(record) => {
                kept::bound(&self.policy, &self.to, &folder, self.clock.clone(), &record).await;
            }
            Err(error) => tracing::warn!(group = %self.policy.group, "{error}"),
        }
    }

    /// Whether a run fell due since the last one that committed a point.
    fn missed(&self, group: &Group) -> bool {
        match group.record.last_success(self.policy.group.as_str()) {
            Ok(Some(last)) => self.policy.schedule().missed_between(last, self.clock.now()).next().is_some(),
            // A group without a point is unprotected: it does not wait for its schedule.
            Ok(None) => true,
            Err(error) => {
                tracing::warn!(group = %self.policy.group, "{error}");
                true
            }
        }
    }

    /// False when the agent stops first.
    async fn wait_until_due(&self) -> bool {
        let now = self.clock.now();
        let Some(due) = self.policy.schedule().next_after(now) else {
            // A schedule that is never due again: nothing more to do but to ship logs.
            self.stop.cancelled().await;
            return false;
        };
        self.board.says(&self.policy, &self.to, format!("waiting for {due:.0}"));
        let mut seen = now;
        loop {
            let now = self.clock.now();
            // A clock that was set back further than it ever stood in this wait: the schedule is looked up anew.
            if now < seen - jiff::SignedDuration::from_secs(60) {
                return Box::pin(self.wait_until_due()).await;
            }
            seen = seen.max(now);
            let Ok(left) = Duration::try_from(due.duration_since(now)) else { return true };
            if left.is_zero() {
                return true;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => {}
                () = self.stop.cancelled() => return false,
            }
        }
    }

    /// A rollback gives this site its group back: then it must not stay unprotected. False when the agent stops first.
    async fn wait_until_primary(&self, group: &Group) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep(FENCED_LOOK) => {}
                () = self.stop.cancelled() => return false,
            }
            match Ledger::open(&group.store, &self.policy.group).await {
                Ok(ledger) if ledger.state().primary() == Some(&self.config.site) => {
                    tracing::warn!(group = %self.policy.group, "this site is primary again: replication goes on");
                    self.board.change(&self.policy, &self.to, |doing| {
                        doing.fenced = false;
                        doing.last_error.clear();
                    });
                    return true;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(group = %self.policy.group, "looking for the primary: {error}"),
            }
        }
    }

    async fn one_run(&self, group: &Arc<Group>, logs: &mut Logs) -> After {
        let cancel = Arc::new(AtomicBool::new(false));
        let options = RunOptions {
            full: false,
            cancel: cancel.clone(),
            observer: Arc::new(OnBoard {
                board: self.board.clone(),
                policy: self.policy.clone(),
                to: self.to.clone(),
            }),
        };
        let work = run::run(group, logs, &options);
        tokio::pin!(work);
        let result = tokio::select! {
            result = &mut work => result,
            () = self.drained() => {
                cancel.store(true, Ordering::Relaxed);
                work.await
            }
        };
        match result {
            Ok(report) => {
                tracing::info!(
                    group = %self.policy.group,
                    to = %self.to,
                    point = %report.point,
                    whole = report.whole,
                    items = report.items,
                    changed_bytes = report.changed_bytes,
                    shipped_bytes = report.shipped_bytes,
                    exposure_s = report.exposure_at_commit_s,
                    "recovery point committed"
                );
                let failed = report.failed.iter().map(|f| format!("{}: {}", f.id, f.why)).collect::<Vec<_>>();
                self.board.change(&self.policy, &self.to, |doing| doing.last_error = failed.join("; "));
                After::GoOn
            }
            Err(error) if error.is_fenced() => {
                tracing::error!(group = %self.policy.group, "{error}");
                self.board.change(&self.policy, &self.to, |doing| {
                    doing.words = "fenced: another site is primary".into();
                    doing.since = Some(Timestamp::now());
                    doing.last_error = error.to_string();
                    doing.fenced = true;
                });
                After::Fenced
            }
            Err(ReplicateError::Store(StoreError::Cancelled)) => {
                tracing::info!(group = %self.policy.group, "the run stops here; the next start goes on with it");
                After::GoOn
            }
            Err(error) => {
                tracing::error!(group = %self.policy.group, to = %self.to, "no recovery point: {error}");
                self.board.change(&self.policy, &self.to, |doing| doing.last_error = error.to_string());
                After::GoOn
            }
        }
    }

    /// Completes when the time for draining is over.
    async fn drained(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    }
}

/// Tells the board what a run does.
struct OnBoard {
    board: Arc<Board>,
    policy: Policy,
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
