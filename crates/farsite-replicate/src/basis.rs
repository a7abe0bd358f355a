//! What a run may build on: the newest points of this agent's own site, pinned so that collection keeps them, and of
//! each item the local map, if one of those points holds exactly that map. Blocks of an ended epoch are as good as any;
//! its items are not carried into a new point.

use std::collections::BTreeSet;

use farsite_model::{Epoch, ItemId, PointId};
use farsite_store::ledger::GroupState;
use farsite_store::local_map::LocalMap;
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::pack::PackId;

use crate::ReplicateError;
use crate::group::Group;

/// A kill between a commit and the local maps leaves some maps one point behind; older ones are not worth pinning.
const DEPTH: usize = 2;

/// The pinned points, newest first.
#[derive(Default)]
pub(crate) struct Basis {
    pub(crate) manifests: Vec<Manifest>,
    epoch: Option<Epoch>,
    /// Of these points, those of which something is damaged at the store: only what lies in other packs is built on.
    damaged: BTreeSet<PointId>,
    damaged_packs: BTreeSet<PackId>,
    /// The last ledger entry that told of damage.
    pub(crate) damage_told: u64,
}

impl Basis {
    /// Reads the manifests that the ledger names. One that is damaged is no basis; that costs a full copy of what
    /// only it held.
    pub(crate) async fn of(group: &Group, state: &GroupState) -> Result<Self, ReplicateError> {
        let (mut manifests, mut good) = (Vec::new(), 0);
        let live = state.points.iter().rev().filter(|p| !p.expired && !p.superseded);
        let mut damaged = BTreeSet::new();
        for (age, point) in live.enumerate() {
            if good == DEPTH {
                break;
            }
            if point.damaged.is_empty() {
                good += 1;
            } else if age < DEPTH && point.damage_is_known {
                damaged.insert(point.id());
            } else {
                continue;
            }
            match Manifest::read(&group.store, &group.policy.group, point.id(), &point.said.manifest).await {
                Ok(manifest) if manifest.site == group.config.site => manifests.push(manifest),
                Ok(_) => {}
                Err(farsite_store::StoreError::Damaged(damage)) => {
                    for one in damage {
                        tracing::error!(group = %group.policy.group, point = %point.id(), "damaged at the store: {one}");
                    }
                }
                Err(other) => return Err(other.into()),
            }
        }
        let (damaged_packs, damage_told) = (state.damaged_packs(), state.damage_told);
        Ok(Self { manifests, epoch: Some(state.epoch()), damaged, damaged_packs, damage_told })
    }

    /// Without the points that are not among these: a run that goes on builds on what its pin holds and on nothing else, or
    /// collection could remove under it what it refers to.
    pub(crate) fn only(mut self, pinned: &[PointId]) -> Self {
        self.manifests.retain(|manifest| pinned.contains(&manifest.point));
        self
    }

    pub(crate) fn points(&self) -> Vec<PointId> {
        self.manifests.iter().map(|m| m.point).collect()
    }

    /// Those of undamaged points: what a new point takes over without reading it again comes from these alone.
    pub(crate) fn sound(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.iter().filter(|m| !self.damaged.contains(&m.point))
    }

    /// The newest undamaged point of this epoch: what a failed capture is carried from. What another site's epoch lies after
    /// may be older than what users have seen since.
    pub(crate) fn newest(&self) -> Option<&Manifest> {
        self.sound().find(|m| Some(m.epoch) == self.epoch)
    }

    /// The newest undamaged point of any epoch that counts: what is listed now is compared with it. A folder that is not mounted
    /// after a promotion was given back is as empty as any other.
    pub(crate) fn before(&self) -> Option<&Manifest> {
        self.sound().next()
    }

    /// How many blocks of an item held data when a map was written, where that was counted.
    pub(crate) fn data_blocks(&self, item: &ItemId, map: &farsite_store::map::MapRoot) -> Option<u64> {
        let items = self.manifests.iter().filter_map(|m| m.item(item));
        items.filter(|i| i.data == *map).find_map(|i| Some(i.signals?.data_blocks))
    }

    /// The local map of an item, if a pinned point holds what it describes. `of` names the part of the item.
    pub(crate) fn local_map(
        &self,
        group: &Group,
        id: &ItemId,
        of: impl Fn(&ManifestItem) -> Option<&farsite_store::map::MapRoot>,
        item: &ItemId,
    ) -> Option<LocalMap> {
        let map = match LocalMap::open(&group.maps(), id) {
            Ok(map) => map?,
            Err(error) => {
                tracing::warn!(item = %id, "its local block map cannot be read ({error}): it is sent in full");
                return None;
            }
        };
        let held = self.manifests.iter().any(|m| m.item(item).and_then(&of) == Some(map.map()));
        let map = if held { map.without(&self.damaged_packs, self.damage_told) } else { return None };
        map.inspect_err(|error| {
            tracing::warn!(item = %id, "its local block map cannot be read ({error}): it is sent in full");
        })
        .ok()
    }
}
