//! Why a node does not start, or stops.

use std::path::PathBuf;

use crate::{
    engine::EngineError,
    identity::{CaError, DataDirError, GivenCaError, IdentityError, StoreError},
    join::JoinError,
    raft::{ControlError, LogError},
    replication::{catch_up::CatchUpError, fence::FenceError, receiver::FollowError},
    transport::MeshError,
    types::{ClusterView, NodeId, Recovery},
    wal::{ReadError, WalError},
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
    /// The CA that the cluster was to be made with is of no use.
    #[error("--ca-cert, --ca-key: {0}")]
    GivenCa(#[from] GivenCaError),
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
    /// The cluster has done what this version does not know.
    #[error(
        "the cluster relies on features that skein {version} does not know (bits {missing:#x}): a node cannot go back \
         to it. Start the newer version again",
        version = super::local::VERSION
    )]
    Older {
        /// Bits of the cluster's feature level that this version lacks.
        missing: u64,
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
    /// An error if the cluster of this view has done what this version does not know.
    pub(super) fn if_older(view: &ClusterView) -> Result<(), Self> {
        let missing = crate::raft::missing(view.feature_level, super::local::features());
        missing.map_or(Ok(()), |missing| Err(Self::Older { missing }))
    }

    /// True when the disk is to blame: the process exits 74.
    pub fn is_disk(&self) -> bool {
        match self {
            Self::FailStop { .. }
            | Self::Wal(_)
            | Self::DataDir(_)
            | Self::Store(_)
            | Self::LostRecord { .. }
            | Self::Join(JoinError::Store(_)) => true,
            Self::Control(ControlError::Log(error)) => !matches!(error, LogError::Newer { .. }),
            Self::Control(error) => matches!(error, ControlError::Snapshot(_)),
            Self::Engine(error) => !matches!(error, EngineError::Broken(_)),
            Self::Follow(error) => match error {
                FollowError::Wal(_) | FollowError::Fence(FenceError::Wal(_)) => true,
                FollowError::CatchUp(CatchUpError::Disk(_) | CatchUpError::Fence(FenceError::Wal(_))) => true,
                FollowError::CatchUp(CatchUpError::Engine(error)) => !matches!(error, EngineError::Broken(_)),
                _ => false,
            },
            Self::Apply(ApplyError::Read { error, .. }) => {
                matches!(error, ReadError::Damaged { .. } | ReadError::Io(_))
            }
            Self::Apply(ApplyError::Engine { error, .. }) => !matches!(error, EngineError::Broken(_)),
            _ => false,
        }
    }

    /// True when the command line, or what it finds, is to blame: the process exits 2.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::GivenCa(_) | Self::HalfRecovered { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::types::Lsn;

    #[test]
    fn the_disk_is_blamed_wherever_it_fails_and_not_for_what_it_did_not_do() {
        let eio = || io::Error::other("EIO");
        let log = || FenceError::Wal(WalError::Failed("EIO".into()));
        let blamed: [NodeError; 6] = [
            FollowError::CatchUp(CatchUpError::Disk(eio())).into(),
            FollowError::CatchUp(CatchUpError::Engine(EngineError::Io(eio()))).into(),
            FollowError::CatchUp(CatchUpError::Fence(log())).into(),
            FollowError::Fence(log()).into(),
            ApplyError::Read { seq: 1, error: ReadError::Io(eio()) }.into(),
            ApplyError::Engine { at: Lsn::ZERO, error: EngineError::Io(eio()) }.into(),
        ];
        assert!(blamed.iter().all(NodeError::is_disk));
        let not: [NodeError; 3] = [
            FollowError::Diverged(Lsn::ZERO).into(),
            FollowError::Fence(FenceError::CutsApplied { keep: 1, applied: Lsn::ZERO }).into(),
            ApplyError::Gap { want: 1, got: Lsn::ZERO }.into(),
        ];
        assert!(!not.iter().any(NodeError::is_disk));
    }
}
