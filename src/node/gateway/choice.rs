//! Which node a gateway asks: readers, else voters, the writer last.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::types::{Balance, ClusterView, NodeId, Role};

/// A node that did not answer is asked last for so long.
const SUSPECTED: Duration = Duration::from_secs(5);

/// What a request is, as far as it matters to whom it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// It changes nothing: any node with data may answer, and another one after it.
    Query,
    /// It changes members, tokens or policy: a voter's business, and never asked twice.
    Change,
}

/// What is known of the nodes that may be asked. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    balance: Balance,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    round: usize,
    busy: BTreeMap<NodeId, usize>,
    suspects: BTreeMap<NodeId, Instant>,
}

/// An answer under way; over when dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    node: NodeId,
    choice: Choice,
}

impl Choice {
    pub(super) fn new(balance: Balance) -> Self {
        Self { balance, state: Arc::default() }
    }

    /// Whom to ask, best first: every linked node with data that may be, one each.
    pub(super) fn order(
        &self,
        errand: Errand,
        view: &ClusterView,
        linked: &BTreeSet<NodeId>,
        now: Instant,
    ) -> Vec<NodeId> {
        let mut state = self.lock();
        state.suspects.retain(|_, until| *until > now);
        state.round = state.round.wrapping_add(1);
        let writer = view.writer.map(|office| office.node);
        let may = |role: Role| match (errand, role) {
            (_, Role::Gateway) | (Errand::Change, Role::Reader) => false,
            (Errand::Query, Role::Voter | Role::Reader) | (Errand::Change, Role::Voter) => true,
        };
        let mut nodes: Vec<(NodeId, Role)> = view
            .members
            .values()
            .map(|member| (member.id, view.role(member)))
            .filter(|(id, role)| may(*role) && linked.contains(id))
            .collect();
        let rank = |(id, role): &(NodeId, Role)| {
            let load = match self.balance {
                Balance::RoundRobin => 0,
                Balance::LeastConnections => state.busy.get(id).copied().unwrap_or(0),
            };
            // A drained one is about to be stopped.
            let last = state.suspects.contains_key(id) || view.drained.contains(id);
            (last, Some(*id) == writer, Reverse(*role == Role::Reader), load)
        };
        nodes.sort_by_key(rank);
        // Equals take turns.
        for equals in nodes.chunk_by_mut(|one, other| rank(one) == rank(other)) {
            equals.rotate_left(state.round % equals.len());
        }
        nodes.into_iter().map(|(id, _)| id).collect()
    }

    /// Notes that it is asked, until the value is dropped.
    pub(super) fn begin(&self, node: NodeId) -> UnderWay {
        *self.lock().busy.entry(node).or_default() += 1;
        UnderWay { node, choice: self.clone() }
    }

    /// It did not answer.
    pub(super) fn suspect(&self, node: NodeId, now: Instant) {
        self.lock().suspects.insert(node, now + SUSPECTED);
    }

    /// It answered.
    pub(super) fn answered(&self, node: NodeId) {
        self.lock().suspects.remove(&node);
    }

    /// Answers under way.
    pub(super) fn running(&self) -> usize {
        self.lock().busy.values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// It broke off.
    pub(super) fn suspect(&self) {
        self.choice.suspect(self.node, Instant::now());
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.choice.lock();
        if let Some(running) = state.busy.get_mut(&self.node) {
            *running -= 1;
            if *running == 0 {
                state.busy.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, BootId, Member, MembershipId, Office, Why};

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    /// Voters 1 to 3, of which 1 writes, readers 4 and 5, and gateway 6.
    fn view() -> ClusterView {
        let member = |n: u8| {
            let role = match n {
                1..=3 => Role::Voter,
                4 | 5 => Role::Reader,
                _ => Role::Gateway,
            };
            let member = Member {
                id: id(n),
                name: String::new(),
                role,
                addresses: Addresses::default(),
                spki: vec![],
                seal_key: vec![],
                seal_key_signature: vec![],
                serial: String::new(),
                not_after: 0,
                version: String::new(),
                features: 0,
            };
            (id(n), member)
        };
        ClusterView {
            members: (1..=6).map(member).collect(),
            voters: vec![(1..=3).map(id).collect()],
            writer: Some(Office {
                epoch: 1,
                node: id(1),
                boot: BootId(1),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::First,
            }),
            ..ClusterView::default()
        }
    }

    fn all() -> BTreeSet<NodeId> {
        (1..=6).map(id).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn readers_first_in_turn_the_writer_last_and_no_gateway() {
        let (choice, view, now) = (Choice::new(Balance::RoundRobin), view(), Instant::now());
        let mut firsts = BTreeMap::new();
        for _ in 0..100 {
            let order = choice.order(Errand::Query, &view, &all(), now);
            assert_eq!(order.len(), 5);
            assert!(order[..2].iter().all(|node| [id(4), id(5)].contains(node)), "{order:?}");
            assert_eq!(order[4], id(1));
            *firsts.entry(order[0]).or_insert(0) += 1;
        }
        assert!(firsts.values().eq(&[50, 50]), "both readers have their turns: {firsts:?}");
        let voters: BTreeSet<_> = [id(1), id(3), id(6)].into();
        assert_eq!(choice.order(Errand::Query, &view, &voters, now), [id(3), id(1)], "only who is linked");
        let changes = choice.order(Errand::Change, &view, &all(), now);
        assert!(changes.len() == 3 && !changes.contains(&id(4)), "{changes:?}");
        assert!(choice.order(Errand::Query, &view, &BTreeSet::new(), now).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_did_not_answer_is_asked_last_for_a_while() {
        let (choice, view) = (Choice::new(Balance::RoundRobin), view());
        choice.suspect(id(4), Instant::now());
        for _ in 0..4 {
            let order = choice.order(Errand::Query, &view, &all(), Instant::now());
            assert_eq!((order[0], order[4]), (id(5), id(4)));
        }
        tokio::time::advance(SUSPECTED).await;
        assert_ne!(choice.order(Errand::Query, &view, &all(), Instant::now())[4], id(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drained_node_is_asked_last() {
        let choice = Choice::new(Balance::RoundRobin);
        let view = ClusterView { drained: [id(5)].into(), ..view() };
        for _ in 0..4 {
            let order = choice.order(Errand::Query, &view, &all(), Instant::now());
            assert_eq!((order[0], order[4]), (id(4), id(5)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_busy_is_first_until_its_answers_are_over() {
        let (choice, view, now) = (Choice::new(Balance::LeastConnections), view(), Instant::now());
        let held = [choice.begin(id(4)), choice.begin(id(4)), choice.begin(id(5))];
        assert_eq!(choice.running(), 3);
        for _ in 0..4 {
            assert_eq!(choice.order(Errand::Query, &view, &all(), now)[..2], [id(5), id(4)]);
        }
        drop(held);
        let _one = choice.begin(id(5));
        assert_eq!(choice.order(Errand::Query, &view, &all(), now)[0], id(4));
        assert_eq!(choice.running(), 1);
    }
}
