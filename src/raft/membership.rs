//! Who votes: the leader brings raft's membership to what the members are and want, **one voter
//! at a time** (DESIGN 4 and 6.5). The next change waits until the writer has committed a mark
//! with the id of the newest membership entry in the leader's log: without it two quick changes
//! can leave a majority that never saw an acknowledged write.
//!
//! [`next_step`] is pure; [`Keeper::run`] is the driver. The cluster never removes a dead voter
//! by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::types::{ClusterView, Lsn, Member, MembershipId, NodeId, Role};

use super::{
    Command, Control,
    failover::{Local, Statuses},
    rotation::fully_sealed,
};

/// A learner this close to the commit position may be promoted.
const LEVEL: u64 = 1_000;
/// For this long it must have been linked with every voter, both ways.
const LINKED_FOR: Duration = Duration::from_secs(3);
/// Most voters.
const MOST_VOTERS: usize = 5;
/// Between two looks.
const TICK: Duration = Duration::from_millis(200);
/// Bound of one proposal.
const PROPOSAL: Duration = Duration::from_secs(5);

/// Keeps membership, while this node is the leader.
#[derive(Debug)]
pub struct Keeper {
    control: Control,
    local: Arc<dyn Local>,
    me: NodeId,
    statuses: watch::Receiver<Statuses>,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A member is not in raft yet.
    AddLearner(NodeId),
    /// A learner qualifies; it needs the CA key first.
    SealCa(NodeId),
    /// A learner qualifies and has the CA key.
    Promote(NodeId),
    /// A voter shall be a reader, or is no longer a member.
    RemoveVoter(NodeId),
    /// A learner is no longer a member.
    RemoveLearner(NodeId),
    /// The leader itself must go: someone else leads first.
    HandOver(NodeId),
}

/// Everything a decision is made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Applied state.
    pub view: &'a ClusterView,
    /// Newest membership entry in the leader's log, applied or not.
    pub newest: MembershipId,
    /// Newest mark the writer has committed.
    pub marked: MembershipId,
    /// This node, the leader.
    pub me: NodeId,
    /// Voters-to-be that are level and linked, and all voters that answer.
    pub ready: &'a BTreeSet<NodeId>,
    /// Voters that answer, besides the leader.
    pub alive: &'a BTreeSet<NodeId>,
    /// Who has the CA key.
    pub sealed: &'a BTreeSet<NodeId>,
}

/// What to do next, if anything may be done now.
pub fn next_step(facts: &Facts<'_>) -> Option<Step> {
    let view = facts.view;
    let [voters] = view.voters.as_slice() else { return None };
    // The gate: judged against the newest entry in the log, not the applied one.
    // Model: one_change_until_marked
    let shut = facts.newest != view.membership || facts.marked < facts.newest;
    #[cfg(feature = "testing")]
    let shut = shut && !crate::types::planted::is("membership_gate_dropped");
    if shut {
        return None;
    }
    let gone = |id: &&NodeId| !view.members.contains_key(*id);
    let leaves = |id: &&NodeId| view.members.get(*id).is_none_or(|member| member.role != Role::Voter);
    if let Some(voter) = voters.iter().find(leaves) {
        // The sitting writer is removed only after a transfer.
        if view.writer.is_some_and(|office| office.node == *voter) {
            return None;
        }
        if *voter == facts.me {
            return voters
                .iter()
                .find(|id| **id != facts.me && facts.alive.contains(id))
                .copied()
                .map(Step::HandOver);
        }
        return Some(Step::RemoveVoter(*voter));
    }
    if let Some(learner) = view.learners.iter().find(gone) {
        return Some(Step::RemoveLearner(*learner));
    }
    let in_raft = |id: &NodeId| voters.contains(id) || view.learners.contains(id);
    let outside = |member: &&Member| member.role != Role::Gateway && !in_raft(&member.id);
    if let Some(member) = view.members.values().find(outside) {
        return Some(Step::AddLearner(member.id));
    }
    let candidates: Vec<NodeId> = view
        .members
        .values()
        .filter(|m| m.role == Role::Voter && view.learners.contains(&m.id) && facts.ready.contains(&m.id))
        .map(|m| m.id)
        .collect();
    let first = *candidates.first()?;
    let enough = match voters.len() {
        // An even number of voters tolerates no more than the odd number below it.
        count if count >= MOST_VOTERS => false,
        3 => candidates.len() >= 2,
        _ => true,
    };
    enough.then(|| if facts.sealed.contains(&first) { Step::Promote(first) } else { Step::SealCa(first) })
}

