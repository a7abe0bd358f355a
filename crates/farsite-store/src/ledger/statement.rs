//! What a ledger entry can say.

use std::collections::BTreeMap;

use farsite_model::rpo::CaptureStamp;
use farsite_model::{Consistency, Epoch, GroupName, ItemKind, PointId, PromotionId, RunId, SiteName};
use serde::{Deserialize, Serialize};

use crate::hex::Hex;
use crate::keys::KeyId;
use crate::logs::TimelineId;
use crate::pack::PackId;

/// One statement; `type` names it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Statement {
    /// First entry: the group exists, its primary is the signer's site, its epoch is 1.
    GroupFounded {
        group: GroupName,
        primary: SiteName,
    },
    /// A run (or a compaction) builds on these points, or somebody at the standby reads them: collection keeps them, and the
    /// run's packs, until it commits or the pin ends. Collection may end the pin; then the run cannot commit.
    PinBegun {
        run: RunId,
        points: Vec<PointId>,
    },
    /// Whoever read has read, and a compaction that has nothing to say is over.
    PinEnded {
        run: RunId,
    },
    /// A manifest becomes a recovery point.
    PointCommitted(Committed),
    /// The primary changes. Commits of older epochs behind this entry have no effect.
    EpochBegun {
        epoch: Epoch,
        primary: SiteName,
        promotion: PromotionId,
        /// The point that the promotion restores, if any.
        point: Option<PointId>,
        /// How far each shipped log is accepted; segments behind that are ignored.
        logs: Vec<AcceptedLog>,
        who: String,
        reason: String,
    },
    /// A person decided for another point after the epoch began.
    PointRechosen {
        promotion: PromotionId,
        point: PointId,
        who: String,
        reason: String,
    },
    /// The promotion's last step is done; `accept` or `rollback` follows.
    Promoted {
        promotion: PromotionId,
    },
    PromotionAccepted {
        promotion: PromotionId,
        who: String,
    },
    /// Restored and checked.
    PointProven {
        point: PointId,
        how: String,
    },
    /// A reader found that the point needs an object that is damaged or missing.
    PointDamaged {
        point: PointId,
        objects: Vec<String>,
        /// Packs of which something cannot be read, when every pack was looked into: agents build on what lies in others.
        /// Empty: not all is told, and they build on nothing of this point.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        packs: Vec<PackId>,
    },
    /// Every byte that the point reaches was read again, and is what was written.
    PointMended {
        point: PointId,
        /// What was read, in words.
        evidence: String,
    },
    PointExpired {
        point: PointId,
    },
    /// A person's order to keep a point.
    Hold {
        point: PointId,
        who: String,
        reason: String,
    },
    Release {
        point: PointId,
        who: String,
    },
    /// Collection begins: these points are gone, and pins that name them are void. From the first such entry on, nothing is
    /// committed by a run whose pin does not live.
    GcBegun {
        released: Vec<PointId>,
        /// Runs that were given up: their pins are void as well.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        runs: Vec<RunId>,
    },
    /// Compaction moved blobs: readers look for what lay in `from` in `to`.
    PointRemapped {
        /// Its pin kept the new packs from collection until now; without one the entry has no effect.
        run: RunId,
        points: Vec<PointId>,
        from: Vec<PackId>,
        to: Vec<PackId>,
        /// For each of `from` which of `to` (by number) hold what lay in it, so that a reader opens few. Empty: any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        into: Vec<Vec<u32>>,
        /// Those of `from` that stay, because something in them could not be moved.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kept: Vec<PackId>,
    },
    /// Behind this entry the key says nothing in this ledger; an amendment of the store's keys ends it everywhere.
    SignerRetired {
        key: KeyId,
        who: String,
        reason: String,
    },
    /// The group's authority ledger is now in another store, named by the fingerprint of its format object.
    AuthorityMoved {
        store: Hex<16>,
    },
}

/// What a `point-committed` entry carries: all that exposure is computed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    pub point: PointId,
    pub epoch: Epoch,
    pub run: RunId,
    pub manifest: Hex<32>,
    /// For each kind of item the stamp of its oldest one.
    pub by_kind: BTreeMap<ItemKind, CaptureStamp>,
    pub whole: bool,
    pub items: u64,
    pub weakest: Consistency,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
    /// Anomaly signals, in words; a suspicious point is never taken by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspicious: Vec<String>,
    /// Timelines that continue this point beyond its own position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timelines: Vec<TimelineId>,
}

/// A log as an epoch accepts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedLog {
    pub timeline: TimelineId,
    /// Last accepted segment; `None` accepts nothing of this timeline.
    pub last_sequence: Option<u64>,
}

impl Statement {
    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::GroupFounded { .. } => "group founded",
            Self::PinBegun { .. } => "pin begun",
            Self::PinEnded { .. } => "pin ended",
            Self::PointCommitted(_) => "point committed",
            Self::EpochBegun { .. } => "epoch begun",
            Self::PointRechosen { .. } => "point rechosen",
            Self::Promoted { .. } => "promoted",
            Self::PromotionAccepted { .. } => "promotion accepted",
            Self::PointProven { .. } => "point proven",
            Self::PointDamaged { .. } => "point damaged",
            Self::PointMended { .. } => "point mended",
            Self::PointExpired { .. } => "point expired",
            Self::Hold { .. } => "hold",
            Self::Release { .. } => "release",
            Self::GcBegun { .. } => "gc begun",
            Self::PointRemapped { .. } => "point remapped",
            Self::SignerRetired { .. } => "signer retired",
            Self::AuthorityMoved { .. } => "authority moved",
        }
    }
}
