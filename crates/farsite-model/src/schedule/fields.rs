//! A crontab line's fields, read as crontab(5) of Vixie cron describes them, as sets of numbers.

use super::ScheduleError;

/// The numbers that one field names (bit n stands for n), and whether it begins with `*`: both the union rule
/// of the day fields and the treatment of daylight saving time hang on that star, as in Vixie cron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) bits: u64,
    pub(super) starred: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) seconds: Field,
    pub(super) minutes: Field,
    pub(super) hours: Field,
    pub(super) days_of_month: Field,
    pub(super) months: Field,
    /// Sunday is 0 here; a 7 was folded into it.
    pub(super) days_of_week: Field,
    /// Six fields were written.
    pub(super) has_seconds: bool,
    /// What is legal but hardly meant.
    pub(super) remarks: Vec<String>,
}

/// What crontab(5) allows in a field.
struct Kind {
    name: &'static str,
    low: u32,
    high: u32,
    /// Names of the numbers from `names_from` on.
    names: &'static [&'static str],
    names_from: u32,
}

const SECOND: Kind = Kind { name: "second", low: 0, high: 59, names: &[], names_from: 0 };
const MINUTE: Kind = Kind { name: "minute", low: 0, high: 59, names: &[], names_from: 0 };
const HOUR: Kind = Kind { name: "hour", low: 0, high: 23, names: &[], names_from: 0 };
const DAY_OF_MONTH: Kind = Kind { name: "day of month", low: 1, high: 31, names: &[], names_from: 0 };
const MONTH: Kind = Kind { name: "month", low: 1, high: 12, names: &MONTH_NAMES, names_from: 1 };
const DAY_OF_WEEK: Kind = Kind { name: "day of week", low: 0, high: 7, names: &DAY_NAMES, names_from: 0 };

pub(super) const DAY_NAMES: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MONTH_NAMES: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The nicknames of crontab(5) and what they stand for.
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

impl Field {
    pub(super) fn contains(self, number: u32) -> bool {
        self.bits & (1 << number) != 0
    }
    /// The numbers in ascending order.
    pub(super) fn numbers(self) -> impl DoubleEndedIterator<Item = u32> {
        (0..64).filter(move |number| self.contains(*number))
    }
}

impl Fields {
    /// Five fields, six with leading seconds, or a nickname.
    pub(super) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let fail = |problem: String, hint: Option<String>| ScheduleError {
            expression: text.to_owned(),
            field: None,
            problem,
            hint,
        };
        let trimmed = text.trim();
        if trimmed.starts_with('@') {
            return match NICKNAMES.iter().find(|(nickname, _)| nickname.eq_ignore_ascii_case(trimmed)) {
                Some((_, meaning)) => Self::parse(meaning),
                None if trimmed.eq_ignore_ascii_case("@reboot") => Err(fail(
                    "@reboot names no time: a schedule needs moments that can be missed and made up for"
                        .into(),
                    Some("use `@hourly`, or fields such as `*/15 * * * *`".into()),
                )),
                None => {
                    let known = NICKNAMES.map(|(nickname, _)| nickname);
                    Err(fail(
                        format!(
                            "unknown nickname {trimmed:?}{}",
                            crate::nearest::did_you_mean(trimmed, known.iter().copied())
                        ),
                        Some(format!("known are {}", known.join(", "))),
                    ))
                }
            };
        }
        let mut remarks = Vec::new();
        let mut read = |kind: &Kind, field: &str| {
            parse_field(kind, field, &mut remarks).map_err(|(problem, hint)| ScheduleError {
                expression: text.to_owned(),
                field: Some(kind.name),
                problem,
                hint,
            })
        };
        let words: Vec<&str> = trimmed.split_ascii_whitespace().collect();
        let has_seconds = words.len() == 6;
        let (seconds, words) = match words.as_slice() {
            [second, rest @ ..] if rest.len() == 5 => (read(&SECOND, second)?, rest),
            five => (Field { bits: 1, starred: false }, five),
        };
        let [minute, hour, day_of_month, month, day_of_week] = words else {
            return Err(fail(
                format!("{} fields, where 5 or 6 are needed", words.len()),
                Some(
                    "write minute, hour, day of month, month, day of week, with seconds before them if wanted: \
                     `*/15 * * * *`"
                        .into(),
                ),
            ));
        };
        let mut fields = Self {
            seconds,
            minutes: read(&MINUTE, minute)?,
            hours: read(&HOUR, hour)?,
            days_of_month: read(&DAY_OF_MONTH, day_of_month)?,
            months: read(&MONTH, month)?,
            days_of_week: read(&DAY_OF_WEEK, day_of_week)?,
            has_seconds,
            remarks: Vec::new(),
        };
        fields.remarks = remarks;
        // "0 or 7 is Sunday".
        let days = &mut fields.days_of_week.bits;
        *days = (*days | (*days >> 7)) & 0x7f;
        Ok(fields)
    }

    /// Vixie cron calls such lines wildcard jobs: they follow real time through a change of the clock.
    pub(super) fn is_wildcard(&self) -> bool {
        self.minutes.starred || self.hours.starred
    }

    /// "If both fields are restricted (i.e., do not contain the '*' character), the command will be run when
    /// either field matches the current time."
    pub(super) fn either_day(&self) -> bool {
        !self.days_of_month.starred && !self.days_of_week.starred
    }
}

