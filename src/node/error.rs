//! Why a node does not start, or stops.

use std::path::PathBuf;

use crate::{
    engine::EngineError,
    identity::{CaError, DataDirError, IdentityError, StoreError},
    join::JoinError,
    raft::ControlError,
    replication::receiver::FollowError,
    transport::MeshError,
    types::{NodeId, Recovery},
    wal::WalError,
    write_path::apply::ApplyError,
};

/// A node could not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory is not usable.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file of the identity is missing, unreadable or damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys or certificates do not work.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster CA does not work.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The mesh endpoint could not be opened.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Raft could not start or failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The log could not be opened or failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The engine could not be opened or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cluster does not let this node in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Following the writer cannot go on.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// Applying cannot go on.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// What the flags ask for contradicts what is there; says what to choose from.
    #[error("{0}")]
    Usage(String),
    /// There is a log, but not the record of the cluster it belongs to.
    #[error(
        "{dir} holds a log but no cluster.json: this node was a member and must not forget what it promised. \
         Restore the file, or move the directory away and join again with a new token",
        dir = .dir.display()
    )]
    LostRecord {
        /// The data directory.
        dir: PathBuf,
    },
    /// This node was removed from its cluster.
    #[error(
        "this node was removed from its cluster ({reason}); to use this machine again, move {dir} away and start \
         with a new token",
        dir = .dir.display()
    )]
    Removed {
        /// What the tombstone says.
        reason: String,
        /// The data directory.
        dir: PathBuf,
    },
    /// The cluster was recovered from the loss of a majority, and this node was given up with it.
    #[error(
        "the cluster was recovered without this node, by node {by} (generation {generation}), and goes on there. \
         Start this node again: it comes back as a learner, and what it has now stays in {dir} under names that end \
         in {suffix}. Look there for what it acknowledged after they lost each other",
        by = .recovery.by, generation = .recovery.generation, dir = .dir.display(),
        suffix = super::come_back::suffix(.recovery)
    )]
    Superseded {
        /// What has replaced this node's world.
        recovery: Box<Recovery>,
        /// The data directory.
        dir: PathBuf,
    },
    /// `skein recover` was cut short on this node.
    #[error(
        "`skein recover` was begun on {dir} and has not come to its end: run it again there, it only finishes",
        dir = .dir.display()
    )]
    HalfRecovered {
        /// The data directory.
        dir: PathBuf,
    },
    /// A write or fsync failed: the node stops rather than claim more than happened.
    #[error(
        "{what} on node {node} failed: {reason}. Stopped. Check the disk; records that were acknowledged are on \
         the other voters' disks, and this node fetches them again when it restarts",
        node = .node.short()
    )]
    FailStop {
        /// Which log.
        what: &'static str,
        /// The system's word.
        reason: String,
        /// Which node.
        node: NodeId,
    },
    /// A task ended that must not.
    #[error("internal error: {0}")]
    Task(String),
}

impl NodeError {
    /// True when the disk is to blame: the process exits 74.
    pub fn is_disk(&self) -> bool {
        match self {
            Self::FailStop { .. }
            | Self::Wal(_)
            | Self::DataDir(_)
            | Self::Store(_)
            | Self::LostRecord { .. }
            | Self::Join(JoinError::Store(_)) => true,
            Self::Control(error) => matches!(error, ControlError::Log(_) | ControlError::Snapshot(_)),
            Self::Engine(error) => !matches!(error, EngineError::Broken(_)),
            Self::Follow(error) => matches!(error, FollowError::Wal(_)),
            _ => false,
        }
    }

    /// True when the command line, or what it finds, is to blame: the process exits 2.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::HalfRecovered { .. })
    }
}
