//! The agent: policies come in, and each is kept by its keeper until the configuration is read anew. What a group does now
//! stands on the board.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use farsite_model::clock::Clock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{GroupName, SiteName};
use farsite_store::ingest::RunStats;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{ReplicateError, keeper};

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
    pub(crate) fn change(&self, policy: &Policy, to: &SiteName, change: impl FnOnce(&mut Doing)) {
        let mut groups = self.groups.lock().expect("no holder of this lock panics");
        change(groups.entry((policy.group.clone(), to.clone())).or_default());
    }
    pub(crate) fn says(&self, policy: &Policy, to: &SiteName, words: impl Into<String>) {
        self.change(policy, to, |doing| {
            doing.words = words.into();
            doing.since = Some(Timestamp::now());
        });
    }
    /// The same words again do not begin anew.
    pub(crate) fn says_once(&self, policy: &Policy, to: &SiteName, words: String) {
        self.change(policy, to, |doing| {
            if doing.words != words && !doing.fenced {
                doing.words = words;
                doing.since = Some(Timestamp::now());
            }
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
            let (config, clock) = (shared.clone(), options.clock.clone());
            tasks.spawn(keeper::keep(config, policy.clone(), clock, stop.clone(), options.board.clone()));
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
