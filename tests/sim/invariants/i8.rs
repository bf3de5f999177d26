//! I8: the control state is one: at one index of the raft log every node that ever applied it saw the
//! same members, voters, writer and API tokens; a process never goes back; the register's epoch never falls and a
//! removed member stays removed, whoever looks later in the log.

use std::collections::{BTreeMap, BTreeSet};

use skeinmesh::types::{BootId, ClusterView, MembershipId, NodeId, Office, Role, TokenId, Why};

#[derive(Debug, Default)]
pub(crate) struct Control {
    states: BTreeMap<u64, (Seen, &'static str)>,
    /// Where each process was seen last, and what changes most.
    last: BTreeMap<&'static str, (BootId, u64, Option<Office>, MembershipId)>,
}

/// What an applied state says.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    writer: Option<Office>,
    membership: MembershipId,
    voters: Vec<BTreeSet<NodeId>>,
    learners: BTreeSet<NodeId>,
    members: Vec<(NodeId, Role)>,
    removed: Vec<NodeId>,
    tokens: Vec<TokenId>,
}

impl Control {
    pub(crate) fn observe(
        &mut self,
        host: &'static str,
        boot: BootId,
        view: &ClusterView,
        tokens: impl FnOnce() -> Vec<TokenId>,
    ) -> Vec<String> {
        let index = view.applied_index;
        let now = (boot, index, view.writer, view.membership);
        let last = self.last.insert(host, now);
        if last == Some(now) || view.members.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        if let Some((_, before, ..)) = last.filter(|(was, before, ..)| *was == boot && *before > index) {
            found.push(format!("I8: the control state of {host} went back from index {before} to {index}"));
        }
        let seen = Seen {
            writer: view.writer,
            membership: view.membership,
            voters: view.voters.clone(),
            learners: view.learners.clone(),
            members: view.members.values().map(|member| (member.id, member.role)).collect(),
            removed: view.removed.keys().copied().collect(),
            tokens: tokens(),
        };
        let (first, by) = self.states.entry(index).or_insert_with(|| (seen.clone(), host));
        if *first != seen {
            found.push(format!("I8: at index {index} {host} sees {seen:?}, {by} saw {first:?}"));
        }
        if let Some((at, (earlier, by))) = self.states.range(..index).next_back() {
            found.extend(seen.undoes(earlier).map(|what| {
                format!("I8: {host} sees {what} at index {index}, which {by} did not at index {at}")
            }));
        }
        if let Some((at, (later, by))) = self.states.range(index + 1..).next() {
            found.extend(later.undoes(&seen).map(|what| {
                format!("I8: {by} saw {what} at index {at}, which {host} does not see at index {index}")
            }));
        }
        found
    }
}

impl Seen {
    /// What this state has undone of an earlier one.
    fn undoes(&self, earlier: &Self) -> Option<String> {
        let epoch = |seen: &Self| seen.writer.map_or(0, |office| office.epoch);
        if epoch(self) < epoch(earlier) {
            return Some(format!("epoch {} after {}", epoch(self), epoch(earlier)));
        }
        if self.membership < earlier.membership {
            return Some(format!("membership {} after {}", self.membership, earlier.membership));
        }
        let back = earlier.removed.iter().find(|node| !self.removed.contains(node));
        back.map(|node| format!("{} back, which was removed", node.short()))
    }
}

#[test]
fn a_second_truth_and_a_step_back_are_seen() {
    let office = |epoch, node| Office {
        epoch,
        node: NodeId([node; 16]),
        boot: BootId(1),
        membership: MembershipId::default(),
        at_ms: 0,
        why: Why::default(),
    };
    let view = |index, epoch, node| ClusterView {
        applied_index: index,
        writer: Some(office(epoch, node)),
        members: [super::sample::member(1)].into(),
        ..ClusterView::default()
    };
    let (boot, mut control, none) = (BootId(7), Control::default(), Vec::new);
    assert_eq!(control.observe("a", boot, &view(5, 2, 1), none), [""; 0]);
    assert_eq!(control.observe("b", boot, &view(5, 2, 1), none), [""; 0]);
    assert_eq!(control.observe("c", boot, &view(5, 2, 9), none).len(), 1, "another writer at the same index");
    assert_eq!(
        control.observe("b", boot, &view(5, 2, 9), none).len(),
        1,
        "the same, where the first was seen"
    );
    assert_eq!(control.observe("b", boot, &view(5, 2, 1), none).len(), 0);
    assert_eq!(control.observe("a", boot, &view(6, 1, 1), none).len(), 1, "the epoch falls");
    assert_eq!(control.observe("b", boot, &view(4, 2, 1), none).len(), 1, "a process goes back");
    assert_eq!(control.observe("c", BootId(8), &view(4, 2, 1), none).len(), 0, "another process may");
    let removed = ClusterView { removed: [(NodeId([3; 16]), 0)].into(), ..view(9, 3, 1) };
    assert_eq!(control.observe("a", boot, &removed, none).len(), 0);
    assert_eq!(control.observe("a", boot, &view(10, 3, 1), none).len(), 1, "a removed node is back");
    assert_eq!(control.observe("a", boot, &view(11, 3, 1), none).len(), 0);
    assert_eq!(control.observe("b", boot, &view(11, 3, 1), || vec![TokenId(1)]).len(), 1, "a token");
}
