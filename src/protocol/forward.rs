//! A write on its way from the edge to the writer: one request frame of message and payload, one
//! response frame.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::request_id::{self, RequestId};
use crate::types::{BootId, Epoch, Lsn, NodeId};

/// When a write is acknowledged. Ordered: a higher level claims more.
///
/// On the wire it is its word. A version without a level cannot read a request for it, so between
/// versions a level is refused and never lowered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckLevel {
    /// It has a position and is queued at the writer: a crash there may lose it.
    Memory,
    /// fdatasync on the writer, under a live lease.
    Local,
    /// fdatasync on a majority of voters in one epoch.
    #[default]
    Quorum,
    /// Committed, and fdatasync on every voter of the membership in force.
    All,
}

impl AckLevel {
    /// Every level, the one that claims least first.
    pub const EVERY: [Self; 4] = [Self::Memory, Self::Local, Self::Quorum, Self::All];

    /// The word used in requests and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Local => "local",
            Self::Quorum => "quorum",
            Self::All => "all",
        }
    }

    /// The level with that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|level| level.as_str() == word)
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far a write got that did not reach its level in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Position of the record.
    pub at: Lsn,
    /// Level it was to reach.
    pub asked: AckLevel,
    /// Level that it had reached by then.
    pub reached: AckLevel,
}

/// Makes a retry across a failover harmless: applied at most once per id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId {
    /// The edge that took the request.
    pub edge: NodeId,
    /// Its process run.
    pub boot: BootId,
    /// Counts requests of that process run, from 1.
    pub counter: u64,
}

/// Feature bit of a member: its idempotency keys count within a database, and it asks for the key that
/// versions before made of them too.
pub const KEYS_BY_DATABASE: u64 = 1;

/// What makes a record unique: carried in it, so that a retry is known after any failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DedupKey {
    /// The edge's own numbering.
    Batch(BatchId),
    /// A client's idempotency key.
    Client {
        /// First 128 bits of the SHA-256 of database, a zero byte and the key; of the key alone from a
        /// version without [`KEYS_BY_DATABASE`].
        key: [u8; 16],
        /// First 128 bits of the SHA-256 of the database and the body it came with.
        body: [u8; 16],
    },
}

/// Message of a forwarded batch; the payload follows as a frame of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// The office the edge believes in; another one answers `NotWriter`.
    pub epoch: Epoch,
    /// Identity of the batch.
    pub key: DedupKey,
    /// Another one under which it may have come before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<DedupKey>,
    /// Level wanted; `None` for the default.
    pub ack: Option<AckLevel>,
    /// Encoding byte of the payload.
    pub encoding: u8,
    /// How long the edge is going to wait.
    pub timeout_ms: u32,
    /// What the request is called in logs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "request_id::lenient")]
    pub request: Option<RequestId>,
    /// The edge keeps the payload until the batch comes back to it in the log, and can do without it
    /// there. Of use only with a key that is a batch id.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// The writer's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardResponse {
    /// Acknowledged at that level.
    Written {
        /// Position of the record.
        at: Lsn,
        /// Level reached.
        ack: AckLevel,
    },
    /// Not in office (any more): look at the view and send again.
    NotWriter {
        /// Highest epoch this node knows of.
        epoch: Epoch,
    },
    /// In the writer's log, but its office ended: ask the next writer with the same key.
    LostOffice,
    /// The schema the batch was parsed against is out of date: parse again against this one.
    SchemaChanged {
        /// Engine-defined.
        #[serde(with = "serde_bytes")]
        schema: Vec<u8>,
    },
    /// Malformed or over a limit.
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// Disk full at the writer.
    Full,
    /// The client's key came with another body before.
    KeyReused,
    /// It may be in the log: nothing more is known.
    Unknown,
    /// In the log, but the level was not reached in time: it may still be.
    Unreached(Progress),
    /// The writer has as much in its log that is not committed as it may; nothing was written.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{MAX_MESSAGE, decode, encode};

    #[test]
    fn levels_are_ordered_words() {
        assert!(AckLevel::EVERY.is_sorted());
        for level in AckLevel::EVERY {
            // What earlier versions send and read: a string, so that the number of a level may change.
            assert_eq!(encode(&level)[1..], *level.as_str().as_bytes());
            assert_eq!(decode::<AckLevel>(&encode(&level), MAX_MESSAGE).unwrap(), level);
            assert_eq!(AckLevel::from_word(level.as_str()), Some(level));
        }
        assert!(AckLevel::from_word("All").is_none());
        assert!(decode::<AckLevel>(&encode(&"most"), MAX_MESSAGE).is_err());
    }

    /// As it was before there were more levels than two.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Older {
        Local,
        Quorum,
    }

    #[test]
    fn an_older_version_reads_what_it_knows_and_refuses_the_rest() {
        #[derive(Debug, Deserialize)]
        struct OlderRequest {
            ack: Option<Older>,
        }
        let request = |ack| {
            let key = DedupKey::Client { key: [1; 16], body: [2; 16] };
            encode(&ForwardRequest {
                epoch: 3,
                key,
                also: Some(key),
                ack,
                encoding: 1,
                timeout_ms: 4_000,
                request: None,
                kept: false,
            })
        };
        let read = |ack| decode::<OlderRequest>(&request(ack), MAX_MESSAGE);
        assert_eq!(read(None).unwrap().ack, None);
        assert_eq!(read(Some(AckLevel::Quorum)).unwrap().ack, Some(Older::Quorum));
        assert_eq!(read(Some(AckLevel::Local)).unwrap().ack, Some(Older::Local));
        assert!(read(Some(AckLevel::All)).is_err());
        assert!(read(Some(AckLevel::Memory)).is_err());
        // And what it sends is read, without what it does not know.
        #[derive(Serialize)]
        struct Former {
            epoch: Epoch,
            key: DedupKey,
            ack: Option<AckLevel>,
            encoding: u8,
            timeout_ms: u32,
        }
        let key = DedupKey::Client { key: [1; 16], body: [2; 16] };
        let former = encode(&Former { epoch: 3, key, ack: None, encoding: 1, timeout_ms: 4_000 });
        let again: ForwardRequest = decode(&former, MAX_MESSAGE).unwrap();
        assert_eq!((again.key, again.also), (key, None));
        assert_eq!(encode(&again), former, "an older version reads what has nothing new in it");
    }
}
