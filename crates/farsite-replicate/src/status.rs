//! What a replica store says about its groups, for `farsite status`, the dashboard and metrics. Ledgers come in, one
//! [`GroupStatus`] per group goes out; every figure errs to the worse side.

use std::collections::BTreeMap;

use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::status::{GroupStatus, Phase, PointStatus};
use farsite_model::{Epoch, GroupName, SiteName, StoreTime};
use farsite_store::ledger::{self, CommittedPoint, EpochStart, GroupState, Ledger};
use farsite_store::{Store, StoreError, logs};
use jiff::SignedDuration;

use crate::record::Record;
use crate::throttle::shortfall;
use crate::{ReplicateError, connect, hosts};

/// An old primary that still writes this long after its epoch ended was not merely finishing.
const LATE: SignedDuration = SignedDuration::from_secs(5);
/// What a point ships as a rule is told by so many of them.
const USUAL_POINTS: usize = 9;
/// So long a person is told of a suspicious point that others came after.
const SUSPICION: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Writing that stopped this long ago suspects nobody any more.
const STALE: SignedDuration = SignedDuration::from_secs(3600);

/// Reads one store's groups again and again; what was read stays, so that the next look is cheap.
pub struct StatusReader {
    to: SiteName,
    store: Store,
    /// Where this host is, if that is known.
    site: Option<SiteName>,
    /// Of this host, where it replicates something itself.
    record: Option<Record>,
    ledgers: BTreeMap<GroupName, Ledger>,
}

impl StatusReader {
    pub async fn open(config: &Config, to: &SiteName) -> Result<Self, ReplicateError> {
        let record = Record::open_existing(&config.state_dir());
        Ok(Self {
            record,
            site: Some(config.site.clone()),
            ..Self::of(connect::store(config, to).await?, to)
        })
    }
    pub fn of(store: Store, to: &SiteName) -> Self {
        Self { to: to.clone(), store, site: None, record: None, ledgers: BTreeMap::new() }
    }
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All groups of the store, and those of `policies` that have no point there yet.
    pub async fn read(&mut self, policies: &[Policy]) -> Result<Vec<GroupStatus>, ReplicateError> {
        let now = self.store.now().await?;
        let mut found = Vec::new();
        for group in ledger::groups(&self.store).await? {
            if let Some(ledger) = self.ledgers.get_mut(&group) {
                match ledger.refresh().await {
                    Ok(()) => {}
                    Err(StoreError::Damaged(damage)) => {
                        let policy = policies.iter().find(|p| p.group == group);
                        let words = damage.iter().map(ToString::to_string).collect();
                        found.push(unreadable(&group, &self.to, policy, ledger.state(), words));
                        continue;
                    }
                    Err(other) => return Err(other.into()),
                }
            } else {
                match Ledger::open(&self.store, &group).await {
                    Ok(ledger) => {
                        self.ledgers.insert(group.clone(), ledger);
                    }
                    Err(StoreError::Damaged(damage)) => {
                        let policy = policies.iter().find(|p| p.group == group);
                        let words = damage.iter().map(ToString::to_string).collect();
                        let empty = GroupState::new(group.clone());
                        found.push(unreadable(&group, &self.to, policy, &empty, words));
                        continue;
                    }
                    Err(other) => return Err(other.into()),
                }
            }
            let policy = policies.iter().find(|p| p.group == group);
            let state = self.ledgers[&group].state();
            found.push(of_group(&self.store, &self.to, state, policy, now).await?);
        }
        for policy in policies.iter().filter(|p| p.to.contains(&self.to)) {
            if found.iter().all(|status| status.group != policy.group) {
                found.push(unborn(policy, &self.to));
            }
        }
        for status in &mut found {
            let record = self.record.as_ref();
            let kept = record.and_then(|record| record.kept(status.group.as_str()).ok());
            status.kept = kept.flatten();
            // A site's other hosts than the coordinator look here as well.
            let ours =
                policies.iter().find(|p| p.group == status.group && self.site.as_ref() == Some(&p.site));
            status.warnings.extend(ours.and_then(hosts::not_ours));
        }
        found.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(found)
    }
}

