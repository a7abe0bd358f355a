//! The fold: entries in, state out. Pure; an entry that its signer may not say, or that comes too late, keeps its
//! number and has no effect.

use std::collections::{BTreeMap, BTreeSet};

use farsite_model::{Epoch, GroupName, PointId, PromotionId, RunId, SiteName, StoreTime};
use jiff::SignedDuration;

use super::{AcceptedLog, Committed, Refusal, Statement};
use crate::Damage;
use crate::chain::{Entry, Void};
use crate::keys::{self, KeyId, KeyRole, Role};
use crate::pack::PackId;

/// A recovery point.
#[derive(Debug, Clone, PartialEq)]
pub struct CommittedPoint {
    pub said: Committed,
    /// Ledger number of its entry.
    pub number: u64,
    /// The store's time when its entry was written.
    pub committed: StoreTime,
    pub by: String,
    pub proven: Option<String>,
    pub held: bool,
    pub expired: bool,
    /// Objects that a reader found damaged.
    pub damaged: Vec<String>,
    /// Packs of which something cannot be read.
    pub damaged_packs: BTreeSet<PackId>,
    /// Whoever said so last had looked into all packs, so these are all.
    pub damage_is_known: bool,
    /// Committed under an epoch that has ended since; the end of one whose promotion was given back counts as none.
    pub superseded: bool,
}

/// Why a point is not the silent default of a failover.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum PointFlaw {
    Partial,
    Damaged(Vec<String>),
    Suspicious(Vec<String>),
    Expired,
}
impl std::fmt::Display for PointFlaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Partial => f.write_str("partial: an item is of an earlier run"),
            Self::Damaged(objects) => write!(f, "damaged: {}", objects.join(", ")),
            Self::Suspicious(signals) => write!(f, "suspicious: {}", signals.join(", ")),
            Self::Expired => f.write_str("expired"),
        }
    }
}

impl CommittedPoint {
    pub fn id(&self) -> PointId {
        self.said.point
    }

    pub fn flaws(&self) -> Vec<PointFlaw> {
        let mut flaws = Vec::new();
        if !self.said.whole {
            flaws.push(PointFlaw::Partial);
        }
        if !self.damaged.is_empty() {
            flaws.push(PointFlaw::Damaged(self.damaged.clone()));
        }
        if !self.said.suspicious.is_empty() {
            flaws.push(PointFlaw::Suspicious(self.said.suspicious.clone()));
        }
        if self.expired {
            flaws.push(PointFlaw::Expired);
        }
        flaws
    }

    /// The age of its oldest item at `now`, at worst. Whatever its agent says: nothing was captured after the store
    /// wrote the entry.
    pub fn exposure(&self, now: StoreTime) -> SignedDuration {
        now.since(self.stands_for())
    }

    /// Earliest moment, in store time, that its oldest item can stand for.
    pub fn stands_for(&self) -> StoreTime {
        self.said
            .by_kind
            .values()
            .map(farsite_model::rpo::CaptureStamp::earliest_in_store_time)
            .min()
            .map_or(self.committed, |earliest| earliest.min(self.committed))
    }
}

/// How an epoch began.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochStart {
    pub epoch: Epoch,
    pub primary: SiteName,
    pub promotion: Option<PromotionId>,
    pub point: Option<PointId>,
    pub logs: Vec<AcceptedLog>,
    pub who: String,
    pub begun: StoreTime,
    pub promoted: bool,
    pub accepted: bool,
}

/// Everything a group's ledger says.
#[derive(Debug, Clone)]
pub struct GroupState {
    pub group: GroupName,
    /// In order; the last one is current. Empty: no entry yet.
    pub epochs: Vec<EpochStart>,
    /// In order of commit, of all epochs.
    pub points: Vec<CommittedPoint>,
    /// Points that the current epoch's beginning has superseded.
    ended_last: BTreeSet<PointId>,
    pub pins: BTreeMap<RunId, Vec<PointId>>,
    /// The store's time when each of them was begun.
    pub(super) pinned_at: BTreeMap<RunId, StoreTime>,
    voided_pins: BTreeSet<RunId>,
    /// Collection has begun at least once: packs of runs without a living pin may be gone.
    collected: bool,
    /// Packs that compaction has emptied, and where their blobs are now.
    pub remapped: BTreeMap<PackId, Vec<PackId>>,
    /// Keys that say nothing more here, and the number of the entry from which on.
    pub retired: BTreeMap<KeyId, u64>,
    /// Of those, the ones that stay beside the new ones.
    pub(super) kept_packs: BTreeSet<PackId>,
    /// Compactions whose entry has its effect.
    pub(super) moved_by: BTreeSet<RunId>,
    /// Pins of compactions: of a standby role, on no point.
    pub(super) compacting: BTreeSet<RunId>,
    /// Pins of readers: of a standby role, on the points that they read.
    pub(super) reading: BTreeSet<RunId>,
    /// Entries without effect: number and why.
    pub void: Vec<(u64, String)>,
    /// Entries whose bytes are not what was written.
    pub damage: Vec<Damage>,
    pub newest: Option<StoreTime>,
    /// The number of the last entry that said that a point is damaged.
    pub damage_told: u64,
    /// Behind damage, an agent committed under an epoch whose beginning was not read: the damaged entry may have begun
    /// it. What is known here may be of before a failover, so nothing is chosen by default.
    pub epoch_in_doubt: bool,
}

