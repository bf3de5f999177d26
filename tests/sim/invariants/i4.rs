//! I4: one process per epoch, and epochs never go back on a node, restarts included. An epoch is named
//! only when a majority has promised it, on disk.

use std::collections::{BTreeMap, BTreeSet};

use skeinmesh::{
    protocol::status::NodeStatus,
    types::{BootId, Epoch, NodeId, Office},
};

use crate::ledger::{Offices, Process};

#[derive(Debug, Default)]
pub(crate) struct Epochs {
    /// In office by their own word.
    held: Offices,
    /// Named by an applied register.
    named: Offices,
    nodes: BTreeMap<NodeId, Floors>,
    /// Nodes whose disk has rotted: what it held may be gone.
    rotten: BTreeSet<NodeId>,
}

/// Below which a node may not fall.
#[derive(Debug, Clone, Copy)]
struct Floors {
    boot: BootId,
    /// Of this process: it may be ahead of its fsync, so a restart may forget it.
    promise: Epoch,
    register: Epoch,
    /// Highest stream epoch of which a record was durable: its promise was synced before.
    synced: Epoch,
}

impl Epochs {
    pub(crate) fn observe(
        &mut self,
        host: &str,
        status: &NodeStatus,
        register: Option<Office>,
    ) -> Vec<String> {
        let mut found = Vec::new();
        if let Some((epoch, _)) = status.office {
            let process = (status.node, status.boot);
            found.extend(one_process(&mut self.held, epoch, process, "holds office"));
        }
        if let Some(office) = register {
            found.extend(one_process(&mut self.named, office.epoch, (office.node, office.boot), "is named"));
        }
        for (epoch, process) in &self.held {
            if self.named.get(epoch).is_some_and(|named| named != process) {
                found.push(format!("I4: {} holds office in epoch {epoch} but is not named", process.0));
            }
        }
        let seen = register.map_or(0, |office| office.epoch);
        let synced = status.durable.epoch.max(status.applied.epoch);
        let fresh = Floors {
            boot: status.boot,
            promise: status.promise,
            register: seen,
            synced: status.promise.min(synced),
        };
        let floors = self.nodes.entry(status.node).or_insert(fresh);
        if floors.boot != status.boot {
            *floors = Floors { synced: floors.synced, ..fresh };
        }
        for (what, was, is) in [
            ("promise", floors.promise, status.promise),
            ("register", floors.register, seen),
            ("promise, after a record of that epoch was durable,", floors.synced, status.promise),
        ] {
            if is < was {
                found.push(format!("I4: the {what} of {host} went back from epoch {was} to {is}"));
            }
        }
        floors.promise = floors.promise.max(status.promise);
        floors.register = floors.register.max(seen);
        floors.synced = floors.synced.max(synced);
        found
    }

    /// Highest epoch that any register names.
    pub(crate) fn named(&self) -> Epoch {
        self.named.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The disk of a node has rotted.
    pub(crate) fn rotted(&mut self, node: NodeId) {
        self.rotten.insert(node);
    }

    /// Whether every epoch from that one on was named for one and the same node, whose disk is whole.
    /// An epoch that nobody saw may have been anybody's.
    pub(crate) fn kept_by_one_node(&self, from: Epoch) -> bool {
        let node = |epoch| self.named.get(&epoch).map(|(node, _)| *node);
        let whole = node(from).is_some_and(|node| !self.rotten.contains(&node));
        whole && (from..=self.named()).all(|epoch| node(epoch) == node(from))
    }

    /// How many offices were held.
    pub(crate) fn offices(&self) -> usize {
        self.held.len()
    }
}

/// On how many of these disks the promise of the epoch just named is.
pub(crate) fn promised(epoch: Epoch, have: usize, voters: usize) -> Option<String> {
    (have * 2 <= voters)
        .then(|| format!("I4: epoch {epoch} is named, but promised on {have} of {voters} disks only"))
}

fn one_process(offices: &mut Offices, epoch: Epoch, process: Process, what: &str) -> Option<String> {
    let first = *offices.entry(epoch).or_insert(process);
    (first != process).then(|| {
        let ((node, boot), (other, other_boot)) = (process, first);
        format!("I4: {node} (boot {boot:?}) {what} in epoch {epoch}, as did {other} (boot {other_boot:?})")
    })
}

#[test]
fn two_processes_in_one_epoch_are_seen() {
    let mut offices = Offices::new();
    let (a, b) = ((NodeId([1; 16]), BootId(1)), (NodeId([1; 16]), BootId(2)));
    assert_eq!(one_process(&mut offices, 3, a, "is named"), None);
    assert_eq!(one_process(&mut offices, 3, a, "is named"), None);
    assert!(one_process(&mut offices, 3, b, "is named").is_some());
    assert_eq!(one_process(&mut offices, 4, b, "is named"), None);
    assert!(promised(4, 1, 3).is_some() && promised(4, 2, 3).is_none() && promised(4, 2, 4).is_some());
}

#[test]
fn only_a_node_that_never_left_office_has_kept_it() {
    let named = |offices: &[(Epoch, u8)]| {
        let named = offices.iter().map(|(epoch, node)| (*epoch, (NodeId([*node; 16]), BootId(*epoch))));
        Epochs { named: named.collect(), ..Epochs::default() }
    };
    assert!(named(&[(1, 1), (2, 1)]).kept_by_one_node(1));
    assert!(!named(&[(1, 1), (2, 2)]).kept_by_one_node(1));
    assert!(!named(&[(1, 1), (2, 2), (3, 1)]).kept_by_one_node(1));
    assert!(named(&[(1, 1), (2, 2), (3, 2)]).kept_by_one_node(2));
    assert!(!named(&[(1, 1), (3, 1)]).kept_by_one_node(1), "epoch 2 was not seen");
    let mut rotten = named(&[(1, 1), (2, 1)]);
    rotten.rotted(NodeId([1; 16]));
    assert!(!rotten.kept_by_one_node(1));
}