/// One group, out of the fold over its ledger.
pub async fn of_group(
    store: &Store,
    to: &SiteName,
    state: &GroupState,
    policy: Option<&Policy>,
    now: StoreTime,
) -> Result<GroupStatus, ReplicateError> {
    let live: Vec<&CommittedPoint> = state.points.iter().filter(|p| !p.expired).collect();
    let newest = live.iter().rev().find(|p| !p.superseded).or(live.last()).copied();
    let default = state.default_point();
    let exposure = default.map(|p| p.exposure(now).as_secs_f64());
    let target = policy.map(|p| p.rpo.duration().as_secs_f64());
    let mut warnings: Vec<String> =
        state.damage.iter().map(|d| format!("damaged at the store: {d}")).collect();
    if let Some(newest) = newest {
        warnings.extend(newest.flaws().iter().map(|flaw| format!("the newest point is {flaw}")));
        if newest.said.by_kind.values().any(|stamp| stamp.clamped) {
            warnings.push(
                "the source's clock was ahead of the store's: capture times were taken back to the store's"
                    .into(),
            );
        }
    }
    warnings.extend(earlier_suspicion(&live, newest, now));
    if let Some(policy) = policy.filter(|p| state.primary() == Some(&p.site)) {
        // The first one is the whole group.
        let newest = live.iter().skip(1).rev().take(USUAL_POINTS);
        let shipped = newest.map(|p| p.said.shipped_bytes).collect();
        warnings.extend(shortfall(&policy.bandwidth, policy.schedule(), shipped, now.0));
    }
    let late = late_writer(store, state, now).await?;
    if let Some(words) = &late {
        warnings.push(words.clone());
    }
    let current = state.current();
    let (phase, progression) = phase(state, current, newest, late.is_some());
    let primary = primary_of(state, to);
    Ok(GroupStatus {
        group: state.group.clone(),
        site: policy.map_or_else(|| primary.clone(), |p| p.site.clone()),
        to: policy.map_or_else(|| vec![to.clone()], |p| p.to.clone()),
        level: policy.map(|p| p.level),
        phase,
        progression,
        epoch: state.epoch(),
        primary,
        newest_point: newest.map(point_status),
        newest_proven: live.iter().rev().find(|p| p.proven.is_some()).map(|p| p.id()),
        exposure_s: exposure,
        exposure_by_kind_s: default.map_or_else(BTreeMap::new, |p| by_kind(p, now)),
        rpo_target_s: target,
        rpo_ratio: exposure
            .zip(target)
            .filter(|(_, target)| *target > 0.0)
            .map(|(exposure, target)| exposure / target),
        log_lag_s: match default {
            Some(point) => log_lag(store, &state.group, &primary_of(state, to), point, now).await?,
            None => None,
        },
        clock_ahead_ms: newest
            .and_then(|p| p.said.by_kind.values().map(|s| s.skew.ahead_ms).max_by_key(|ms| ms.abs())),
        kept: None,
        points: live.len(),
        partial_points: live.iter().filter(|p| !p.said.whole).count(),
        suspicious_points: live.iter().filter(|p| !p.said.suspicious.is_empty()).count(),
        warnings,
    })
}

/// What was encrypted in one point is so in the points after it, which look like any other.
fn earlier_suspicion(
    live: &[&CommittedPoint],
    newest: Option<&CommittedPoint>,
    now: StoreTime,
) -> Option<String> {
    let odd = |p: &&&CommittedPoint| {
        !p.superseded
            && !p.said.suspicious.is_empty()
            && now.since(p.committed) < SUSPICION
            && newest.is_none_or(|newest| newest.id() != p.id())
    };
    let last = live.iter().rev().find(odd)?;
    Some(format!(
        "point {} of {} was suspicious ({}), and the points after it stand on it\n  hint: look at the source; `farsite points list` shows the points before it, `farsite points hold` keeps one",
        last.id().short(),
        last.committed,
        last.said.suspicious.join(", ")
    ))
}

fn primary_of(state: &GroupState, otherwise: &SiteName) -> SiteName {
    state.primary().cloned().unwrap_or_else(|| otherwise.clone())
}

fn phase(
    state: &GroupState,
    current: Option<&EpochStart>,
    newest: Option<&CommittedPoint>,
    late: bool,
) -> (Phase, String) {
    if !state.damage.is_empty() {
        return (Phase::Damaged, "its ledger is damaged: nothing new is committed behind damage".into());
    }
    if late {
        return (
            Phase::SplitBrainSuspected,
            "the old primary still writes: a person must name the losing side".into(),
        );
    }
    match current {
        Some(epoch) if epoch.promotion.is_some() && !epoch.promoted => {
            let promotion = epoch.promotion.map(|p| p.short()).unwrap_or_default();
            (Phase::Promoting, format!("promotion {promotion} to {} since {}", epoch.primary, epoch.begun))
        }
        Some(epoch) if epoch.promotion.is_some() && !epoch.accepted => {
            (Phase::Promoted, format!("{} is primary; waiting for accept or rollback", epoch.primary))
        }
        Some(_) if newest.is_none_or(|p| p.superseded) => {
            (Phase::InitialSync, "no recovery point of this epoch yet".into())
        }
        Some(_) => (Phase::Replicating, "replicating".into()),
        None => (Phase::InitialSync, "no recovery point yet".into()),
    }
}

