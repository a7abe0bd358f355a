//! When something is due: crontab(5) of Vixie cron, in a time zone.
//!
//! The `cron` crate walks the calendar. It reads expressions in its own way (0.17 refuses five fields, numbers
//! Sunday 1 and refuses 0, and demands that both day fields match), so it is handed plain lists that
//! [`fields`] has made out of the crontab line, weekdays as names, and one list for each half of a union. It
//! walks in local time without a zone; this file puts the zone's changes of the clock back in, as Vixie cron's
//! own manual (cron(8)) states them:
//!
//! > Local time changes of less than three hours, such as those caused by the start or end of Daylight Saving
//! > Time, are handled specially. This only applies to jobs that run at a specific time and jobs that are run
//! > with a granularity greater than one hour. Jobs that run more frequently are scheduled normally. If time
//! > has moved forward, those jobs that would have run in the interval that has been skipped will be run
//! > immediately. Conversely, if time has moved backward, care is taken to avoid running jobs twice.
//!
//! A step needs a range or `*` before it (`5/15` is refused, as Vixie cron does), a range must not run
//! backwards, names may stand in ranges and lists (Vixie cron's code reads them, though its manual says no).

mod fields;

use std::fmt;
use std::iter;

use chrono::{DateTime, Utc};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use fields::{DAY_NAMES, Field, Fields};

/// A change of the clock of this size or more is a correction, not daylight saving time (cron(8)).
const LARGE_CHANGE_S: i64 = 3 * 3600;

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleError {
    /// The text as it was written.
    pub expression: String,
    /// Which field is wrong: `second`, `minute`, `hour`, `day of month`, `month`, `day of week`, `time zone`;
    /// `None` when it is the whole.
    pub field: Option<&'static str>,
    pub problem: String,
    /// What is allowed there.
    pub hint: Option<String>,
}
impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a schedule: ", self.expression)?;
        if let Some(field) = self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.problem)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}
impl std::error::Error for ScheduleError {}

/// A parsed schedule that is due at least once before the year 2100.
#[derive(Debug, Clone)]
pub struct Schedule {
    source: String,
    fields: Fields,
    /// One calendar, or two whose union counts.
    calendars: Vec<cron::Schedule>,
    zone: TimeZone,
}

impl Schedule {
    /// The time zone that it is read in.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Reads five fields, six with leading seconds, or a nickname such as `@daily`. `tz` is a name of the IANA
    /// database; without it the machine's own zone counts, as for cron.
    pub fn parse(text: &str, tz: Option<&str>) -> Result<Self, ScheduleError> {
        let zone = match tz {
            None => TimeZone::system(),
            Some(name) => find_zone(name).map_err(|hint| ScheduleError {
                expression: text.to_owned(),
                field: Some("time zone"),
                problem: format!("{name:?} is not known on this machine"),
                hint: Some(hint),
            })?,
        };
        let fields = Fields::parse(text)?;
        let calendars = if fields.either_day() {
            let all = |field: Field| Field { bits: u64::MAX, ..field };
            let by_date = Fields { days_of_week: all(fields.days_of_week), ..fields.clone() };
            let by_weekday = Fields { days_of_month: all(fields.days_of_month), ..fields.clone() };
            vec![calendar(text, &by_date)?, calendar(text, &by_weekday)?]
        } else {
            vec![calendar(text, &fields)?]
        };
        let schedule = Self { source: text.trim().to_owned(), fields, calendars, zone };
        // 2000-01-01 is in a leap year: what is not due within the hundred years after it is never due.
        if schedule.next_local(946_684_799).is_none() {
            return Err(ScheduleError {
                expression: text.to_owned(),
                field: None,
                problem: "it is never due: no such day exists".into(),
                hint: Some("look at day of month and month: February has at most 29 days".into()),
            });
        }
        Ok(schedule)
    }

