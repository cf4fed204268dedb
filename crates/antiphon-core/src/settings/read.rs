//! Reading single values: durations, sizes, counts, switches. Each error is the noun that was expected.

use std::time::Duration;

use serde_json::Value;

use super::SyncMode;

/// Units of time as PostgreSQL writes them, in nanoseconds.
const TIME_UNITS: [(&str, f64); 6] =
    [("us", 1e3), ("ms", 1e6), ("min", 60e9), ("s", 1e9), ("h", 3600e9), ("d", 86_400e9)];

/// Units of size as PostgreSQL writes them, in bytes. Letter case does not matter.
const SIZE_UNITS: [(&str, f64); 5] = [
    ("kb", 1024.0),
    ("mb", 1024.0 * 1024.0),
    ("gb", 1024.0 * 1024.0 * 1024.0),
    ("tb", 1024.0 * 1024.0 * 1024.0 * 1024.0),
    ("b", 1.0),
];

/// The longest duration that is read: 10 years. Longer ones are slips, and sums of them could overflow.
const SPAN_NANOS_MAX: f64 = 10.0 * 365.0 * 86_400e9;

/// A duration: seconds as a number, or a text with a unit (`500ms`, `10s`, `1min`, `2h`, `1d`).
/// None if the value is not one, is negative or is longer than ten years.
pub fn span(value: &Value) -> Option<Duration> {
    let nanos = quantity(value, &TIME_UNITS, 1e9)?;
    // The bound keeps the conversion exact enough and far from overflow.
    (0.0..=SPAN_NANOS_MAX).contains(&nanos).then(|| Duration::from_nanos(nanos as u64))
}

/// A size in bytes: a number, or a text with a unit (`16kB`, `1MB`; multiples of 1024). May be negative, since
/// Patroni's settings use -1 for "none". None if the value is not one or is beyond 2^53.
pub fn bytes(value: &Value) -> Option<i64> {
    let bytes = quantity(value, &SIZE_UNITS, 1.0)?;
    // Up to 2^53 a float holds every whole number.
    (bytes.fract() == 0.0 && bytes.abs() < 9e15).then_some(bytes as i64)
}

/// A whole number, also as text.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A switch: `true`, `false` or the words that YAML 1.1 and PostgreSQL take for them.
pub(crate) fn switch(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Some(true),
            "false" | "off" | "no" => Some(false),
            _ => None,
        },
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `synchronous_mode`: a switch, or `quorum`.
pub(crate) fn sync_mode(value: &Value) -> Option<SyncMode> {
    match value.as_str() {
        Some(word) if word.eq_ignore_ascii_case("quorum") => Some(SyncMode::Quorum),
        _ => switch(value).map(|on| if on { SyncMode::On } else { SyncMode::Off }),
    }
}

/// A number, or a text of a number and a unit, in the smallest unit.
fn quantity(value: &Value, units: &[(&str, f64)], plain: f64) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64().map(|n| n * plain),
        Value::String(text) => text.trim().to_ascii_lowercase(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *factor)))
        .unwrap_or((text.as_str(), plain));
    let plain_decimal = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-'));
    plain_decimal.then(|| digits.parse::<f64>().ok()).flatten().map(|n| n * factor)
}
