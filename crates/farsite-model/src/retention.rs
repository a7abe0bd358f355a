//! Retention: the points of a group come in, with the store's times and what is known of each; which of them are kept,
//! and why, goes out. Pure arithmetic: nothing is expired here.
//!
//! What must hold: a point is released only when no rule keeps it; a held point, the last whole one, the last one
//! without a flaw, one that a run builds on and the one of an open promotion always stay. Which point is newer is
//! told by the order of the ledger; time only sorts points into hours and days.

use std::collections::BTreeMap;
use std::fmt;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::policy::{Keep, Retention};
use crate::{PointId, StoreTime};

/// What retention has to know of a point that has not expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own, from a ledger entry of its own")]
pub struct PointFacts {
    pub id: PointId,
    /// The store's time when its entry was written.
    pub committed: StoreTime,
    /// Every item is of its own run.
    pub whole: bool,
    /// A reader found an object damaged.
    pub damaged: bool,
    /// Whole, undamaged, not suspicious.
    pub flawless: bool,
    pub proven: bool,
    pub held: bool,
    /// A run builds on it.
    pub pinned: bool,
    /// A promotion that is not accepted yet restores it.
    pub promoted: bool,
}

/// Why a point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Held,
    Promotion,
    Pinned,
    LastWhole,
    LastFlawless,
    Proven,
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Promotion => "of a promotion",
            Self::Pinned => "a run builds on it",
            Self::LastWhole => "last whole",
            Self::LastFlawless => "last without a flaw",
            Self::Proven => "newest proven",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// What becomes of one point: kept for these reasons, or released when there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub point: PointId,
    pub committed: StoreTime,
    pub kept: Vec<Reason>,
}

impl Verdict {
    pub fn is_released(&self) -> bool {
        self.kept.is_empty()
    }
}

/// Judges a group's points, given in the order of their ledger (oldest first); the verdicts come in the same order.
/// Hours, days, weeks (ISO 8601, from Monday), months and years are those of `zone`.
///
/// Of each hour (day, …) that has points, the newest flawless one stands for it; where there is none, the newest that is not
/// damaged, else the newest: a suspicious or damaged night must not push out the last good point of the day.
pub fn judge(points: &[PointFacts], retention: &Retention, zone: &TimeZone) -> Vec<Verdict> {
    let mut kept: Vec<Vec<Reason>> = points.iter().map(always).collect();
    let mut keep = |index: Option<usize>, reason: Reason| {
        if let Some(index) = index {
            kept[index].push(reason);
        }
    };
    let newest = |good: &dyn Fn(&PointFacts) -> bool| points.iter().rposition(good);
    keep(newest(&|p| p.whole), Reason::LastWhole);
    keep(newest(&|p| p.flawless), Reason::LastFlawless);
    if retention.keep == Keep::Proven {
        keep(newest(&|p| p.proven && !p.damaged), Reason::Proven);
    }
    let last = points.len().saturating_sub(retention.last as usize);
    for index in last..points.len() {
        keep(Some(index), Reason::Last);
    }
    for (reason, count) in [
        (Reason::Hourly, retention.hourly),
        (Reason::Daily, retention.daily),
        (Reason::Weekly, retention.weekly),
        (Reason::Monthly, retention.monthly),
        (Reason::Yearly, retention.yearly),
    ] {
        for index in generation(points, reason, count as usize, zone) {
            keep(Some(index), reason);
        }
    }
    let verdicts = points.iter().zip(kept).map(|(point, mut kept)| {
        kept.sort_unstable();
        Verdict { point: point.id, committed: point.committed, kept }
    });
    verdicts.collect()
}

/// What no retention can release.
fn always(point: &PointFacts) -> Vec<Reason> {
    let facts =
        [(point.held, Reason::Held), (point.promoted, Reason::Promotion), (point.pinned, Reason::Pinned)];
    facts.into_iter().filter_map(|(holds, reason)| holds.then_some(reason)).collect()
}

/// Where a stretch of time begins: the second for an hour, the day for all else.
fn stretch(at: StoreTime, reason: Reason, zone: &TimeZone) -> i64 {
    let local = at.0.to_zoned_datetime(zone.clone());
    let date = local.date();
    let first = match reason {
        // An hour that a clock change repeats is two.
        Reason::Hourly => {
            return at.0.as_second() - i64::from(local.minute()) * 60 - i64::from(local.second());
        }
        Reason::Weekly => {
            let days = date.weekday().to_monday_zero_offset();
            date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date)
        }
        Reason::Monthly => date.first_of_month(),
        Reason::Yearly => date.first_of_year(),
        _ => date,
    };
    i64::from(first.year()) * 400 + i64::from(first.day_of_year())
}

/// One point for each of the newest `count` stretches that have one.
fn generation(points: &[PointFacts], reason: Reason, count: usize, zone: &TimeZone) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let worth = |point: &PointFacts| (point.flawless, !point.damaged);
    let mut best: BTreeMap<i64, usize> = BTreeMap::new();
    for (index, point) in points.iter().enumerate() {
        // The later one wins where they are worth the same.
        best.entry(stretch(point.committed, reason, zone))
            .and_modify(|held| {
                if worth(point) >= worth(&points[*held]) {
                    *held = index;
                }
            })
            .or_insert(index);
    }
    best.into_values().rev().take(count).collect()
}