fn by_kind(point: &CommittedPoint, now: StoreTime) -> BTreeMap<String, f64> {
    let stamps = point.said.by_kind.iter();
    stamps.map(|(kind, stamp)| (kind.to_string(), stamp.exposure(now).as_secs_f64())).collect()
}

/// A point as status, lists and the dashboard show it.
pub fn point_status(point: &CommittedPoint) -> PointStatus {
    let oldest = point.said.by_kind.values().min_by_key(|stamp| stamp.earliest_in_store_time());
    PointStatus {
        id: point.id(),
        captured: oldest.map_or(farsite_model::CaptureTime(point.committed.0), |stamp| stamp.captured),
        committed: point.committed,
        whole: point.said.whole,
        proven: point.proven.is_some(),
        items: point.said.items as usize,
        weakest: point.said.weakest,
        changed_bytes: point.said.changed_bytes,
        shipped_bytes: point.said.shipped_bytes,
        suspicious: point.said.suspicious.clone(),
    }
}

/// The worst age of what the point's log timelines cover now.
async fn log_lag(
    store: &Store,
    group: &GroupName,
    site: &SiteName,
    point: &CommittedPoint,
    now: StoreTime,
) -> Result<Option<f64>, ReplicateError> {
    let mut worst: Option<f64> = None;
    for timeline in &point.said.timelines {
        let segments = logs::list_of_site(store, group, timeline, None, site).await?;
        let cover = match logs::newest_cover(store, &segments).await {
            Ok(cover) => cover,
            // Damage is `points verify`'s to name; here it means that nothing is known.
            Err(StoreError::Damaged(_)) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        let Some((header, _)) = cover else { continue };
        if let Some(stamp) = header.covers {
            let lag = stamp.exposure(now).as_secs_f64();
            worst = Some(worst.map_or(lag, |w| w.max(lag)));
        }
    }
    Ok(worst)
}

/// Words about an old primary that still ships its log behind the current epoch.
async fn late_writer(
    store: &Store,
    state: &GroupState,
    now: StoreTime,
) -> Result<Option<String>, ReplicateError> {
    let [.., before, current] = state.epochs.as_slice() else { return Ok(None) };
    for accepted in &current.logs {
        let segments =
            logs::list_of_site(store, &state.group, &accepted.timeline, None, &before.primary).await?;
        let behind = segments.iter().filter(|s| accepted.last_sequence.is_none_or(|last| s.sequence > last));
        if let Some(newest) = behind.map(|s| s.written).max()
            && newest.since(current.begun) > LATE
            && now.since(newest) < STALE
        {
            return Ok(Some(format!(
                "a host of the old primary wrote log segments at {newest}, after epoch {} began at {}: it may still serve\n  hint: fence it; what it wrote is kept and not used",
                current.epoch, current.begun
            )));
        }
    }
    Ok(None)
}

fn unborn(policy: &Policy, to: &SiteName) -> GroupStatus {
    GroupStatus {
        group: policy.group.clone(),
        site: policy.site.clone(),
        to: vec![to.clone()],
        level: Some(policy.level),
        phase: Phase::InitialSync,
        progression: "no recovery point yet".into(),
        epoch: Epoch(0),
        primary: policy.site.clone(),
        newest_point: None,
        newest_proven: None,
        exposure_s: None,
        exposure_by_kind_s: BTreeMap::new(),
        rpo_target_s: Some(policy.rpo.duration().as_secs_f64()),
        rpo_ratio: None,
        log_lag_s: None,
        clock_ahead_ms: None,
        kept: None,
        points: 0,
        partial_points: 0,
        suspicious_points: 0,
        warnings: Vec::new(),
    }
}

/// A ledger that cannot be read on: what was read before is not passed off as the present.
fn unreadable(
    group: &GroupName,
    to: &SiteName,
    policy: Option<&Policy>,
    state: &GroupState,
    damage: Vec<String>,
) -> GroupStatus {
    let primary =
        state.primary().cloned().or_else(|| policy.map(|p| p.site.clone())).unwrap_or_else(|| to.clone());
    GroupStatus {
        group: group.clone(),
        site: policy.map_or_else(|| primary.clone(), |p| p.site.clone()),
        to: vec![to.clone()],
        level: policy.map(|p| p.level),
        phase: Phase::Damaged,
        progression: "its ledger cannot be read to its end".into(),
        epoch: state.epoch(),
        primary,
        newest_point: None,
        newest_proven: None,
        exposure_s: None,
        exposure_by_kind_s: BTreeMap::new(),
        rpo_target_s: policy.map(|p| p.rpo.duration().as_secs_f64()),
        rpo_ratio: None,
        log_lag_s: None,
        clock_ahead_ms: None,
        kept: None,
        points: state.points.len(),
        partial_points: 0,
        suspicious_points: 0,
        warnings: damage,
    }
}
