//! Why the log refuses, and what to do then.

use std::{io, path::PathBuf};

use super::{Debt, ReadError, RecordError};
use crate::types::{ClusterId, Epoch, Lsn};

/// What is left to do where nobody can supply the records.
pub(super) const ACCEPT_LOSS: &str = "no other voter holds this log. If the disk cannot be restored, `skein inspect wal \
                           --repair` shows what would be lost, and with `--accept-loss` goes on without it";
/// What is left to do without a promise.
pub(super) const NO_PROMISE: &str = "restore it, or give the node an empty data directory and a new token";

/// Why the log refuses.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Records that were durable are damaged or missing. The log is left as it is.
    #[error(
        "{segment}: records {first_bad} to {last} are damaged or missing ({reason}); they were durable, so this \
         is not a torn write, and nothing was changed; {ACCEPT_LOSS}"
    )]
    Corrupt {
        /// File in which the first bad record lies or should lie.
        segment: String,
        /// Seq of the first bad record.
        first_bad: u64,
        /// Highest seq that is known to have been written.
        last: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Damage was set aside when there were peers, and there are none now.
    #[error(
        "records from {} on were damaged and set aside, and this node was to fetch them from the writer; {ACCEPT_LOSS}",
        .0.lost_from
    )]
    Owes(Debt),
    /// Bytes that verify and say what this version does not know.
    #[error("{segment}: {reason}: written by another version of skein; start that version")]
    OtherVersion {
        /// In which file.
        segment: String,
        /// What it says.
        reason: String,
    },
    /// One of the small files is damaged or missing.
    #[error("{}: {reason}; {advice}", file.display())]
    DamagedFile {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A log without its promise could break one it has made.
    #[error("{}: there is a log but no promise file; a node must not forget what it promised; {NO_PROMISE}", dir.display())]
    MissingPromise {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Segments of another cluster.
    #[error("the log belongs to cluster {found}, not to this one")]
    OtherCluster {
        /// Which it belongs to.
        found: ClusterId,
    },
    /// The disk is full; only the reserve is left, which batches may not use. Goes away by itself
    /// when there is space again.
    #[error("no space for a new log segment; free some, writes resume by themselves")]
    Full,
    /// Fail-stop: the process should exit (74).
    #[error("the log has failed and takes nothing more: {0}")]
    Failed(String),
    /// A cut or reset is under way.
    #[error("the log is being cut")]
    Closed,
    /// The payload is over its limit.
    #[error("payload of {0} bytes, limit {limit}", limit = crate::protocol::frame::MAX_PAYLOAD)]
    TooLarge(usize),
    /// An epoch below the newest in the log, or an own append below the promise.
    #[error("epoch {epoch} is over: the log is at epoch {newest}")]
    OldEpoch {
        /// Of the record.
        epoch: Epoch,
        /// Of the log's last record, or the promise if higher.
        newest: Epoch,
    },
    /// A record that does not continue the log.
    #[error("record {found} does not continue the log, which wants seq {expected}")]
    Gap {
        /// The next seq.
        expected: u64,
        /// What came.
        found: Lsn,
    },
    /// A record whose chain value is not that of the log: divergence.
    #[error("the record before {at} is not the one in this log (chain value differs)")]
    Chain {
        /// The record that tells.
        at: Lsn,
    },
    /// Bytes that are not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A request that would break an invariant; says which.
    #[error("{0}")]
    Refused(String),
    /// Reading back failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The disk, while opening.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The error.
        source: io::Error,
    },
}
