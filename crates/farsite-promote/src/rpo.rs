//! The RPO that a promotion achieved: ledger, manifest and logs come in, a range for each kind of item goes out.
//!
//! What must hold: never better than the truth. The moment of disaster lies somewhere between the last sign of life of the
//! old primary and the epoch; only a person's word narrows that, and never to before a sign of life.

use std::collections::BTreeMap;

use farsite_model::rpo::{AchievedRpo, CaptureStamp};
use farsite_model::{CaptureTime, ItemKind, StoreTime};
use farsite_store::Store;
use farsite_store::keys::Role;
use farsite_store::ledger::{AcceptedLog, Ledger};
use farsite_store::logs;
use farsite_store::manifest::Manifest;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::PromoteError;
use crate::choose::Replay;

/// Log events carry whole seconds.
const LOG_GRAIN: SignedDuration = SignedDuration::from_secs(1);

/// Seconds, at best and at worst; the worst is the headline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RpoRange {
    pub at_least_s: f64,
    pub at_most_s: f64,
}

impl From<AchievedRpo> for RpoRange {
    fn from(rpo: AchievedRpo) -> Self {
        Self { at_least_s: seconds(rpo.at_least), at_most_s: seconds(rpo.at_most) }
    }
}

/// Whole milliseconds, rounded up: never better than the truth, and the same after a way through JSON.
pub(crate) fn seconds(span: SignedDuration) -> f64 {
    (span.as_secs_f64() * 1000.0).ceil() / 1000.0
}

/// What was achieved, and what it was computed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Achieved {
    pub by_kind: BTreeMap<String, RpoRange>,
    pub total: RpoRange,
    pub last_sign_of_life: StoreTime,
    pub epoch_begun: StoreTime,
    pub disaster_at: Option<Timestamp>,
    /// Sentences that a reader must know.
    pub notes: Vec<String>,
}

/// For each kind the stamp of what was really restored: databases may go beyond the point by their log.
pub async fn stamps(
    store: &Store,
    manifest: &Manifest,
    accepted: &[AcceptedLog],
    replay: Replay,
) -> Result<BTreeMap<ItemKind, CaptureStamp>, PromoteError> {
    let mut oldest: BTreeMap<ItemKind, CaptureStamp> = BTreeMap::new();
    for item in &manifest.items {
        let mut stamp = item.stamp;
        if let Some(log) = &item.log
            && replay != Replay::Point
            && let Some(accepted) = accepted.iter().find(|a| a.timeline == log.timeline)
            && let Some(last) = accepted.last_sequence
        {
            let segments =
                logs::list_of_site(store, &manifest.group, &log.timeline, Some(last), &manifest.site).await?;
            if let Some((header, _)) = logs::newest_cover(store, &segments).await?
                && let Some(cover) = header.covers
            {
                stamp = further(stamp, cover, replay);
            }
        }
        oldest
            .entry(item.kind)
            .and_modify(|known| {
                if stamp.earliest_in_store_time() < known.earliest_in_store_time() {
                    *known = stamp;
                }
            })
            .or_insert(stamp);
    }
    Ok(oldest)
}

/// The better of point and log, and not beyond the moment that was asked for.
fn further(point: CaptureStamp, cover: CaptureStamp, replay: Replay) -> CaptureStamp {
    let mut reached = cover;
    if let Replay::Until(time) = replay {
        reached.captured = CaptureTime(cover.captured.0.min(time - LOG_GRAIN));
    }
    if reached.earliest_in_store_time() > point.earliest_in_store_time() { reached } else { point }
}

/// The newest thing that the old primary's agent wrote before the epoch.
pub async fn last_sign_of_life(
    store: &Store,
    ledger: &Ledger,
    epoch_number: u64,
    accepted: &[AcceptedLog],
) -> Result<Option<StoreTime>, PromoteError> {
    let mut newest: Option<StoreTime> = None;
    for entry in ledger.entries().iter().take_while(|e| e.number < epoch_number) {
        if entry.said.as_ref().is_ok_and(|(_, by)| by.role == Role::SourceAgent) {
            newest = newest.max(Some(entry.written));
        }
    }
    for log in accepted {
        let Some(last) = log.last_sequence else { continue };
        let segments = logs::list(store, ledger.group(), &log.timeline, Some(last)).await?;
        newest = newest.max(segments.last().map(|segment| segment.written));
    }
    Ok(newest)
}

