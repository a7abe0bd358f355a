//! What `farsite status` shows, what the dashboard draws and what `--json` prints: one shape for all three.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{CaptureTime, Consistency, Epoch, GroupName, Level, PointId, SiteName, StoreTime};

/// Where a group is; a fold over its ledger and its promotions' journals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No point yet.
    InitialSync,
    Replicating,
    Promoting,
    /// Promoted, and waiting for `accept` or `rollback`.
    Promoted,
    SplitBrainSuspected,
    /// The ledger has damage: what can be read is shown.
    Damaged,
}

/// One group as seen from the replica store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub group: GroupName,
    pub site: SiteName,
    pub to: Vec<SiteName>,
    pub level: Option<Level>,
    pub phase: Phase,
    /// What it does or waits for now.
    pub progression: String,
    pub epoch: Epoch,
    pub primary: SiteName,
    pub newest_point: Option<PointStatus>,
    pub newest_proven: Option<PointId>,
    /// Seconds, at worst; `None` while there is no point that a failover would take.
    pub exposure_s: Option<f64>,
    /// The same for each kind of item.
    pub exposure_by_kind_s: BTreeMap<String, f64>,
    pub rpo_target_s: Option<f64>,
    /// Exposure over target; above 1 the target is missed.
    pub rpo_ratio: Option<f64>,
    /// How far behind the shipped logs of the databases are, in seconds, at worst: what `--point latest-log` would
    /// lose of them. `None` where no log is shipped.
    #[serde(default)]
    pub log_lag_s: Option<f64>,
    /// Source minus store, as measured at the newest commit.
    pub clock_ahead_ms: Option<i64>,
    /// What is kept at the source to tell changes; known to the source's own host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptVersions>,
    pub points: usize,
    pub partial_points: usize,
    /// Points that something unusual was seen in, and that have not expired.
    #[serde(default)]
    pub suspicious_points: usize,
    /// Sentences that a person must read: damage, clamped clocks, suspicious points, an unsafe store.
    pub warnings: Vec<String>,
}

/// Versions of a group's items that stay at the source until the next point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVersions {
    pub measured: Timestamp,
    pub versions: u64,
    /// Held for them alone when it was measured, at most.
    pub bytes: u64,
    /// Items whose version was let go then, because it took too much.
    pub let_go: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointStatus {
    pub id: PointId,
    pub captured: CaptureTime,
    pub committed: StoreTime,
    pub whole: bool,
    pub proven: bool,
    pub items: usize,
    pub weakest: Consistency,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
    /// What was unusual in it, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspicious: Vec<String>,
}
