//! Getting a command committed: on the leader, or over a `Control` stream to it.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use openraft::errors::{ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    Raft,
    features::{self, Running},
    network::MeshSlot,
    room::Room,
    rpc::{ExchangeError, exchange},
    types::{Command, Outcome},
};
use crate::{
    protocol::{
        StreamKind,
        frame::{self, MAX_MESSAGE},
    },
    transport::{Handler, Mesh, Peer, Stream, StreamError},
    types::{ClusterView, NodeId},
};

/// Longest a leader works on a command for another node.
const LONGEST: Duration = Duration::from_secs(30);

/// Why a command was not seen to be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader took it in time. It was not proposed: trying again is safe.
    #[error("no raft leader took the command in time; is a majority of voters up?")]
    NoLeader,
    /// The leader does not take this command from this node.
    #[error("the leader takes this command only from a voter, or from the node it is about")]
    NotAllowed,
    /// The leader's disk is full, and the command can wait until there is space, or only what raft itself
    /// has to write fits any more. It was not proposed.
    #[error("the disk of the raft leader is full: make space there and try again; nothing was changed")]
    Full,
    /// Encoded, the command is this long, which is over the limit.
    #[error("the command is {0} bytes long, more than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    /// Raft has stopped on this node, for this reason. The command was not proposed.
    #[error("raft has stopped on this node: {0}")]
    Stopped(String),
    /// It may have been committed, now or later: look at the state before trying again.
    #[error("whether the command was committed is not known: {0}")]
    Unknown(String),
}

impl ProposeError {
    /// True when the command may have taken effect all the same.
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// A command on its way to the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ControlRequest {
    command: Command,
    timeout_ms: u64,
}

/// The leader's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum ControlResponse {
    Applied(Outcome),
    NotLeader,
    NotAllowed,
    Unknown(String),
    Full,
}

/// One attempt that did not get the command applied.
pub(super) enum Miss {
    /// It was not proposed.
    NotLeader,
    /// It was not proposed, for want of space.
    Full,
    /// No use in trying again.
    Final(ProposeError),
}

impl Miss {
    fn unknown(reason: impl ToString) -> Self {
        Self::Final(ProposeError::Unknown(reason.to_string()))
    }
}

/// Refuses what no raft message should carry.
pub(super) fn check_length(command: &Command) -> Result<(), ProposeError> {
    match frame::encode(command).len() {
        len if len > MAX_MESSAGE => Err(ProposeError::TooLong(len)),
        _ => Ok(()),
    }
}

/// Proposes on this node, which is the leader or says who is.
pub(super) async fn propose_here(
    raft: &Raft,
    room: &watch::Receiver<Room>,
    command: Command,
    deadline: Instant,
) -> Result<Outcome, Miss> {
    // One that does not lead says so rather.
    if raft.is_leader() && !room.borrow().takes(&command) {
        tracing::warn!(%command, "disk full: refused a command");
        return Err(Miss::Full);
    }
    let written = tokio::time::timeout_at(deadline, raft.client_write(command)).await;
    match written {
        Ok(Ok(response)) => Ok(response.data),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(Miss::NotLeader),
        Ok(Err(error)) => Err(Miss::unknown(error)),
        Err(_) => Err(Miss::unknown("it was proposed, but not committed in time")),
    }
}

/// Sends the command to `leader`, which a node that is not in raft takes from its view. Does not
/// try elsewhere: `NoLeader` when it is not the leader or not linked. Dropping the future leaves
/// the outcome unknown.
pub async fn forward_command(
    mesh: &Mesh,
    leader: NodeId,
    command: Command,
    timeout: Duration,
) -> Result<Outcome, ProposeError> {
    check_length(&command)?;
    propose_at(mesh, leader, command, Instant::now() + timeout).await.map_err(|miss| match miss {
        Miss::NotLeader => ProposeError::NoLeader,
        Miss::Full => ProposeError::Full,
        Miss::Final(error) => error,
    })
}

pub(super) async fn propose_at(
    mesh: &Mesh,
    leader: NodeId,
    command: Command,
    deadline: Instant,
) -> Result<Outcome, Miss> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = ControlRequest { command, timeout_ms: left.as_millis() as u64 };
    let kind = StreamKind::Control;
    let call = exchange(mesh, leader, (kind, kind.lane()), &request, Vec::new());
    match tokio::time::timeout_at(deadline, call).await {
        Ok(Ok(ControlResponse::Applied(outcome))) => Ok(outcome),
        Ok(Ok(ControlResponse::NotLeader)) => Err(Miss::NotLeader),
        Ok(Ok(ControlResponse::NotAllowed)) => Err(Miss::Final(ProposeError::NotAllowed)),
        Ok(Ok(ControlResponse::Full)) => Err(Miss::Full),
        Ok(Ok(ControlResponse::Unknown(reason))) => Err(Miss::unknown(reason)),
        Ok(Err(ExchangeError::NotLinked(_) | ExchangeError::NotServed)) => Err(Miss::NotLeader),
        Ok(Err(ExchangeError::Broken(reason))) => Err(Miss::unknown(reason)),
        Err(_) => Err(Miss::unknown("the leader did not answer in time")),
    }
}

/// Serves `Control` streams.
pub(super) struct ControlHandler {
    pub(super) raft: Raft,
    pub(super) room: watch::Receiver<Room>,
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    pub(super) mesh: MeshSlot,
}

