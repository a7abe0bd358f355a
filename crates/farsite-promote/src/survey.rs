//! A group's ledger, read and looked at before a choice: points whose manifest cannot be read are found out here, so that
//! the newest undamaged one is offered.

use std::collections::BTreeMap;
use std::sync::Arc;

use farsite_model::{GroupName, PointId, SiteName, StoreTime};
use farsite_store::StoreError;
use farsite_store::keys::Signer;
use farsite_store::ledger::{AcceptedLog, CommittedPoint, GroupState, Ledger, Statement};
use farsite_store::logs;
use farsite_store::manifest::Manifest;

use crate::{PromoteError, Standby};

/// Manifests looked at beyond the first good one are those that a person may name; they are read when named.
const LOOKED_AT: usize = 64;

pub(crate) struct Survey {
    pub ledger: Ledger,
    /// Points that the ledger does not know to be damaged yet.
    pub damaged: BTreeMap<PointId, Vec<String>>,
    pub now: StoreTime,
}

impl Survey {
    /// Reads the ledger, and manifests from the newest default point on until one is good. With a signer, damage that
    /// is found is written into the ledger.
    pub async fn of(
        standby: &Standby,
        group: &GroupName,
        signer: Option<&Arc<Signer>>,
    ) -> Result<Self, PromoteError> {
        let ledger = Ledger::open(&standby.store, group).await?;
        let now = standby.store.now().await?;
        let mut survey = Self { ledger, damaged: BTreeMap::new(), now };
        for _ in 0..LOOKED_AT {
            let state = survey.state();
            let Some(point) = state.default_point().cloned() else { break };
            match read_manifest(standby, group, &point).await {
                Ok(_) => break,
                Err(PromoteError::Store(StoreError::Damaged(damage))) => {
                    let objects: Vec<String> = damage.into_iter().map(|d| d.object).collect();
                    tracing::warn!(%group, point = %point.id(), "the point is damaged: {}", objects.join(", "));
                    survey.damaged.insert(point.id(), objects.clone());
                    if let Some(signer) = signer {
                        let id = point.id();
                        survey
                            .ledger
                            .append(signer, |_| {
                                let objects = objects.clone();
                                Ok(Statement::PointDamaged { point: id, objects, packs: Vec::new() })
                            })
                            .await?;
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Ok(survey)
    }

    /// The ledger's state with what was found added to it.
    pub fn state(&self) -> GroupState {
        marked(self.ledger.state(), &self.damaged)
    }

    pub fn point(&self, id: PointId) -> Result<CommittedPoint, PromoteError> {
        self.ledger.state().point(id).cloned().ok_or_else(|| {
            PromoteError::Failed(format!("point {id} is not in the ledger of {}", self.ledger.group()))
        })
    }

    pub async fn manifest(&self, standby: &Standby, id: PointId) -> Result<Manifest, PromoteError> {
        read_manifest(standby, self.ledger.group(), &self.point(id)?).await
    }
}

/// The state with damage that its ledger does not name yet.
pub(crate) fn marked(state: &GroupState, damaged: &BTreeMap<PointId, Vec<String>>) -> GroupState {
    let mut state = state.clone();
    for point in &mut state.points {
        if let Some(objects) = damaged.get(&point.id())
            && point.damaged.is_empty()
        {
            point.damaged.clone_from(objects);
        }
    }
    state
}

/// How far the logs that continue a point are unbroken now: what an epoch accepts.
pub(crate) async fn accepted_logs(
    standby: &Standby,
    group: &GroupName,
    point: &CommittedPoint,
    primary: &SiteName,
) -> Result<Vec<AcceptedLog>, PromoteError> {
    let mut accepted = Vec::new();
    for timeline in &point.said.timelines {
        let segments = logs::list_of_site(&standby.store, group, timeline, None, primary).await?;
        accepted.push(AcceptedLog {
            timeline: *timeline,
            last_sequence: segments.last().map(|segment| segment.sequence),
        });
    }
    Ok(accepted)
}

/// Reads a committed point's manifest, checked against the hash that the ledger names.
pub(crate) async fn read_manifest(
    standby: &Standby,
    group: &GroupName,
    point: &CommittedPoint,
) -> Result<Manifest, PromoteError> {
    Ok(Manifest::read(&standby.store, group, point.id(), &point.said.manifest).await?)
}
