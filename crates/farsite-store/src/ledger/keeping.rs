//! What collection asks a group's state: what retention has to know of each point, which points would really go, and
//! which runs were given up. Pure: state in, answers out.

use std::collections::{BTreeMap, BTreeSet};

use farsite_model::retention::PointFacts;
use farsite_model::{PointId, RunId, StoreTime};
use jiff::SignedDuration;

use super::{CommittedPoint, GroupState};
use crate::pack::PackId;

/// How long a pin may be old before its run is given up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longer than the longest first copy.
    pub runs: SignedDuration,
    /// One round of a compaction reads and writes some hundred MiB.
    pub compactions: SignedDuration,
    /// A reader begins its pin again every day.
    pub readers: SignedDuration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            runs: SignedDuration::from_hours(24 * 30),
            compactions: SignedDuration::from_hours(6),
            readers: SignedDuration::from_hours(24 * 3),
        }
    }
}

impl GroupState {
    /// Points whose data must be there, in order of commit.
    pub fn live_points(&self) -> impl Iterator<Item = &CommittedPoint> {
        self.points.iter().filter(|point| !point.expired)
    }

    /// Every live point as retention judges it, in order of commit.
    pub fn facts(&self) -> Vec<PointFacts> {
        let pinned: BTreeSet<PointId> = self.pins.values().flatten().copied().collect();
        let promoted = self.current().filter(|epoch| !epoch.accepted).and_then(|epoch| epoch.point);
        let facts = |point: &CommittedPoint| PointFacts {
            id: point.id(),
            committed: point.committed,
            whole: point.said.whole,
            damaged: !point.damaged.is_empty(),
            flawless: point.flaws().is_empty(),
            proven: point.proven.is_some(),
            held: point.held,
            pinned: pinned.contains(&point.id()),
            promoted: promoted == Some(point.id()),
        };
        self.live_points().map(facts).collect()
    }

    /// Which of these points would expire if somebody said so now: what the fold protects does not.
    pub fn would_expire(&self, points: &[PointId]) -> Vec<PointId> {
        let after = self.expired(points);
        let gone = |id: &PointId| after.point(*id).is_some_and(|point| point.expired);
        self.live_points().map(CommittedPoint::id).filter(gone).collect()
    }

    /// The state as it would be without these points.
    pub fn expired(&self, points: &[PointId]) -> GroupState {
        let mut after = self.clone();
        after.expire(points);
        after
    }

    /// The state as it would be behind a `gc-begun` of these points and runs.
    pub(crate) fn collected_as(&self, points: &[PointId], runs: &[RunId]) -> GroupState {
        let mut after = self.expired(points);
        for run in runs {
            after.pins.remove(run);
        }
        after
    }

    /// Runs whose pins are too old: whoever made them is gone, or stuck. A run without a pin cannot commit, and a reader may
    /// find something missing and says so; so a clock may decide this.
    pub fn abandoned(&self, now: StoreTime, patience: &Patience) -> Vec<RunId> {
        let given_up = |run: &RunId, begun: StoreTime| {
            let patience = if self.compacting.contains(run) {
                patience.compactions.min(patience.runs)
            } else if self.reading.contains(run) {
                patience.readers.min(patience.runs)
            } else {
                patience.runs
            };
            now.since(begun) > patience
        };
        self.pinned_at.iter().filter(|(run, begun)| given_up(run, **begun)).map(|(run, _)| *run).collect()
    }

    /// Whether this run was a compaction, and its packs are where blobs are now.
    pub(crate) fn has_moved(&self, run: RunId) -> bool {
        self.moved_by.contains(&run)
    }

    /// How many compactions have had their effect: grows whenever `remapped` changes.
    pub(crate) fn moves(&self) -> usize {
        self.moved_by.len()
    }

    /// Something in this pack could not be moved: it stays beside where the rest is now.
    pub(crate) fn stays(&self, pack: PackId) -> bool {
        self.kept_packs.contains(&pack)
    }

    /// Packs that were emptied into any of these.
    pub(crate) fn emptied_into(&self, packs: &BTreeSet<PackId>) -> Vec<PackId> {
        let went = |pack: &PackId| self.now_in(*pack).iter().any(|home| packs.contains(home));
        if packs.is_empty() { Vec::new() } else { self.remapped.keys().copied().filter(went).collect() }
    }

    /// Where the blobs of a pack are now, through all compactions: the pack itself when it was never emptied.
    pub fn now_in(&self, pack: PackId) -> Vec<PackId> {
        resolve(&self.remapped, &self.kept_packs, pack)
    }
}

/// Follows emptied packs to those that hold their blobs now; last come those on the way that stay beside where the rest
/// went. Every `to` was a pack of its own when its entry was written, so this ends; a set guards against entries that say
/// otherwise.
pub(crate) fn resolve(
    remapped: &BTreeMap<PackId, Vec<PackId>>,
    kept: &BTreeSet<PackId>,
    pack: PackId,
) -> Vec<PackId> {
    let mut seen = BTreeSet::new();
    let mut open = vec![pack];
    let (mut found, mut stay) = (Vec::new(), Vec::new());
    while let Some(next) = open.pop() {
        if !seen.insert(next) {
            continue;
        }
        match remapped.get(&next) {
            Some(to) => {
                open.extend(to.iter().copied());
                if next != pack && kept.contains(&next) {
                    stay.push(next);
                }
            }
            None => found.push(next),
        }
    }
    found.extend(stay);
    found
}
