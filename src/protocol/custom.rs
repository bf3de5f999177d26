//! A protocol of an embedder's own: the opener names it in one frame, and what follows is the
//! protocol's. Names, not numbers, so that two embedders in one process need no registry between them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest name.
pub const MAX_NAME: usize = 64;
/// Longest frame that carries a name.
pub const MAX_OPENING: usize = 256;

/// What the opener of a custom stream says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The protocol's name, not judged yet: see [`ProtocolName`].
    pub protocol: String,
}

/// The name of a custom protocol: 1 to 64 of `a-z`, `0-9`, `.`, `-`, `_` and `/`. Put a version into
/// it (`inventory/1`): ends that do not know each other's refuse the stream instead of misreading it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolName(String);

/// No name for a protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a protocol is named by 1 to {MAX_NAME} of a-z 0-9 . - _ /, not {0:?}")]
pub struct BadProtocolName(
    /// What was given, its beginning if it is long.
    pub String,
);

impl FromStr for ProtocolName {
    type Err = BadProtocolName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
        if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadProtocolName(name.chars().take(MAX_NAME).collect()))
        }
    }
}

impl fmt::Display for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "inventory/1", "com.example.x-y_z/2", &"n".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<ProtocolName>().unwrap().to_string(), *good);
        }
        for bad in ["", "Inventory", "a b", "a\n", "é", &"n".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<ProtocolName>().is_err(), "{bad:?}");
        }
        assert_eq!("X".repeat(1_000).parse::<ProtocolName>(), Err(BadProtocolName("X".repeat(MAX_NAME))));
    }

    #[test]
    fn the_longest_name_fits_its_frame() {
        let opening = Opening { protocol: "n".repeat(MAX_NAME) };
        let bytes = frame::encode(&opening);
        assert_eq!(frame::decode::<Opening>(&bytes, MAX_OPENING), Ok(opening));
    }
}
