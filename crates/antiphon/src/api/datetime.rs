//! Points in time as text: RFC 3339 in and out, for schedules and histories.
//!
//! The proleptic Gregorian calendar in UTC and nothing more. No decision about leadership sees these: the wall
//! clock only says when a planned action begins.

use std::time::{SystemTime, UNIX_EPOCH};

/// Why a text is not a point in time that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotATime {
    /// It is not written like `2026-11-24T10:00:00+00:00`.
    Unreadable,
    /// It has no time zone, so it could mean any of a day's hours.
    WithoutZone,
}

/// Seconds since 1970 of this moment.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads `YYYY-MM-DD`, `T` or a blank, `HH:MM`, `:SS`, a fraction (dropped), and `Z` or an offset, as seconds
/// since 1970.
///
/// # Errors
/// [`NotATime`] if the text is something else, or lies before 1970.
pub fn parse(text: &str) -> Result<u64, NotATime> {
    let text = text.trim();
    let (date, rest) = text.split_once(['T', 't', ' ']).ok_or(NotATime::Unreadable)?;
    let zone_at = rest.find(['Z', 'z', '+', '-']);
    let (time, zone) = zone_at.and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, ""));
    let seconds = days(date).zip(seconds_of_day(time.trim_end()));
    let (days, seconds) = seconds.ok_or(NotATime::Unreadable)?;
    if zone.is_empty() {
        return Err(NotATime::WithoutZone);
    }
    let offset = offset(zone).ok_or(NotATime::Unreadable)?;
    u64::try_from(days * 86_400 + seconds - offset).map_err(|_| NotATime::Unreadable)
}

/// The same point as `2026-11-24T10:00:00+00:00`.
pub fn format(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(i64::try_from(days).unwrap_or(0));
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
}

/// A fixed count of decimal digits as a number.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn days(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let (year, month, day) = (digits(year, 4)?, digits(month, 2)?, digits(day, 2)?);
    let days = from_civil(year, month, day);
    // A day that does not exist comes back as another one.
    let real = (1..=12).contains(&month) && day >= 1 && civil(days) == (year, month, day);
    (parts.next().is_none() && real).then_some(days)
}

fn seconds_of_day(time: &str) -> Option<i64> {
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = time.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |second| digits(second, 2))?;
    let real = hour < 24 && minute < 60 && second < 60 && fraction.bytes().all(|b| b.is_ascii_digit());
    (parts.next().is_none() && real && !fraction.is_empty()).then_some(hour * 3600 + minute * 60 + second)
}

/// Seconds that a zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let zone = zone.strip_prefix(['+', '-'])?;
    let (hours, minutes) = match zone.split_once(':') {
        Some(parts) => parts,
        None => zone.split_at_checked(2)?,
    };
    let minutes = if minutes.is_empty() { 0 } else { digits(minutes, 2)? };
    let hours = digits(hours, 2)?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Days since 1970-01-01; the year begins in March, so that the leap day is its last.
fn from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_as_it_was_written() {
        for text in ["1970-01-01T00:00:00+00:00", "2000-02-29T23:59:59+00:00", "2026-11-24T10:00:00+00:00"] {
            assert_eq!(format(parse(text).expect("a time")), text);
        }
        assert_eq!(parse("2026-11-24T10:00:00Z"), Ok(1_795_514_400));
    }

    #[test]
    fn zones_and_short_forms_mean_the_same_point() {
        let point = parse("2026-11-24T10:00:00Z");
        for text in ["2026-11-24 12:00+02:00", "2026-11-24T04:30:00.25-0530", "2026-11-24T12:00:00+02"] {
            assert_eq!(parse(text), point, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2026-02-30T10:00Z",
            "2026-13-01T10:00Z",
            "2026-11-24T25:00Z",
            "2026-11-24",
            "2026-11-24T10:00+ä",
            "2026-11-24T10:00:00.Z",
            "1960-01-01T00:00Z",
            "2026-11-24T1:00Z",
        ] {
            assert_eq!(parse(text), Err(NotATime::Unreadable), "{text}");
        }
        assert_eq!(parse("2026-11-24T10:00:00"), Err(NotATime::WithoutZone));
    }
}
