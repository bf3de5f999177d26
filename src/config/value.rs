//! Values as people write them: `64MiB`, `10s`, `a, b`; from a file, a variable or a flag alike.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::types::{Role, TimingProfile};

/// A value that can be read from text.
pub trait FromText: Sized {
    /// The value, or what is wrong and what would be right.
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A number of bytes: `65536`, `64KiB`, `25MiB`, `2GiB`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// As a length in memory; as much as there can be where `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let (unit, shift) = UNITS.into_iter().find(|(_, shift)| whole(*shift)).unwrap_or(("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromText for ByteSize {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size (for example 64KiB, 25MiB, 2GiB)");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text.get(digits.len()..).unwrap_or_default();
        let shift = match unit {
            "" => 0,
            _ => UNITS.iter().find(|u| u.0.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1,
        };
        let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// Takes a plain number of bytes or a text with a unit.
struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size: a number of bytes, or text such as \"64MiB\"")
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<ByteSize, E> {
        u64::try_from(v).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<ByteSize, E> {
        ByteSize::from_text(v).map_err(E::custom)
    }
}

/// A duration from text: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration (for example 200ms, 10s, 5m, 1h, 30d)");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let millis = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// The text form of a duration, in the largest unit that holds it whole.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.into_iter().find(|(_, unit)| millis != 0 && millis.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// `#[serde(with)]` for durations as text.
pub mod duration_text {
    use super::{Deserialize, Deserializer, Duration, Serializer, de::Error as _, parse_duration};

    /// As `10s`.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::show_duration(*value))
    }

    /// From `10s`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl FromText for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }
}

impl FromText for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}

impl FromText for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl FromText for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
}

impl FromText for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not ADDRESS:PORT (for example 127.0.0.1:8086 or [::]:7400)"))
    }
}

impl FromText for Role {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e: crate::types::IdParseError| e.to_string())
    }
}

impl FromText for TimingProfile {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "lan" => Ok(Self::Lan),
            "fast" => Ok(Self::Fast),
            "wan" => Ok(Self::Wan),
            _ => Err(format!("{text:?} is not a profile (lan, fast, wan)")),
        }
    }
}

macro_rules! number_from_text {
    ($($kind:ty),*) => { $(
        impl FromText for $kind {
            fn from_text(text: &str) -> Result<Self, String> {
                <$kind>::from_str(text).map_err(|_| format!("{text:?} is not a whole number from 0 on"))
            }
        }
    )* };
}

number_from_text!(u32, usize);

/// Empty text is `None`.
impl<T: FromText> FromText for Option<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some) }
    }
}

/// Separated by commas; empty text is the empty list.
impl<T: FromText> FromText for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(T::from_text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_survive_their_text_form() {
        for (text, bytes) in [("0B", 0), ("1B", 1), ("64KiB", 65_536), ("25MiB", 25 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(ByteSize::from_text(text), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize::from_text("64mib"), Ok(ByteSize::mib(64)));
        for wrong in ["", "MiB", "1MB", "-1", "99999999999GiB", "1.5GiB", "ä"] {
            assert!(ByteSize::from_text(wrong).is_err(), "{wrong}");
        }
        for (text, millis) in
            [("0ms", 0), ("200ms", 200), ("10s", 10_000), ("90s", 90_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        for wrong in ["", "s", "10", "-1s", "1.5s", "1 s", "99999999999999999999d", "18446744073709551615d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lists_and_options() {
        assert_eq!(Vec::<String>::from_text("a:1, b:2,"), Ok(vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert_eq!(Vec::<String>::from_text(""), Ok(vec![]));
        assert_eq!(Option::<u32>::from_text(""), Ok(None));
        assert_eq!(Option::<u32>::from_text("3"), Ok(Some(3)));
        assert!(Option::<u32>::from_text("x").is_err());
    }
}
