//! What happens to a committed record: [`StorageEngine`], and the engines there are.
//!
//! An engine does not know that there is a network, a WAL or raft. It is handed committed records
//! in order and answers how far it has applied and made durable.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::types::Lsn;

#[cfg(feature = "columnar")]
pub mod columnar;
mod image;
mod memory;

pub use image::ImageFile;
pub use memory::MemoryEngine;

/// A boxed future, as the methods of [`StorageEngine`] return it.
pub type Work<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// Awaited ahead of a read of so many bytes: whoever reads in the background waits there until it may.
pub type Pace = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What a committed record asks of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Add a batch of points: encoding byte and payload, as [`StorageEngine::admit`] let it in.
    Batch {
        /// How the payload is encoded; an engine defines its own.
        encoding: u8,
        /// The bytes.
        payload: Bytes,
    },
    /// Drop a database and all it holds, and what it was told to keep.
    DropDatabase {
        /// Its name.
        database: String,
    },
    /// Keep a database's points for so long, whether there is such a database yet or not.
    SetRetention {
        /// Its name.
        database: String,
        /// Age from which on points are gone, ns; `None` for ever.
        keep_ns: Option<i64>,
    },
    /// It is so late, by the writer's clock: points older than their database keeps are gone. Only
    /// this moves what is gone, so that it is the same everywhere at one position.
    Expire {
        /// Nanoseconds since 1970.
        now_ns: i64,
    },
    /// Nothing for the engine (epoch start, membership mark): only the position moves.
    Nothing,
}

