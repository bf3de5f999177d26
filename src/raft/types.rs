//! What raft agrees on: commands, their outcomes and the state they make.
//!
//! Commands carry their own timestamps; apply never reads a clock and draws nothing at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::rotation::Rotation;
use crate::{
    protocol::join::Refusal,
    types::{
        Addresses, ClusterId, Databases, Epoch, Member, NodeId, Office, Recovery, Role, Scope, Succession,
        TimingProfile, TokenId,
    },
};

/// A change of the small truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "the large one is proposed once in a cluster's life")]
pub enum Command {
    /// First command of a cluster. Refused if the cluster has been founded.
    Found {
        /// Drawn at random by the first node.
        cluster: ClusterId,
        /// For people.
        name: String,
        /// The cluster CA's certificate (DER).
        root: serde_bytes::ByteBuf,
        /// The first member.
        member: Member,
        /// The CA key sealed to it.
        sealed_ca: serde_bytes::ByteBuf,
        /// Cluster-wide timeouts.
        profile: TimingProfile,
        /// The token shown at bootstrap.
        token: TokenRecord,
        /// The cluster's first API token.
        api_token: ApiToken,
        /// The last epoch of the history that its data comes from, if it was restored from a backup: its own
        /// epochs begin behind it.
        #[serde(default, skip_serializing_if = "is_none_yet")]
        after: Epoch,
        /// Feature bits that whoever comes has to have: a new cluster begins with those of its first node.
        #[serde(default, skip_serializing_if = "is_none_yet")]
        level: u64,
    },
    /// Admit a node and spend a use of its token. Idempotent per node id.
    Admit {
        /// The new member.
        member: Member,
        /// The token it came with.
        token: TokenId,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// New addresses, certificate, version or features of a member, said by itself.
    Update {
        /// Who.
        node: NodeId,
        /// Where it listens now.
        addresses: Addresses,
        /// Newest certificate: serial and expiry (seconds since 1970), if it changed.
        certificate: Option<(String, u64)>,
        /// Software version.
        version: String,
        /// Feature bits.
        features: u64,
    },
    /// A voter shall be a reader from now on: the leader takes it out of the voters. First step of a
    /// removal.
    Retire {
        /// Who.
        node: NodeId,
    },
    /// A reader shall be a voter: the leader makes it one when it is level and linked with the voters.
    Enlist {
        /// Who.
        node: NodeId,
    },
    /// A node shall hold neither office nor leadership, or may again: it is about to be stopped for a while.
    /// Rejected if no voter would be left that may.
    Drain {
        /// Who.
        node: NodeId,
        /// Whether it shall not.
        drained: bool,
    },
    /// Every member knows these feature bits, and none comes, or comes back, without them from now on.
    /// Rejected while one lacks any of them.
    Finalise {
        /// Which.
        features: u64,
    },
    /// Take a member out for ever: peers cut it off at once. Rejected while it is a voter: the others
    /// might not be able to commit its leaving without it.
    Remove {
        /// Who.
        node: NodeId,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// Give office: taken only for the current epoch + 1, only under the membership in force, only
    /// for a voter.
    SetWriter(Office),
    /// Add a join token.
    CreateToken(TokenRecord),
    /// Take a join token back.
    RevokeToken {
        /// Which.
        token: TokenId,
    },
    /// Give a voter (to be) the CA key, sealed to its X25519 key.
    SealCa {
        /// To whom.
        node: NodeId,
        /// Ciphertext.
        sealed: serde_bytes::ByteBuf,
        /// SHA-256 of the root that the key is of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<serde_bytes::ByteBuf>,
    },
    /// Add an API token.
    CreateApiToken(ApiToken),
    /// Take an API token back: nothing of it stays.
    RevokeApiToken {
        /// Which.
        token: TokenId,
    },
    /// An operator wants a new CA. Rejected while one is being made.
    RotateCa {
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// The new root, made by the leader: from here on two are trusted, and this one signs.
    AddRoot {
        /// The root, vouched for by the one before it.
        succession: Succession,
        /// Its key, sealed to every voter.
        sealed: BTreeMap<NodeId, serde_bytes::ByteBuf>,
    },
    /// A member says of which root the certificate is that it shows from now on.
    ShowsRoot {
        /// Who.
        node: NodeId,
        /// SHA-256 of the root.
        root: serde_bytes::ByteBuf,
    },
    /// An operator does not wait for these members to renew.
    DropFromRotation {
        /// Whom.
        nodes: BTreeSet<NodeId>,
    },
    /// Every member that is waited for has renewed: the old root is trusted no more.
    RetireRoot {
        /// SHA-256 of the root that goes.
        root: serde_bytes::ByteBuf,
    },
}

impl Command {
    /// True for what people ask for and may ask for again: it makes something new that nothing else waits
    /// for. A full disk refuses it, so that its reserve is there for who is a member and who writes.
    pub const fn can_wait(&self) -> bool {
        matches!(self, Self::CreateToken(_) | Self::CreateApiToken(_))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { cluster, .. } => write!(f, "found {cluster}"),
            Self::Admit { member, .. } => write!(f, "admit {}", member.id),
            Self::Update { node, .. } => write!(f, "update {node}"),
            Self::Retire { node } => write!(f, "retire {node}"),
            Self::Enlist { node } => write!(f, "enlist {node}"),
            Self::Drain { node, drained: true } => write!(f, "drain {node}"),
            Self::Drain { node, drained: false } => write!(f, "undrain {node}"),
            Self::Finalise { features } => write!(f, "finalise features {features}"),
            Self::Remove { node, .. } => write!(f, "remove {node}"),
            Self::SetWriter(office) => write!(f, "writer {} epoch {}", office.node, office.epoch),
            Self::CreateToken(token) => write!(f, "create token {}", token.id),
            Self::RevokeToken { token } => write!(f, "revoke token {token}"),
            Self::SealCa { node, .. } => write!(f, "seal CA key for {node}"),
            Self::CreateApiToken(token) => write!(f, "create API token {}", token.id()),
            Self::RevokeApiToken { token } => write!(f, "revoke API token {token}"),
            Self::RotateCa { .. } => f.write_str("rotate the CA"),
            Self::AddRoot { .. } => f.write_str("add a root"),
            Self::ShowsRoot { node, .. } => write!(f, "{node} shows the newest root"),
            Self::DropFromRotation { nodes } => write!(f, "rotate without {} members", nodes.len()),
            Self::RetireRoot { .. } => f.write_str("retire a root"),
        }
    }
}

/// What applying a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done (or it was so already).
    Done,
    /// The node may not come in.
    Refused(Refusal),
    /// `SetWriter` came too late or under another membership; the register stands as it is.
    Stale(Option<Office>),
    /// Nothing was changed, and why.
    Rejected(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(refusal) => f.write_str(refusal.explain()),
            Self::Stale(_) => f.write_str("another writer was named first"),
            Self::Rejected(reason) => f.write_str(reason),
        }
    }
}

