//! Who may come in: the door's checks as pure functions of the applied state, the request, and
//! what TLS proved about the connection it came on.
//!
//! `Admit` is checked once more when it is applied; what is checked here on top is what only the
//! door can see (the proof, the key of the connection, the clocks).

use super::proof;
use crate::{
    identity::{self, seal, token::TokenVerifier},
    protocol::join::{AdmitRequest, JoinResponse, Refusal},
    raft::{State, TokenRecord},
    types::{ClusterId, Member},
};

/// Longest name and version a node may give itself, in bytes.
const MAX_LABEL: usize = 64;
/// Most mesh addresses of a member.
const MAX_ADDRESSES: usize = 16;
/// Longest certificate signing request, in bytes; one of an Ed25519 key has about 250.
const MAX_CSR: usize = 4096;
/// Certificates are backdated by one hour: a joiner whose clock is further behind could not use
/// its own.
const MAX_SKEW: u64 = 50 * 60;
/// A difference of clocks worth a word.
const NOTED_SKEW: u64 = 5;

/// What TLS proved about the connection a request came on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Presented<'a> {
    /// TLS exporter of the connection.
    pub exporter: &'a [u8; 32],
    /// SubjectPublicKeyInfo (DER) of the key the joiner holds.
    pub spki: &'a [u8],
}

/// Judges a request to be admitted: the member it would make (without certificate yet), or the
/// answer. `now_ms` is the door's clock.
pub(super) fn admission(
    state: &State,
    request: &AdmitRequest,
    presented: Presented<'_>,
    now_ms: u64,
) -> Result<Member, JoinResponse> {
    let refused = |refusal| Err(JoinResponse::Refused(refusal));
    let cluster = founded(state)?;
    if request.cluster != ClusterId::default() && request.cluster != cluster {
        return refused(Refusal::OtherCluster);
    }
    if !well_formed(request) {
        return refused(Refusal::Malformed);
    }
    let node = identity::node_id(presented.spki);
    let Some(record) = state.tokens.get(&request.token) else { return refused(Refusal::UnknownToken) };
    // The proof comes before everything that would tell a guesser about the token or the cluster.
    let said = proof::transcript(presented.exporter, &request.csr, request.role, request.token);
    if !proof::verify_joiner(&record.public_key, &said, &request.proof) {
        return refused(Refusal::WrongSecret);
    }
    if state.removed.contains_key(&node) {
        return refused(Refusal::Removed);
    }
    if request.role != record.role {
        return refused(Refusal::OtherRole);
    }
    if !seal::verify_seal_key(presented.spki, cluster, &request.seal_key, &request.seal_key_signature) {
        return refused(Refusal::Malformed);
    }
    // A lost answer does not strand the joiner: who came in with this token comes in again.
    if state.admitted_by.get(&node) != Some(&request.token) {
        usable(record, now_ms).map_err(JoinResponse::Refused)?;
    }
    clocks(request.clock, now_ms / 1000)?;
    Ok(Member {
        id: node,
        name: request.name.clone(),
        role: request.role,
        addresses: request.addresses.clone(),
        spki: presented.spki.to_vec(),
        seal_key: request.seal_key.clone(),
        seal_key_signature: request.seal_key_signature.clone(),
        serial: String::new(),
        not_after: 0,
        version: request.version.clone(),
        features: request.features,
    })
}

/// Judges a request for a new certificate: the member as it stands, or the answer.
pub(super) fn renewal<'a>(state: &'a State, spki: &[u8]) -> Result<&'a Member, JoinResponse> {
    founded(state)?;
    let node = identity::node_id(spki);
    if state.removed.contains_key(&node) {
        return Err(JoinResponse::Refused(Refusal::Removed));
    }
    match state.members.get(&node) {
        Some(member) if member.spki == spki => Ok(member),
        // The same hash for another key: nobody can make that by accident.
        Some(_) => Err(JoinResponse::Refused(Refusal::Malformed)),
        // It may be admitted and this node not have heard of it yet.
        None => Err(JoinResponse::Retry { reason: format!("this node does not know a member {node}") }),
    }
}

fn founded(state: &State) -> Result<ClusterId, JoinResponse> {
    state.cluster.ok_or_else(|| JoinResponse::Retry { reason: "this node has no cluster itself yet".into() })
}

fn well_formed(request: &AdmitRequest) -> bool {
    is_label(&request.name)
        && is_label(&request.version)
        && request.csr.len() <= MAX_CSR
        && request.addresses.mesh.len() <= MAX_ADDRESSES
}

/// True for a name or version that may be shown to people.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && !text.chars().any(char::is_control)
}

fn usable(record: &TokenRecord, now_ms: u64) -> Result<(), Refusal> {
    if record.revoked {
        Err(Refusal::Revoked)
    } else if record.expires_ms.is_some_and(|at| at <= now_ms) {
        Err(Refusal::Expired)
    } else if record.uses_left == Some(0) {
        Err(Refusal::Spent)
    } else {
        Ok(())
    }
}

fn clocks(joiner: u64, door: u64) -> Result<(), JoinResponse> {
    let (skew, way) = if joiner < door { (door - joiner, "behind") } else { (joiner - door, "ahead of") };
    let text = format!("this node's clock is {skew} s {way} the cluster's");
    if skew > MAX_SKEW {
        return Err(JoinResponse::Retry { reason: format!("{text}; set it (NTP)") });
    }
    if skew > NOTED_SKEW {
        tracing::warn!(skew, "the clock of a joining node is {skew} s {way} this node's");
    }
    Ok(())
}

/// The parts of a token's record that come from its secret, as raft stores them.
pub fn token_record(
    token: &crate::identity::JoinToken,
    verifier: TokenVerifier,
    limits: TokenLimits,
) -> TokenRecord {
    TokenRecord {
        id: token.id(),
        role: token.role(),
        public_key: verifier.public_key,
        mac_key: verifier.mac_key.map(serde_bytes::ByteBuf::from),
        expires_ms: limits.expires_ms,
        uses_left: limits.uses,
        revoked: false,
        created_ms: limits.created_ms,
    }
}

/// How long and how often a token admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimits {
    /// Milliseconds since 1970; `None` for no expiry.
    pub expires_ms: Option<u64>,
    /// Uses; `None` for no limit.
    pub uses: Option<u32>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}
