//! One thing that happens, and how a trace tells it.

use std::fmt;

use super::state::Nodes;

/// A step of the world. Nodes are numbers from 0 (shown as letters), streams and rounds indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A leader begins to seal the next epoch.
    BeginRound,
    /// `Seal` reaches a voter, and its answer the leader.
    Seal {
        round: u8,
        voter: u8,
    },
    /// A `Seal` of a decided round reaches a node; nobody waits for the answer.
    LateSeal {
        node: u8,
        epoch: u8,
    },
    /// Only without `promise_before_report`.
    PromiseReachesDisk {
        node: u8,
    },
    /// The leader counts these answers and commits `SetWriter`.
    Name {
        round: u8,
        counted: Nodes,
        node: u8,
    },
    /// A change of voters is committed; joint first.
    Change {
        old: Nodes,
        new: Nodes,
    },
    /// Raft goes from joint to uniform.
    Settle,
    /// The process sees in `view` commands that it is the writer.
    TakeOffice {
        node: u8,
        view: u8,
    },
    /// Only without `serve_after_epoch_start`: the first record, after the stream is open.
    AppendStart {
        node: u8,
    },
    /// A process in office applies one more raft command.
    Learn {
        node: u8,
    },
    /// A batch enters the writer's log and its stream.
    Write {
        node: u8,
        batch: u8,
    },
    /// `ConfigMark` does.
    Mark {
        node: u8,
    },
    /// The writer counts. `view`: with the membership after so many commands.
    Commit {
        node: u8,
        view: u8,
    },
    /// A subscription is answered: promise, cut, adopt.
    Follow {
        node: u8,
        stream: u8,
    },
    /// The next record of the stream arrives.
    Append {
        node: u8,
    },
    /// A group is on disk; a follower acknowledges it.
    Fsync {
        node: u8,
    },
    /// The process dies and starts again. `tail`: what was not fsynced is still there (kill -9).
    Crash {
        node: u8,
        tail: bool,
    },
    /// A snapshot of `from` has come: its epoch is promised, the log is told of it.
    Admit {
        node: u8,
        from: u8,
    },
    /// The engine is replaced by it.
    Install {
        node: u8,
    },
    /// The log begins behind it.
    BeginAnew {
        node: u8,
    },
    /// The log stays what it was: a later promise came between.
    GiveUp {
        node: u8,
    },
    /// `skein recover`: this node goes on alone.
    Recover {
        node: u8,
    },
    ReadBegins {
        node: u8,
    },
    ReadConfirmed {
        voter: u8,
    },
    ReadAnswered,
}

impl Step {
    pub const KINDS: usize = 25;

    /// Which kind of step, for the weights of a walk.
    pub fn kind(&self) -> usize {
        match self {
            Self::BeginRound => 0,
            Self::Seal { .. } => 1,
            Self::LateSeal { .. } => 2,
            Self::PromiseReachesDisk { .. } => 3,
            Self::Name { .. } => 4,
            Self::Change { .. } => 5,
            Self::Settle => 6,
            Self::TakeOffice { .. } => 7,
            Self::AppendStart { .. } => 8,
            Self::Learn { .. } => 9,
            Self::Write { .. } => 10,
            Self::Mark { .. } => 11,
            Self::Commit { .. } => 12,
            Self::Follow { .. } => 13,
            Self::Append { .. } => 14,
            Self::Fsync { .. } => 15,
            Self::Crash { .. } => 16,
            Self::Install { .. } => 17,
            Self::ReadBegins { .. } => 18,
            Self::ReadConfirmed { .. } => 19,
            Self::ReadAnswered => 20,
            Self::Admit { .. } => 21,
            Self::BeginAnew { .. } => 22,
            Self::GiveUp { .. } => 23,
            Self::Recover { .. } => 24,
        }
    }

    /// The node whose disk or memory it changes.
    pub fn node(&self) -> Option<usize> {
        match *self {
            Self::Seal { voter: node, .. }
            | Self::LateSeal { node, .. }
            | Self::PromiseReachesDisk { node }
            | Self::TakeOffice { node, .. }
            | Self::AppendStart { node }
            | Self::Learn { node }
            | Self::Write { node, .. }
            | Self::Mark { node }
            | Self::Commit { node, .. }
            | Self::Follow { node, .. }
            | Self::Append { node }
            | Self::Fsync { node }
            | Self::Crash { node, .. }
            | Self::Admit { node, .. }
            | Self::Install { node }
            | Self::BeginAnew { node }
            | Self::GiveUp { node }
            | Self::Recover { node } => Some(node as usize),
            _ => None,
        }
    }
}

/// `A` for node 0.
pub fn letter(node: impl Into<u64>) -> char {
    char::from_u32('A' as u32 + node.into() as u32).unwrap_or('?')
}

/// `{ABC}`.
pub fn letters(nodes: Nodes) -> String {
    let names: String = (0..8u64).filter(|node| nodes >> node & 1 == 1).map(letter).collect();
    format!("{{{names}}}")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BeginRound => f.write_str("a leader begins a round for the next epoch"),
            Self::Seal { round, voter } => write!(f, "{} answers Seal of round {round}", letter(voter)),
            Self::LateSeal { node, epoch } => {
                write!(f, "a late Seal of epoch {epoch} reaches {}", letter(node))
            }
            Self::PromiseReachesDisk { node } => {
                write!(f, "the promise of {} reaches its disk", letter(node))
            }
            Self::Name { round, counted, node } => {
                write!(f, "round {round} counts {} and names {} writer", letters(counted), letter(node))
            }
            Self::Change { old: 0, new } => write!(f, "membership becomes {}", letters(new)),
            Self::Change { old, new } => {
                write!(f, "membership becomes joint, {} and {}", letters(old), letters(new))
            }
            Self::Settle => f.write_str("membership becomes uniform"),
            Self::TakeOffice { node, view } => {
                write!(f, "{} sees raft command {view} and takes office", letter(node))
            }
            Self::AppendStart { node } => write!(f, "{} appends its EpochStart", letter(node)),
            Self::Learn { node } => write!(f, "{} applies another raft command", letter(node)),
            Self::Write { node, batch } => write!(f, "{} appends batch w{batch}", letter(node)),
            Self::Mark { node } => write!(f, "{} appends a ConfigMark", letter(node)),
            Self::Commit { node, .. } => write!(f, "{} counts a commit", letter(node)),
            Self::Follow { node, stream } => write!(f, "{} follows stream {stream}", letter(node)),
            Self::Append { node } => write!(f, "{} appends the next record", letter(node)),
            Self::Fsync { node } => write!(f, "{} fsyncs and acknowledges", letter(node)),
            Self::Crash { node, tail: true } => write!(f, "{} is killed and starts again", letter(node)),
            Self::Crash { node, tail: false } => write!(f, "{} loses power and starts again", letter(node)),
            Self::Admit { node, from } => {
                write!(f, "{} is about to install a snapshot of {}", letter(node), letter(from))
            }
            Self::Install { node } => write!(f, "the engine of {} has the snapshot", letter(node)),
            Self::BeginAnew { node } => write!(f, "the log of {} begins behind the snapshot", letter(node)),
            Self::GiveUp { node } => write!(f, "the log of {} stays as it is", letter(node)),
            Self::Recover { node } => write!(f, "{} goes on alone", letter(node)),
            Self::ReadBegins { node } => write!(f, "a linearizable read reaches {}", letter(node)),
            Self::ReadConfirmed { voter } => write!(f, "{} confirms the writer", letter(voter)),
            Self::ReadAnswered => f.write_str("the read is answered"),
        }
    }
}
