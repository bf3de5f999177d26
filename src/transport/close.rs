//! Why a connection ends: the codes on the wire and their meaning here.

use std::fmt;

use quinn::{ConnectionError, VarInt};

/// Code a connection is closed with. The number is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseCode {
    /// The process stops, or the work of this connection is done.
    Done = 0,
    /// Another connection of the same two processes stays.
    Duplicate = 1,
    /// A newer connection took its place.
    Replaced = 2,
    /// The peer was removed from the cluster.
    Removed = 3,
    /// The peer may not do this before it is admitted.
    NotAdmitted = 4,
    /// The certificate is good but the node is not in the view yet: try again.
    NotYetKnown = 5,
    /// The peer is of another cluster.
    WrongCluster = 6,
    /// Two processes use one identity.
    Cloned = 7,
    /// The peer did not keep to the protocol.
    Protocol = 8,
    /// A size or time limit for those not admitted.
    Limit = 9,
    /// The peer's certificate has expired, is not valid yet or is of a retired root: renew it.
    Lapsed = 10,
    /// Too many at once: try again.
    Busy = 11,
    /// The cluster was made anew of one survivor, and only one of the two has come through that.
    OtherGeneration = 12,
}

impl CloseCode {
    const ALL: [Self; 13] = [
        Self::Done,
        Self::Duplicate,
        Self::Replaced,
        Self::Removed,
        Self::NotAdmitted,
        Self::NotYetKnown,
        Self::WrongCluster,
        Self::Cloned,
        Self::Protocol,
        Self::Limit,
        Self::Lapsed,
        Self::Busy,
        Self::OtherGeneration,
    ];

    pub(super) fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    fn from_wire(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.wire() == code)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Duplicate => "another connection of the same two nodes stays",
            Self::Replaced => "replaced by a newer connection",
            Self::Removed => "the node was removed from the cluster",
            Self::NotAdmitted => "not admitted to this cluster",
            Self::NotYetKnown => "not known here yet, try again",
            Self::WrongCluster => "of another cluster",
            Self::Cloned => "two processes use one identity",
            Self::Protocol => "protocol error",
            Self::Limit => "a limit for nodes not admitted was reached",
            Self::Lapsed => "the certificate has expired, is not valid yet or is of a retired root, renew it",
            Self::Busy => "too busy, try again",
            Self::OtherGeneration => {
                "of another generation of this cluster: it was recovered without one of the two"
            }
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed it and said why.
    #[error("closed by the peer: {0}")]
    ByPeer(CloseCode),
    /// This side closed it.
    #[error("closed by this node")]
    ByUs,
    /// Nothing heard within the idle timeout.
    #[error("the peer does not answer")]
    TimedOut,
    /// Anything else.
    #[error("connection failed: {0}")]
    Failed(String),
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => match CloseCode::from_wire(close.error_code) {
                Some(code) => Self::ByPeer(code),
                None => Self::Failed(format!("closed by the peer with code {}", close.error_code)),
            },
            ConnectionError::LocallyClosed => Self::ByUs,
            ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Failed(other.to_string()),
        }
    }
}
