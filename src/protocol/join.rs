//! Messages of the `Join` stream. All of a stranger's bytes fit in `frame::MAX_JOIN`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{Addresses, ClusterId, NodeId, Recovery, Role, Succession, TimingProfile, TokenId};

/// Joiner to door. Also the hello of a stranger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRequest {
    /// Let me in by this token.
    Admit(Box<AdmitRequest>),
    /// I am a member: sign me a new certificate.
    Renew {
        /// Certificate signing request (DER) of the same key.
        #[serde(with = "serde_bytes")]
        csr: Vec<u8>,
    },
    /// Between members only: a request that the sender, who has no CA key, passes on. Never passed
    /// on a second time.
    Relayed(Box<RelayedJoin>),
    /// Between nodes of no cluster that were started with `--bootstrap-expect`: this is what I know.
    Meet(Box<Carrier>),
}

/// What a node that carries `--bootstrap-expect` says to another, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// The token that all of them were given.
    pub token: TokenId,
    /// Ed25519 signature by the key derived from the token's secret over [`crate::join`]'s transcript
    /// of a meeting: TLS exporter of this connection, and which end of it speaks.
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
    /// A label.
    pub name: String,
    /// The number behind the flag.
    pub expect: u32,
    /// Whom it has pledged itself to; on its disk before it is said.
    pub pledge: Option<NodeId>,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Where it has met others lately: hints, so that one seed is enough for all to meet.
    pub others: Vec<(NodeId, Vec<SocketAddr>)>,
}

/// A request as it came in at another member's door, with what that member knows of the
/// connection it came on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedJoin {
    /// The request; never itself a relayed one.
    pub request: JoinRequest,
    /// TLS exporter of the joiner's connection, which the proof is bound to.
    #[serde(with = "serde_bytes")]
    pub exporter: Vec<u8>,
    /// SubjectPublicKeyInfo (DER) that the joiner proved to hold the key of, in that handshake.
    #[serde(with = "serde_bytes")]
    pub spki: Vec<u8>,
}

/// Everything the door needs to admit a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitRequest {
    /// Which token.
    pub token: TokenId,
    /// Cluster the token names.
    pub cluster: ClusterId,
    /// Ed25519 signature by the key derived from the token's secret over [`crate::join`]'s
    /// transcript: TLS exporter of this connection, CSR, role.
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
    /// Certificate signing request (DER).
    #[serde(with = "serde_bytes")]
    pub csr: Vec<u8>,
    /// Role wanted; must be the token's.
    pub role: Role,
    /// A label.
    pub name: String,
    /// Where the joiner listens.
    pub addresses: Addresses,
    /// Public X25519 sealing key.
    #[serde(with = "serde_bytes")]
    pub seal_key: Vec<u8>,
    /// Signature of the node key over it and the cluster id.
    #[serde(with = "serde_bytes")]
    pub seal_key_signature: Vec<u8>,
    /// Software version.
    pub version: String,
    /// Feature bits.
    pub features: u64,
    /// The joiner's clock, seconds since 1970, so that a skew can be named.
    pub clock: u64,
}

/// Door to joiner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinResponse {
    /// In: the door's applied state holds the member.
    Admitted(Box<Admitted>),
    /// Not now; try again, here or elsewhere.
    Retry {
        /// What it waits for, in plain words.
        reason: String,
    },
    /// Never with this token: the joiner exits.
    Refused(Refusal),
    /// Answer to [`JoinRequest::Meet`]: the same of the other end.
    Met(Box<Carrier>),
}

/// What an admitted node needs to be a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its id, as the cluster computes it.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// Certificate (DER) over the joiner's key.
    #[serde(with = "serde_bytes")]
    pub certificate: Vec<u8>,
    /// Root certificates (DER).
    pub roots: Vec<serde_bytes::ByteBuf>,
    /// How each root followed from the one before it, oldest first: for members that know old ones only.
    #[serde(default)]
    pub successions: Vec<Succession>,
    /// Cluster-wide timeouts.
    #[serde(default)]
    pub profile: TimingProfile,
    /// Members and where they listen, so that the joiner can link to all.
    pub members: Vec<(NodeId, Addresses)>,
    /// Raft's last entry in the state that this is taken from: views of older ones, which the joiner
    /// goes through while it is sent the log, know less.
    #[serde(default)]
    pub applied_index: u64,
    /// The cluster's newest recovery, if there was one: the joiner is of that world from its first
    /// hello on.
    #[serde(default)]
    pub recovery: Option<Recovery>,
    /// HMAC with the token's MAC key over the transcript and the roots, only for tokens without
    /// CA fingerprint: the server proves the secret too.
    #[serde(with = "serde_bytes")]
    pub server_proof: Vec<u8>,
}

/// Final refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No such token.
    UnknownToken,
    /// The proof does not verify.
    WrongSecret,
    /// All uses are spent.
    Spent,
    /// Too old.
    Expired,
    /// Taken back by an operator.
    Revoked,
    /// The token is for another role.
    OtherRole,
    /// The token is of another cluster.
    OtherCluster,
    /// This identity was removed: only an empty data directory and a new token help.
    Removed,
    /// The request is malformed.
    Malformed,
}

impl Refusal {
    /// What the joiner tells its operator, and what to do.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::UnknownToken => {
                "the cluster does not know this join token; make one with `skein token create`"
            }
            Self::WrongSecret => "the join token's secret is wrong; copy the whole token again",
            Self::Spent => "all uses of this join token are spent; make one with `skein token create`",
            Self::Expired => "this join token has expired; make one with `skein token create`",
            Self::Revoked => "this join token was revoked; make one with `skein token create`",
            Self::OtherRole => "this join token is for another role; start with the --role it was made for",
            Self::OtherCluster => "this join token belongs to another cluster",
            Self::Removed => {
                "this node was removed from the cluster; start with an empty data directory and a new token"
            }
            Self::Malformed => {
                "the cluster did not understand the join request; are the versions compatible?"
            }
        }
    }
}