    /// The first due moment strictly after `after`; `None` past the year 2100.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let fixed = !self.fields.is_wildcard();
        let after_s = i64::try_from(after.as_nanosecond().div_euclid(1_000_000_000)).ok()?;
        let mut stretch = Stretch::around(&self.zone, after_s)?;
        // Local seconds that are over and done with.
        let mut done = after_s + stretch.offset_s;
        if fixed && is_small(-stretch.jump_s()) {
            done = done.max(stretch.begins_s + stretch.offset_before_s - 1);
        }
        loop {
            let due = self.next_local(done)?;
            let Some(end_s) = stretch.ends_s.filter(|end_s| due - stretch.offset_s >= *end_s) else {
                return Timestamp::from_second(due - stretch.offset_s).ok();
            };
            let next = Stretch::around(&self.zone, end_s)?;
            if fixed && is_small(next.jump_s()) && due < end_s + next.offset_s {
                // It was due in the hour that the clock skipped: run at once.
                return Timestamp::from_second(end_s).ok();
            }
            done = end_s + next.offset_s - 1;
            if fixed && is_small(-next.jump_s()) {
                // The hour that comes a second time: it was done the first time.
                done = end_s + next.offset_before_s - 1;
            }
            stretch = next;
        }
    }

    /// The moments after `last` up to and including `now`, oldest first. Lazy: a caller that only wants to know
    /// whether there is one takes one.
    pub fn missed_between(&self, last: Timestamp, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        iter::successors(self.next_after(last), |due| self.next_after(*due))
            .take_while(move |due| *due <= now)
    }

    /// Whether `at` lies in a minute that the schedule names (a second, where it has six fields): a schedule as a
    /// window, such as `* 8-18 * * 1-5` for office hours. No daylight saving rules: the clock on the wall counts.
    pub fn covers(&self, at: Timestamp) -> bool {
        let local = self.zone.to_datetime(at);
        let part = |field: Field, number: i8| field.contains(number.unsigned_abs().into());
        self.falls_on(local.date())
            && part(self.fields.hours, local.hour())
            && part(self.fields.minutes, local.minute())
            && (!self.fields.has_seconds || part(self.fields.seconds, local.second()))
    }

    /// The longest pause between two due moments, by the clock on the wall (a change of the clock can add its
    /// hour). It bounds the recovery point that a schedule can keep.
    pub fn longest_pause(&self) -> SignedDuration {
        let times = [(self.fields.hours, 3600), (self.fields.minutes, 60), (self.fields.seconds, 1)];
        let edge = |last: bool| -> i64 {
            let number =
                |field: Field| if last { field.numbers().next_back() } else { field.numbers().next() };
            times.iter().map(|(field, unit_s)| i64::from(number(*field).unwrap_or(0)) * unit_s).sum()
        };
        let (first_s, last_s) = (edge(false), edge(true));
        let mut longest_s = 0;
        // Within a day: each unit's own gaps, less what the smaller units cover of them.
        let mut covered_s = 0;
        for (field, unit_s) in times.iter().rev() {
            let numbers: Vec<i64> = field.numbers().map(i64::from).collect();
            for pair in numbers.windows(2) {
                longest_s = longest_s.max((pair[1] - pair[0]) * unit_s - covered_s);
            }
            covered_s += (numbers[numbers.len() - 1] - numbers[0]) * unit_s;
        }
        // From day to day. 28 years show every combination of leap day and weekday.
        let start = jiff::civil::date(2001, 1, 1);
        let mut previous = None;
        for (day, date) in (0i64..28 * 366).zip(start.series(jiff::Span::new().days(1))) {
            if self.falls_on(date) {
                if let Some(previous) = previous {
                    longest_s = longest_s.max((day - previous) * 86_400 + first_s - last_s);
                }
                previous = Some(day);
            }
        }
        SignedDuration::from_secs(longest_s)
    }

    /// Sentences about what is legal but hardly meant, such as `*/90` minutes.
    pub fn remarks(&self) -> &[String] {
        &self.fields.remarks
    }

    /// The IANA name of its zone, where it has one.
    pub fn zone_name(&self) -> Option<&str> {
        self.zone.iana_name()
    }

    fn falls_on(&self, date: jiff::civil::Date) -> bool {
        let by_date = self.fields.days_of_month.contains(date.day().unsigned_abs().into());
        let weekday = date.weekday().to_sunday_zero_offset().unsigned_abs().into();
        let by_weekday = self.fields.days_of_week.contains(weekday);
        let day = if self.fields.either_day() { by_date || by_weekday } else { by_date && by_weekday };
        day && self.fields.months.contains(date.month().unsigned_abs().into())
    }

    /// The first due second after `done`, both counted as if local time were UTC.
    fn next_local(&self, done: i64) -> Option<i64> {
        let done = DateTime::<Utc>::from_timestamp(done, 0)?;
        self.calendars
            .iter()
            .filter_map(|calendar| calendar.after(&done).next())
            .map(|due| due.timestamp())
            .min()
    }
}
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.source)
    }
}
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.fields == other.fields && self.zone == other.zone
    }
}

