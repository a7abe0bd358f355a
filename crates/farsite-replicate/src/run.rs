//! A run as it is asked for and as it is told of: what a policy's captures become at one standby.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use farsite_model::{Consistency, ItemId, PointId};
use farsite_store::ingest::RunStats;
use farsite_store::manifest::FailedItem;
use serde::Serialize;

use crate::group::Group;
use crate::hosts::Hosts;

/// Longest time that one listing, query or external command of a source may take.
pub(crate) const SOURCE_LIMIT: Duration = Duration::from_hours(6);

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
    let hosts = Hosts::of(&group.config, &group.policy, &group.cloud);
    let mut planned = Vec::new();
    for item in &group.policy.items {
        let items = match hosts.source(item).await {
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