/// Terms of office that are remembered.
pub(super) const TERMS_KEPT: usize = 32;

/// A join token as raft stores it. Nothing here lets anyone join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public part of the token.
    pub id: TokenId,
    /// Role it admits to.
    pub role: Role,
    /// Ed25519 public key derived from the secret: verifies the joiner's proof.
    #[serde(with = "serde_bytes")]
    pub public_key: Vec<u8>,
    /// Key of the server's own proof, only for tokens without CA fingerprint.
    pub mac_key: Option<serde_bytes::ByteBuf>,
    /// Milliseconds since 1970; `None` for no expiry.
    pub expires_ms: Option<u64>,
    /// Uses left; `None` for no limit.
    pub uses_left: Option<u32>,
    /// Taken back by an operator.
    pub revoked: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// An API token as raft stores it: a hash, never the token. A field that old bytes do not have
/// grants nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// For people; no two tokens have the same.
    pub name: String,
    /// SHA-256 of the token. A slow hash would only help secrets that can be guessed; this one is 32
    /// random bytes, and it is checked with every request.
    #[serde(with = "serde_bytes")]
    pub hash: Vec<u8>,
    /// True for tokens that may do everything.
    pub admin: bool,
    /// May query.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read: bool,
    /// May write points.
    #[serde(default, skip_serializing_if = "is_false")]
    pub write: bool,
    /// The databases it may read and write; `None` for every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<BTreeSet<String>>,
    /// Milliseconds since 1970; `None` for no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl ApiToken {
    /// Its public name: the first 8 bytes of the hash. They help nobody to find 32 random bytes.
    pub fn id(&self) -> TokenId {
        TokenId(self.hash.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte)))
    }

    /// True when it has that scope; an admin token has every one.
    pub fn has(&self, scope: Scope) -> bool {
        self.admin
            || match scope {
                Scope::Read => self.read,
                Scope::Write => self.write,
                Scope::Admin => false,
            }
    }

    /// Its scopes.
    pub fn scopes(&self) -> Vec<Scope> {
        if self.admin {
            return vec![Scope::Admin];
        }
        Scope::EVERY.into_iter().filter(|scope| self.has(*scope)).collect()
    }

    /// The databases that its scopes are for.
    pub fn databases(&self) -> Databases {
        match &self.databases {
            Some(names) if !self.admin => Databases::Only(names.clone()),
            _ => Databases::Every,
        }
    }

    /// True when its time is over.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }
}

/// Left out, so that the bytes are those of before there was such a field.
fn is_none_yet(epoch: &Epoch) -> bool {
    *epoch == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The state that the log of commands makes: all of it, as it stands in a raft snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `None` until `Found` is applied.
    pub cluster: Option<ClusterId>,
    /// Cluster name.
    pub name: String,
    /// Roots that members' certificates may be of: one, or two while the CA is rotated. The last signs.
    pub roots: Vec<serde_bytes::ByteBuf>,
    /// Members.
    pub members: BTreeMap<NodeId, Member>,
    /// Which token each member came with, so that `Admit` is idempotent.
    pub admitted_by: BTreeMap<NodeId, TokenId>,
    /// Removed members and when (ms).
    pub removed: BTreeMap<NodeId, u64>,
    /// Members that shall hold neither office nor leadership.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<NodeId>,
    /// The register.
    pub writer: Option<Office>,
    /// The last 32 values of the register, oldest first, the present one included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<Office>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Key of the first root per voter, sealed.
    pub sealed_ca: BTreeMap<NodeId, serde_bytes::ByteBuf>,
    /// A rotation of the CA that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// How each root followed from the one before it, oldest first: for members that were away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successions: Vec<Succession>,
    /// API tokens by name.
    pub api_tokens: BTreeMap<String, ApiToken>,
    /// Timeouts.
    pub profile: TimingProfile,
    /// Feature bits that whoever comes has to have: the cluster began with them, or an upgrade was finalised,
    /// or commands were carried out that others do not know.
    pub feature_level: u64,
    /// The newest recovery: no command sets it, see `recover.rs`.
    #[serde(default)]
    pub recovery: Option<Recovery>,
}

#[cfg(test)]
mod tests;
