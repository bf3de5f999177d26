//! openraft's way out: RPCs to one peer over the mesh.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};

use super::{
    electorate::Electorate,
    rpc::{ExchangeError, Request, Response, exchange},
    type_config::{Snapshot, TypeConfig, Vote},
};
use crate::{
    protocol::{Lane, StreamKind, frame::MAX_CHUNK},
    transport::Mesh,
    types::NodeId,
};

/// Where the mesh is put once it is bound: its router needs raft's handlers first.
pub type MeshSlot = Arc<OnceLock<Mesh>>;

/// Most entries that openraft sends at once.
pub(super) const MAX_ENTRIES: usize = 300;

/// Makes a [`Link`] per peer.
pub(super) struct Network {
    pub(super) mesh: MeshSlot,
    pub(super) electorate: Electorate,
    /// The least that an answer is waited for. openraft's own bound on an append is three quarters of
    /// a heartbeat: a follower that is farther away than that takes every entry, and its answer is
    /// never heard, so nothing commits although everybody is there.
    pub(super) patience: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, peer: NodeId, _: &EmptyNode) -> Link {
        let (mesh, electorate) = (self.mesh.clone(), self.electorate.clone());
        Link { peer, mesh, electorate, patience: self.patience, portion: Portion::default() }
    }
}

/// RPCs to one peer.
pub(super) struct Link {
    peer: NodeId,
    mesh: MeshSlot,
    electorate: Electorate,
    patience: Duration,
    portion: Portion,
}

/// Most entries of one append. What is not answered in time is tried again with half of it: over a
/// slow link a node that lacks a long log would never hear of all that openraft sends at once.
#[derive(Debug, Clone, Copy)]
struct Portion(usize);

impl Default for Portion {
    fn default() -> Self {
        Self(MAX_ENTRIES)
    }
}

impl Portion {
    fn answered(&mut self, sent: usize) {
        if sent >= self.0 {
            self.0 = (self.0 * 2).min(MAX_ENTRIES);
        }
    }

    fn unanswered(&mut self, sent: usize) {
        self.0 = (sent / 2).clamp(1, MAX_ENTRIES);
    }
}

impl Link {
    async fn call(
        &self,
        request: &Request,
        chunks: Vec<Bytes>,
        option: &RPCOption,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let Some(mesh) = self.mesh.get() else { return Err(unreachable("the mesh is not bound yet")) };
        let lane = if chunks.is_empty() { Lane::Consensus } else { Lane::Bulk };
        let call = self.ask(mesh, lane, request, chunks);
        match tokio::time::timeout(option.soft_ttl().max(self.patience), call).await {
            Ok(Ok(response))
                if response.names_higher_vote(request) && !self.electorate.believes(self.peer) =>
            {
                if self.electorate.is_first_refusal(self.peer) {
                    tracing::warn!(peer = %self.peer, "a member that is no voter names a higher term: not believed");
                }
                Err(broken("it is no voter, and names a higher term"))
            }
            Ok(Ok(Response::Refused(reason))) => Err(broken(&reason)),
            Ok(Ok(Response::Full)) => Err(unreachable("its disk is full")),
            Ok(Ok(Response::Unknown)) => Err(unreachable("it has not heard that this node is a voter")),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error @ ExchangeError::NotLinked(_))) => Err(unreachable(&error.to_string())),
            Ok(Err(error)) => Err(broken(&error.to_string())),
            Err(_) => Err(broken("no answer in time")),
        }
    }
}

impl Link {
    /// Asks; shows this node's warrant, and asks again, if the peer has not heard that it is a voter.
    async fn ask(
        &self,
        mesh: &Mesh,
        lane: Lane,
        request: &Request,
        chunks: Vec<Bytes>,
    ) -> Result<Response, ExchangeError> {
        let how = (StreamKind::Raft, lane);
        let answer = exchange(mesh, self.peer, how, request, chunks.clone()).await?;
        if !matches!(answer, Response::Unknown) {
            return Ok(answer);
        }
        let own = self.electorate.own();
        if own.is_empty() {
            return Ok(answer);
        }
        match exchange(mesh, self.peer, how, &Request::Warrant(own), Vec::new()).await? {
            Response::Known => exchange(mesh, self.peer, how, request, chunks).await,
            other => Ok(other),
        }
    }
}

/// Makes openraft back off: for a peer without a link, or without space.
fn unreachable(reason: &str) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

/// Makes openraft try again at once.
fn broken(reason: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(reason))
}

fn misplaced() -> RPCError<TypeConfig> {
    broken("the answer does not belong to the question")
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let wanted = request.entries.len();
        request.entries.truncate(self.portion.0);
        let (sent, last) = (request.entries.len(), request.entries.last().map(|entry| entry.log_id));
        let answer = self.call(&Request::Append(request), Vec::new(), &option).await;
        match &answer {
            Ok(_) => self.portion.answered(sent),
            // An empty one is a heartbeat.
            Err(RPCError::Network(_)) if sent > 0 => self.portion.unanswered(sent),
            Err(_) => {}
        }
        match answer? {
            Response::Append(AppendEntriesResponse::Success) if sent < wanted => {
                Ok(AppendEntriesResponse::PartialSuccess(last))
            }
            Response::Append(response) => Ok(response),
            _ => Err(misplaced()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Request::Vote(request), Vec::new(), &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(misplaced()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Request::PreVote(request), Vec::new(), &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(misplaced()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Snapshot { meta, snapshot: mut state } = snapshot;
        let request = Request::Snapshot { vote, meta, len: state.len() as u64 };
        let mut chunks = Vec::new();
        while !state.is_empty() {
            chunks.push(state.split_to(state.len().min(MAX_CHUNK)));
        }
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            response = self.call(&request, chunks, &option) => match response? {
                Response::Snapshot(response) => Ok(response),
                _ => Err(misplaced().into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Request::Transfer(request), Vec::new(), &option).await? {
            Response::Transfer(response) => Ok(response),
            _ => Err(misplaced()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_sent_until_it_is_answered_in_time_and_then_more_again() {
        let mut portion = Portion::default();
        // A node that lacks five entries, and is away.
        for left in [2, 1, 1, 1] {
            portion.unanswered(portion.0.min(5));
            assert_eq!(portion.0, left);
        }
        // Less than might have been sent says nothing of more.
        portion.answered(0);
        assert_eq!(portion.0, 1);
        for more in [2, 4, 8, 16, 32, 64, 128, 256, MAX_ENTRIES, MAX_ENTRIES] {
            portion.answered(portion.0);
            assert_eq!(portion.0, more);
        }
    }
}
