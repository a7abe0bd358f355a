//! RPO arithmetic. Everything here errs towards *more* loss: a reported figure is never better than the truth
//! (invariant 8).

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::{CaptureTime, StoreTime};

/// How far the source's clock is ahead of the store's, as measured through the `Date` of the store's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSkew {
    /// Source minus store, in milliseconds; negative when the source is behind.
    pub ahead_ms: i64,
    /// Half-width of the measurement: round trip plus the grain of the store's clock.
    pub uncertainty_ms: u64,
}

impl ClockSkew {
    pub const ZERO: ClockSkew = ClockSkew { ahead_ms: 0, uncertainty_ms: 0 };

    /// One request: the source clock read before and after, and the store's time out of the answer, which is
    /// known to `grain_ms` (1000 for HTTP `Date`).
    pub fn measure(before: CaptureTime, store: StoreTime, after: CaptureTime, grain_ms: u64) -> Self {
        let to_ms = |d: SignedDuration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let round_trip_ms = to_ms(after.0.duration_since(before.0)).unsigned_abs();
        // The store stamped its answer somewhere in between and rounded down: its clock then read
        // [store, store + grain). Take the middle of both, and widen by half of each.
        let middle_ms = i64::midpoint(before.0.as_millisecond(), after.0.as_millisecond());
        let store_ms = store.0.as_millisecond() + (grain_ms / 2) as i64;
        Self {
            ahead_ms: middle_ms - store_ms,
            uncertainty_ms: round_trip_ms.div_ceil(2) + grain_ms.div_ceil(2),
        }
    }

    /// What has to be added to an age so that it is not better than the truth, whichever way the clock is off.
    pub fn penalty(self) -> SignedDuration {
        SignedDuration::from_millis(self.ahead_ms.max(0))
            + SignedDuration::from_millis(self.uncertainty_ms as i64)
    }

    /// Of two measurements (at capture, at commit) the one that makes the age worse.
    pub fn worse(self, other: ClockSkew) -> ClockSkew {
        if other.penalty() > self.penalty() { other } else { self }
    }
}

/// A capture time with all that is needed to state its age at the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStamp {
    /// Source time, read before the first byte.
    pub captured: CaptureTime,
    /// The worse of the measurements around the run.
    pub skew: ClockSkew,
    /// True when `captured` lay after the store's time at commit, and was taken back to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clamped: bool,
}

impl CaptureStamp {
    /// Stamps a capture at commit. `skews` are all measurements of the run; `store_now` is the store's time as
    /// last seen before the commit: nothing can have been captured after it, so a later capture time is
    /// clamped and flagged.
    pub fn at_commit(captured: CaptureTime, skews: &[ClockSkew], store_now: StoreTime) -> Self {
        let skew = skews.iter().copied().fold(ClockSkew::ZERO, ClockSkew::worse);
        // The store's time is known to a grain; only what lies beyond the measurement's own width is flagged.
        let limit = store_now.0 + SignedDuration::from_millis(skew.uncertainty_ms as i64);
        if captured.0 > limit {
            return Self { captured: CaptureTime(store_now.0), skew, clamped: true };
        }
        Self { captured, skew, clamped: false }
    }

    /// The earliest moment, in store time, that this capture can stand for.
    pub fn earliest_in_store_time(&self) -> StoreTime {
        StoreTime(self.captured.0 - self.skew.penalty())
    }

    /// Exposure: how old this capture is at `now`, at worst. Never negative. Where `now` was told by a store, it is the
    /// latest moment that the told time can stand for.
    pub fn exposure(&self, now: StoreTime) -> SignedDuration {
        now.since(self.earliest_in_store_time())
    }
}

/// The RPO achieved by a failover: the moment of disaster is known only within a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AchievedRpo {
    /// If disaster struck right after the last sign of life.
    pub at_least: SignedDuration,
    /// If disaster struck just before the epoch began: the headline, compared with the target.
    pub at_most: SignedDuration,
}

impl AchievedRpo {
    /// `last_sign_of_life` and `epoch_begun` in store time.
    pub fn between(stamp: &CaptureStamp, last_sign_of_life: StoreTime, epoch_begun: StoreTime) -> Self {
        let latest = epoch_begun.max(last_sign_of_life);
        Self { at_least: stamp.exposure(last_sign_of_life), at_most: stamp.exposure(latest) }
    }
    /// Of two kinds of items the group's figure is the worse, end by end.
    pub fn worse(self, other: AchievedRpo) -> AchievedRpo {
        Self { at_least: self.at_least.max(other.at_least), at_most: self.at_most.max(other.at_most) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_790_000_000_000 + ms).unwrap()
    }

    proptest! {
        /// The source's clock is off by up to two hours either way, and may jump between capture and commit.
        /// Whatever it does, exposure is at least the true age of the capture.
        #[test]
        fn exposure_is_never_better_than_the_truth(
            offset_at_capture in -7_200_000i64..7_200_000,
            offset_at_commit in -7_200_000i64..7_200_000,
            round_trip in 0i64..5_000,
            run in 0i64..600_000,
            later in 0i64..10_000_000,
        ) {
            // True (store) times: the probe starts at 0, capture follows its answer, commit after `run`.
            let grain = 1000;
            let date = |true_ms: i64| StoreTime(at(true_ms - (1_790_000_000_000 + true_ms).rem_euclid(grain)));
            let probe = |start: i64, offset: i64| ClockSkew::measure(
                CaptureTime(at(start + offset)), date(start + round_trip / 2),
                CaptureTime(at(start + round_trip + offset)), grain as u64);
            let skews = [probe(0, offset_at_capture), probe(round_trip + run, offset_at_commit)];
            let captured = CaptureTime(at(round_trip + offset_at_capture));
            let commit = 2 * round_trip + run;
            let stamp = CaptureStamp::at_commit(captured, &skews, date(commit));
            let now = commit + later;
            let truth = SignedDuration::from_millis(now - round_trip);
            prop_assert!(stamp.exposure(StoreTime(at(now))) >= truth, "{stamp:?}");
            // Whoever asks the store for `now` learns it rounded down, and counts to the end of the grain.
            let told = date(now).0 + SignedDuration::from_millis(grain);
            prop_assert!(stamp.exposure(StoreTime(told)) >= truth, "{stamp:?}");
        }
    }

    #[test]
    fn a_capture_from_the_future_is_clamped_and_flagged() {
        let stamp = CaptureStamp::at_commit(CaptureTime(at(3_600_000)), &[], StoreTime(at(0)));
        assert!(stamp.clamped);
        assert_eq!(stamp.captured, CaptureTime(at(0)));
    }

    #[test]
    fn the_headline_is_the_worse_end() {
        let stamp = CaptureStamp::at_commit(CaptureTime(at(0)), &[], StoreTime(at(0)));
        let rpo = AchievedRpo::between(&stamp, StoreTime(at(2_000)), StoreTime(at(9_000)));
        assert_eq!((rpo.at_least.as_secs(), rpo.at_most.as_secs()), (2, 9));
    }
}