/// The range for each kind and for the group.
pub fn achieved(
    stamps: &BTreeMap<ItemKind, CaptureStamp>,
    last_sign_of_life: StoreTime,
    epoch_begun: StoreTime,
    disaster_at: Option<Timestamp>,
) -> Achieved {
    let mut notes = Vec::new();
    let (mut from, mut to) = (last_sign_of_life, epoch_begun.max(last_sign_of_life));
    if let Some(at) = disaster_at {
        if at < last_sign_of_life.0 {
            notes.push(format!(
                "the disaster is said to have been at {at}, but the old primary still wrote at {last_sign_of_life}: the whole range is kept"
            ));
        } else if at > to.0 {
            notes.push(format!("the disaster is said to have been at {at}, after the epoch began: ignored"));
        } else {
            (from, to) = (StoreTime(at), StoreTime(at));
        }
    }
    let by_kind: BTreeMap<ItemKind, AchievedRpo> =
        stamps.iter().map(|(kind, stamp)| (*kind, AchievedRpo::between(stamp, from, to))).collect();
    let none = AchievedRpo { at_least: SignedDuration::ZERO, at_most: SignedDuration::ZERO };
    let total = by_kind.values().copied().fold(none, AchievedRpo::worse);
    for (kind, stamp) in stamps {
        if stamp.clamped {
            notes.push(format!(
                "{kind}: the source's clock was ahead of the store's, its capture time was taken back"
            ));
        }
    }
    Achieved {
        by_kind: by_kind.into_iter().map(|(kind, rpo)| (kind.to_string(), rpo.into())).collect(),
        total: total.into(),
        last_sign_of_life,
        epoch_begun,
        disaster_at,
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farsite_model::rpo::ClockSkew;

    fn at(s: i64) -> StoreTime {
        StoreTime(Timestamp::from_second(1_790_000_000 + s).unwrap())
    }
    fn stamps() -> BTreeMap<ItemKind, CaptureStamp> {
        let stamp = |s| CaptureStamp::at_commit(CaptureTime(at(s).0), &[ClockSkew::ZERO], at(s + 1));
        BTreeMap::from([(ItemKind::Volume, stamp(0)), (ItemKind::Sqlite, stamp(5))])
    }

    #[test]
    fn the_worst_kind_and_the_worst_end_are_the_headline() {
        let found = achieved(&stamps(), at(10), at(30), None);
        assert_eq!((found.total.at_least_s, found.total.at_most_s), (10.0, 30.0));
        assert!((found.by_kind["sqlite"].at_most_s - 25.0).abs() < 1e-9);
    }

    #[test]
    fn a_persons_word_narrows_both_ends_and_never_to_before_a_sign_of_life() {
        let said = achieved(&stamps(), at(10), at(30), Some(at(12).0));
        assert_eq!((said.total.at_least_s, said.total.at_most_s), (12.0, 12.0));
        let too_early = achieved(&stamps(), at(10), at(30), Some(at(2).0));
        assert_eq!((too_early.total.at_least_s, too_early.total.at_most_s), (10.0, 30.0));
        assert_eq!(too_early.notes.len(), 1);
    }

    #[test]
    fn a_log_takes_a_database_beyond_its_point_but_not_beyond_the_moment_asked_for() {
        let stamp = |s| CaptureStamp::at_commit(CaptureTime(at(s).0), &[ClockSkew::ZERO], at(s));
        assert_eq!(further(stamp(0), stamp(20), Replay::LastAccepted), stamp(20));
        assert_eq!(further(stamp(0), stamp(20), Replay::Until(at(11).0)).captured, stamp(10).captured);
        assert_eq!(further(stamp(30), stamp(20), Replay::LastAccepted), stamp(30));
    }
}
