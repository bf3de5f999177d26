//! A write on its way from the edge to the writer: one request frame of message and payload, one
//! response frame.

use serde::{Deserialize, Serialize};

use crate::types::{BootId, Epoch, Lsn, NodeId};

/// When a write is acknowledged. Ordered: a higher level claims more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckLevel {
    /// fdatasync on the writer, under a live lease.
    Local,
    /// fdatasync on a majority of voters in one epoch.
    #[default]
    Quorum,
}

impl AckLevel {
    /// The word used in requests and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Quorum => "quorum",
        }
    }
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

/// What makes a record unique: carried in it, so that a retry is known after any failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DedupKey {
    /// The edge's own numbering.
    Batch(BatchId),
    /// A client's idempotency key.
    Client {
        /// First 128 bits of the SHA-256 of the key.
        key: [u8; 16],
        /// First 128 bits of the SHA-256 of the body it came with.
        body: [u8; 16],
    },
}

/// Message of a forwarded batch; the payload follows as a frame of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// The office the edge believes in; another one answers `NotWriter`.
    pub epoch: Epoch,
    /// Identity of the batch.
    pub key: DedupKey,
    /// Level wanted; `None` for the default.
    pub ack: Option<AckLevel>,
    /// Encoding byte of the payload.
    pub encoding: u8,
    /// How long the edge is going to wait.
    pub timeout_ms: u32,
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
    /// In the log, but the level was not reached in time: it may still be.
    Unknown,
}
