//! What a timestamp counts.

use std::str::FromStr;

/// Unit of the timestamps in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they are stored.
    #[default]
    Nanosecond,
    /// Millionths of a second.
    Microsecond,
    /// Thousandths of a second.
    Millisecond,
    /// Seconds.
    Second,
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Seconds to nanoseconds, guessed for each timestamp from its magnitude, as InfluxDB 3 does.
    Auto,
}

/// No precision has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("precision {0:?} is none of ns, us, ms, s, m, h, auto")]
pub struct UnknownPrecision(String);

impl Precision {
    /// A timestamp of this precision in nanoseconds; None if they do not fit 64 bits.
    #[must_use]
    pub fn to_ns(self, timestamp: i64) -> Option<i64> {
        let unit = match self {
            Self::Nanosecond => return Some(timestamp),
            Self::Microsecond => 1_000,
            Self::Millisecond => 1_000_000,
            Self::Second => 1_000_000_000,
            Self::Minute => 60_000_000_000,
            Self::Hour => 3_600_000_000_000,
            Self::Auto => return Self::guess(timestamp).to_ns(timestamp),
        };
        timestamp.checked_mul(unit)
    }

    /// The thresholds lie at 5e9 (year 2128 in seconds), 5e12 and 5e15.
    fn guess(timestamp: i64) -> Self {
        match timestamp.unsigned_abs() / 1_000_000_000 {
            0..5 => Self::Second,
            5..5_000 => Self::Millisecond,
            5_000..5_000_000 => Self::Microsecond,
            _ => Self::Nanosecond,
        }
    }
}

/// Names of all the APIs that a body may come by; empty means nanoseconds.
impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        Ok(match name {
            "" | "n" | "ns" | "nanosecond" => Self::Nanosecond,
            "u" | "us" | "µ" | "µs" | "microsecond" => Self::Microsecond,
            "ms" | "millisecond" => Self::Millisecond,
            "s" | "second" => Self::Second,
            "m" | "minute" => Self::Minute,
            "h" | "hour" => Self::Hour,
            "auto" => Self::Auto,
            _ => return Err(UnknownPrecision(name.chars().take(32).collect())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_factors() {
        for (names, one) in [
            (["n", "ns", "nanosecond"], 1),
            (["u", "us", "microsecond"], 1_000),
            (["ms", "ms", "millisecond"], 1_000_000),
            (["s", "s", "second"], 1_000_000_000),
            (["m", "m", "minute"], 60_000_000_000),
            (["h", "h", "hour"], 3_600_000_000_000),
        ] {
            for name in names {
                let precision: Precision = name.parse().unwrap();
                assert_eq!(precision.to_ns(-3), Some(-3 * one), "{name}");
                assert_eq!(precision.to_ns(i64::MAX).is_some(), one == 1, "{name}");
            }
        }
        assert_eq!("".parse(), Ok(Precision::Nanosecond));
        let error = "sec".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "precision \"sec\" is none of ns, us, ms, s, m, h, auto");
    }

    #[test]
    fn auto_goes_by_magnitude() {
        let instant = 1_700_000_000_000_000_000_i64;
        for unit in [1_000_000_000, 1_000_000, 1_000, 1] {
            assert_eq!(Precision::Auto.to_ns(instant / unit), Some(instant));
            assert_eq!(Precision::Auto.to_ns(-instant / unit), Some(-instant));
        }
        for (edge, unit) in [(4_999_999_999, 1_000_000_000), (5_000_000_000, 1_000_000)] {
            assert_eq!(Precision::Auto.to_ns(edge), Some(edge * unit));
        }
        assert_eq!(Precision::Auto.to_ns(4_999_999_999_999), Some(4_999_999_999_999_000_000));
        assert_eq!(Precision::Auto.to_ns(5_000_000_000_000), Some(5_000_000_000_000_000));
        assert_eq!(Precision::Auto.to_ns(i64::MIN), Some(i64::MIN));
    }
}
