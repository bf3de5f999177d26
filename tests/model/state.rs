//! What the model's world consists of.
//!
//! Raft is abstract: one agreed list of [`Command`]s that each process applies with its own lag.
//! The data plane is concrete: logs, fsyncs, promises, streams. Nothing sent is ever taken back: a
//! message may be delivered late, more than once, or never, also when its sender is dead.

use super::log::{Body, Log, Record};

/// Most nodes, streams, open rounds and raft commands.
pub const NODES: usize = 5;
pub const STREAMS: usize = 5;
pub const ROUNDS: usize = 4;
pub const COMMANDS: usize = 12;
/// Highest epoch.
pub const EPOCHS: usize = 6;

/// A set of nodes, one bit each.
pub type Nodes = u8;

pub fn has(set: Nodes, node: usize) -> bool {
    set >> node & 1 == 1
}

/// How far the model goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub nodes: usize,
    /// The first so many nodes vote from the beginning; the others are learners.
    pub voters: usize,
    pub epochs: u8,
    pub rounds: u8,
    pub writes: u8,
    pub crashes: u8,
    pub changes: u8,
    pub reads: u8,
    pub snapshots: u8,
    /// How often one node goes on alone.
    pub recoveries: u8,
    /// Clients send batches again.
    pub retries: bool,
    /// Voters are replaced in one change, with a mark between joint and uniform: the discipline
    /// that the product does without, because it never does this.
    pub marked_swaps: bool,
}

impl Bounds {
    /// So many nodes, all voters, and no faults but lost and late messages.
    pub const fn of(nodes: usize, epochs: u8, rounds: u8, writes: u8) -> Self {
        Self {
            nodes,
            voters: nodes,
            epochs,
            rounds,
            writes,
            crashes: 0,
            changes: 0,
            reads: 0,
            snapshots: 0,
            recoveries: 0,
            retries: false,
            marked_swaps: false,
        }
    }

    pub const fn voters(self, voters: usize) -> Self {
        Self { voters, ..self }
    }

    pub const fn crashes(self, crashes: u8) -> Self {
        Self { crashes, ..self }
    }

    pub const fn changes(self, changes: u8) -> Self {
        Self { changes, ..self }
    }

    pub const fn reads(self, reads: u8) -> Self {
        Self { reads, ..self }
    }

    pub const fn snapshots(self, snapshots: u8) -> Self {
        Self { snapshots, ..self }
    }

    pub const fn recoveries(self, recoveries: u8) -> Self {
        Self { recoveries, ..self }
    }

    pub const fn retries(self) -> Self {
        Self { retries: true, ..self }
    }

    pub const fn marked_swaps(self) -> Self {
        Self { marked_swaps: true, ..self }
    }
}

/// One node: its disk, and the process that runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Node {
    /// What the process has appended; behind `on_disk` it is in the page cache.
    pub log: Log,
    /// How much of it the process calls durable.
    pub durable: u8,
    /// How much of it power loss leaves.
    pub on_disk: u8,
    /// Highest epoch promised.
    pub promise: u8,
    /// The same, as power loss leaves it.
    pub promise_on_disk: u8,
    /// The stream it follows, from 1; 0 for none.
    pub session: u8,
    /// The stream it writes, from 1; 0 when not in office.
    pub office: u8,
    /// While in office: how many raft commands it has applied.
    pub view: u8,
    /// Process runs before this one.
    pub boot: u8,
    /// Highest commit position it may have heard of.
    pub commit: u8,
    /// What it may have applied, and shown to somebody; beyond the log's end, see `snapshot`.
    pub applied: u8,
    /// How far the installation of a snapshot has come.
    pub stage: Stage,
    /// Its records, while there is a stage.
    pub snapshot: Log,
}

/// Where the installation of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    /// There is none.
    #[default]
    None,
    /// Its epoch is promised and the log is told of it; the engine has nothing of it yet.
    Admitted,
    /// The engine has it, and the log does not yet begin behind it.
    InEngine,
    /// The engine has it, and nobody is about to make the log begin behind it.
    Ahead,
    /// Only without `engine_before_log`: the log begins behind it, and the engine has nothing of it.
    LogFirst,
}

impl Node {
    /// True while a snapshot is being installed: the node follows nobody then.
    pub fn installs(&self) -> bool {
        !matches!(self.stage, Stage::None | Stage::Ahead)
    }

    pub fn forget_snapshot(&mut self) {
        (self.stage, self.snapshot) = (Stage::None, Log::default());
    }
}

/// A term of office, seen from outside: what its process sent, and what came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stream {
    /// The stream epoch.
    pub epoch: u8,
    pub owner: u8,
    pub boot: u8,
    /// Everything sent. It is sent before the writer's own fsync.
    pub log: Log,
    /// Commit position announced.
    pub commit: u8,
    /// Durable positions acknowledged in this stream epoch, the writer's own vote included.
    pub acks: [u8; NODES],
}

/// A leader's attempt to seal a majority. It outlives its leader's reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Round {
    /// Epoch to be promised; 0 for an unused place.
    pub epoch: u8,
    /// The membership its majority is counted under.
    pub membership: u8,
    pub answered: Nodes,
    pub reports: [Report; NODES],
}

/// A voter's answer to `Seal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Report {
    /// Epoch of its last durable record.
    pub epoch: u8,
    /// Seq of its last durable record.
    pub seq: u8,
    pub boot: u8,
}

/// A committed raft entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Command {
    #[default]
    None,
    /// The register: who writes.
    SetWriter { epoch: u8, node: u8, boot: u8 },
    /// Voters; `old` is empty unless joint. Its place in the list, from 1, is the membership id.
    Membership { old: Nodes, new: Nodes },
}