impl GroupState {
    pub fn new(group: GroupName) -> Self {
        Self {
            group,
            epochs: Vec::new(),
            ended_last: BTreeSet::new(),
            points: Vec::new(),
            pins: BTreeMap::new(),
            pinned_at: BTreeMap::new(),
            voided_pins: BTreeSet::new(),
            collected: false,
            remapped: BTreeMap::new(),
            retired: BTreeMap::new(),
            kept_packs: BTreeSet::new(),
            moved_by: BTreeSet::new(),
            compacting: BTreeSet::new(),
            reading: BTreeSet::new(),
            void: Vec::new(),
            damage: Vec::new(),
            newest: None,
            damage_told: 0,
            epoch_in_doubt: false,
        }
    }

    pub fn current(&self) -> Option<&EpochStart> {
        self.epochs.last()
    }
    pub fn epoch(&self) -> Epoch {
        self.current().map_or(Epoch(0), |e| e.epoch)
    }
    pub fn primary(&self) -> Option<&SiteName> {
        self.current().map(|e| &e.primary)
    }
    /// From the first `gc-begun` on, no run without a living pin can commit.
    pub fn has_been_collected(&self) -> bool {
        self.collected
    }
    pub fn point(&self, id: PointId) -> Option<&CommittedPoint> {
        self.points.iter().find(|p| p.id() == id)
    }

    /// Packs of which something cannot be read, by what is said of any point: nothing new may refer to them.
    pub fn damaged_packs(&self) -> BTreeSet<PackId> {
        self.points.iter().flat_map(|point| &point.damaged_packs).copied().collect()
    }

    /// Points that a failover may take by itself, newest first: whole, undamaged, not suspicious, of the current epoch.
    pub fn default_points(&self) -> impl Iterator<Item = &CommittedPoint> {
        let sure = !self.epoch_in_doubt;
        self.points.iter().rev().filter(move |p| sure && p.flaws().is_empty() && !p.superseded)
    }

    /// What a failover would choose by default now.
    pub fn default_point(&self) -> Option<&CommittedPoint> {
        self.default_points().next()
    }

