//! What an operator does with members: take one out, make it a reader or a voter, move office away from it.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    protocol::{
        StreamKind,
        status::{NodeStatus, StatusRequest},
    },
    raft::Command,
    types::{ClusterView, NodeId, Role},
};

use super::{
    Node,
    handle::{ControlFailure, PROPOSAL},
};

/// How long to wait for leadership to move away from a node that is removed or relieved.
const DEPOSE: Duration = Duration::from_secs(2);

impl Node {
    /// Takes a member out for ever. The sitting writer hands over first; a voter leaves raft first,
    /// while it still answers; then the node is cut off everywhere.
    pub async fn remove_node(&self, id: NodeId) -> Result<(), ControlFailure> {
        let now = self.view().borrow().clone();
        if !now.members.contains_key(&id) {
            return Err(no_member(id));
        }
        if now.is_voter(id) {
            self.retire(id).await?;
        }
        if self.view().borrow().leader == Some(id) {
            self.depose(id, None).await;
        }
        let remove = Command::Remove { node: id, at_ms: self.this().surroundings.unix_ms() };
        match self.propose(remove).await {
            // A leader that is removed may be cut off before it can answer.
            Err(ControlFailure::Unknown) => {
                let mut view = self.view();
                let removed = view.wait_for(|view| view.removed.contains_key(&id));
                match timeout(PROPOSAL, removed).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(_)) | Err(_) => Err(ControlFailure::Unknown),
                }
            }
            other => other,
        }
    }

    /// Makes a voter a reader, which keeps its data and goes on following. Its office and leadership move
    /// first. Returns when it has left the voters.
    pub async fn demote_node(&self, id: NodeId) -> Result<(), ControlFailure> {
        let now = self.view().borrow().clone();
        let Some(member) = now.members.get(&id) else { return Err(no_member(id)) };
        if !now.is_voter(id) && member.role != Role::Voter {
            return Err(ControlFailure::Rejected(format!("{id} is no voter")));
        }
        self.retire(id).await
    }

    /// Lets a reader become a voter. Returns when the cluster has agreed on that; the leader then makes it one
    /// by itself, as any voter that joins: when it is level and linked with every voter, and if the number of
    /// voters gains by it.
    pub async fn promote_node(&self, id: NodeId) -> Result<(), ControlFailure> {
        let now = self.view().borrow().clone();
        match now.members.get(&id) {
            None => Err(no_member(id)),
            Some(member) if member.role == Role::Voter => {
                Err(ControlFailure::Rejected(format!("{id} is a voter, or is to become one already")))
            }
            Some(_) => self.propose(Command::Enlist { node: id }).await,
        }
    }

    /// Moves office and leadership away from a node, to `to`, or to voters that are level with it. Returns
    /// when office has moved; leadership is given a moment.
    pub async fn transfer_from(&self, id: NodeId, to: Option<NodeId>) -> Result<(), ControlFailure> {
        let now = self.view().borrow().clone();
        if let Some(to) = to {
            self.may_take_over(to, &now).await?;
        }
        if !now.members.contains_key(&id) {
            return Err(no_member(id));
        }
        let (writes, leads) = (now.writer.is_some_and(|office| office.node == id), now.leader == Some(id));
        if !writes && !leads {
            return Err(ControlFailure::Rejected(format!("{id} neither writes nor leads")));
        }
        if now.all_voters().len() < 2 {
            return Err(ControlFailure::Rejected("there is no other voter".to_owned()));
        }
        if writes {
            self.relieve(id, to).await?;
        }
        if self.view().borrow().leader == Some(id) {
            self.depose(id, to).await;
        }
        let writer = self.view().borrow().writer.map(|office| office.node);
        match (writer, to) {
            (Some(writer), Some(to)) if writes && writer != to => Err(ControlFailure::Rejected(format!(
                "{to} was not level with {id} in time, and {writer} took over: try again"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether somebody may be meant by a transfer.
    async fn may_take_over(&self, to: NodeId, now: &ClusterView) -> Result<(), ControlFailure> {
        let why = if !now.members.contains_key(&to) {
            return Err(no_member(to));
        } else if !now.is_voter(to) {
            "is no voter"
        } else if now.writer.is_some_and(|office| office.node == to) {
            "writes already"
        } else if now.drained.contains(&to) {
            "is drained: skein node undrain first"
        } else if to != self.id() && !self.this().willing().await.contains(&to) {
            "does not answer, or is about to stop"
        } else {
            return Ok(());
        };
        Err(ControlFailure::Rejected(format!("{to} {why}")))
    }

    /// Takes a node out of the voters, and waits until it is.
    async fn retire(&self, id: NodeId) -> Result<(), ControlFailure> {
        let mut view = self.view();
        let now = view.borrow().clone();
        if now.writer.is_some_and(|office| office.node == id) && now.all_voters().len() > 1 {
            self.relieve(id, None).await?;
        }
        self.propose(Command::Retire { node: id }).await?;
        match timeout(PROPOSAL, view.wait_for(|view| !view.is_voter(id))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ControlFailure::Stopping),
            Err(_) => Err(ControlFailure::Rejected(format!(
                "{id} is told to leave the voters, but has not left yet: a majority of the voters, and of \
                 those that stay, must be up. Try again when they are"
            ))),
        }
    }

    /// Asks the raft leader to let another voter lead, and waits a moment for it. One that does not
    /// is missed for an election once it is cut off.
    async fn depose(&self, leader: NodeId, to: Option<NodeId>) {
        let this = self.this();
        let moved = async {
            if leader == self.id() {
                let fit = this.willing().await.into_iter().filter(|one| to.is_none_or(|to| to == *one));
                for to in fit {
                    if this.control.transfer_leader(to).await.is_ok() {
                        break;
                    }
                }
            } else {
                let ask = StatusRequest { resign: true, to };
                let asked: Result<NodeStatus, _> =
                    this.mesh.request(leader, StreamKind::Status, &ask, Duration::from_secs(2)).await;
                if let Err(error) = asked {
                    tracing::info!(%leader, %error, "the leader does not answer");
                }
            }
            let _ = self.view().wait_for(|view| view.leader.is_some_and(|now| now != leader)).await;
        };
        if timeout(DEPOSE, moved).await.is_err() {
            tracing::info!(%leader, "leadership has not moved");
        }
    }

    /// Asks the writer to hand over, and waits until another holds office.
    async fn relieve(&self, writer: NodeId, to: Option<NodeId>) -> Result<(), ControlFailure> {
        let this = self.this();
        if writer == self.id() {
            this.let_go(to);
        } else {
            let ask = StatusRequest { resign: true, to };
            let asked: Result<NodeStatus, _> =
                this.mesh.request(writer, StreamKind::Status, &ask, Duration::from_secs(2)).await;
            // A writer that does not answer is replaced for its silence.
            if let Err(error) = asked {
                tracing::info!(%writer, %error, "the writer does not answer");
            }
        }
        let mut view = self.view();
        let moved = view.wait_for(|view| view.writer.is_some_and(|office| office.node != writer));
        match timeout(PROPOSAL, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ControlFailure::Stopping),
            Err(_) => {
                if writer == self.id() {
                    this.writer.stop_draining();
                }
                Err(ControlFailure::Rejected(format!(
                    "{writer} is the writer, and no other voter is level with it: try again"
                )))
            }
        }
    }
}

pub(super) fn no_member(id: NodeId) -> ControlFailure {
    ControlFailure::NotFound(format!("there is no member {id}"))
}
