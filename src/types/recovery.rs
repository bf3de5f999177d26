//! What an operator's decision to go on without a majority leaves behind: [`Recovery`].
//!
//! A cluster that has lost most of its voters can go on only by breaking the rule that makes it
//! one: somebody declares that what the missing voters may still hold is given up. From then on
//! there are two worlds with one cluster id, the one of before and the one of after, and nothing
//! may pass between them: not a vote, not a seal, not a record. The **generation** tells them
//! apart. It is fixed for a process run, so the hello of a link is the one place that has to look.
//!
//! Two operators may each recover another survivor. Both make generation 1, and the two are not
//! the same: what is compared is the whole value, and only a **higher** generation is a reason to
//! give way.

use serde::{Deserialize, Serialize};

use super::{ClusterId, Epoch, Lsn, NodeId};

/// Highest generation: its epochs still fit.
const MAX_GENERATION: u64 = u32::MAX as u64 >> 1;

/// A cluster was made anew of one survivor. Signed by the cluster's CA, whose key the survivor
/// must hold: no other member can make its peers give way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// 1 for the first one of a cluster; 0 is the time before it.
    pub generation: u64,
    /// The survivor.
    pub by: NodeId,
    /// Drawn at random: another recovery of the same generation is another world.
    pub nonce: u64,
    /// Last record the survivor had on disk. Records of older epochs behind it are of the other
    /// world.
    pub kept: Lsn,
    /// Ed25519 signature of the CA over [`Recovery::message`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl Recovery {
    /// The bytes that are signed.
    pub fn message(&self, cluster: ClusterId) -> Vec<u8> {
        let mut message = b"skein recovery 1\0".to_vec();
        message.extend_from_slice(&cluster.0);
        message.extend_from_slice(&self.by.0);
        for number in [self.generation, self.nonce, self.kept.epoch, self.kept.seq] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        message
    }

    /// The generation after `recovery`; `None` when there are no more.
    pub fn next_generation(recovery: Option<&Self>) -> Option<u64> {
        Some(generation(recovery) + 1).filter(|next| *next <= MAX_GENERATION)
    }

    /// The epoch that the register is set to: the epochs of generation `g` are those above
    /// `g * 2^32`. Nobody has to know which epochs the world before handed out after the survivor
    /// lost sight of it: a cluster does not change its writer four thousand million times.
    pub const fn first_epoch(generation: u64) -> Epoch {
        generation << 32
    }

    /// True when whoever is of `ours` has to give way to this one.
    pub fn replaces(&self, ours: Option<&Self>) -> bool {
        self.generation > generation(ours) && self.generation <= MAX_GENERATION
    }
}

/// The generation that this recovery, or none, stands for.
pub fn generation(recovery: Option<&Recovery>) -> u64 {
    recovery.map_or(0, |recovery| recovery.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(generation: u64, nonce: u64) -> Recovery {
        Recovery { generation, by: NodeId([1; 16]), nonce, kept: Lsn::new(3, 42), signature: Vec::new() }
    }

    #[test]
    fn only_a_higher_generation_replaces() {
        let (first, other, second) = (recovery(1, 1), recovery(1, 2), recovery(2, 3));
        assert!(first.replaces(None) && second.replaces(None) && second.replaces(Some(&first)));
        assert!(!first.replaces(Some(&first)) && !first.replaces(Some(&second)));
        // Two operators, two survivors: neither gives way, and they are not the same.
        assert!(!first.replaces(Some(&other)) && !other.replaces(Some(&first)) && first != other);
        assert!(!recovery(u64::MAX, 1).replaces(None));
    }

    #[test]
    fn generations_share_no_epoch() {
        assert_eq!(Recovery::next_generation(None), Some(1));
        assert_eq!(Recovery::next_generation(Some(&recovery(1, 1))), Some(2));
        assert_eq!(Recovery::next_generation(Some(&recovery(MAX_GENERATION, 1))), None);
        assert_eq!(Recovery::first_epoch(0), 0);
        for generation in [1, 2, MAX_GENERATION] {
            let (before, now) = (Recovery::first_epoch(generation - 1), Recovery::first_epoch(generation));
            assert_eq!(now - before, 1 << 32);
        }
    }

    #[test]
    fn every_field_is_signed() {
        let cluster = ClusterId([7; 16]);
        let plain = recovery(1, 1);
        let message = plain.message(cluster);
        let others = [
            Recovery { generation: 2, ..plain.clone() },
            Recovery { by: NodeId([2; 16]), ..plain.clone() },
            Recovery { nonce: 2, ..plain.clone() },
            Recovery { kept: Lsn::new(4, 42), ..plain.clone() },
            Recovery { kept: Lsn::new(3, 43), ..plain.clone() },
        ];
        assert!(others.iter().all(|other| other.message(cluster) != message));
        assert_ne!(plain.message(ClusterId([8; 16])), message);
        assert_eq!(Recovery { signature: vec![1], ..plain }.message(cluster), message);
    }
}
