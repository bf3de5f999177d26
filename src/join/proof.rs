//! Who proves what to whom during a join, bound to one TLS connection.
//!
//! The joiner signs the transcript with the key derived from its token; for a token that pins no
//! root the cluster answers with a MAC over the transcript and the roots it hands out. The
//! transcript holds the TLS exporter of the connection, so neither proof can be relayed through a
//! third party or replayed on another connection. Two nodes of no cluster that meet with one chosen
//! token both sign, each for its own end, so that neither proof can be sent back to its maker.

use ring::{digest, hmac, signature};

use crate::{
    identity::token::TokenKeys,
    types::{Role, TokenId},
};

/// What both proofs are about. Every field has a fixed length, so no two inputs share a transcript.
pub(super) fn transcript(exporter: &[u8; 32], csr: &[u8], role: Role, token: TokenId) -> Vec<u8> {
    let role = match role {
        Role::Voter => 1,
        Role::Reader => 2,
        Role::Gateway => 3,
    };
    let mut out = b"skein join proof 1\0".to_vec();
    out.extend_from_slice(exporter);
    out.extend_from_slice(digest::digest(&digest::SHA256, csr).as_ref());
    out.push(role);
    out.extend_from_slice(&token.0.to_be_bytes());
    out
}

/// Which end of a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Who dialled.
    Dialer,
    /// Who was dialled.
    Answerer,
}

/// What the proofs of two nodes that meet are about.
pub(super) fn meeting(exporter: &[u8; 32], token: TokenId, speaks: End) -> Vec<u8> {
    let mut out = b"skein meeting proof 1\0".to_vec();
    out.extend_from_slice(exporter);
    out.push(match speaks {
        End::Dialer => 1,
        End::Answerer => 2,
    });
    out.extend_from_slice(&token.0.to_be_bytes());
    out
}

/// The joiner's proof over a transcript.
pub(super) fn joiner_proof(keys: &TokenKeys, transcript: &[u8]) -> Vec<u8> {
    keys.sign(transcript)
}

/// True when `proof` is the joiner's over `transcript`, by the public key the cluster stores.
pub(super) fn verify_joiner(public_key: &[u8], transcript: &[u8], proof: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public_key).verify(transcript, proof).is_ok()
}

/// The cluster's proof: it knows the token's MAC key and these are its roots (DER).
pub(super) fn server_proof<'a>(
    mac_key: &[u8],
    transcript: &[u8],
    roots: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, mac_key);
    hmac::sign(&key, &with_roots(transcript, roots)).as_ref().to_vec()
}

/// True when `proof` is the cluster's over `transcript` and `roots`. Compares in constant time.
pub(super) fn verify_server<'a>(
    mac_key: &hmac::Key,
    transcript: &[u8],
    roots: impl IntoIterator<Item = &'a [u8]>,
    proof: &[u8],
) -> bool {
    hmac::verify(mac_key, &with_roots(transcript, roots), proof).is_ok()
}

fn with_roots<'a>(transcript: &[u8], roots: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = b"skein cluster proof 1\0".to_vec();
    out.extend_from_slice(transcript);
    for root in roots {
        out.extend_from_slice(digest::digest(&digest::SHA256, root).as_ref());
    }
    out
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::identity::token::JoinToken;

    #[test]
    fn a_proof_holds_for_one_connection_one_request_one_role_one_token() {
        let token = JoinToken::generate(Role::Voter, vec![], &mut StdRng::seed_from_u64(1)).unwrap();
        let (keys, stored) = (token.keys().unwrap(), token.verifier().unwrap());
        let said = transcript(&[1; 32], b"csr", Role::Voter, token.id());
        let proof = joiner_proof(&keys, &said);
        assert!(verify_joiner(&stored.public_key, &said, &proof));
        let elsewhere = [
            transcript(&[2; 32], b"csr", Role::Voter, token.id()),
            transcript(&[1; 32], b"other csr", Role::Voter, token.id()),
            transcript(&[1; 32], b"csr", Role::Reader, token.id()),
            transcript(&[1; 32], b"csr", Role::Voter, TokenId(token.id().0 ^ 1)),
        ];
        for other in &elsewhere {
            assert!(!verify_joiner(&stored.public_key, other, &proof));
        }
        let stranger = JoinToken::generate(Role::Voter, vec![], &mut StdRng::seed_from_u64(2)).unwrap();
        assert!(!verify_joiner(&stored.public_key, &said, &joiner_proof(&stranger.keys().unwrap(), &said)));
        assert!(!verify_joiner(b"not a key", &said, &proof));

        let mac_key = stored.mac_key.unwrap();
        let answer = server_proof(&mac_key, &said, [&b"root"[..]]);
        assert!(verify_server(&keys.mac_key(), &said, [&b"root"[..]], &answer));
        assert!(!verify_server(&keys.mac_key(), &said, [&b"false root"[..]], &answer));
        assert!(!verify_server(&keys.mac_key(), &said, [&b"root"[..], b"second"], &answer));
        assert!(!verify_server(&keys.mac_key(), &elsewhere[0], [&b"root"[..]], &answer));
        assert!(!verify_server(&stranger.keys().unwrap().mac_key(), &said, [&b"root"[..]], &answer));
    }
    #[test]
    fn a_meeting_is_proven_by_each_end_for_itself() {
        let token = JoinToken::generate(Role::Voter, vec![], &mut StdRng::seed_from_u64(1)).unwrap();
        let (keys, stored) = (token.keys().unwrap(), token.verifier().unwrap());
        let said = meeting(&[1; 32], token.id(), End::Dialer);
        let proof = joiner_proof(&keys, &said);
        assert!(verify_joiner(&stored.public_key, &said, &proof));
        let sent_back = meeting(&[1; 32], token.id(), End::Answerer);
        let elsewhere = meeting(&[2; 32], token.id(), End::Dialer);
        let to_join = transcript(&[1; 32], b"", Role::Voter, token.id());
        for other in [sent_back, elsewhere, to_join] {
            assert!(!verify_joiner(&stored.public_key, &other, &proof));
        }
    }
}