fn is_small(change_s: i64) -> bool {
    (1..LARGE_CHANGE_S).contains(&change_s)
}

fn find_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> = jiff::tz::db().available().map(|zone| zone.to_string()).collect();
        if known.is_empty() {
            return "this machine has no time zone database: install tzdata".into();
        }
        match crate::nearest::nearest(name, known.iter().map(String::as_str)).as_slice() {
            [] => "write a name such as Europe/Berlin".into(),
            names => format!("did you mean {}?", names.join(" or ")),
        }
    })
}

/// The fields in the words of the `cron` crate.
fn calendar(text: &str, fields: &Fields) -> Result<cron::Schedule, ScheduleError> {
    let list = |field: Field, low: u32, high: u32| {
        let numbers: Vec<String> =
            (low..=high).filter(|n| field.contains(*n)).map(|n| n.to_string()).collect();
        if numbers.len() == (high - low + 1) as usize { "*".to_owned() } else { numbers.join(",") }
    };
    let weekdays: Vec<&str> =
        (0..7).filter(|n| fields.days_of_week.contains(*n)).map(|n| DAY_NAMES[n as usize]).collect();
    let expression = format!(
        "{} {} {} {} {} {}",
        list(fields.seconds, 0, 59),
        list(fields.minutes, 0, 59),
        list(fields.hours, 0, 23),
        list(fields.days_of_month, 1, 31),
        list(fields.months, 1, 12),
        if weekdays.len() == 7 { "*".to_owned() } else { weekdays.join(",") },
    );
    expression.parse().map_err(|cause| ScheduleError {
        expression: text.to_owned(),
        field: None,
        problem: format!("{cause}"),
        hint: None,
    })
}

/// A stretch of time in which the zone's offset does not change, and the change that began it. Seconds since
/// the Unix epoch, and seconds east of UTC.
#[allow(clippy::struct_field_names, reason = "units stand in names")]
struct Stretch {
    begins_s: i64,
    offset_before_s: i64,
    offset_s: i64,
    ends_s: Option<i64>,
}

impl Stretch {
    /// `None` only outside of the years that the calendar knows.
    fn around(zone: &TimeZone, moment_s: i64) -> Option<Self> {
        let at = |second: i64| Timestamp::from_second(second).ok();
        let offset = |second: i64| at(second).map(|moment| i64::from(zone.to_offset(moment).seconds()));
        let begins_s = zone
            .preceding(at(moment_s + 1)?)
            .next()
            .map_or(i64::MIN / 2, |change| change.timestamp().as_second());
        let offset_s = offset(moment_s)?;
        Some(Self {
            begins_s,
            offset_before_s: offset(begins_s - 1).unwrap_or(offset_s),
            offset_s,
            ends_s: zone.following(at(moment_s)?).next().map(|change| change.timestamp().as_second()),
        })
    }
    /// How far the clock was put forward when it began.
    fn jump_s(&self) -> i64 {
        self.offset_s - self.offset_before_s
    }
}
