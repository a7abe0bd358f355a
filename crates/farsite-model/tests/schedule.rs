//! Schedules against crontab(5): each block quotes the sentence that it was written from.

use farsite_model::schedule::Schedule;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// (expression, zone, after, the next due moments). Times are local to the zone, with its offset where the hour
/// comes twice; `after` likewise.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

fn moment(text: &str, zone: &str) -> Timestamp {
    text.parse().unwrap_or_else(|_| {
        let zone = TimeZone::get(zone).unwrap();
        zone.to_timestamp(text.parse::<jiff::civil::DateTime>().unwrap()).unwrap()
    })
}

fn check(cases: &[Case]) {
    for (expression, zone, after, expected) in cases {
        let schedule =
            Schedule::parse(expression, Some(zone)).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let mut last = moment(after, zone);
        for (n, due) in expected.iter().enumerate() {
            let found = schedule.next_after(last).unwrap();
            assert_eq!(found, moment(due, zone), "{expression} in {zone} after {after}, number {n}: {due}");
            last = found;
        }
    }
}

/// 2026-11-24 is a Tuesday.
const TUESDAY: &str = "2026-11-24T12:00:00";

#[test]
fn a_field_is_a_star_a_number_a_range_a_list_or_a_step() {
    check(&[
        // "A field may be an asterisk (*), which always stands for ``first-last''."
        ("* * * * *", "UTC", TUESDAY, &["2026-11-24T12:01", "2026-11-24T12:02"]),
        ("* * * * *", "UTC", "2026-11-24T12:00:59.999", &["2026-11-24T12:01"]),
        ("* * * * *", "UTC", "2026-12-31T23:59", &["2027-01-01T00:00"]),
        ("0 * * * *", "UTC", TUESDAY, &["2026-11-24T13:00", "2026-11-24T14:00"]),
        ("30 4 * * *", "UTC", TUESDAY, &["2026-11-25T04:30", "2026-11-26T04:30"]),
        ("59 23 * * *", "UTC", TUESDAY, &["2026-11-24T23:59", "2026-11-25T23:59"]),
        ("0 0 * * *", "UTC", "2026-11-24T00:00", &["2026-11-25T00:00"]),
        // "Ranges of numbers are allowed. [...] 8-11 for an ``hours'' entry specifies execution at hours 8, 9,
        // 10 and 11."
        (
            "0 8-11 * * *",
            "UTC",
            TUESDAY,
            &[
                "2026-11-25T08:00",
                "2026-11-25T09:00",
                "2026-11-25T10:00",
                "2026-11-25T11:00",
                "2026-11-26T08:00",
            ],
        ),
        (
            "5-7 0 * * *",
            "UTC",
            TUESDAY,
            &["2026-11-25T00:05", "2026-11-25T00:06", "2026-11-25T00:07", "2026-11-26T00:05"],
        ),
        ("0 12-12 * * *", "UTC", TUESDAY, &["2026-11-25T12:00", "2026-11-26T12:00"]),
        // "Lists are allowed. [...] Examples: ``1,2,5,9'', ``0-4,8-12''."
        (
            "0 1,2,5,9 * * *",
            "UTC",
            TUESDAY,
            &[
                "2026-11-25T01:00",
                "2026-11-25T02:00",
                "2026-11-25T05:00",
                "2026-11-25T09:00",
                "2026-11-26T01:00",
            ],
        ),
        ("0 0-4,8-12 * * *", "UTC", "2026-11-24T03:30", &["2026-11-24T04:00", "2026-11-24T08:00"]),
        ("0 12,3,3 * * *", "UTC", TUESDAY, &["2026-11-25T03:00", "2026-11-25T12:00"]),
        // "``0-23/2'' can be used in the hours field to specify command execution every other hour (the
        // alternative in the V7 standard is ``0,2,4,...,22'')."
        ("0 0-23/2 * * *", "UTC", "2026-11-24T11:00", &["2026-11-24T12:00", "2026-11-24T14:00"]),
        (
            "0 0,2,4,6,8,10,12,14,16,18,20,22 * * *",
            "UTC",
            "2026-11-24T20:00",
            &["2026-11-24T22:00", "2026-11-25T00:00"],
        ),
        // "Steps are also permitted after an asterisk, so if you want to say ``every two hours'', just use
        // ``*/2''."
        ("0 */2 * * *", "UTC", "2026-11-24T21:00", &["2026-11-24T22:00", "2026-11-25T00:00"]),
        (
            "*/15 * * * *",
            "UTC",
            TUESDAY,
            &["2026-11-24T12:15", "2026-11-24T12:30", "2026-11-24T12:45", "2026-11-24T13:00"],
        ),
        ("*/40 * * * *", "UTC", TUESDAY, &["2026-11-24T12:40", "2026-11-24T13:00"]),
        (
            "10-50/20 * * * *",
            "UTC",
            TUESDAY,
            &["2026-11-24T12:10", "2026-11-24T12:30", "2026-11-24T12:50", "2026-11-24T13:10"],
        ),
        ("10-49/20 * * * *", "UTC", TUESDAY, &["2026-11-24T12:10", "2026-11-24T12:30", "2026-11-24T13:10"]),
        (
            "0-30/15,45-59/7 * * * *",
            "UTC",
            TUESDAY,
            &[
                "2026-11-24T12:15",
                "2026-11-24T12:30",
                "2026-11-24T12:45",
                "2026-11-24T12:52",
                "2026-11-24T12:59",
                "2026-11-24T13:00",
            ],
        ),
        ("*/90 * * * *", "UTC", TUESDAY, &["2026-11-24T13:00", "2026-11-24T14:00"]),
        ("0 */5 * * *", "UTC", TUESDAY, &["2026-11-24T15:00", "2026-11-24T20:00", "2026-11-25T00:00"]),
        (
            "0 0 */10 * *",
            "UTC",
            TUESDAY,
            &[
                "2026-12-01T00:00",
                "2026-12-11T00:00",
                "2026-12-21T00:00",
                "2026-12-31T00:00",
                "2027-01-01T00:00",
            ],
        ),
        ("0 0 1 */5 *", "UTC", TUESDAY, &["2027-01-01T00:00", "2027-06-01T00:00", "2027-11-01T00:00"]),
        ("  0\t0   1 1  *  ", "UTC", TUESDAY, &["2027-01-01T00:00"]),
    ]);
}

