//! Messages of the data plane: subscribe, records, acks, seals and read confirmations.
//!
//! Every one of them carries the **stream epoch**, the epoch of the writer that sends or is
//! addressed. Promises are compared with it, never with the epoch of a record inside.

use serde::{Deserialize, Serialize};

use crate::types::{BootId, Epoch, EpochTable, Lsn, MembershipId, NodeId};

/// First message of a follower on an `Append` stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The office the follower's applied raft state names: the writer refuses any other.
    pub epoch: Epoch,
    /// Boot of the writer in that office.
    pub writer_boot: BootId,
    /// Boot of the follower.
    pub boot: BootId,
    /// Last durable record of the follower.
    pub durable: Lsn,
    /// Epoch starts of its log.
    pub epochs: EpochTable,
    /// Chain value of the record at `durable` (0 for an empty log).
    pub chain: u32,
    /// Seq up to which `chain_at` can be checked is the follower's: chain value at its applied
    /// position, which no cut can reach.
    pub applied: Lsn,
    /// Chain value at `applied`.
    pub applied_chain: u32,
    /// Number from which on the writer may leave out payloads that the follower, which forwarded them in
    /// this boot, said it keeps.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keeps_from: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The writer's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subscribed {
    /// Keep the log up to `keep`, cut what is behind it (nothing, if that is the end), then expect
    /// records from `keep + 1` on.
    Resume {
        /// Last seq to keep.
        keep: u64,
        /// Chain value the writer has at `keep`; must equal the follower's.
        chain: u32,
        /// The writer's epoch starts.
        epochs: EpochTable,
        /// Where the writer's log ends now: a follower that has lost records it acknowledged must
        /// hold all of this before it answers a seal. `None` from an older version.
        #[serde(default)]
        end: Option<Lsn>,
    },
    /// The log no longer reaches back that far: fetch an engine snapshot, then subscribe again.
    SnapshotNeeded {
        /// First seq the writer still has.
        first: u64,
    },
    /// Not in office in that epoch; ask again when the view changes.
    NotWriter {
        /// The writer's own promise, for the log.
        promise: Epoch,
    },
    /// The chain values differ at a position both hold: divergence. Stop and alarm.
    Diverged {
        /// Where.
        at: Lsn,
    },
}

/// Head of each frame from the writer; the frame's rest is `count` records as they lie in the log
/// (their replicated parts, 8-byte aligned), none for a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// Stream epoch.
    pub epoch: Epoch,
    /// The writer's commit position.
    pub commit: Lsn,
    /// Number of records that follow.
    pub count: u32,
    /// Round number of the lease: the follower echoes the highest it has seen.
    pub round: u64,
    /// Newest round this follower had acknowledged on this stream when the frame was made, 0 if none:
    /// by when it sent that ack it knows how old the frame may be.
    pub echo: u64,
    /// Milliseconds since a majority last confirmed the writer (age, not a clock), if it ever did.
    pub confirmed_age_ms: Option<u64>,
    /// Places among the records, ascending, of those that end before their payload: this follower keeps
    /// it (`ForwardRequest::kept`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<u32>,
}

/// From the follower, after fdatasync and whenever a heartbeat asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Stream epoch: acks of another epoch are dropped.
    pub epoch: Epoch,
    /// Last durable record.
    pub durable: Lsn,
    /// Last applied record.
    pub applied: Lsn,
    /// Chain value at `durable`.
    pub chain: u32,
    /// Highest lease round seen.
    pub round: u64,
}

/// Asks a voter to promise `epoch`: no message of a lower stream epoch is acknowledged after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The epoch to promise.
    pub epoch: Epoch,
    /// Raft term of the leader that asks.
    pub term: u64,
    /// Office that resigned, if this seal is a planned transfer: its lease does not bind.
    pub resigned: Option<(Epoch, BootId)>,
}

/// A voter's answer, given after its promise is fsynced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sealed {
    /// Promised.
    Report(Report),
    /// A live lease of the sitting writer binds this voter for that much longer.
    LeaseHeld {
        /// Milliseconds left.
        remaining_ms: u64,
    },
    /// Already promised a higher epoch.
    Promised {
        /// That epoch.
        promise: Epoch,
    },
    /// The asker is not the leader of the newest term this voter knows.
    NotLeader {
        /// That term.
        term: u64,
    },
    /// Holds quarantined records: may not answer until repaired.
    Damaged,
}

/// What a sealed voter has on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who.
    pub node: NodeId,
    /// Process run that promised: office goes to this boot only.
    pub boot: BootId,
    /// The promise it made.
    pub promise: Epoch,
    /// Epoch **of its last durable record** and its seq, never the promise.
    pub durable: Lsn,
    /// Highest commit position it has heard of.
    pub commit: Lsn,
}

/// Payload of an `EpochStart` and of a `ConfigMark` record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The membership with which the writer counts from this record on.
    pub membership: MembershipId,
    /// The writer.
    pub node: NodeId,
    /// Its process run.
    pub boot: BootId,
}

/// First message on a `Snapshot` stream, of an opener that can go on where it was cut off. An older
/// version ends its side at once, and is sent every file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {}

/// What an engine snapshot consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOffer {
    /// Its last record.
    pub position: Lsn,
    /// Chain value there.
    pub chain: u32,
    /// Epoch starts up to there.
    pub epochs: EpochTable,
    /// Name and length of each file.
    pub files: Vec<(String, u64)>,
    /// SHA-256 of each file, 32 bytes each. Empty from an older version, which waits for no answer and
    /// sends every file.
    #[serde(default, with = "serde_bytes")]
    pub hashes: Vec<u8>,
}

/// The answer to an offer with hashes: what of it the opener lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotWanted {
    /// Places in the list of the offer, ascending, each with the byte from which on the file is wanted.
    pub files: Vec<(u32, u64)>,
}

/// On a `Read` stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadRequest {
    /// To the writer: a position such that everything acknowledged at `quorum` before is at or
    /// below it.
    Index,
    /// From the writer to a voter: do you still follow me?
    Confirm {
        /// Stream epoch.
        epoch: Epoch,
    },
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadResponse {
    /// The read index.
    Index(Lsn),
    /// This voter's promise is not above the epoch asked about.
    Confirmed,
    /// It is, or the node asked is not the writer (any more).
    Refused {
        /// The promise of the node asked.
        promise: Epoch,
    },
}