    /// Checks a statement against the state before it: the same rules for writers and for the fold.
    pub fn may_say(&self, statement: &Statement, by: &KeyRole) -> Result<(), Refusal> {
        let role = |needed: &str| Refusal::Role {
            what: statement.name(),
            role: format!("{} {}; needs {needed}", by.role, by.name),
        };
        if let Some(number) = self.retired.get(&keys::key_id(&by.key)) {
            let role = format!("{} {}, whose key was retired by entry {number}", by.role, by.name);
            return Err(Refusal::Role { what: statement.name(), role });
        }
        match statement {
            Statement::GroupFounded { group, primary } => {
                if *group != self.group || !self.epochs.is_empty() {
                    return Err(Refusal::Other(format!("group {} exists already", self.group)));
                }
                if by.role == Role::Operator
                    || (by.role == Role::SourceAgent && by.site.as_ref() == Some(primary))
                {
                    Ok(())
                } else {
                    Err(role("the primary site's agent or an operator"))
                }
            }
            // A compaction pins as well: its new packs must stay until its entry is written. A reader pins what it reads.
            Statement::PinBegun { .. } if by.role != Role::SourceAgent => Ok(()),
            Statement::PinEnded { run } => {
                if by.role == Role::SourceAgent {
                    return Err(role("a standby agent or an operator"));
                }
                if self.reading.contains(run) || self.compacting.contains(run) {
                    Ok(())
                } else {
                    Err(Refusal::Other(format!("{run} is no reader and no compaction that has a pin")))
                }
            }
            Statement::PinBegun { .. } => {
                self.source_agent(by).map_err(|()| role("the primary site's source agent"))
            }
            Statement::PointCommitted(committed) => {
                let Some(current) = self.current() else {
                    return Err(Refusal::Other("no group was founded".into()));
                };
                if committed.epoch != current.epoch {
                    return Err(Refusal::Fenced {
                        group: self.group.clone(),
                        mine: committed.epoch,
                        current: current.epoch,
                        primary: current.primary.clone(),
                        begun: current.begun,
                    });
                }
                self.source_agent(by).map_err(|()| role("the primary site's source agent"))?;
                if self.point(committed.point).is_some() {
                    return Err(Refusal::Other(format!("point {} is committed already", committed.point)));
                }
                let lost = self.collected && !self.pins.contains_key(&committed.run);
                if lost || self.voided_pins.contains(&committed.run) {
                    return Err(Refusal::PinReleased { run: committed.run });
                }
                Ok(())
            }
            Statement::EpochBegun { epoch, point, .. } => {
                if by.role != Role::Operator {
                    return Err(role("an operator"));
                }
                // Behind damage a later epoch is believed as well: the one between may have been begun by a damaged entry.
                let follows =
                    *epoch == self.epoch().next() || (*epoch > self.epoch() && !self.damage.is_empty());
                if self.epochs.is_empty() || !follows {
                    return Err(Refusal::Other(format!(
                        "epoch {epoch} does not follow epoch {}: another promotion came first",
                        self.epoch()
                    )));
                }
                if let Some(point) = point {
                    self.kept(*point)?;
                }
                Ok(())
            }
            Statement::PointRechosen { point, promotion, .. } => {
                if by.role != Role::Operator {
                    return Err(role("an operator"));
                }
                self.kept(*point)?;
                self.is_current(*promotion)
            }
            Statement::Promoted { promotion } | Statement::PromotionAccepted { promotion, .. } => {
                if by.role != Role::Operator {
                    return Err(role("an operator"));
                }
                self.is_current(*promotion)
            }
            Statement::PointProven { point, .. }
            | Statement::PointDamaged { point, .. }
            | Statement::PointMended { point, .. }
            | Statement::PointExpired { point } => {
                if by.role == Role::SourceAgent {
                    return Err(role("a standby agent or an operator"));
                }
                self.known(*point)
            }
            Statement::Hold { point, .. } => {
                if by.role != Role::Operator {
                    return Err(role("an operator"));
                }
                self.kept(*point)
            }
            Statement::Release { point, .. } => {
                if by.role != Role::Operator {
                    return Err(role("an operator"));
                }
                self.known(*point)
            }
            Statement::GcBegun { .. } => {
                if by.role == Role::SourceAgent {
                    return Err(role("a standby agent or an operator"));
                }
                Ok(())
            }
            Statement::PointRemapped { run, from, to, into, .. } => {
                if by.role == Role::SourceAgent {
                    return Err(role("a standby agent or an operator"));
                }
                if !self.pins.contains_key(run) {
                    return Err(Refusal::PinReleased { run: *run });
                }
                // Where blobs are now must be a pack, and not again a pack that was emptied.
                if to.iter().any(|pack| self.remapped.contains_key(pack) || from.contains(pack)) {
                    return Err(Refusal::Other(
                        "the packs that it names have been compacted themselves".into(),
                    ));
                }
                let fits = into.is_empty() && !to.is_empty()
                    || into.len() == from.len()
                        && into.iter().all(|these| {
                            !these.is_empty() && these.iter().all(|number| (*number as usize) < to.len())
                        });
                if !fits {
                    return Err(Refusal::Other(
                        "it does not say where the blobs of every pack are now".into(),
                    ));
                }
                Ok(())
            }
            Statement::SignerRetired { .. } | Statement::AuthorityMoved { .. } => {
                if by.role == Role::Operator { Ok(()) } else { Err(role("an operator")) }
            }
        }
    }

    fn source_agent(&self, by: &KeyRole) -> Result<(), ()> {
        let of_primary =
            by.role == Role::SourceAgent && by.site.is_some() && by.site.as_ref() == self.primary();
        if of_primary { Ok(()) } else { Err(()) }
    }

    fn known(&self, point: PointId) -> Result<(), Refusal> {
        match self.point(point) {
            Some(_) => Ok(()),
            None => Err(Refusal::UnknownPoint { group: self.group.clone(), point }),
        }
    }

