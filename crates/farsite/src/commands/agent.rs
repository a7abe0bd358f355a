//! `farsite agent`: the service. SIGTERM and SIGINT drain it, SIGHUP reads the configuration again; systemd hears when
//! it is ready, reloading, stopping and alive. The dashboard stands beside replication and never in its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::clock::SystemClock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::status::GroupStatus;
use farsite_model::{GroupName, Level, SiteName};
use farsite_replicate::agent::{self, AgentOptions, Board};
use farsite_replicate::hydrate::Keeper;
use farsite_replicate::status::StatusReader;
use farsite_web::{Server, StateSource};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::commands::{Ended, hydrate};
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::stores;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: Args, context: &Context) -> Ended {
    let config = context.config()?;
    // A policy that cannot be read is found before the service says that it is ready.
    let policies = Arc::new(std::sync::Mutex::new(stores::policies(&config)?));
    let board = Arc::new(Board::default());
    let reload = Arc::new(Notify::new());
    let (path, cancel) = (context.config_path.clone(), context.cancel.clone());
    let newest = policies.clone();
    let current = Arc::new(std::sync::Mutex::new(config.clone()));
    let newest_config = current.clone();
    let load = Arc::new(move || {
        let config = Config::discover(path.as_deref())?;
        let policies: Vec<Policy> = config.load_policies()?.into_iter().map(|(_, policy)| policy).collect();
        newest.lock().expect("no holder of this lock panics").clone_from(&policies);
        *newest_config.lock().expect("no holder of this lock panics") = Arc::new(config.clone());
        Ok((config, policies))
    });

    let web = match &config.web {
        None => None,
        Some(address) => {
            let server = Server::bind(address).await.map_err(|error| Failure::usage(error.to_string()))?;
            tracing::info!("dashboard at http://{}", server.local_addr());
            let watch = Watch::start(config.clone(), policies.clone(), board.clone(), cancel.clone());
            let cancelled = cancel.clone();
            Some(tokio::spawn(async move {
                if let Err(error) = server.run(watch, cancelled.cancelled_owned()).await {
                    tracing::error!("{error}");
                }
            }))
        }
    };
    tell(&[NotifyState::Ready]);
    tokio::spawn(on_hangup(reload.clone(), cancel.clone()));
    tokio::spawn(keep_alive());
    tokio::spawn({
        let cancel = cancel.clone();
        async move {
            cancel.cancelled().await;
            tracing::info!("draining: a run under way may end by itself");
            tell(&[NotifyState::Stopping]);
        }
    });
    let keeper = tokio::spawn(keeper(current, policies, cancel.clone()).keep());
    agent::run(AgentOptions { load, clock: Arc::new(SystemClock), cancel: cancel.clone(), reload, board })
        .await?;
    cancel.cancel();
    // It stops between two blocks.
    let _ = keeper.await;
    if let Some(web) = web {
        let _ = web.await;
    }
    tracing::info!("stopped");
    Ok(DONE)
}

/// Hydrates the groups that have places at this host, but for those whose policy promises no more than the data.
fn keeper(
    config: Arc<std::sync::Mutex<Arc<Config>>>,
    policies: Arc<std::sync::Mutex<Vec<Policy>>>,
    cancel: CancellationToken,
) -> Keeper {
    let now = move || {
        let config = config.lock().expect("no holder of this lock panics").clone();
        let policies = policies.lock().expect("no holder of this lock panics").clone();
        let data_only = |group: &GroupName| {
            policies.iter().any(|policy| policy.group == *group && policy.level == Level::Data)
        };
        let groups = config.places.keys().filter(|group| !data_only(group)).cloned().collect();
        (config, groups)
    };
    Keeper { now: Arc::new(now), place: hydrate::place(), cancel }
}

/// Where no service manager listens this does nothing.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

async fn on_hangup(reload: Arc<Notify>, cancel: CancellationToken) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    loop {
        tokio::select! {
            heard = hangup.recv() => if heard.is_none() { return },
            () = cancel.cancelled() => return,
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
        reload.notify_one();
        tell(&[NotifyState::Ready]);
    }
}

/// Twice in each interval that the service manager allows: this task runs only while the runtime does.
async fn keep_alive() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval((interval / 2).max(Duration::from_millis(10)));
    // While it drains it is alive as well: this ends with the process.
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// How often the stores are read for the dashboard.
const LOOK: Duration = Duration::from_secs(2);

/// What was read of the stores last; requests are answered out of it.
struct Watch {
    groups: Arc<Mutex<Vec<(SiteName, GroupStatus)>>>,
    board: Arc<Board>,
}

impl Watch {
    fn start(
        config: Arc<Config>,
        policies: Arc<std::sync::Mutex<Vec<Policy>>>,
        board: Arc<Board>,
        cancel: CancellationToken,
    ) -> Arc<dyn StateSource> {
        let groups = Arc::new(Mutex::new(Vec::new()));
        let sink = groups.clone();
        tokio::spawn(async move {
            let mut readers: BTreeMap<SiteName, StatusReader> = BTreeMap::new();
            let mut seen: BTreeMap<SiteName, Vec<GroupStatus>> = BTreeMap::new();
            loop {
                let policies = policies.lock().expect("no holder of this lock panics").clone();
                for site in config.stores.keys() {
                    match look(&config, site, &policies, &mut readers).await {
                        Ok(found) => {
                            seen.insert(site.clone(), found);
                        }
                        Err(why) => {
                            tracing::warn!(store = %site, "its state cannot be read: {why}");
                            let words =
                                format!("the store at {site} cannot be read now, this is older: {why}");
                            for status in seen.get_mut(site).into_iter().flatten() {
                                status.warnings = vec![words.clone()];
                            }
                        }
                    }
                }
                let flat =
                    seen.iter().flat_map(|(at, all)| all.iter().map(|status| (at.clone(), status.clone())));
                *sink.lock().await = flat.collect();
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = cancel.cancelled() => return,
                }
            }
        });
        Arc::new(Self { groups, board })
    }
}

async fn look(
    config: &Config,
    site: &SiteName,
    policies: &[Policy],
    readers: &mut BTreeMap<SiteName, StatusReader>,
) -> Result<Vec<GroupStatus>, String> {
    if !readers.contains_key(site) {
        let reader = StatusReader::open(config, site).await.map_err(|error| error.to_string())?;
        readers.insert(site.clone(), reader);
    }
    match readers.get_mut(site) {
        Some(reader) => reader.read(policies).await.map_err(|error| error.to_string()),
        None => Ok(Vec::new()),
    }
}

#[async_trait]
impl StateSource for Watch {
    async fn groups(&self) -> Vec<GroupStatus> {
        let groups = self.groups.lock().await.clone();
        let board = self.board.read();
        let with_board = |(at, mut status): (SiteName, GroupStatus)| {
            if let Some(doing) = board.get(&(status.group.clone(), at.clone())) {
                if !doing.words.is_empty() {
                    status.progression.clone_from(&doing.words);
                }
                if !doing.last_error.is_empty() {
                    status.warnings.push(format!("to {at}: {}", doing.last_error));
                }
            }
            status
        };
        groups.into_iter().map(with_board).collect()
    }
}
