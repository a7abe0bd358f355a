//! Which points a retention keeps: examples that a person can check by hand, and what must hold for all histories.

use std::collections::BTreeSet;

use farsite_model::policy::{Keep, Retention};
use farsite_model::retention::{PointFacts, Reason, Verdict, judge};
use farsite_model::{PointId, StoreTime};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;

const NOTHING: Retention =
    Retention { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, keep: Keep::None };

fn point(id: u64, at: &str) -> PointFacts {
    at_time(id, at.parse().unwrap())
}

fn at_time(id: u64, at: Timestamp) -> PointFacts {
    PointFacts {
        id: PointId::from_random(id),
        committed: StoreTime(at),
        whole: true,
        damaged: false,
        flawless: true,
        proven: false,
        held: false,
        pinned: false,
        promoted: false,
    }
}

fn flawed(point: PointFacts) -> PointFacts {
    PointFacts { whole: false, flawless: false, ..point }
}

fn kept(verdicts: &[Verdict]) -> Vec<u64> {
    let place = |v: &Verdict| u64::from_str_radix(&v.point.to_string(), 16).unwrap();
    verdicts.iter().filter(|v| !v.is_released()).map(place).collect()
}

#[test]
fn the_newest_of_each_day_stands_for_it() {
    let points: Vec<PointFacts> = (0..24 * 10)
        .map(|hour| {
            let start: Timestamp = "2026-11-01T00:30:00Z".parse().unwrap();
            at_time(hour, start + jiff::SignedDuration::from_hours(hour as i64))
        })
        .collect();
    let verdicts = judge(&points, &Retention { last: 2, daily: 3, ..NOTHING }, &TimeZone::UTC);
    assert_eq!(kept(&verdicts), [7 * 24 + 23, 8 * 24 + 23, 9 * 24 + 22, 9 * 24 + 23]);
    assert_eq!(
        verdicts.last().unwrap().kept,
        [Reason::LastWhole, Reason::LastFlawless, Reason::Last, Reason::Daily]
    );
}

#[test]
fn a_day_is_a_day_of_the_policys_time_zone() {
    // 23:30 UTC is the next day in Berlin: the two are one day there and two days in UTC.
    let points = [point(1, "2026-11-01T23:30:00Z"), point(2, "2026-11-02T10:00:00Z")];
    let daily = Retention { daily: 5, ..NOTHING };
    assert_eq!(kept(&judge(&points, &daily, &TimeZone::UTC)), [1, 2]);
    assert_eq!(kept(&judge(&points, &daily, &TimeZone::get("Europe/Berlin").unwrap())), [2]);
}

#[test]
fn an_hour_that_a_clock_change_repeats_is_two_hours() {
    // 2026-10-25: 03:00 CEST becomes 02:00 CET in Berlin.
    let points = [point(1, "2026-10-25T00:30:00Z"), point(2, "2026-10-25T01:30:00Z")];
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    assert_eq!(kept(&judge(&points, &Retention { hourly: 2, ..NOTHING }, &berlin)), [1, 2]);
    assert_eq!(kept(&judge(&points, &Retention { hourly: 1, ..NOTHING }, &berlin)), [2]);
}

#[test]
fn weeks_begin_on_monday_and_months_and_years_on_their_first() {
    let zone = TimeZone::UTC;
    // 2026-11-29 is a Sunday.
    let points = [
        point(1, "2025-12-31T12:00:00Z"),
        point(2, "2026-11-29T12:00:00Z"),
        point(3, "2026-11-30T12:00:00Z"),
        point(4, "2026-12-01T12:00:00Z"),
    ];
    assert_eq!(kept(&judge(&points, &Retention { weekly: 2, ..NOTHING }, &zone)), [2, 4]);
    assert_eq!(kept(&judge(&points, &Retention { monthly: 3, ..NOTHING }, &zone)), [1, 3, 4]);
    assert_eq!(kept(&judge(&points, &Retention { yearly: 2, ..NOTHING }, &zone)), [1, 4]);
}

#[test]
fn a_flawed_night_does_not_push_out_the_days_last_good_point() {
    let points = [
        point(1, "2026-11-01T10:00:00Z"),
        flawed(point(2, "2026-11-01T22:00:00Z")),
        flawed(point(3, "2026-11-02T22:00:00Z")),
    ];
    let verdicts = judge(&points, &Retention { daily: 2, ..NOTHING }, &TimeZone::UTC);
    assert_eq!(kept(&verdicts), [1, 3], "a day with flawed points only is kept by the newest of them");
}

