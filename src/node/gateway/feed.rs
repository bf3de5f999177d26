//! The following end of a `View` stream: a gateway's view of the cluster comes from one node with data,
//! and from another one when that falls silent, breaks off or is not ready itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    identity::Store,
    protocol::{
        StreamKind,
        view::{MAX_VIEW, ViewFrame, ViewRequest},
    },
    transport::Mesh,
    types::{ClusterId, ClusterView, NodeId, Role, Timing},
};

/// Before the next node is followed, and between two looks for one while there is none.
const LOOK: Duration = Duration::from_millis(50);

/// The last word of the node that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) from: NodeId,
    pub(super) at: Instant,
    /// Whether that node was ready itself.
    pub(super) ready: bool,
}

/// Follows the view for one gateway.
pub(super) struct Feed {
    pub(super) me: NodeId,
    pub(super) mesh: Mesh,
    pub(super) store: Store,
    /// What the mesh and everything else go by.
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) heard: watch::Sender<Option<Heard>>,
}

/// Why a node is not followed any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it has been silent for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("it is not ready itself")]
    NotReady,
    #[error("its view is {0}")]
    Useless(&'static str),
    #[error("{0}")]
    Broken(String),
}

impl Feed {
    /// Follows one node after the other, for ever.
    pub(super) async fn run(self) {
        let mut last = None;
        loop {
            let Some(source) = self.next(last) else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let Err(reason) = self.follow(source).await;
            tracing::info!(node = %source, %reason, "this gateway looks for another node to follow");
            last = Some(source);
            // Whatever is wrong with all of them is not better within no time.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whom to follow after `last`: linked nodes with data in a ring that begins elsewhere at each
    /// gateway. Voters first: who agreed on the view is a better source than who was told.
    fn next(&self, last: Option<NodeId>) -> Option<NodeId> {
        let linked: BTreeSet<NodeId> = self.mesh.links().borrow().keys().copied().collect();
        order(&self.view.borrow(), &linked, self.me, last).first().copied()
    }

    async fn follow(&self, source: NodeId) -> Result<std::convert::Infallible, Lost> {
        let patience = patience(self.timing());
        let broken = |error: &dyn std::fmt::Display| Lost::Broken(error.to_string());
        let opened = async {
            let mut stream = self
                .mesh
                .open(source, StreamKind::View, StreamKind::View.lane())
                .await
                .map_err(|e| broken(&e))?;
            stream.send.write_message(&ViewRequest::default()).await.map_err(|e| broken(&e))?;
            Ok(stream)
        };
        let mut stream = timeout(patience, opened).await.map_err(|_| Lost::Silent(patience))??;
        let mut ready_at = Instant::now();
        loop {
            let patience = self::patience(self.timing());
            let frame = timeout(patience, stream.recv.read_message::<ViewFrame>(MAX_VIEW)).await;
            let frame = frame.map_err(|_| Lost::Silent(patience))?.map_err(|e| broken(&e))?;
            if let Some(view) = frame.view {
                self.take(source, *view).await?;
            }
            let now = Instant::now();
            self.heard.send_replace(Some(Heard { from: source, at: now, ready: frame.ready }));
            if frame.ready {
                ready_at = now;
            } else if ready_at.elapsed() > self.timing().view_silence() {
                return Err(Lost::NotReady);
            }
        }
    }

    /// Goes by a view from now on, unless it cannot be this cluster's newest.
    async fn take(&self, source: NodeId, view: ClusterView) -> Result<(), Lost> {
        let own = self.view.borrow().clone();
        judge(&own, &view, source).map_err(Lost::Useless)?;
        let save = own.members != view.members || own.roots != view.roots || own.profile != view.profile;
        let view = Arc::new(view);
        self.view.send_replace(view.clone());
        // It is a hint for a restart: a full disk is no reason to stop.
        if save && let Err(error) = self.store.set_view(&view).await {
            tracing::warn!(%error, "cannot save the cluster view");
        }
        Ok(())
    }

    fn timing(&self) -> Timing {
        self.view.borrow().profile.timing()
    }
}

/// Silence after which a node is given up: three beats, and no less than an election.
fn patience(timing: Timing) -> Duration {
    (3 * timing.heartbeat).max(timing.election_max)
}

/// Why a view is not gone by.
fn judge(own: &ClusterView, new: &ClusterView, source: NodeId) -> Result<(), &'static str> {
    if new.cluster != own.cluster && own.cluster != ClusterId::default() {
        return Err("of another cluster");
    }
    if new.recovery != own.recovery {
        return Err("of another generation");
    }
    if new.applied_index < own.applied_index {
        return Err("older than this gateway's own");
    }
    // Whom this gateway trusts is agreed on by voters; who only holds data has no say in it.
    if new.roots != own.roots && !own.voters.is_empty() && !own.is_voter(source) {
        return Err("with other roots, and it is no voter");
    }
    Ok(())
}

/// Nodes with data that may be followed, best first.
fn order(view: &ClusterView, linked: &BTreeSet<NodeId>, me: NodeId, last: Option<NodeId>) -> Vec<NodeId> {
    // A joiner's first view names members, and not yet who of them is what.
    let roles_unknown = view.voters.is_empty();
    let mut nodes: Vec<(NodeId, Role)> = view
        .members
        .values()
        .map(|member| (member.id, view.role(member)))
        .filter(|(id, role)| *id != me && *role != Role::Gateway && linked.contains(id))
        .collect();
    let after = last.unwrap_or(me);
    nodes.sort_by_key(|(id, role)| {
        (last == Some(*id), !roles_unknown && *role != Role::Voter, *id <= after, *id)
    });
    nodes.into_iter().map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, Member};

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn view(voters: &[u8], others: &[(u8, Role)]) -> ClusterView {
        let member = |n: u8, role| Member {
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
        let all = voters.iter().map(|n| (*n, Role::Voter)).chain(others.iter().copied());
        ClusterView {
            cluster: ClusterId([1; 16]),
            members: all.map(|(n, role)| (id(n), member(n, role))).collect(),
            voters: vec![voters.iter().map(|n| id(*n)).collect()],
            roots: vec![serde_bytes::ByteBuf::from(vec![1])],
            applied_index: 10,
            ..ClusterView::default()
        }
    }

    #[test]
    fn voters_in_a_ring_then_readers_and_the_last_one_last() {
        let view = view(&[1, 3, 5], &[(2, Role::Reader), (7, Role::Gateway), (4, Role::Gateway)]);
        let linked = (1..=7).map(id).collect();
        let ids = |last| order(&view, &linked, id(4), last);
        assert_eq!(ids(None), [id(5), id(1), id(3), id(2)]);
        assert_eq!(ids(Some(id(5))), [id(1), id(3), id(2), id(5)]);
        assert_eq!(ids(Some(id(1))), [id(3), id(5), id(2), id(1)]);
        assert_eq!(order(&view, &[id(2), id(7)].into(), id(4), None), [id(2)]);
        assert!(order(&view, &BTreeSet::new(), id(4), None).is_empty());
        let first = ClusterView { voters: vec![], ..view };
        assert_eq!(order(&first, &linked, id(4), None).len(), 4, "a joiner's first view has no voters");
    }

    #[test]
    fn a_view_of_elsewhere_or_before_is_not_gone_by() {
        let own = view(&[1, 2, 3], &[(4, Role::Reader)]);
        let with = |change: &dyn Fn(&mut ClusterView)| {
            let mut new = own.clone();
            change(&mut new);
            new
        };
        for (from, ok, new) in [
            (1, true, own.clone()),
            (4, true, with(&|view| view.applied_index += 1)),
            (1, false, with(&|view| view.applied_index -= 1)),
            (1, false, with(&|view| view.cluster = ClusterId([9; 16]))),
            // Voters agree on whom to trust; a reader does not hand out another root.
            (1, true, with(&|view| view.roots.push(serde_bytes::ByteBuf::from(vec![2])))),
            (4, false, with(&|view| view.roots.push(serde_bytes::ByteBuf::from(vec![2])))),
            (4, false, with(&|view| view.roots.clear())),
        ] {
            assert_eq!(judge(&own, &new, id(from)).is_ok(), ok, "{new:?}");
        }
    }

    #[test]
    fn a_node_that_stands_still_is_given_up_within_an_election() {
        use crate::types::TimingProfile::{Fast, Lan, Wan};
        for (profile, ms) in [(Lan, 400), (Fast, 200), (Wan, 2_000)] {
            let timing = profile.timing();
            assert_eq!(patience(timing), Duration::from_millis(ms));
            assert!(2 * patience(timing) < timing.view_silence(), "a second one has its chance");
        }
    }
}
