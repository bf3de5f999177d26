//! What is done to databases as a whole: a control record in the log, so that every replica does it
//! at one position.
//!
//! The record has kind 2 (Control), encoding [`ENCODING`], and as payload a MessagePack map of one
//! entry, `docs/wal-format.md`. Encoding 0 is the older form: the name of a database to drop.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Write;
use crate::{
    engine::Operation,
    protocol::frame::{self, MAX_MESSAGE},
};

/// Encoding byte of a control record's payload. On the way to the writer it tells such a payload from
/// a batch: engines have the encodings below it.
pub const ENCODING: u8 = 128;
/// Encoding byte of the older form.
const NAME: u8 = 0;
/// Longest name of a database, in bytes; an engine may want shorter ones.
const MAX_NAME: usize = 255;
/// Shortest time that a database may be told to keep its points.
pub const SHORTEST_KEEP: Duration = Duration::from_secs(60);

/// A change of databases. The names are in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Drop a database and all it holds.
    Drop {
        /// Its name.
        database: String,
    },
    /// Keep a database's points for so long.
    Retention {
        /// Its name.
        database: String,
        /// Age from which on points are gone, ns; `None` for ever.
        keep_ns: Option<i64>,
    },
    /// It is so late by the writer's clock. Only the writer itself makes this one.
    Expire {
        /// Nanoseconds since 1970.
        now_ns: i64,
    },
}

impl Change {
    /// As a write at the cluster's default level: it goes to the writer as any other, and is done once
    /// however often it is sent on the way.
    pub fn into_write(self, timeout: Duration) -> Write {
        Write::new(ENCODING, self.encode(), timeout)
    }

    /// As a payload.
    pub fn encode(&self) -> Bytes {
        frame::encode(self)
    }

    /// The change in a payload.
    ///
    /// # Errors
    /// It is none, or one that cannot be.
    pub fn decode(encoding: u8, payload: &Bytes) -> Result<Self, String> {
        let malformed = |e: frame::DecodeError| format!("control record: {e}");
        let change = match encoding {
            ENCODING => frame::decode(payload, MAX_MESSAGE).map_err(malformed)?,
            NAME => Self::Drop { database: frame::decode(payload, MAX_MESSAGE).map_err(malformed)? },
            other => return Err(format!("control record: this version does not know encoding {other}")),
        };
        change.check().map(|()| change)
    }

    /// What an edge asks for, which is judged before it gets a position.
    ///
    /// # Errors
    /// Not a change, or not one that an edge may ask for.
    pub fn check_asked(payload: &Bytes) -> Result<(), String> {
        match Self::decode(ENCODING, payload)? {
            Self::Expire { .. } => Err("only the writer says what time it is".to_owned()),
            Self::Drop { .. } | Self::Retention { .. } => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        let (name, keep) = match self {
            Self::Drop { database } => (database, None),
            Self::Retention { database, keep_ns } => (database, *keep_ns),
            Self::Expire { .. } => return Ok(()),
        };
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!("the name of a database has 1 to {MAX_NAME} bytes"));
        }
        if keep.is_some_and(|ns| i128::from(ns) < SHORTEST_KEEP.as_nanos() as i128) {
            return Err(format!("a database keeps its points for at least {} s", SHORTEST_KEEP.as_secs()));
        }
        Ok(())
    }

    /// What it asks of the engine.
    pub(super) fn into_operation(self) -> Operation {
        match self {
            Self::Drop { database } => Operation::DropDatabase { database },
            Self::Retention { database, keep_ns } => Operation::SetRetention { database, keep_ns },
            Self::Expire { now_ns } => Operation::Expire { now_ns },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every() -> [(&'static str, Change); 4] {
        let name = || "home".to_owned();
        [
            ("drop", Change::Drop { database: name() }),
            ("retention", Change::Retention { database: name(), keep_ns: Some(86_400_000_000_000) }),
            ("retention-none", Change::Retention { database: name(), keep_ns: None }),
            ("expire", Change::Expire { now_ns: 1_700_000_000_000_000_000 }),
        ]
    }

    #[cfg(feature = "testing")]
    #[test]
    fn the_bytes_are_those_of_format_1() {
        for (name, change) in every() {
            let file = format!("control/{name}");
            crate::testing::fixture(&file, &change.encode());
            let kept = crate::testing::read_fixture(&file).into();
            assert_eq!(Change::decode(ENCODING, &kept).unwrap(), change);
        }
    }

    #[test]
    fn what_is_read_is_what_was_meant() {
        for (_, change) in every() {
            let bytes = change.encode();
            assert_eq!(Change::decode(ENCODING, &bytes).unwrap(), change);
            for end in 0..bytes.len() {
                assert!(Change::decode(ENCODING, &bytes.slice(..end)).is_err());
            }
            let asked = Change::check_asked(&bytes);
            assert_eq!(asked.is_ok(), !matches!(change, Change::Expire { .. }));
        }
        let old = frame::encode(&"home".to_owned());
        assert_eq!(Change::decode(0, &old).unwrap(), Change::Drop { database: "home".into() });
        assert!(Change::decode(1, &old).is_err());
        for impossible in [
            Change::Drop { database: String::new() },
            Change::Drop { database: "x".repeat(256) },
            Change::Retention { database: "x".into(), keep_ns: Some(1) },
            Change::Retention { database: "x".into(), keep_ns: Some(-1) },
        ] {
            assert!(Change::decode(ENCODING, &impossible.encode()).is_err(), "{impossible:?}");
        }
    }
}