type Fault = (String, Option<String>);

fn parse_field(kind: &Kind, field: &str, remarks: &mut Vec<String>) -> Result<Field, Fault> {
    let mut bits = 0;
    for part in field.split(',') {
        bits |= parse_part(kind, part, remarks)?;
    }
    Ok(Field { bits, starred: field.starts_with('*') })
}

/// One element of a list: `*`, `n`, `n-m`, each range with `/step` behind it if wanted.
fn parse_part(kind: &Kind, part: &str, remarks: &mut Vec<String>) -> Result<u64, Fault> {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let (low, high) = if range == "*" {
        (kind.low, kind.high)
    } else if let Some((low, high)) = range.split_once('-') {
        let (from, to) = (number(kind, low)?, number(kind, high)?);
        if from > to {
            let hint = if kind.name == DAY_OF_WEEK.name && to == 0 {
                format!("a range that ends on Sunday ends with 7: `{from}-7`")
            } else {
                format!("write two ranges: `{low}-{},{}-{high}`", kind.top(), kind.low)
            };
            return Err((format!("the range {range:?} runs backwards"), Some(hint)));
        }
        (from, to)
    } else {
        let one = number(kind, range)?;
        if let Some(step) = step {
            return Err((
                format!("{part:?} has a step, but no range to step through"),
                Some(format!("write `{range}-{}/{step}`", kind.top())),
            ));
        }
        (one, one)
    };
    let step = match step {
        None => 1,
        Some(text) => match text.parse::<u32>() {
            Ok(step) if step > 0 && text.bytes().all(|b| b.is_ascii_digit()) => step,
            _ => return Err((format!("the step {text:?} is not a whole number above 0"), None)),
        },
    };
    if step > high - low && high > low {
        remarks.push(format!(
            "the step of {part:?} is longer than its range: only {} {low} is left of it",
            kind.name
        ));
    }
    Ok((low..=high).step_by(step as usize).fold(0, |bits, n| bits | (1 << n)))
}

impl Kind {
    /// The highest number that a person would write (6 for Saturday, though 7 is understood).
    fn top(&self) -> u32 {
        self.names_from + self.names.len().checked_sub(1).map_or(self.high - self.names_from, |n| n as u32)
    }
    fn allowed(&self) -> String {
        match (self.names.first(), self.names.last()) {
            (Some(first), Some(last)) => {
                format!("allowed is {} to {}, or {first} to {last}", self.low, self.high)
            }
            _ => format!("allowed is {} to {}", self.low, self.high),
        }
    }
}

fn number(kind: &Kind, text: &str) -> Result<u32, Fault> {
    if let Some(index) = kind.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(kind.names_from + index as u32);
    }
    if text.is_empty() {
        return Err(("an empty element".into(), Some(kind.allowed())));
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err((format!("{text:?} is not a number or name"), Some(kind.allowed())));
    }
    match text.parse() {
        Ok(number) if (kind.low..=kind.high).contains(&number) => Ok(number),
        _ => Err((format!("{text} is out of range"), Some(kind.allowed()))),
    }
}
