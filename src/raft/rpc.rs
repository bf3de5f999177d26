//! Raft's messages on `Raft` streams, and answering them: one request, one answer per stream.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use openraft::{
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use super::{
    Raft,
    electorate::Electorate,
    room::Room,
    snapshot::MAX_SNAPSHOT,
    type_config::{SnapshotMeta, TypeConfig, Vote},
};
use crate::{
    protocol::{
        Lane, StreamKind,
        frame::{self, MAX_CHUNK, MAX_RAFT},
    },
    transport::{Handler, Mesh, OpenError, Peer, Stream, StreamError},
    types::NodeId,
};

/// A peer may take this long over one stream, a snapshot included.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<TypeConfig>),
    /// A candidate asks for a vote.
    Vote(VoteRequest<TypeConfig>),
    /// Would you vote for me? Changes nothing.
    PreVote(VoteRequest<TypeConfig>),
    /// A snapshot; frames of `MAX_CHUNK` bytes follow until `len` is reached.
    Snapshot {
        /// Of the leader that sends it.
        vote: Vote,
        /// What it holds.
        meta: SnapshotMeta,
        /// Bytes of the state.
        len: u64,
    },
    /// Start an election now: the leader hands over.
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// The sender is a voter: signatures of the cluster's CA that say so.
    Warrant(Vec<ByteBuf>),
}

/// The answer to the request of that name, or why there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    Snapshot(SnapshotResponse<TypeConfig>),
    Transfer(TransferLeaderResponse<TypeConfig>),
    Refused(String),
    /// There is no space for the entries: later.
    Full,
    /// The sender is no voter that this node has heard of: it may show its warrant and ask again.
    Unknown,
    /// The warrant is good.
    Known,
}

impl Response {
    /// True for the answer to a leader that there is a newer one, or was. Candidates ask nobody but voters.
    pub(super) fn names_higher_vote(&self, request: &Request) -> bool {
        match (self, request) {
            (Self::Append(AppendEntriesResponse::HigherVote(_)), _) => true,
            (Self::Snapshot(answer), Request::Snapshot { vote, .. }) => answer.vote > *vote,
            _ => false,
        }
    }
}

impl Request {
    /// The voter that speaks, as the message claims; a warrant is for whoever shows it.
    fn claimed(&self) -> Option<NodeId> {
        Some(match self {
            Self::Append(request) => request.vote.leader_id.voted_for,
            Self::Vote(request) | Self::PreVote(request) => request.vote.leader_id.voted_for,
            Self::Snapshot { vote, .. } => vote.leader_id.voted_for,
            Self::Transfer(request) => request.from_leader().leader_id.voted_for,
            Self::Warrant(_) => return None,
        })
    }
}

/// Why a request to a peer has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// There is no link: nothing was sent.
    #[error("not linked: {0}")]
    NotLinked(#[from] OpenError),
    /// The peer does not serve such streams, or not yet: it did nothing.
    #[error("not served")]
    NotServed,
    /// Sent, at least in part.
    #[error("{0}")]
    Broken(String),
}

/// Sends a request with `chunks` behind it and reads the answer. Dropping it resets the stream.
pub(super) async fn exchange<Q: Serialize + Sync, A: DeserializeOwned>(
    mesh: &Mesh,
    peer: NodeId,
    (kind, lane): (StreamKind, Lane),
    request: &Q,
    chunks: Vec<Bytes>,
) -> Result<A, ExchangeError> {
    let mut stream = mesh.open(peer, kind, lane).await?;
    let sent = async {
        stream.send.write_message(request).await?;
        for chunk in chunks {
            stream.send.write_frame(chunk).await?;
        }
        stream.send.finish()
    };
    let exchanged = async {
        match sent.await {
            // Who wants no more of it says why in the answer.
            Ok(()) | Err(StreamError::Abandoned) => stream.recv.read_message::<A>(MAX_RAFT).await,
            Err(error) => Err(error),
        }
    };
    exchanged.await.map_err(|error| match error {
        StreamError::NotServed => ExchangeError::NotServed,
        other => ExchangeError::Broken(other.to_string()),
    })
}

