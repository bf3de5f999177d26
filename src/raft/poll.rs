//! The leader asks every member for its status, over and over, one question to each at a time.
//!
//! An answer may take longer than a heartbeat: a cluster may be stretched farther than its profile was made
//! for, and writes there as long as the writer is heard on its own streams. If only what comes within a
//! heartbeat were heard, nobody there could become a voter, and no office would move.

use std::collections::BTreeSet;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Duration, Instant, timeout_at};

use crate::{
    protocol::status::NodeStatus,
    types::{NodeId, Office},
};

/// An answer, and when it was asked for. `None` if none came.
type Answered = (NodeId, Instant, Option<NodeStatus>);

/// The questions that are under way.
pub(super) struct Poll {
    /// What the register said when they were asked.
    register: Option<Office>,
    whom: BTreeSet<NodeId>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
}

impl Poll {
    /// Nobody is asked yet.
    pub(super) fn new() -> Self {
        Self { register: None, whom: BTreeSet::new(), answers: FuturesUnordered::new() }
    }

    /// Asks everybody in `members` of whom no answer is awaited, and returns what has come after `wait` at
    /// the latest, or as soon as nothing is awaited. `ask` must end by itself. Cancel-safe, but for answers
    /// that would have been returned.
    pub(super) async fn round(
        &mut self,
        members: impl Iterator<Item = NodeId>,
        register: Option<Office>,
        wait: Duration,
        ask: impl Fn(NodeId) -> BoxFuture<'static, Option<NodeStatus>>,
    ) -> Vec<(Instant, NodeStatus)> {
        if self.register != register {
            // What a node said before another was named says nothing of the new office: it could not
            // know of it yet.
            *self = Self { register, ..Self::new() };
        }
        let now = Instant::now();
        for id in members {
            if self.whom.insert(id) {
                let answer = ask(id);
                self.answers.push(Box::pin(async move { (id, now, answer.await) }));
            }
        }
        let mut heard = Vec::new();
        while let Ok(Some((id, asked, answer))) = timeout_at(now + wait, self.answers.next()).await {
            self.whom.remove(&id);
            heard.extend(answer.filter(|status| status.node == id).map(|status| (asked, status)));
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        raft::failover::status,
        types::{BootId, MembershipId, Why},
    };

    const WAIT: Duration = Duration::from_millis(80);

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn office(epoch: u64) -> Option<Office> {
        let membership = MembershipId::default();
        Some(Office { epoch, node: id(1), boot: BootId(1), membership, at_ms: 0, why: Why::default() })
    }

    /// How often each was asked.
    type Asked = Arc<Mutex<[u64; 3]>>;

    /// Members whose answers take so long; they are counted as they are asked.
    fn network(millis: [u64; 3]) -> (Asked, impl Fn(NodeId) -> BoxFuture<'static, Option<NodeStatus>>) {
        let asked = Asked::default();
        let counts = asked.clone();
        let ask = move |node: NodeId| -> BoxFuture<'static, Option<NodeStatus>> {
            let n = usize::from(node.0[0]);
            counts.lock().unwrap()[n] += 1;
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(millis[n])).await;
                Some(status(n as u8, 1, None, 0))
            })
        };
        (asked, ask)
    }

    fn nodes(heard: &[(Instant, NodeStatus)]) -> Vec<NodeId> {
        heard.iter().map(|(_, status)| status.node).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_longer_than_a_round_is_heard_in_a_later_one() {
        let (asked, ask) = network([5, 140, 310]);
        let mut poll = Poll::new();
        let began = Instant::now();
        let members = || (0..3).map(id);
        assert_eq!(nodes(&poll.round(members(), office(1), WAIT, &ask).await), [id(0)]);
        let second = poll.round(members(), office(1), WAIT, &ask).await;
        assert_eq!(nodes(&second), [id(0), id(1)]);
        assert_eq!(second[1].0, began, "as old as the question");
        assert_eq!(*asked.lock().unwrap(), [2, 1, 1], "one question at a time");
        poll.round(members(), office(1), WAIT, &ask).await;
        assert_eq!(nodes(&poll.round(members(), office(1), WAIT, &ask).await), [id(0), id(1), id(2)]);
        assert_eq!(*asked.lock().unwrap(), [4, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_another_was_named_is_not_heard() {
        let (asked, ask) = network([5, 140, 310]);
        let mut poll = Poll::new();
        poll.round([id(1)].into_iter(), office(1), WAIT, &ask).await;
        assert_eq!(poll.round([id(1)].into_iter(), office(2), WAIT, &ask).await, []);
        assert_eq!(nodes(&poll.round([id(1)].into_iter(), office(2), WAIT, &ask).await), [id(1)]);
        assert_eq!(asked.lock().unwrap()[1], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_anothers_name_is_not_heard() {
        let ask =
            |_| -> BoxFuture<'static, Option<NodeStatus>> { Box::pin(async { Some(status(2, 1, None, 0)) }) };
        assert_eq!(Poll::new().round([id(1)].into_iter(), None, WAIT, ask).await, []);
    }
}
