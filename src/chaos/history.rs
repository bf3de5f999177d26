//! What clients saw: every write, every answered read, and the end. Times are nanoseconds of this
//! program's monotonic clock, so they order what happened at different nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;
/// What an acknowledgement promises, weakest first: `EVERY` has all.
pub use skeinmesh::node::AckLevel as Level;
use skeinmesh::types::{Epoch, Lsn};

/// Since the run began.
pub type Nanos = u64;

/// A write that adds row `n` to a bucket. No two writes have the same `n`.
#[derive(Debug, Clone, Serialize)]
pub struct Write {
    pub n: u64,
    /// With an `Idempotency-Key`, and without a time: applied twice, it would be two rows.
    pub keyed: bool,
    /// The level asked for; `None` for the cluster's default.
    pub asked: Option<Level>,
    pub invoked: Nanos,
    /// Attempts that may have been taken.
    pub taken: u32,
    /// All acknowledgements of it: one, and those of what was sent again after it.
    pub acks: Vec<Ack>,
    /// Every attempt was answered with "nothing was written".
    pub refused: bool,
}

/// One acknowledgement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ack {
    pub at: Lsn,
    pub level: Level,
    pub when: Nanos,
}

/// How a read was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Mode {
    Local,
    MinLsn(Lsn),
    MaxStaleness(Duration),
    Linearizable,
}

/// An answered read of one bucket.
#[derive(Debug, Clone, Serialize)]
pub struct Read {
    pub client: usize,
    pub node: usize,
    pub bucket: u64,
    pub mode: Mode,
    pub invoked: Nanos,
    pub returned: Nanos,
    /// What the node had applied, as it says.
    pub applied: Lsn,
    pub rows: Vec<u64>,
}

/// A write of a value to a register. No two writes have the same value.
#[derive(Debug, Clone, Serialize)]
pub struct Set {
    pub key: u64,
    pub value: u64,
    pub invoked: Nanos,
    /// When it was acknowledged at `quorum`; `None` if its outcome is unknown.
    pub acked: Option<Nanos>,
    pub refused: bool,
}

/// An answered linearizable read of a register.
#[derive(Debug, Clone, Serialize)]
pub struct Get {
    pub key: u64,
    pub node: usize,
    /// `None` before the first write.
    pub value: Option<u64>,
    pub invoked: Nanos,
    pub returned: Nanos,
}

/// A claim of a name in the control plane, and what became of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Claim {
    pub name: u64,
    pub invoked: Nanos,
    /// `None` while it is under way.
    pub returned: Option<Nanos>,
    pub outcome: Claimed,
    /// How it was given up, if that was tried.
    pub release: Option<Release>,
}

/// What a claim was answered with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Claimed {
    /// The name is the client's.
    Held,
    /// It is somebody else's.
    Taken,
    /// Nothing was done.
    Refused,
    /// It may have been done.
    #[default]
    Unknown,
}

/// Giving up a name.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Release {
    pub invoked: Nanos,
    /// `None` if its outcome is unknown.
    pub acked: Option<Nanos>,
}

/// The names that a node lists in the end, in order.
#[derive(Debug, Clone, Serialize)]
pub struct Held {
    pub node: usize,
    pub names: Vec<u64>,
}

/// All rows of a node in the end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Final {
    pub node: usize,
    pub applied: Lsn,
    pub rows: Vec<u64>,
}

/// The whole of a run.
#[derive(Debug, Default, Serialize)]
pub struct History {
    /// There is one node: nobody else can take office, and the default level is `local`.
    pub lone: bool,
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    pub sets: Vec<Set>,
    pub gets: Vec<Get>,
    pub claims: Vec<Claim>,
    pub held: Vec<Held>,
    pub finals: Vec<Final>,
    /// Acknowledged positions of which the cluster says that they were cut: 410.
    pub cut: BTreeSet<Lsn>,
    /// Each time that a process took office, as the nodes' logs say: which node with which disk. (A
    /// replaced node is another one, a process that was started again is not.) Of an epoch that is not
    /// in it nothing is known.
    pub offices: BTreeMap<Epoch, Vec<String>>,
    /// What no history should hold: an answer that means a fault by itself.
    pub oddities: Vec<String>,
    /// What no log of a node should hold.
    pub alarms: Vec<String>,
    /// How often a write was answered with which status.
    pub answers: BTreeMap<u16, u64>,
}

/// Rows of a bucket.
const BUCKET: u64 = 64;

/// The bucket of a row.
pub const fn bucket(n: u64) -> u64 {
    n / BUCKET
}

impl History {
    /// What a write without a level asks for.
    pub const fn default_level(&self) -> Level {
        if self.lone { Level::Local } else { Level::Quorum }
    }
}

impl Write {
    pub fn first_ack(&self) -> Option<&Ack> {
        self.acks.first()
    }

    /// The first acknowledgement at `quorum` or above.
    pub fn quorum(&self) -> Option<&Ack> {
        self.acks.iter().find(|ack| ack.level >= Level::Quorum)
    }
}