impl Handler for ControlHandler {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (raft, room, view) = (self.raft.clone(), self.room.clone(), self.view.borrow().clone());
        let running = features::running(self.mesh.get());
        Box::pin(async move {
            let node = peer.node();
            if let Err(error) = serve(&raft, &room, (&view, &running), node, stream).await {
                tracing::debug!(%node, %error, "control stream broke");
            }
        })
    }
}

async fn serve(
    raft: &Raft,
    room: &watch::Receiver<Room>,
    (view, running): (&ClusterView, &Running),
    peer: NodeId,
    mut stream: Stream,
) -> Result<(), StreamError> {
    let ControlRequest { command, timeout_ms } = stream.recv.read_message(2 * MAX_MESSAGE).await?;
    let response = if check_length(&command).is_err() || !allowed(view, peer, &command) {
        tracing::warn!(%peer, %command, "refused a command");
        ControlResponse::NotAllowed
    } else if let Some(why) = features::barred(view, running, &command) {
        tracing::warn!(%peer, %command, why, "refused a command");
        ControlResponse::Applied(Outcome::Rejected(why))
    } else {
        let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(LONGEST);
        match propose_here(raft, room, command, deadline).await {
            Ok(outcome) => ControlResponse::Applied(outcome),
            Err(Miss::NotLeader) => ControlResponse::NotLeader,
            Err(Miss::Full) => ControlResponse::Full,
            Err(Miss::Final(error)) => ControlResponse::Unknown(error.to_string()),
        }
    };
    stream.send.write_message(&response).await?;
    stream.send.finish()
}

/// A plain member speaks for itself; everything else is a voter's.
fn allowed(view: &ClusterView, peer: NodeId, command: &Command) -> bool {
    view.is_voter(peer)
        || matches!(command, Command::Update { node, .. } | Command::ShowsRoot { node, .. } if *node == peer)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        raft::control::found,
        types::{Addresses, BootId, Member, MembershipId, Office, Succession, TokenId, Why},
    };

    /// One of each, about that node where it is about one.
    fn commands(node: NodeId) -> Vec<Command> {
        let founding = found();
        let Command::Found { member, token, api_token, .. } = founding.clone() else { panic!("a founding") };
        let (root, id) = (serde_bytes::ByteBuf::new, TokenId(1));
        let succession = Succession { root: Vec::new(), after: Vec::new(), signature: Vec::new() };
        vec![
            founding,
            Command::Admit { member: Member { id: node, ..member }, token: id, at_ms: 0 },
            Command::Update {
                node,
                addresses: Addresses::default(),
                certificate: None,
                version: "1".into(),
                features: 0,
            },
            Command::Retire { node },
            Command::Enlist { node },
            Command::Drain { node, drained: true },
            Command::Remove { node, at_ms: 0 },
            Command::SetWriter(Office {
                epoch: 1,
                node,
                boot: BootId(1),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::default(),
            }),
            Command::CreateToken(token),
            Command::RevokeToken { token: id },
            Command::SealCa { node, sealed: root(), of: None },
            Command::CreateApiToken(api_token),
            Command::RevokeApiToken { token: id },
            Command::RotateCa { at_ms: 0 },
            Command::AddRoot { succession, sealed: BTreeMap::new() },
            Command::ShowsRoot { node, root: root() },
            Command::DropFromRotation { nodes: [node].into() },
            Command::RetireRoot { root: root() },
            Command::Finalise { features: 0 },
        ]
    }

    /// Where a command stands above. Whoever adds one is told here that it wants a place.
    fn place(command: &Command) -> usize {
        match command {
            Command::Found { .. } => 0,
            Command::Admit { .. } => 1,
            Command::Update { .. } => 2,
            Command::Retire { .. } => 3,
            Command::Enlist { .. } => 4,
            Command::Drain { .. } => 5,
            Command::Remove { .. } => 6,
            Command::SetWriter(_) => 7,
            Command::CreateToken(_) => 8,
            Command::RevokeToken { .. } => 9,
            Command::SealCa { .. } => 10,
            Command::CreateApiToken(_) => 11,
            Command::RevokeApiToken { .. } => 12,
            Command::RotateCa { .. } => 13,
            Command::AddRoot { .. } => 14,
            Command::ShowsRoot { .. } => 15,
            Command::DropFromRotation { .. } => 16,
            Command::RetireRoot { .. } => 17,
            Command::Finalise { .. } => 18,
        }
    }

    #[test]
    fn a_plain_member_speaks_only_for_itself() {
        let id = |n: u8| NodeId([n; 16]);
        let view = ClusterView { voters: vec![BTreeSet::from([id(1)])], ..Default::default() };
        for about in [id(1), id(2), id(3)] {
            let commands = commands(about);
            assert!(commands.iter().map(place).eq(0..19), "one of each");
            for command in commands {
                assert!(allowed(&view, id(1), &command), "of a voter: {command}");
                let own = matches!(command, Command::Update { .. } | Command::ShowsRoot { .. });
                assert_eq!(allowed(&view, id(2), &command), own && about == id(2), "{command}");
            }
        }
    }

    #[test]
    fn a_command_that_no_message_can_carry_is_refused() {
        let sealed = serde_bytes::ByteBuf::from(vec![0; MAX_MESSAGE]);
        let command = Command::SealCa { node: NodeId::default(), sealed, of: None };
        assert!(matches!(check_length(&command), Err(ProposeError::TooLong(_))));
    }
}
