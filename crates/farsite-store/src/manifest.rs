//! Point manifests: the list of one consistent set of captures of a whole group. A manifest becomes a recovery
//! point by its ledger entry, and not before. It is signed, not sealed: names, sizes and times of items are
//! readable by whoever can read the bucket; contents are not.

use std::collections::BTreeMap;

use farsite_model::rpo::{CaptureStamp, ClockSkew};
use farsite_model::{CaptureTime, Consistency, Epoch, GroupName, ItemId, ItemKind, PointId, RunId, SiteName};
use serde::{Deserialize, Serialize};

use crate::backend::create_or_recognise;
use crate::hex::Hex;
use crate::keys::{Role, Signer};
use crate::logs::TimelineId;
use crate::map::MapRoot;
use crate::signals::Signals;
use crate::signed::{self, Kind};
use crate::{Damage, Store, StoreError};

pub const MANIFEST_VERSION: u32 = 1;

/// Contents of a manifest (JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub point: PointId,
    pub group: GroupName,
    pub site: SiteName,
    pub epoch: Epoch,
    pub run: RunId,
    pub parent: Option<PointId>,
    /// Source time before the first byte of this run was frozen or read.
    pub started: CaptureTime,
    /// Every measurement of the source's clock against the store's during the run.
    pub skews: Vec<ClockSkew>,
    pub items: Vec<ManifestItem>,
    /// Items that the parent had and the source confirmed deleted.
    #[serde(default)]
    pub absent: Vec<ItemId>,
    /// Items that failed in this run; each is carried from an earlier point, or missing when there is none.
    #[serde(default)]
    pub failed: Vec<FailedItem>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub shipped_bytes: u64,
}

/// One item of a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestItem {
    pub id: ItemId,
    pub kind: ItemKind,
    pub stamp: CaptureStamp,
    pub consistency: Consistency,
    pub data: MapRoot,
    /// For a tree: the directory (JSON list of `TreeEntry`), stored like an item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<MapRoot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<ItemId>,
    /// Facts for sinks and checks; no secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// Set when this run failed to capture the item: the point whose version this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_from: Option<PointId>,
    /// For a database with a shipped log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<ItemLog>,
    /// What was seen while it was read; older programs did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
}

/// How far a database goes beyond its base snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemLog {
    pub timeline: TimelineId,
    /// Where replay on top of the base begins.
    pub base: LogPoint,
    /// Read before images and volumes were captured: what a failover restores to.
    pub p1: LogPoint,
    /// Read after: rows changed between the two are unsettled.
    pub p2: LogPoint,
}

/// File and byte offset in a database's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogPoint {
    pub file: String,
    pub offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedItem {
    pub id: ItemId,
    pub why: String,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// Every item is of this run.
    pub fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.items.iter().all(|i| i.carried_from.is_none())
    }

    pub fn weakest(&self) -> Consistency {
        self.items.iter().map(|i| i.consistency).min().unwrap_or(Consistency::Application)
    }

    /// For each kind the stamp of its oldest item.
    pub fn by_kind(&self) -> BTreeMap<ItemKind, CaptureStamp> {
        let mut oldest: BTreeMap<ItemKind, CaptureStamp> = BTreeMap::new();
        for item in &self.items {
            oldest
                .entry(item.kind)
                .and_modify(|stamp| {
                    if item.stamp.earliest_in_store_time() < stamp.earliest_in_store_time() {
                        *stamp = item.stamp;
                    }
                })
                .or_insert(item.stamp);
        }
        oldest
    }

    pub fn item(&self, id: &ItemId) -> Option<&ManifestItem> {
        self.items.iter().find(|item| item.id == *id)
    }

    pub fn key(group: &GroupName, point: PointId) -> String {
        format!("manifests/{group}/{point}")
    }

    /// Writes the manifest; returns the hash that the ledger entry names.
    pub async fn write(&self, store: &Store, signer: &Signer) -> Result<Hex<32>, StoreError> {
        let key = Self::key(&self.group, self.point);
        let body = serde_json::to_vec(self).expect("a manifest is valid JSON");
        let object = signed::seal(signer, Kind::Manifest, &store.format().store, &key, &body);
        let hash = Hex(*blake3::hash(&object).as_bytes());
        match create_or_recognise(&*store.backend, &key, object).await? {
            Some(_) => Ok(hash),
            None => Err(StoreError::Conflict { key }),
        }
    }

    /// The run that wrote the manifest under this key, whether a ledger names it or not. `None`: it is gone.
    pub(crate) async fn run_of(store: &Store, key: &str) -> Result<Option<RunId>, StoreError> {
        #[derive(Deserialize)]
        struct OfRun {
            run: RunId,
        }
        let damaged = |why: String| StoreError::Damaged(vec![Damage::new(key, why)]);
        let object = match store.backend.get(key).await {
            Err(error) if error.is_missing() => return Ok(None),
            other => other.map_err(|error| crate::named(key, error))?,
        };
        let format = store.format();
        let (body, _) =
            signed::open(&format, Kind::Manifest, key, &object.bytes).map_err(|e| damaged(e.to_string()))?;
        let of: OfRun = serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(of.run))
    }

    /// Reads the manifest that a ledger entry names, by its hash.
    pub async fn read(
        store: &Store,
        group: &GroupName,
        point: PointId,
        hash: &Hex<32>,
    ) -> Result<Self, StoreError> {
        let key = Self::key(group, point);
        let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&key, why)]);
        let object = store.get(&key).await?;
        if blake3::hash(&object.bytes).as_bytes() != &hash.0 {
            return Err(damaged(
                "it is not the manifest that the ledger names: its bytes were changed".into(),
            ));
        }
        let format = store.format();
        let (body, role) =
            signed::open(&format, Kind::Manifest, &key, &object.bytes).map_err(|e| damaged(e.to_string()))?;
        let Version { version } = serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
        if version != MANIFEST_VERSION {
            return Err(damaged(format!("manifest version {version} is not known; use a newer farsite")));
        }
        let manifest: Self = serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
        for item in &manifest.items {
            if !item.data.is_possible() || item.directory.as_ref().is_some_and(|d| !d.is_possible()) {
                return Err(damaged(format!("the block map of {} is not possible", item.id)));
            }
        }
        if role.role != Role::SourceAgent || role.site.as_ref() != Some(&manifest.site) {
            return Err(damaged(format!(
                "signed by a {} that may not speak for {}",
                role.role, manifest.site
            )));
        }
        if manifest.point != point || manifest.group != *group {
            return Err(damaged("it names another point".into()));
        }
        Ok(manifest)
    }
}
