//! Where the entries of a policy are read: by this host, or through a process on another host of the site that serves what is
//! local to it. One round's captures come in as questions for sources; a source goes out that is used the same way wherever
//! its items are.
//!
//! What must hold: a host that cannot be reached is tried once in a round, and fails its own entries and no others; of each
//! host there is one process, which ends when the last source, capture and version of it is let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use farsite_model::config::Config;
use farsite_model::policy::{Item, Policy};
use farsite_openstack::SiteCloud;
use farsite_sources::remote::{self, Hello, Line};
use farsite_sources::{Source, SourceError};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::capture::host_name;
use crate::group::Home;

/// The line to a host, or why there is none.
type Reached = Arc<OnceCell<Result<Arc<Line>, SourceError>>>;

/// The hosts of one policy's entries.
pub struct Hosts {
    config: Arc<Config>,
    policy: Arc<Policy>,
    cloud: Arc<SiteCloud>,
    here: String,
    lines: Mutex<BTreeMap<String, Reached>>,
}

impl Hosts {
    /// Nothing is started yet.
    pub fn of(config: &Arc<Config>, policy: &Policy, cloud: &Arc<SiteCloud>) -> Self {
        Self {
            config: config.clone(),
            policy: Arc::new(policy.clone()),
            cloud: cloud.clone(),
            here: host_name(),
            lines: Mutex::default(),
        }
    }

    /// The source of an entry, wherever it is. The first one of another host starts its process.
    pub async fn source(&self, item: &Item) -> Result<Box<dyn Source>, SourceError> {
        match item.on().filter(|host| *host != self.here) {
            None => farsite_sources::source(item, &self.cloud),
            Some(host) => remote::source(&self.line(host).await?, item, &self.cloud),
        }
    }

    /// Starts the processes on all of them, side by side, so that nothing stays frozen for as long as that takes. Who cannot be
    /// reached is told of where its entries are captured.
    pub(crate) async fn begin(self: &Arc<Self>) {
        let elsewhere: BTreeSet<String> = self
            .policy
            .items
            .iter()
            .filter(|item| self.is_elsewhere(item))
            .filter_map(|item| item.on().map(str::to_owned))
            .collect();
        let mut opening = JoinSet::new();
        for host in elsewhere {
            let hosts = self.clone();
            opening.spawn(async move { hosts.line(&host).await.err() });
        }
        while let Some(failed) = opening.join_next().await {
            if let Ok(Some(error)) = failed {
                tracing::warn!(group = %self.policy.group, "{error}");
            }
        }
    }

    /// Whether an entry is read by another host.
    pub fn is_elsewhere(&self, item: &Item) -> bool {
        item.on().is_some_and(|host| host != self.here)
    }

    /// Nobody wants anything of the others any more: what waits for them ends now.
    pub(crate) fn stop(&self) {
        let lines = self.lines.lock().expect("no holder of this lock panics");
        let reached = lines.values().filter_map(|cell| cell.get()?.as_ref().ok());
        reached.for_each(|line| line.stop());
    }

    async fn line(&self, host: &str) -> Result<Arc<Line>, SourceError> {
        let cell = {
            let mut lines = self.lines.lock().expect("no holder of this lock panics");
            lines.entry(host.to_owned()).or_default().clone()
        };
        cell.get_or_init(|| self.open(host)).await.clone()
    }

    async fn open(&self, host: &str) -> Result<Arc<Line>, SourceError> {
        let Some(how) = self.config.hosts.get(host) else {
            return Err(SourceError::new(
                format!("host {host}"),
                format!("this agent runs on {}, and nothing says how {host} is reached", self.here),
            )
            .hint(format!(
                "add it to farsite.yaml: `hosts: {{ {host}: {{ command: [ssh, -T, -o, BatchMode=yes, farsite@{host}, farsite, serve-sources] }} }}`"
            )));
        };
        let items = self.policy.items.iter().filter(|item| item.on() == Some(host)).cloned().collect();
        let hello = Hello {
            host: host.to_owned(),
            site: self.policy.site.clone(),
            group: self.policy.group.clone(),
            owner: Home::of(&self.config, &self.policy).owner(),
            items,
            patience: how.patience(),
        };
        Line::open(how, hello).await
    }
}

/// Why this host does not make the group's points, where another one does.
pub fn not_ours(policy: &Policy) -> Option<String> {
    let here = host_name();
    let coordinator = policy.coordinator().filter(|coordinator| *coordinator != here)?;
    let read_here: Vec<String> = policy
        .items
        .iter()
        .filter(|item| item.on() == Some(&*here))
        .map(|item| item.id().to_string())
        .collect();
    let part = match read_here.as_slice() {
        [] => format!("nothing of it is read on this host, {here}"),
        items => format!("this host, {here}, serves it {}", items.join(", ")),
    };
    Some(format!("coordinated by the agent on host {coordinator}; {part}"))
}