/// Stores what the log carries.
///
/// [`MemoryEngine`] is the reference: what another engine makes of a log is compared with it.
/// `skeinmesh::testing::engine_suite` (feature `testing`) checks an engine against every sentence below
/// that can be checked from outside; `examples/embed_kv.rs` is a small engine that passes it.
///
/// # Contract
///
/// **Order.** `apply` is called with strictly increasing positions, only for **committed** records, from
/// one task; positions have no holes in `seq`, but an engine need not rely on it. A record at or below
/// `applied` must not be applied again: refuse it with [`EngineError::Broken`]. What was applied is
/// applied on every node and never taken back, so `apply` must come to the same on each of them: no
/// clock, no randomness, no node's own settings.
///
/// **Time.** `apply` works in memory and must not block on disk or network: everything acknowledged waits
/// for it. An error of it ends the node.
///
/// **Admission.** `admit` is called on the writer, in the order in which records will get their positions,
/// for each batch before its record exists. What it lets in, `apply` must accept on every node. A
/// payload that another node encoded passes `validate` first; both are given whatever a peer
/// sends, and must answer, not panic.
///
/// **Durability.** `checkpoint` makes everything applied so far durable together with the caller's
/// `sidecar`, both or neither; after a restart `recovered` returns the position and the sidecar of the
/// last checkpoint that finished, the engine holds exactly what was applied up to there, and `apply` is
/// called again from the next position on. What was applied later is lost by a crash and must be: the log
/// has it. A power cut at any moment leaves the last finished checkpoint, or the one that was being made.
///
/// **Snapshots.** `export` hands out the last finished checkpoint as files that do not change, `install`
/// replaces everything by such files. Both keep position, sidecar and content together.
///
/// All methods may be called from any thread.
pub trait StorageEngine: fmt::Debug + Send + Sync + 'static {
    /// Position and sidecar of the last finished checkpoint; [`Lsn::ZERO`] and empty at first.
    fn recovered(&self) -> (Lsn, Bytes);
    /// Position of the last applied record.
    fn applied(&self) -> Lsn;
    /// Judges a batch before it gets a position and reserves what it brings (new tables and
    /// columns), so that a later batch is judged against it too.
    fn admit(&self, encoding: u8, payload: &Bytes) -> Result<(), Refused>;
    /// Takes back what the last `admit` reserved: its batch did not become a record. Called with the
    /// same arguments, before any other `admit`; an engine that reserves nothing has nothing to do.
    fn withdraw(&self, encoding: u8, payload: &Bytes) {
        let _ = (encoding, payload);
    }
    /// Judges a batch that another node encoded, as a whole: what passes this and `admit` can be
    /// applied. Not called for batches that this process encoded itself. May take as long as decoding.
    fn validate(&self, encoding: u8, payload: &Bytes) -> Result<(), String> {
        let _ = (encoding, payload);
        Ok(())
    }
    /// Forgets every reservation of `admit` that no applied record has made good: called when
    /// this node takes office, after everything before was applied. An engine that reserves nothing has
    /// nothing to do.
    fn forget_reservations(&self) {}
    /// Applies a committed record.
    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError>;
    /// True when [`Operation::Expire`] with this time is worth a record: something would be gone.
    /// Asked on the writer, about as often as it sends heartbeats; must be cheap.
    fn expiry_due(&self, now_ns: i64) -> bool {
        let _ = now_ns;
        false
    }
    /// True when a checkpoint is worth its cost by now (size or age of what is in memory).
    fn checkpoint_due(&self) -> bool;
    /// How much more may be applied before a checkpoint has ended. Asked for each record; must be cheap.
    fn room(&self) -> Room {
        Room::Enough
    }
    /// Makes everything applied **at the time of the call** durable, with `sidecar`; resolves to
    /// that position. The part that fixes what is included runs before the method returns.
    /// One checkpoint at a time: a second call while one runs is an error.
    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn>;
    /// The files of the last finished checkpoint, for a node that starts from nothing. They stay
    /// readable until the returned value is dropped.
    fn export(&self) -> Work<Export>;
    /// One piece of work in the background that makes what is stored smaller or cheaper to read;
    /// resolves to whether there was any. May take long and delays nothing else; called again only
    /// after it has ended. Dropping it leaves what is stored as it is.
    fn maintain(&self) -> Work<bool> {
        Box::pin(async { Ok(false) })
    }
    /// Replaces all content by an export whose files the caller has put under `from` (same names).
    ///
    /// The export may be of an earlier position than what is applied, to mend damage; the caller then
    /// applies the records behind it again, and until that is done no query is answered.
    ///
    /// Without space for it (an [`EngineError::Io`] that says so) or if the export is damaged the content
    /// stays what it was, and the caller may try again. After any other error the engine must be opened
    /// anew.
    fn install(&self, from: std::path::PathBuf) -> Work<Lsn>;
    /// Name and length of each file of the last finished checkpoint that can be verified.
    fn files(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// Reads a file of that name and compares it with what was written; `pace` is awaited ahead of each
    /// piece. True also if there is no such file any more; false if it is damaged, and then
    /// [`Self::damaged`] names it.
    fn verify(&self, name: &str, pace: Pace) -> Work<bool> {
        let _ = (name, pace);
        Box::pin(std::future::ready(Ok(true)))
    }
    /// The files that are known to be damaged: what needs one fails, until [`Self::install`].
    fn damaged(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Memory for records that no checkpoint holds yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// As many as come.
    Enough,
    /// They should come slowly, so that a checkpoint keeps up.
    Little,
    /// They should wait.
    None,
}

/// A consistent set of files that holds all records up to `position`.
pub struct Export {
    /// Last record it holds.
    pub position: Lsn,
    /// The caller's bytes saved with the checkpoint.
    pub sidecar: Bytes,
    /// The files.
    pub files: Vec<ExportFile>,
    /// Keeps the files from being removed while it lives.
    pub hold: Box<dyn std::any::Any + Send + Sync>,
}

/// One file of an export. Its content never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Relative, `/` between parts, no `..`.
    pub name: String,
    /// Where it lies.
    pub path: std::path::PathBuf,
    /// In bytes.
    pub len: u64,
    /// SHA-256 of its content.
    pub hash: [u8; 32],
}

impl ExportFile {
    /// A file whose content is at hand.
    pub fn of(name: impl Into<String>, path: impl Into<std::path::PathBuf>, content: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, content).as_ref());
        Self { name: name.into(), path: path.into(), len: content.len() as u64, hash }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("position", &self.position).field("files", &self.files).finish()
    }
}

/// Why [`StorageEngine::admit`] did not let a batch in. Nothing of it was reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The batch was parsed against an older schema and clashes with the assigned one: parse the
    /// body again against this schema (engine-defined bytes).
    #[error("the schema has changed")]
    SchemaChanged(Bytes),
    /// The payload is malformed or over a limit: a retry cannot help.
    #[error("{0}")]
    Invalid(String),
}

/// An engine failed. The node cannot go on serving from it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Disk trouble; `ENOSPC` may be retried later, everything else is final.
    #[error("storage engine: {0}")]
    Io(#[from] std::io::Error),
    /// Stored bytes do not verify.
    #[error("storage engine: {0} is damaged: {1}")]
    Damaged(String, String),
    /// A record that should have been refused at `admit`, or a call against the contract.
    #[error("storage engine: {0}")]
    Broken(String),
}