#[test]
fn weekdays_count_from_sunday_which_is_0_and_7() {
    check(&[
        // "day of week 0-7 (0 or 7 is Sunday, or use names)"
        ("0 0 * * 0", "UTC", TUESDAY, &["2026-11-29T00:00", "2026-12-06T00:00"]),
        ("0 0 * * 7", "UTC", TUESDAY, &["2026-11-29T00:00", "2026-12-06T00:00"]),
        ("0 0 * * 1", "UTC", TUESDAY, &["2026-11-30T00:00", "2026-12-07T00:00"]),
        ("0 0 * * 2", "UTC", TUESDAY, &["2026-12-01T00:00"]),
        ("0 0 * * 6", "UTC", TUESDAY, &["2026-11-28T00:00"]),
        ("0 0 * * 1-5", "UTC", "2026-11-27T00:00", &["2026-11-30T00:00", "2026-12-01T00:00"]),
        (
            "0 0 * * 5-7",
            "UTC",
            TUESDAY,
            &["2026-11-27T00:00", "2026-11-28T00:00", "2026-11-29T00:00", "2026-12-04T00:00"],
        ),
        ("0 0 * * 0-7", "UTC", TUESDAY, &["2026-11-25T00:00", "2026-11-26T00:00"]),
        ("0 0 * * 0,3", "UTC", TUESDAY, &["2026-11-25T00:00", "2026-11-29T00:00", "2026-12-02T00:00"]),
        (
            "0 0 * * */2",
            "UTC",
            TUESDAY,
            &["2026-11-26T00:00", "2026-11-28T00:00", "2026-11-29T00:00", "2026-12-01T00:00"],
        ),
        ("0 0 * * 1-7/3", "UTC", TUESDAY, &["2026-11-26T00:00", "2026-11-29T00:00", "2026-11-30T00:00"]),
    ]);
}

