//! How much space the raft log has, and who may still use it.
//!
//! While the disk has space the log allocates ahead of what is written; without any it goes on in what
//! is allocated. That is spent by need: first nothing is taken any more that can wait, then nothing that
//! comes from outside of raft, so that the last part is left for what raft itself has to write: the first
//! entry of a term, truncations, purges.
//!
//! So that no vote waits behind an append that waits for space. It may not overtake it: to openraft a vote
//! that is on disk says that everything queued before it is too.

use super::types::Command;
use crate::protocol::frame;

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// True while the disk has no more to give.
    pub(super) full: bool,
    /// Bytes that are allocated behind the end of the log.
    pub(super) left: u64,
    /// How many of these are for raft itself.
    pub(super) own: u64,
}

impl Room {
    /// True if there is space for `bytes` of entries that come from outside of raft.
    pub(super) const fn holds(&self, bytes: u64) -> bool {
        !self.full || self.left >= self.own.saturating_add(bytes)
    }

    /// True if a leader should propose this now.
    pub(super) fn takes(&self, command: &Command) -> bool {
        !self.full || (!command.can_wait() && self.holds(frame::encode(command).len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{raft::ApiToken, types::NodeId};

    #[test]
    fn what_can_wait_does_and_a_last_part_is_for_raft_itself() {
        let token = Command::CreateApiToken(ApiToken::default());
        let leave = Command::Retire { node: NodeId([1; 16]) };
        let room = |full, left| Room { full, left, own: 1_000 };
        assert!(room(false, 0).takes(&token) && room(false, 0).holds(u64::MAX));
        assert!(!room(true, u64::MAX).takes(&token));
        assert!(room(true, 1_500).takes(&leave) && !room(true, 1_010).takes(&leave));
        assert!(room(true, 1_500).holds(500) && !room(true, 1_500).holds(501));
    }
}