    /// Collection may be deleting the data of an expired point: nobody can keep it or go back to it any more.
    fn kept(&self, point: PointId) -> Result<(), Refusal> {
        self.known(point)?;
        if self.point(point).is_some_and(|point| point.expired) {
            return Err(Refusal::Other(format!(
                "point {point} of {} has expired, its data may be gone\n  hint: choose another one, see `farsite points list {}`",
                self.group, self.group
            )));
        }
        Ok(())
    }

    fn is_current(&self, promotion: PromotionId) -> Result<(), Refusal> {
        if self.current().and_then(|e| e.promotion) == Some(promotion) {
            Ok(())
        } else {
            Err(Refusal::Other(format!(
                "promotion {promotion} did not begin the current epoch {}",
                self.epoch()
            )))
        }
    }

    /// Agents write nothing behind damage.
    pub fn refuse_damage(&self) -> Result<(), Refusal> {
        if self.damage.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Damaged { group: self.group.clone(), damage: self.damage.clone() })
        }
    }

    /// Folds in the next entry.
    pub fn apply(&mut self, entry: &Entry<Statement>) {
        self.newest = self.newest.max(Some(entry.written));
        if !entry.follows {
            let before = entry.number.saturating_sub(1);
            self.damage_at(
                before,
                "the entry behind it was written after another one: one of the two was replaced",
            );
        }
        let (envelope, by) = match &entry.said {
            Ok(said) => said,
            Err(void) => {
                // What a newer program wrote is no damage, but who cannot read it must write nothing behind it.
                if let Void::Unreadable(why) | Void::Unknown(why) = void {
                    self.damage_at(entry.number, why);
                }
                self.void.push((entry.number, void.to_string()));
                return;
            }
        };
        if let Err(refusal) = self.may_say(&envelope.says, by) {
            if let Refusal::Fenced { mine, current, .. } = &refusal
                && mine > current
                && by.role == Role::SourceAgent
                && !self.damage.is_empty()
            {
                self.epoch_in_doubt = true;
            }
            self.void.push((entry.number, refusal.to_string()));
            return;
        }
        let by_standby = by.role != Role::SourceAgent;
        let by = crate::keys::describe(by);
        match envelope.says.clone() {
            Statement::GroupFounded { primary, .. } => self.epochs.push(EpochStart {
                epoch: Epoch::FIRST,
                primary,
                promotion: None,
                point: None,
                logs: Vec::new(),
                who: by,
                begun: entry.written,
                promoted: true,
                accepted: true,
            }),
            Statement::PinBegun { run, points } => {
                let points_none = points.is_empty();
                let lives = points.iter().all(|p| self.point(*p).is_some_and(|p| !p.expired));
                if lives && !self.voided_pins.contains(&run) {
                    // What a run has pinned before stays pinned.
                    let pinned = self.pins.entry(run).or_default();
                    pinned.extend(
                        points.iter().filter(|point| !pinned.contains(point)).copied().collect::<Vec<_>>(),
                    );
                    self.pinned_at.insert(run, entry.written);
                    if by_standby {
                        let these = if points_none { &mut self.compacting } else { &mut self.reading };
                        these.insert(run);
                    }
                } else {
                    self.voided_pins.insert(run);
                }
            }
            Statement::PinEnded { run } => self.unpin(run),
            Statement::PointCommitted(said) => {
                self.unpin(said.run);
                self.points.push(CommittedPoint {
                    said,
                    number: entry.number,
                    committed: entry.written,
                    by,
                    proven: None,
                    held: false,
                    expired: false,
                    damaged: Vec::new(),
                    damaged_packs: BTreeSet::new(),
                    damage_is_known: false,
                    superseded: false,
                });
            }
            Statement::EpochBegun { epoch, primary, promotion, point, logs, who, .. } => {
                // A promotion that is given back leaves the site what it was, and its points with it.
                let given_back = match &self.epochs[..] {
                    [.., before, now] => {
                        now.promotion == Some(promotion) && !now.accepted && before.primary == primary
                    }
                    _ => false,
                };
                let returned =
                    if given_back { std::mem::take(&mut self.ended_last) } else { BTreeSet::new() };
                self.ended_last.clear();
                for point in &mut self.points {
                    if returned.contains(&point.id()) {
                        point.superseded = false;
                    } else if !point.superseded {
                        point.superseded = true;
                        self.ended_last.insert(point.id());
                    }
                }
                self.pins.clear();
                self.pinned_at.clear();
                self.compacting.clear();
                self.reading.clear();
                self.epoch_in_doubt = false;
                self.epochs.push(EpochStart {
                    epoch,
                    primary,
                    promotion: Some(promotion),
                    point,
                    logs,
                    who,
                    begun: entry.written,
                    promoted: false,
                    accepted: false,
                });
            }
            Statement::PointRechosen { point, .. } => {
                if let Some(current) = self.epochs.last_mut() {
                    current.point = Some(point);
                }
            }
            Statement::Promoted { .. } => {
                if let Some(current) = self.epochs.last_mut() {
                    current.promoted = true;
                }
            }
            Statement::PromotionAccepted { .. } => {
                if let Some(current) = self.epochs.last_mut() {
                    current.accepted = true;
                }
            }
            Statement::PointProven { point, how } => self.with(point, |p| p.proven = Some(how)),
            Statement::PointDamaged { point, objects, packs } => {
                self.damage_told = entry.number;
                self.with(point, |p| {
                    p.damage_is_known = !packs.is_empty();
                    p.damaged = objects;
                    p.damaged_packs.extend(packs);
                });
            }
            Statement::PointMended { point, .. } => self.with(point, |p| {
                p.damaged.clear();
                p.damaged_packs.clear();
            }),
            Statement::PointExpired { point } => self.expire(&[point]),
            Statement::Hold { point, .. } => self.with(point, |p| p.held = true),
            Statement::Release { point, .. } => self.with(point, |p| p.held = false),
            Statement::GcBegun { released, runs } => {
                self.collected = true;
                self.expire(&released);
                for run in runs {
                    self.unpin(run);
                    self.voided_pins.insert(run);
                }
            }
            Statement::PointRemapped { run, from, to, into, kept, .. } => {
                self.unpin(run);
                self.moved_by.insert(run);
                for (number, pack) in from.into_iter().enumerate() {
                    let to = into.get(number).map_or_else(
                        || to.clone(),
                        |these| these.iter().filter_map(|n| to.get(*n as usize)).copied().collect(),
                    );
                    self.remapped.insert(pack, to);
                    if kept.contains(&pack) {
                        self.kept_packs.insert(pack);
                    } else {
                        self.kept_packs.remove(&pack);
                    }
                }
            }
            Statement::SignerRetired { key, .. } => {
                self.retired.entry(key).or_insert(entry.number);
            }
            // Which store leads is a question for readers, not for this state.
            Statement::AuthorityMoved { .. } => {}
        }
    }

    fn damage_at(&mut self, number: u64, why: &str) {
        let object = format!("ledger/{}/{number:016}", self.group);
        if self.damage.iter().all(|d| d.object != object) {
            self.damage.push(Damage::new(object, why));
        }
    }

    fn with(&mut self, point: PointId, change: impl FnOnce(&mut CommittedPoint)) {
        if let Some(point) = self.points.iter_mut().find(|p| p.id() == point) {
            change(point);
        }
    }

    /// Never expired, whoever says so: a held point, the last whole one, the last one without a flaw (the last whole one
    /// may be damaged), and what a promotion that is not accepted yet restores.
    pub(super) fn expire(&mut self, points: &[PointId]) {
        for id in points {
            let last = |good: fn(&CommittedPoint) -> bool| {
                self.points.iter().rev().find(|p| !p.expired && good(p)).map(CommittedPoint::id)
            };
            let restored = self.current().filter(|epoch| !epoch.accepted).and_then(|epoch| epoch.point);
            let needed = [last(|p| p.said.whole), last(|p| p.flaws().is_empty()), restored];
            if needed.contains(&Some(*id)) {
                continue;
            }
            self.with(*id, |p| p.expired = p.expired || !p.held);
        }
        let gone: BTreeSet<PointId> =
            self.points.iter().filter(|p| p.expired).map(CommittedPoint::id).collect();
        let voided: Vec<RunId> = self
            .pins
            .iter()
            .filter(|(_, pinned)| pinned.iter().any(|p| gone.contains(p)))
            .map(|(run, _)| *run)
            .collect();
        for run in voided {
            self.unpin(run);
            self.voided_pins.insert(run);
        }
    }

    fn unpin(&mut self, run: RunId) {
        self.pins.remove(&run);
        self.pinned_at.remove(&run);
        self.compacting.remove(&run);
        self.reading.remove(&run);
    }
}