/// Serves `Raft` streams.
pub(super) struct RpcHandler {
    pub(super) raft: Raft,
    pub(super) electorate: Electorate,
    pub(super) room: watch::Receiver<Room>,
}

impl Handler for RpcHandler {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (raft, electorate, room) = (self.raft.clone(), self.electorate.clone(), self.room.clone());
        Box::pin(async move {
            let node = peer.node();
            match tokio::time::timeout(PATIENCE, serve(&raft, &electorate, &room, node, stream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%node, %error, "raft stream broke"),
                Err(_) => tracing::debug!(%node, "raft stream took too long"),
            }
        })
    }
}

async fn serve(
    raft: &Raft,
    electorate: &Electorate,
    room: &watch::Receiver<Room>,
    peer: NodeId,
    mut stream: Stream,
) -> Result<(), StreamError> {
    let request = stream.recv.read_message::<Request>(MAX_RAFT).await?;
    let response = match request.claimed() {
        Some(claimed) if claimed != peer => {
            tracing::warn!(%peer, %claimed, "refused a raft message in another node's name");
            Response::Refused("a raft message must come from the node whose name it bears".into())
        }
        // Before raft hears of it: a term alone would change what it does.
        Some(_) if !electorate.knows(raft, peer) => Response::Unknown,
        _ => answer(raft, electorate, room, (peer, request), &mut stream).await?,
    };
    stream.send.write_message(&response).await?;
    stream.send.finish()
}

async fn answer(
    raft: &Raft,
    electorate: &Electorate,
    room: &watch::Receiver<Room>,
    (peer, request): (NodeId, Request),
    stream: &mut Stream,
) -> Result<Response, StreamError> {
    let refused = |e: &dyn std::fmt::Display| Response::Refused(e.to_string());
    Ok(match request {
        Request::Warrant(shown) if electorate.judge(peer, &shown) => Response::Known,
        Request::Warrant(_) => Response::Unknown,
        Request::Append(request) if !fits(&room.borrow(), &request) => Response::Full,
        Request::Append(request) => {
            raft.append_entries(request).await.map_or_else(|e| refused(&e), Response::Append)
        }
        Request::Vote(request) => raft.vote(request).await.map_or_else(|e| refused(&e), Response::Vote),
        Request::PreVote(request) => {
            raft.pre_vote(request).await.map_or_else(|e| refused(&e), Response::Vote)
        }
        Request::Transfer(request) => {
            raft.handle_transfer_leader(request).await.map_or_else(|e| refused(&e), Response::Transfer)
        }
        Request::Snapshot { vote, meta, len } => {
            if len > MAX_SNAPSHOT as u64 {
                return Ok(refused(&"the snapshot is over the limit"));
            }
            let mut state = BytesMut::new();
            while (state.len() as u64) < len {
                let chunk = stream.recv.read_frame(MAX_CHUNK).await?;
                if chunk.is_empty() {
                    return Ok(refused(&"a chunk of the snapshot is empty"));
                }
                state.extend_from_slice(&chunk);
            }
            if state.len() as u64 != len {
                return Ok(refused(&"the snapshot is longer than announced"));
            }
            let snapshot = SnapshotOf::<TypeConfig, Bytes> { meta, snapshot: state.freeze() };
            raft.install_full_snapshot(vote, snapshot).await.map_or_else(|e| refused(&e), Response::Snapshot)
        }
    })
}

/// A heartbeat always does; entries do unless they would take what raft itself needs.
pub(super) fn fits(room: &Room, request: &AppendEntriesRequest<TypeConfig>) -> bool {
    request.entries.is_empty() || !room.full || room.holds(frame::encode(request).len() as u64)
}

/// `Arc<dyn Handler>` of the RPC server.
pub(super) fn handler(raft: Raft, electorate: Electorate, room: watch::Receiver<Room>) -> Arc<dyn Handler> {
    Arc::new(RpcHandler { raft, electorate, room })
}
