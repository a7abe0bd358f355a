//! Schedules against an oracle that shares no code with them: it reads crontab(5) field by field and walks real
//! time minute by minute. Replay a failure with `FARSITE_TEST_SEED=<seed>`.

use farsite_model::schedule::Schedule;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, civil};

/// Whether one field of a crontab line names `value`; weekdays are asked as 0 and as 7.
fn names(field: &str, low: i64, high: i64, value: i64) -> bool {
    field.split(',').any(|part| {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((from, to)) => (from.parse().unwrap(), to.parse().unwrap()),
            None => (range.parse().unwrap(), range.parse().unwrap()),
        };
        from <= value && value <= to && (value - from) % step.parse::<i64>().unwrap() == 0
    })
}

fn matches(expression: &str, at: civil::DateTime) -> bool {
    let f: Vec<&str> = expression.split(' ').collect();
    let weekday = i64::from(at.weekday().to_sunday_zero_offset());
    let by_date = names(f[2], 1, 31, at.day().into());
    let by_weekday = names(f[4], 0, 7, weekday) || weekday == 0 && names(f[4], 0, 7, 7);
    let starred = f[2].starts_with('*') || f[4].starts_with('*');
    names(f[0], 0, 59, at.minute().into())
        && names(f[1], 0, 23, at.hour().into())
        && names(f[3], 1, 12, at.month().into())
        && if starred { by_date && by_weekday } else { by_date || by_weekday }
}

/// Every due minute after `from` and before `to`, as cron(8) runs jobs when the clock changes.
fn walk(expression: &str, zone: &TimeZone, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let f: Vec<&str> = expression.split(' ').collect();
    let interval = f[0].starts_with('*') || f[1].starts_with('*');
    let mut due = Vec::new();
    // The latest minute on the wall that was ever looked at. Start a day early, so that a change of the clock
    // just before `from` is seen.
    let mut now = from - 24.hours();
    let mut seen = zone.to_datetime(now);
    while now + 1.minute() < to {
        now += 1.minute();
        let wall = zone.to_datetime(now);
        let run = if interval {
            matches(expression, wall)
        } else {
            let mut run = false;
            while seen < wall {
                seen += 1.minute();
                run |= matches(expression, seen);
            }
            run
        };
        if run && now > from {
            due.push(now);
        }
    }
    due
}

/// Deterministic numbers (splitmix64).
struct Draw(u64);
impl Draw {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as i64
    }
    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as i64) as usize]
    }
    fn field(&mut self, low: i64, high: i64) -> String {
        let part = |draw: &mut Self| {
            let from = low + draw.below(high - low + 1);
            let to = from + draw.below(high - from + 1);
            let step = 1 + draw.below(high - low);
            match draw.below(4) {
                0 => format!("{from}"),
                1 => format!("{from}-{to}"),
                2 => format!("{from}-{to}/{step}"),
                _ => format!("*/{step}"),
            }
        };
        match self.below(3) {
            0 => "*".to_owned(),
            1 => part(self),
            _ => (0..=self.below(3)).map(|_| part(self)).collect::<Vec<_>>().join(","),
        }
    }
    fn expression(&mut self) -> String {
        // Months mostly free, so that most expressions are due within the days that are walked.
        let month = if self.below(4) == 0 { self.field(1, 12) } else { "*".to_owned() };
        [self.field(0, 59), self.field(0, 23), self.field(1, 31), month, self.field(0, 7)].join(" ")
    }
}

fn seed() -> u64 {
    let seed = std::env::var("FARSITE_TEST_SEED").map_or(20_261_124, |seed| seed.parse().unwrap());
    println!("FARSITE_TEST_SEED={seed}");
    seed
}

fn compare(expression: &str, zone_name: &str, from: Timestamp, to: Timestamp) {
    let zone = TimeZone::get(zone_name).unwrap();
    let expected = walk(expression, &zone, from, to);
    let found: Vec<Timestamp> = match Schedule::parse(expression, Some(zone_name)) {
        Ok(schedule) => schedule.missed_between(from, to - 1.minute()).collect(),
        Err(error) => {
            assert!(error.to_string().contains("never due"), "{expression}: {error}");
            Vec::new()
        }
    };
    let shown = |all: &[Timestamp]| all.iter().take(40).map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        found == expected,
        "{expression:?} in {zone_name} after {from}: found {:?}, expected {:?}",
        shown(&found),
        shown(&expected)
    );
}

#[test]
fn three_hundred_random_expressions_agree_with_a_minute_by_minute_walk() {
    let mut draw = Draw(seed());
    for _ in 0..300 {
        let expression = draw.expression();
        // Anywhere in eight years, leap day included.
        let from = Timestamp::from_second(1_789_999_980 + draw.below(8 * 365 * 1440) * 60).unwrap();
        compare(&expression, "UTC", from, from + (24 * 4).hours());
    }
}

#[test]
fn two_hundred_random_expressions_agree_around_changes_of_the_clock() {
    let mut draw = Draw(seed() ^ 1);
    let changes = [
        ("Europe/Berlin", "2026-03-29T01:00:00Z"),
        ("Europe/Berlin", "2026-10-25T01:00:00Z"),
        ("America/New_York", "2026-03-08T07:00:00Z"),
        ("America/New_York", "2026-11-01T06:00:00Z"),
        ("Australia/Sydney", "2026-10-03T16:00:00Z"),
        ("Australia/Sydney", "2026-04-04T16:00:00Z"),
        ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
        ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
        ("America/Santiago", "2026-09-06T04:00:00Z"),
        ("America/Santiago", "2026-04-05T03:00:00Z"),
    ];
    for _ in 0..200 {
        let (zone, change) = draw.one_of(&changes);
        let change: Timestamp = change.parse().unwrap();
        // Fixed times in the small hours, where the clock changes, besides anything else.
        let expression = if draw.below(3) == 0 {
            draw.expression()
        } else {
            let (low, high) = (draw.below(60), draw.below(4));
            format!("{low},{} {}-{} * * *", draw.below(60), high, high + draw.below(3))
        };
        let from = change - (draw.below(20 * 60) - 120).minutes();
        compare(&expression, zone, from, from + 48.hours());
    }
}
