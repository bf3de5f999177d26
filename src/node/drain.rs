//! A member that is about to be stopped for a while: it gives office and leadership up and gets neither
//! again before an operator says so. That stands in raft's state, so a restart does not end it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    ClusterStatus, ControlFailure, Node, NodeError, NodeReport, local::ThisNode, members::no_member,
};
use crate::{
    raft::Command,
    types::{ClusterView, NodeHealth, NodeId},
};

/// Between two looks at whether a drained node is free.
const LOOK: Duration = Duration::from_millis(200);
/// Before a drained writer that nobody took over from tries again: writes wait meanwhile.
const AGAIN: Duration = Duration::from_secs(15);

/// What a drained member is still needed for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// True when it may be stopped and nothing stops with it.
    pub safe: bool,
    /// Otherwise what it is needed for, in sentences.
    pub waits_for: Vec<String>,
}

impl Node {
    /// Has a member give up office and leadership, for as long as it is not undrained, and waits until
    /// nothing depends on it, or for so long. What was not done by then goes on: it is only looked at.
    ///
    /// # Errors
    /// There is no such member, no other voter may write, or the cluster has no leader.
    pub async fn drain_node(&self, id: NodeId, patience: Duration) -> Result<DrainReport, ControlFailure> {
        self.set_drained(id, true).await?;
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status().await;
            let report = judge(id, &self.view().borrow().clone(), &status);
            if report.safe || Instant::now() >= deadline {
                return Ok(report);
            }
            sleep(LOOK).await;
        }
    }

    /// Lets a drained member hold office and lead again.
    ///
    /// # Errors
    /// There is no such member, or the cluster has no leader.
    pub async fn undrain_node(&self, id: NodeId) -> Result<(), ControlFailure> {
        self.set_drained(id, false).await
    }

    async fn set_drained(&self, node: NodeId, drained: bool) -> Result<(), ControlFailure> {
        if !self.view().borrow().members.contains_key(&node) {
            return Err(no_member(node));
        }
        self.propose(Command::Drain { node, drained }).await
    }
}

/// What would miss it.
fn judge(id: NodeId, view: &ClusterView, status: &ClusterStatus) -> DrainReport {
    let mut waits_for = Vec::new();
    if view.writer.is_some_and(|office| office.node == id) {
        waits_for.push("it still writes: no other voter is level with it yet".to_owned());
    }
    if view.leader == Some(id) {
        waits_for.push("it still leads: no other voter has taken over yet".to_owned());
    }
    let up = |node: &&NodeReport| node.id != id && node.state != NodeHealth::Down && view.is_voter(node.id);
    let others: BTreeSet<NodeId> = status.nodes.iter().filter(up).map(|node| node.id).collect();
    if view.is_voter(id) && !view.is_quorum(&others) {
        waits_for.push(format!(
            "without it {} of {} voters answer, which is no majority: stopping it stops writes",
            others.len(),
            view.all_voters().len()
        ));
    }
    let fetch = |node: &&NodeReport| node.snapshot.as_ref().is_some_and(|fetched| fetched.source == id);
    for node in status.nodes.iter().filter(fetch) {
        waits_for.push(format!("{} fetches a snapshot from it", node.name));
    }
    DrainReport { safe: waits_for.is_empty(), waits_for }
}

/// On the member itself: whoever gave it office or leadership, by an election for example, it hands them on.
pub(super) async fn step_aside(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let me = this.identity.node();
    let mut tried: Option<Instant> = None;
    loop {
        sleep(LOOK).await;
        let drained = this.control.view().borrow().drained.contains(&me);
        let (writes, leads) = (this.replica.tenure().is_some(), this.control.is_leader());
        if !drained || !(writes || leads) {
            tried = None;
            continue;
        }
        let willing = this.willing().await;
        let Some(to) = willing.first() else { continue };
        if writes {
            if tried.is_none_or(|at| at.elapsed() >= AGAIN) {
                tracing::info!("drained: handing over the office of writer");
                tried = Some(Instant::now());
                this.writer.drain();
            }
        } else if let Err(error) = this.control.transfer_leader(*to).await {
            tracing::debug!(%error, "leadership was not handed over yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BootId, MembershipId, Office, Why};

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn view(writer: u8, leader: u8) -> ClusterView {
        ClusterView {
            voters: vec![[id(1), id(2), id(3)].into()],
            writer: Some(Office {
                epoch: 1,
                node: id(writer),
                boot: BootId(1),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::default(),
            }),
            leader: Some(id(leader)),
            ..ClusterView::default()
        }
    }

    fn status(states: [NodeHealth; 3]) -> ClusterStatus {
        let node = |(n, state): (u8, NodeHealth)| {
            let text = serde_json::json!({
                "id": id(n).to_string(), "name": format!("n{n}"), "role": "voter", "wants": "voter", "state": state,
                "durable": null, "applied": null, "is_leader": false, "is_writer": false,
            });
            serde_json::from_value(text).unwrap()
        };
        let nodes: Vec<NodeReport> = (1..).zip(states).map(node).collect();
        let text = serde_json::json!({
            "cluster_id": crate::types::ClusterId::default().to_string(), "cluster_name": "c", "node_id": id(1).to_string(),
            "leader": null, "writer": null, "commit": null, "nodes": nodes,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn it_is_safe_when_it_has_no_office_and_a_majority_stays() {
        use NodeHealth::{Down, Draining, Up};
        let judged = |view: &ClusterView, states| judge(id(1), view, &status(states)).waits_for;
        assert!(judged(&view(2, 2), [Draining, Up, Up]).is_empty());
        assert!(judged(&view(1, 2), [Draining, Up, Up])[0].contains("still writes"));
        assert!(judged(&view(2, 1), [Draining, Up, Up])[0].contains("still leads"));
        assert!(judged(&view(2, 2), [Draining, Up, Down])[0].contains("1 of 3 voters"));
        let reader = ClusterView { voters: vec![[id(2), id(3)].into()], ..view(2, 2) };
        assert!(judged(&reader, [Draining, Up, Down]).is_empty(), "a reader counts for nothing");
    }
}
