//! Times as expressions use them: RFC 3339 in, .NET custom format strings out.

use super::Fault;

const SECONDS_OF_DAY: i64 = 86_400;
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time in UTC; fractions of a second are dropped, since no format here prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    seconds: i64,
}

impl Moment {
    /// Reads RFC 3339 with any offset.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        Self::read(text).ok_or_else(|| Fault::new(format!("{text:?} is no time in RFC 3339")))
    }

    fn read(text: &str) -> Option<Self> {
        let field = |from: usize, to: usize| -> Option<i64> {
            let digits = text.get(from..to)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let marks = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':')];
        if marks.iter().any(|&(at, mark)| text.get(at..=at) != Some(mark.to_string().as_str())) {
            return None;
        }
        let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
        let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
            return None;
        }
        let mut rest = text.get(19..)?;
        if let Some(fraction) = rest.strip_prefix('.') {
            rest = fraction.trim_start_matches(|character: char| character.is_ascii_digit());
        }
        let offset = offset_seconds(rest)?;
        let seconds = days_from_civil(year, month, day) * SECONDS_OF_DAY
            + hour * 3_600
            + minute * 60
            + second.min(59)
            - offset;
        Some(Self { seconds })
    }

    /// The time in a format made of `yyyy`, `MM`, `dd`, `HH`, `mm`, `ss` and marks, or `r`, the form of HTTP.
    pub(super) fn format(self, format: &str) -> Result<String, Fault> {
        let days = self.seconds.div_euclid(SECONDS_OF_DAY);
        let of_day = self.seconds.rem_euclid(SECONDS_OF_DAY);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        if format.eq_ignore_ascii_case("r") {
            let name = DAYS.iter().cycle().nth(days.rem_euclid(7).unsigned_abs() as usize);
            let month = MONTHS.get((month - 1).unsigned_abs() as usize);
            let (Some(name), Some(month)) = (name, month) else {
                return Err(Fault::new("a day or a month has no name"));
            };
            return Ok(format!(
                "{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
            ));
        }
        let mut text = String::new();
        let mut rest = format;
        while let Some(first) = rest.chars().next() {
            let run = rest.chars().take_while(|&character| character == first).count();
            match &rest[..run * first.len_utf8()] {
                "yyyy" => text.push_str(&format!("{year:04}")),
                "MM" => text.push_str(&format!("{month:02}")),
                "dd" => text.push_str(&format!("{day:02}")),
                "HH" => text.push_str(&format!("{hour:02}")),
                "mm" => text.push_str(&format!("{minute:02}")),
                "ss" => text.push_str(&format!("{second:02}")),
                mark @ ("-" | ":" | " " | "T" | "Z" | ".") => text.push_str(mark),
                other => return Err(Fault::new(format!("{other:?} in {format:?} is not known"))),
            }
            rest = &rest[run * first.len_utf8()..];
        }
        Ok(text)
    }
}

fn offset_seconds(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_once(':')?;
    Some(sign * (hours.parse::<i64>().ok()? * 3_600 + minutes.parse::<i64>().ok()? * 60))
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar, counted from March so that the leap day is last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}