#[test]
fn names_are_the_first_three_letters_and_case_does_not_matter() {
    check(&[
        // "Names can also be used for the ``month'' and ``day of week'' fields. Use the first three letters of
        // the particular day or month (case doesn't matter)."
        ("0 0 * * sun", "UTC", TUESDAY, &["2026-11-29T00:00"]),
        ("0 0 * * Mon", "UTC", TUESDAY, &["2026-11-30T00:00"]),
        ("0 0 * * SAT", "UTC", TUESDAY, &["2026-11-28T00:00"]),
        ("0 0 1 jan *", "UTC", TUESDAY, &["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("0 0 1 DEC *", "UTC", TUESDAY, &["2026-12-01T00:00"]),
        (
            "0 0 * * sun-tue",
            "UTC",
            TUESDAY,
            &["2026-11-29T00:00", "2026-11-30T00:00", "2026-12-01T00:00", "2026-12-06T00:00"],
        ),
        (
            "0 0 * * mon,wed,fri",
            "UTC",
            TUESDAY,
            &["2026-11-25T00:00", "2026-11-27T00:00", "2026-11-30T00:00"],
        ),
        (
            "0 0 1 mar-may *",
            "UTC",
            TUESDAY,
            &["2027-03-01T00:00", "2027-04-01T00:00", "2027-05-01T00:00", "2028-03-01T00:00"],
        ),
        ("0 0 * * fri-7", "UTC", TUESDAY, &["2026-11-27T00:00", "2026-11-28T00:00", "2026-11-29T00:00"]),
    ]);
}

#[test]
fn months_and_days_follow_the_calendar() {
    check(&[
        ("0 0 1 * *", "UTC", TUESDAY, &["2026-12-01T00:00", "2027-01-01T00:00"]),
        ("0 0 31 * *", "UTC", TUESDAY, &["2026-12-31T00:00", "2027-01-31T00:00", "2027-03-31T00:00"]),
        ("0 0 30 * *", "UTC", "2027-01-30T00:00", &["2027-03-30T00:00"]),
        ("0 0 29 2 *", "UTC", TUESDAY, &["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("15 10 1,15 6 *", "UTC", TUESDAY, &["2027-06-01T10:15", "2027-06-15T10:15", "2028-06-01T10:15"]),
        ("0 0 28-31 2 *", "UTC", TUESDAY, &["2027-02-28T00:00", "2028-02-28T00:00", "2028-02-29T00:00"]),
        ("0 22 * * 1-5", "UTC", "2026-11-27T22:00", &["2026-11-30T22:00"]),
        ("23 0-23/2 * * *", "UTC", TUESDAY, &["2026-11-24T12:23", "2026-11-24T14:23"]),
        ("5 4 * * sun", "UTC", TUESDAY, &["2026-11-29T04:05"]),
    ]);
}

#[test]
fn when_both_day_fields_are_restricted_either_is_enough() {
    check(&[
        // "``30 4 1,15 * 5'' would cause a command to be run at 4:30 am on the 1st and 15th of each month, plus
        // every Friday."
        (
            "30 4 1,15 * 5",
            "UTC",
            TUESDAY,
            &[
                "2026-11-27T04:30",
                "2026-12-01T04:30",
                "2026-12-04T04:30",
                "2026-12-11T04:30",
                "2026-12-15T04:30",
            ],
        ),
        (
            "0 0 13 * fri",
            "UTC",
            TUESDAY,
            &["2026-11-27T00:00", "2026-12-04T00:00", "2026-12-11T00:00", "2026-12-13T00:00"],
        ),
        // "[...] restricted (i.e., do not contain the "*" character)": a step after a star is not a restriction,
        // so both have to match.
        ("0 0 */2 * 1", "UTC", TUESDAY, &["2026-12-07T00:00", "2026-12-21T00:00"]),
        ("0 0 1-7 * */7", "UTC", TUESDAY, &["2026-12-06T00:00", "2027-01-03T00:00"]),
        // A range over everything does not start with a star.
        ("0 0 1-31 * 1", "UTC", TUESDAY, &["2026-11-25T00:00", "2026-11-26T00:00"]),
        ("0 0 30 2 1", "UTC", TUESDAY, &["2027-02-01T00:00", "2027-02-08T00:00"]),
    ]);
}

#[test]
fn nicknames_stand_for_what_the_manual_says() {
    check(&[
        // "@yearly Run once a year, ``0 0 1 1 *''. @annually (same as @yearly) @monthly ``0 0 1 * *''. @weekly
        // ``0 0 * * 0''. @daily ``0 0 * * *''. @midnight (same as @daily) @hourly ``0 * * * *''."
        ("@yearly", "UTC", TUESDAY, &["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("@annually", "UTC", TUESDAY, &["2027-01-01T00:00"]),
        ("@monthly", "UTC", TUESDAY, &["2026-12-01T00:00", "2027-01-01T00:00"]),
        ("@weekly", "UTC", TUESDAY, &["2026-11-29T00:00", "2026-12-06T00:00"]),
        ("@daily", "UTC", TUESDAY, &["2026-11-25T00:00", "2026-11-26T00:00"]),
        ("@midnight", "UTC", TUESDAY, &["2026-11-25T00:00"]),
        ("@hourly", "UTC", TUESDAY, &["2026-11-24T13:00", "2026-11-24T14:00"]),
        ("@Daily", "Asia/Kolkata", TUESDAY, &["2026-11-25T00:00"]),
    ]);
}

#[test]
fn six_fields_begin_with_seconds() {
    check(&[
        ("*/5 * * * * *", "UTC", TUESDAY, &["2026-11-24T12:00:05", "2026-11-24T12:00:10"]),
        ("*/5 * * * * *", "UTC", "2026-11-24T12:00:04.2", &["2026-11-24T12:00:05"]),
        ("30 * * * * *", "UTC", TUESDAY, &["2026-11-24T12:00:30", "2026-11-24T12:01:30"]),
        ("0 30 4 * * *", "UTC", TUESDAY, &["2026-11-25T04:30:00"]),
        (
            "15,45 59 23 31 12 *",
            "UTC",
            TUESDAY,
            &["2026-12-31T23:59:15", "2026-12-31T23:59:45", "2027-12-31T23:59:15"],
        ),
        ("* * * * * sun", "UTC", TUESDAY, &["2026-11-29T00:00:00", "2026-11-29T00:00:01"]),
    ]);
}

#[test]
fn a_time_zone_moves_the_instant_not_the_clock_on_the_wall() {
    check(&[
        ("0 4 * * *", "Europe/Berlin", "2026-11-24T12:00:00Z", &["2026-11-25T03:00:00Z"]),
        ("0 4 * * *", "Europe/Berlin", "2026-06-24T12:00:00Z", &["2026-06-25T02:00:00Z"]),
        ("0 4 * * *", "Asia/Kolkata", "2026-11-24T12:00:00Z", &["2026-11-24T22:30:00Z"]),
        ("0 0 1 * *", "Pacific/Auckland", "2026-11-24T12:00:00Z", &["2026-11-30T11:00:00Z"]),
        ("0 12 * * 0", "America/Los_Angeles", "2026-11-24T12:00:00Z", &["2026-11-29T20:00:00Z"]),
    ]);
}

#[test]
fn in_spring_what_the_clock_skips_is_run_at_once() {
    check(&[
        // Berlin: 2026-03-29 02:00 becomes 03:00. "If time has moved forward, those jobs that would have run in
        // the interval that has been skipped will be run immediately."
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T02:30"]),
        ("0 2 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T02:00"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T02:00"]),
        // Due both in the skipped hour and right behind it: once.
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T02:00"]),
        ("0 3 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T03:00"]),
        ("30 2 * * 1", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-30T02:30"]),
        // "Jobs that run more frequently are scheduled normally."
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T01:30", &["2026-03-29T03:00", "2026-03-29T03:30"]),
        ("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-30T02:00", "2026-03-30T02:15"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29T01:30", &["2026-03-29T03:30"]),
        // Six fields, at a fixed hour and minute: once as well.
        ("0 30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", &["2026-03-29T03:00", "2026-03-30T02:30"]),
        // New York: 2026-03-08 02:00 becomes 03:00.
        ("15 2 * * *", "America/New_York", "2026-03-07T12:00", &["2026-03-08T03:00", "2026-03-09T02:15"]),
        // The south: Sydney 2026-10-04 02:00 becomes 03:00; Santiago skips midnight on 2026-09-06.
        ("30 2 * * *", "Australia/Sydney", "2026-10-03T12:00", &["2026-10-04T03:00", "2026-10-05T02:30"]),
        ("@daily", "America/Santiago", "2026-09-05T12:00", &["2026-09-06T01:00", "2026-09-07T00:00"]),
        // Lord Howe skips half an hour: 2026-10-04 02:00 becomes 02:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", &["2026-10-04T02:30", "2026-10-05T02:15"]),
        // Three hours or more is a correction, not daylight saving: Samoa had no 2011-12-30.
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T13:00", &["2011-12-31T12:00"]),
    ]);
}

#[test]
fn in_autumn_nothing_at_a_fixed_time_runs_twice() {
    check(&[
        // Berlin: 2026-10-25 03:00 becomes 02:00. "Conversely, if time has moved backward, care is taken to
        // avoid running jobs twice."
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", &["2026-10-25T02:30+02:00", "2026-10-26T02:30"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T02:10+01:00", &["2026-10-26T02:30"]),
        ("0 3 * * *", "Europe/Berlin", "2026-10-24T12:00", &["2026-10-25T03:00+01:00", "2026-10-26T03:00"]),
        (
            "0,30 1,2,3 * * *",
            "Europe/Berlin",
            "2026-10-25T01:45",
            &["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-25T03:00+01:00"],
        ),
        // Intervals follow real time.
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T02:15+02:00",
            &[
                "2026-10-25T02:30+02:00",
                "2026-10-25T02:00+01:00",
                "2026-10-25T02:30+01:00",
                "2026-10-25T03:00+01:00",
            ],
        ),
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:45",
            &["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00"],
        ),
        (
            "*/10 * * * * *",
            "Europe/Berlin",
            "2026-10-25T02:59:45+02:00",
            &["2026-10-25T02:59:50+02:00", "2026-10-25T02:00:00+01:00"],
        ),
        (
            "30 1 * * *",
            "America/New_York",
            "2026-10-31T12:00",
            &["2026-11-01T01:30-04:00", "2026-11-02T01:30"],
        ),
        (
            "30 2 * * *",
            "Australia/Sydney",
            "2026-04-04T12:00",
            &["2026-04-05T02:30+11:00", "2026-04-06T02:30"],
        ),
        ("@daily", "America/Santiago", "2026-04-03T12:00", &["2026-04-04T00:00", "2026-04-05T00:00"]),
        (
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T12:00",
            &["2026-04-05T01:45+11:00", "2026-04-06T01:45"],
        ),
    ]);
}

#[test]
fn what_is_not_a_schedule_is_refused_with_the_field_and_what_is_allowed() {
    let cases: &[(&str, Option<&str>, &str)] = &[
        ("", None, "0 fields, where 5 or 6 are needed"),
        ("* * * *", None, "4 fields"),
        ("* * * * * * *", None, "7 fields"),
        ("60 * * * *", Some("minute"), "allowed is 0 to 59"),
        ("* 24 * * *", Some("hour"), "allowed is 0 to 23"),
        ("* * 0 * *", Some("day of month"), "allowed is 1 to 31"),
        ("* * 32 * *", Some("day of month"), "32 is out of range"),
        ("* * * 13 *", Some("month"), "or jan to dec"),
        ("* * * 0 *", Some("month"), "allowed is 1 to 12"),
        ("* * * * 8", Some("day of week"), "allowed is 0 to 7, or sun to sat"),
        ("* * * * funday", Some("day of week"), "\"funday\" is not a number or name"),
        ("* * * * monday", Some("day of week"), "not a number or name"),
        ("60 * * * * *", Some("second"), "allowed is 0 to 59"),
        ("jan * * * *", Some("minute"), "not a number or name"),
        ("5/15 * * * *", Some("minute"), "write `5-59/15`"),
        ("*/0 * * * *", Some("minute"), "not a whole number above 0"),
        ("*/x * * * *", Some("minute"), "not a whole number above 0"),
        ("*/-5 * * * *", Some("minute"), "not a whole number above 0"),
        ("50-10 * * * *", Some("minute"), "`50-59,0-10`"),
        ("* * * * sat-sun", Some("day of week"), "`6-7`"),
        ("* * * * fri-mon", Some("day of week"), "`fri-6,0-mon`"),
        ("1,,2 * * * *", Some("minute"), "an empty element"),
        ("-5 * * * *", Some("minute"), "an empty element"),
        ("? * * * *", Some("minute"), "not a number or name"),
        ("* * L * *", Some("day of month"), "not a number or name"),
        ("99999999999 * * * *", Some("minute"), "out of range"),
        ("@reboot", None, "names no time"),
        ("@dayly", None, "did you mean @daily"),
        ("0 0 30 2 *", None, "never due"),
        ("0 0 31 4,6,9,11 *", None, "never due"),
        ("0 0 31 feb-feb *", None, "February has at most 29 days"),
    ];
    for (expression, field, says) in cases {
        let error = Schedule::parse(expression, Some("UTC")).unwrap_err();
        assert_eq!(error.field, *field, "{expression}: {error}");
        assert!(error.to_string().contains(says), "{expression}: {error}");
        assert_eq!(error.expression, *expression);
    }
}

#[test]
fn an_unknown_time_zone_is_refused_with_the_nearest_one() {
    let error = Schedule::parse("@daily", Some("Europe/Berln")).unwrap_err().to_string();
    assert!(error.contains("\"Europe/Berln\"") && error.contains("Europe/Berlin"), "{error}");
}

#[test]
fn moments_missed_while_an_agent_was_down_are_listed_up_to_now() {
    let schedule = Schedule::parse("*/15 * * * *", Some("UTC")).unwrap();
    let at = |text| moment(text, "UTC");
    let missed: Vec<_> = schedule
        .missed_between(at("2026-11-24T12:00"), at("2026-11-24T12:45"))
        .map(|due| due.to_string())
        .collect();
    assert_eq!(missed, ["2026-11-24T12:15:00Z", "2026-11-24T12:30:00Z", "2026-11-24T12:45:00Z"]);
    assert_eq!(schedule.missed_between(at("2026-11-24T12:00"), at("2026-11-24T12:14:59")).count(), 0);
    assert_eq!(schedule.missed_between(at("2026-11-24T12:00"), at("2026-11-24T11:00")).count(), 0);
}

#[test]
fn the_longest_pause_sees_nights_weekends_and_leap_years() {
    let hours =
        |expression| Schedule::parse(expression, Some("UTC")).unwrap().longest_pause().as_secs_f64() / 3600.0;
    let close = |expression, expected: f64| {
        let found: f64 = hours(expression);
        assert!((found - expected).abs() < 1e-6, "{expression}: {found} h");
    };
    close("*/15 * * * *", 0.25);
    close("0,10 * * * *", 50.0 / 60.0);
    close("*/5 * * * * *", 5.0 / 3600.0);
    close("0 * * * * *", 1.0 / 60.0);
    close("@daily", 24.0);
    close("0 8-18 * * 1-5", 14.0 + 48.0);
    close("* 8-18 * * *", 13.0 + 1.0 / 60.0);
    close("0 0 29 2 *", 24.0 * 1461.0);
    close("0 0 1 * *", 24.0 * 31.0);
}

#[test]
fn a_step_longer_than_its_range_is_remarked_on() {
    let schedule = Schedule::parse("*/90 * * * *", Some("UTC")).unwrap();
    assert!(schedule.remarks()[0].contains("\"*/90\""), "{:?}", schedule.remarks());
    assert!(Schedule::parse("*/15 * * * *", Some("UTC")).unwrap().remarks().is_empty());
    assert_eq!(schedule.to_string(), "*/90 * * * *");
}