#[test]
fn what_a_person_a_run_or_a_promotion_needs_stays() {
    let mut points: Vec<PointFacts> = (1..=6).map(|id| point(id, "2026-11-01T10:00:00Z")).collect();
    points[0].held = true;
    points[1].promoted = true;
    points[2].pinned = true;
    points[3].proven = true;
    let kept_by = |keep| kept(&judge(&points, &Retention { last: 1, keep, ..NOTHING }, &TimeZone::UTC));
    assert_eq!(kept_by(Keep::Proven), [1, 2, 3, 4, 6]);
    assert_eq!(kept_by(Keep::None), [1, 2, 3, 6]);
}

prop_compose! {
    fn any_point()(
        step in 0i64..200_000, whole: bool, damaged: bool, suspicious: bool,
        proven: bool, held in proptest::bool::weighted(0.1), pinned in proptest::bool::weighted(0.1),
        promoted in proptest::bool::weighted(0.1),
    ) -> (i64, PointFacts) {
        let point = PointFacts {
            whole, damaged, flawless: whole && !damaged && !suspicious, proven, held, pinned, promoted,
            ..at_time(0, Timestamp::UNIX_EPOCH)
        };
        (step, point)
    }
}

prop_compose! {
    fn any_history()(steps in proptest::collection::vec(any_point(), 0..60)) -> Vec<PointFacts> {
        let mut at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        steps.into_iter().enumerate().map(|(n, (step, point))| {
            at += jiff::SignedDuration::from_secs(step);
            PointFacts { id: PointId::from_random(n as u64), committed: StoreTime(at), ..point }
        }).collect()
    }
}

prop_compose! {
    fn any_retention()(
        last in 0u32..5, hourly in 0u32..5, daily in 0u32..5, weekly in 0u32..4, monthly in 0u32..4,
        yearly in 0u32..3, proven: bool,
    ) -> Retention {
        let keep = if proven { Keep::Proven } else { Keep::None };
        Retention { last, hourly, daily, weekly, monthly, yearly, keep }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_the_history_what_must_stay_stays(points in any_history(), retention in any_retention()) {
        let zone = TimeZone::get("America/Sao_Paulo").unwrap();
        let verdicts = judge(&points, &retention, &zone);
        prop_assert_eq!(verdicts.len(), points.len());
        let last_whole = points.iter().rposition(|p| p.whole);
        let last_flawless = points.iter().rposition(|p| p.flawless);
        for (index, (point, verdict)) in points.iter().zip(&verdicts).enumerate() {
            prop_assert_eq!(point.id, verdict.point);
            let must = point.held || point.pinned || point.promoted
                || Some(index) == last_whole || Some(index) == last_flawless
                || index + retention.last as usize >= points.len();
            prop_assert!(!must || !verdict.is_released(), "{:?} is released", point);
        }
    }

    #[test]
    fn no_generation_keeps_more_than_its_number(points in any_history(), retention in any_retention()) {
        let verdicts = judge(&points, &retention, &TimeZone::UTC);
        for (reason, most) in [
            (Reason::Last, retention.last), (Reason::Hourly, retention.hourly), (Reason::Daily, retention.daily),
            (Reason::Weekly, retention.weekly), (Reason::Monthly, retention.monthly), (Reason::Yearly, retention.yearly),
        ] {
            let count = verdicts.iter().filter(|v| v.kept.contains(&reason)).count();
            prop_assert!(count <= most as usize, "{reason}: {count} of {most}");
        }
    }

    #[test]
    fn judging_again_after_a_release_releases_nothing_more(points in any_history(), retention in any_retention()) {
        let first = judge(&points, &retention, &TimeZone::UTC);
        let left: Vec<PointFacts> = points.iter().zip(&first).filter(|(_, v)| !v.is_released())
            .map(|(p, _)| *p).collect();
        let again = judge(&left, &retention, &TimeZone::UTC);
        let ids: BTreeSet<PointId> = left.iter().map(|p| p.id).collect();
        let kept: BTreeSet<PointId> = again.iter().filter(|v| !v.is_released()).map(|v| v.point).collect();
        prop_assert_eq!(kept, ids);
    }
}