impl Keeper {
    /// A keeper that acts while this node is the leader; `statuses` come from the failover watch.
    pub fn new(
        control: Control,
        local: Arc<dyn Local>,
        me: NodeId,
        statuses: watch::Receiver<Statuses>,
    ) -> Self {
        Self { control, local, me, statuses }
    }

    /// Runs as long as the process.
    pub async fn run(self) {
        let mut linked_since: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !self.control.is_leader() || !self.control.leader_ready().await {
                linked_since.clear();
                continue;
            }
            // What an earlier leader, or a failed attempt, left half-way comes first.
            if self.control.is_joint() {
                if let Err(error) = self.control.finish_change().await {
                    tracing::warn!(%error, "cannot finish a membership change yet");
                }
                continue;
            }
            let view = self.control.view().borrow().clone();
            let statuses = self.statuses.borrow().clone();
            let ready = self.ready(&view, &statuses, &mut linked_since);
            let marked = view
                .writer
                .and_then(|office| statuses.get(&office.node))
                .map_or(MembershipId::default(), |(_, status)| status.marked);
            let alive = alive(&view, &statuses, Instant::now());
            let sealed = fully_sealed(&self.control.state());
            let step = next_step(&Facts {
                view: &view,
                newest: self.control.newest_membership(),
                marked,
                me: self.me,
                ready: &ready,
                alive: &alive,
                sealed: &sealed,
            });
            if let Some(step) = step
                && let Err(reason) = self.take(&step, &view).await
            {
                tracing::warn!(?step, reason, "membership step failed; it is tried again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn take(&self, step: &Step, view: &ClusterView) -> Result<(), String> {
        tracing::info!(?step, "membership");
        match step {
            Step::AddLearner(id) => self.control.add_learner(*id).await.map_err(|e| e.to_string()),
            Step::Promote(id) => self.control.promote(*id).await.map_err(|e| e.to_string()),
            Step::RemoveVoter(id) => self.control.demote(*id).await.map_err(|e| e.to_string()),
            Step::RemoveLearner(id) => self.control.remove(*id).await.map_err(|e| e.to_string()),
            Step::HandOver(to) => self.control.transfer_leader(*to).await.map_err(|e| e.to_string()),
            Step::SealCa(id) => {
                let member = view.members.get(id).ok_or("no such member")?;
                for (of, sealed) in self.local.seal_ca_for(member)? {
                    let command = Command::SealCa { node: *id, sealed, of: Some(of) };
                    self.control.propose(command, PROPOSAL).await.map_err(|e| e.to_string())?;
                }
                Ok(())
            }
        }
    }

    /// Learners that are within [`LEVEL`] of the commit position and have been linked with every
    /// voter, both ways, for [`LINKED_FOR`].
    fn ready(
        &self,
        view: &ClusterView,
        statuses: &Statuses,
        linked_since: &mut BTreeMap<NodeId, Instant>,
    ) -> BTreeSet<NodeId> {
        let now = Instant::now();
        let voters = view.all_voters();
        let commit = statuses.values().map(|(_, s)| s.commit).max().unwrap_or(Lsn::ZERO);
        let linked = |learner: NodeId| {
            let sees = |from: &NodeId, to: &NodeId| {
                statuses
                    .get(from)
                    .is_some_and(|(heard, s)| now - *heard < LINKED_FOR && s.linked.contains(to))
            };
            voters.iter().all(|voter| sees(voter, &learner) && sees(&learner, voter))
        };
        linked_since.retain(|id, _| view.learners.contains(id) && linked(*id));
        for learner in view.learners.iter().filter(|id| linked(**id)) {
            linked_since.entry(*learner).or_insert(now);
        }
        linked_since
            .iter()
            .filter(|(_, since)| now - **since >= LINKED_FOR)
            .filter_map(|(id, _)| statuses.get(id))
            .filter(|(_, s)| commit.seq.saturating_sub(s.durable.seq) <= LEVEL && self.local.holds(s.durable))
            .map(|(_, s)| s.node)
            .collect()
    }
}

fn alive(view: &ClusterView, statuses: &Statuses, now: Instant) -> BTreeSet<NodeId> {
    let fresh = Duration::from_secs(1);
    view.all_voters()
        .into_iter()
        .filter(|id| !view.drained.contains(id))
        .filter(|id| statuses.get(id).is_some_and(|(heard, s)| now - *heard < fresh && !s.draining))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, BootId, Office, Why};

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn set(ids: &[u8]) -> BTreeSet<NodeId> {
        ids.iter().map(|n| id(*n)).collect()
    }

    fn member(n: u8, role: Role) -> (NodeId, Member) {
        let member = Member {
            id: id(n),
            name: String::new(),
            role,
            addresses: Addresses::default(),
            spki: Vec::new(),
            seal_key: Vec::new(),
            seal_key_signature: Vec::new(),
            serial: String::new(),
            not_after: 0,
            version: String::new(),
            features: 0,
        };
        (id(n), member)
    }

    fn view(voters: &[u8], learners: &[u8], members: &[u8]) -> ClusterView {
        ClusterView {
            voters: vec![set(voters)],
            learners: set(learners),
            members: members.iter().map(|n| member(*n, Role::Voter)).collect(),
            membership: MembershipId { term: 1, index: 7 },
            writer: Some(Office {
                epoch: 1,
                node: id(1),
                boot: BootId(1),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::default(),
            }),
            ..ClusterView::default()
        }
    }

    fn step(view: &ClusterView, ready: &[u8], sealed: &[u8], marked: u64) -> Option<Step> {
        let (ready, sealed, alive) = (set(ready), set(sealed), set(&[1, 2, 3]));
        next_step(&Facts {
            view,
            newest: view.membership,
            marked: MembershipId { term: 1, index: marked },
            me: id(1),
            ready: &ready,
            alive: &alive,
            sealed: &sealed,
        })
    }

    #[test]
    fn a_member_becomes_learner_then_gets_the_key_then_votes() {
        assert_eq!(step(&view(&[1], &[], &[1, 2]), &[], &[], 7), Some(Step::AddLearner(id(2))));
        assert_eq!(step(&view(&[1], &[2], &[1, 2]), &[], &[], 7), None);
        assert_eq!(step(&view(&[1], &[2], &[1, 2]), &[2], &[], 7), Some(Step::SealCa(id(2))));
        assert_eq!(step(&view(&[1], &[2], &[1, 2]), &[2], &[2], 7), Some(Step::Promote(id(2))));
    }

    #[test]
    fn the_gate_stays_shut_until_the_mark_is_committed() {
        let mut joint = view(&[1], &[2], &[1, 2]);
        assert_eq!(step(&joint, &[2], &[2], 6), None);
        joint.voters.push(set(&[1, 2]));
        assert_eq!(step(&joint, &[2], &[2], 7), None);
        // A newer entry in the log than applied.
        let applied = view(&[1], &[2], &[1, 2]);
        let (ready, alive) = (set(&[2]), set(&[]));
        let facts = Facts {
            view: &applied,
            newest: MembershipId { term: 1, index: 8 },
            marked: MembershipId { term: 1, index: 9 },
            me: id(1),
            ready: &ready,
            alive: &alive,
            sealed: &ready,
        };
        assert_eq!(next_step(&facts), None);
    }

    #[test]
    fn a_fourth_voter_waits_for_a_fifth_and_a_sixth_for_ever() {
        let four = view(&[1, 2, 3], &[4], &[1, 2, 3, 4]);
        assert_eq!(step(&four, &[4], &[4], 7), None);
        let five = view(&[1, 2, 3], &[4, 5], &[1, 2, 3, 4, 5]);
        assert_eq!(step(&five, &[4, 5], &[4, 5], 7), Some(Step::Promote(id(4))));
        let last = view(&[1, 2, 3, 4], &[5], &[1, 2, 3, 4, 5]);
        assert_eq!(step(&last, &[5], &[5], 7), Some(Step::Promote(id(5))));
        let six = view(&[1, 2, 3, 4, 5], &[6], &[1, 2, 3, 4, 5, 6]);
        assert_eq!(step(&six, &[6], &[6], 7), None);
    }

    #[test]
    fn who_is_no_longer_a_member_goes_one_by_one_the_writer_last() {
        assert_eq!(step(&view(&[1, 2, 3], &[], &[1, 3]), &[], &[], 7), Some(Step::RemoveVoter(id(2))));
        assert_eq!(step(&view(&[1, 3], &[2], &[1, 3]), &[], &[], 7), Some(Step::RemoveLearner(id(2))));
        // The sitting writer: only after a transfer.
        assert_eq!(step(&view(&[1, 2, 3], &[], &[2, 3]), &[], &[], 7), None);
        // The leader, when it no longer writes: someone else leads first.
        let mut leader = view(&[1, 2, 3], &[], &[2, 3]);
        leader.writer = Some(Office {
            epoch: 2,
            node: id(2),
            boot: BootId(2),
            membership: MembershipId::default(),
            at_ms: 0,
            why: Why::default(),
        });
        assert_eq!(step(&leader, &[], &[], 7), Some(Step::HandOver(id(2))));
    }
}
