//! The levels of consistency as sessions and files write them.

use crate::positions::Consistency;

/// The longest bound, a day, in milliseconds.
const BOUND_MS_MAX: u64 = 86_400_000;

impl std::str::FromStr for Consistency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().to_ascii_lowercase();
        match text.as_str() {
            "strong" => return Ok(Self::Strong),
            "read_your_writes" | "default" => return Ok(Self::ReadYourWrites),
            "monotonic" => return Ok(Self::Monotonic),
            "eventual" => return Ok(Self::Eventual),
            _ => {}
        }
        let bound = text.strip_prefix("bounded(").and_then(|rest| rest.strip_suffix(')'));
        bound.and_then(milliseconds).map(Self::Bounded).ok_or_else(|| {
            "must be strong, read_your_writes, monotonic, bounded(DURATION) with a duration as 500ms or 2s, or eventual"
                .to_owned()
        })
    }
}

/// A duration of digits and a unit, as PostgreSQL writes it; without a unit in milliseconds.
fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let bound = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=BOUND_MS_MAX).contains(&bound).then_some(bound)
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Strong => f.write_str("strong"),
            Self::ReadYourWrites => f.write_str("read_your_writes"),
            Self::Monotonic => f.write_str("monotonic"),
            Self::Bounded(bound) => write!(f, "bounded({bound}ms)"),
            Self::Eventual => f.write_str("eventual"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_read_back_as_it_is_written() {
        for text in ["strong", "read_your_writes", "monotonic", "bounded(500ms)", "eventual"] {
            assert_eq!(text.parse::<Consistency>().unwrap().to_string(), text);
        }
        assert_eq!(" Bounded( 2 s )".parse(), Ok(Consistency::Bounded(2000)));
        for wrong in ["", "weak", "bounded", "bounded()", "bounded(0)", "bounded(5 days)", "bounded(2s"] {
            assert!(wrong.parse::<Consistency>().is_err(), "{wrong}");
        }
    }
}