/// A membership in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    pub id: u8,
    pub old: Nodes,
    pub new: Nodes,
}

impl Membership {
    pub fn all(&self) -> Nodes {
        self.old | self.new
    }

    pub fn is_joint(&self) -> bool {
        self.old != 0
    }
}

/// The register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    pub epoch: u8,
    pub node: usize,
    pub boot: u8,
    /// Place of the command that set it, from 1.
    pub at: u8,
}

/// A linearizable read under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Read {
    /// The stream whose writer was asked, from 1; 0 for none.
    pub stream: u8,
    /// The index it noted.
    pub index: u8,
    /// What was committed when the read began.
    pub required: u8,
    pub confirmed: Nodes,
}

/// The world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct State {
    pub nodes: [Node; NODES],
    pub streams: [Stream; STREAMS],
    pub stream_count: u8,
    pub rounds: [Round; ROUNDS],
    pub rounds_begun: u8,
    pub commands: [Command; COMMANDS],
    pub command_count: u8,
    /// Everything any writer has counted as committed: what must last.
    pub committed: Log,
    /// Which stream committed first in each epoch, from 1.
    pub committers: [u8; EPOCHS + 1],
    pub writes: u8,
    pub crashes: u8,
    pub changes: u8,
    pub reads: u8,
    pub snapshots: u8,
    pub recoveries: u8,
    pub read: Read,
    /// Only without `cut_durable_before_adoption`: whose cut is not on disk, and what power loss
    /// would bring back.
    pub undone_cut: Option<(u8, Log)>,
    pub broken: Option<Broken>,
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    CommittedLost,
    AppliedCut,
    AppliedUncommitted,
    TwoWritersCommit,
    TwoRecordsAtOnePosition,
    StaleRead,
    BatchTwice,
    GapInEngine,
    FailoverStuck,
}

impl Broken {
    pub const fn says(self) -> &'static str {
        match self {
            Self::CommittedLost => "a committed record is lost: the committed log forked (I1)",
            Self::AppliedCut => "a record that may have been applied is cut (I3)",
            Self::AppliedUncommitted => "a record that is not committed is believed to be (I3)",
            Self::TwoWritersCommit => "two processes commit in one epoch (I4)",
            Self::TwoRecordsAtOnePosition => "two nodes hold different records at one position (I5)",
            Self::StaleRead => "a linearizable read misses a committed record",
            Self::BatchTwice => "a batch is committed twice (I7)",
            Self::GapInEngine => "a log begins behind records that its engine has not (I6)",
            Self::FailoverStuck => "a majority is up and cannot finish a failover (I10)",
        }
    }
}

impl State {
    /// Epoch 1 in office at node 0, its start on the disks of all voters.
    pub fn initial(bounds: &Bounds) -> Self {
        let mut state = Self::default();
        let voters: Nodes = (1 << bounds.voters) - 1;
        state.push(Command::Membership { old: 0, new: voters });
        state.push(Command::SetWriter { epoch: 1, node: 0, boot: 0 });
        let mut log = Log::default();
        log.push(Record::new(1, Body::Start(1)));
        let mut stream = Stream { epoch: 1, log, commit: 1, ..Stream::default() };
        for voter in 0..bounds.voters {
            state.nodes[voter] = Node {
                log,
                durable: 1,
                on_disk: 1,
                promise: 1,
                promise_on_disk: 1,
                session: u8::from(voter > 0),
                commit: 1,
                applied: 1,
                ..Node::default()
            };
            stream.acks[voter] = 1;
        }
        (state.nodes[0].office, state.nodes[0].view) = (1, 2);
        (state.streams[0], state.stream_count) = (stream, 1);
        (state.committed, state.committers[1]) = (log, 1);
        state
    }

    pub fn push(&mut self, command: Command) {
        self.commands[self.command_count as usize] = command;
        self.command_count += 1;
    }

    /// True when there is room for so many more commands.
    pub fn has_room(&self, more: u8) -> bool {
        (self.command_count + more) as usize <= COMMANDS
    }

    /// The register after the first `applied` commands.
    pub fn register(&self, applied: u8) -> Register {
        let mut at = applied;
        while at > 0 {
            if let Command::SetWriter { epoch, node, boot } = self.commands[at as usize - 1] {
                return Register { epoch, node: node as usize, boot, at };
            }
            at -= 1;
        }
        Register { epoch: 0, node: NODES, boot: 0, at: 0 }
    }

    /// The membership after the first `applied` commands.
    pub fn membership(&self, applied: u8) -> Membership {
        let mut id = applied;
        while id > 0 {
            if let Command::Membership { old, new } = self.commands[id as usize - 1] {
                return Membership { id, old, new };
            }
            id -= 1;
        }
        Membership { id: 0, old: 0, new: 0 }
    }

    pub fn newest_register(&self) -> Register {
        self.register(self.command_count)
    }

    pub fn newest_membership(&self) -> Membership {
        self.membership(self.command_count)
    }

    /// The streams there are.
    pub fn streams(&self) -> &[Stream] {
        &self.streams[..self.stream_count as usize]
    }

    /// Index of the stream that `node` writes.
    pub fn office(&self, node: usize) -> Option<usize> {
        (self.nodes[node].office as usize).checked_sub(1)
    }

    /// Index of the stream that `node` follows.
    pub fn session(&self, node: usize) -> Option<usize> {
        (self.nodes[node].session as usize).checked_sub(1)
    }

    /// The gate of 6.5: a mark that names `membership`, or a later one, is committed.
    pub fn is_marked(&self, membership: u8) -> bool {
        self.committed.records().iter().any(|record| record.membership().is_some_and(|id| id >= membership))
    }
}
