//! What keeps a node outside, in plain words: for now, or for good.

use std::net::SocketAddr;

use super::{chain::ChainError, pledge::Incomplete};
use crate::{
    identity::{IdentityError, StoreError, TokenError, seal::SealError},
    protocol::join::Refusal,
};

/// Longest text of a peer that is shown, in characters.
const MAX_SAID: usize = 600;

/// What somebody unproven says, fit to be shown.
pub(super) fn said_by_peer(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}

/// What a joiner waits for, in plain words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// There is no address to try.
    #[error("no peer found{}; is one running on this network? Otherwise give --seed HOST:PORT", on(.interfaces))]
    NobodyInSight {
        /// Interfaces that were listened on; empty when mDNS is off.
        interfaces: Vec<String>,
    },
    /// A seed's name does not resolve.
    #[error("cannot resolve {seed}: {reason}")]
    Unresolved {
        /// Which.
        seed: String,
        /// Why.
        reason: String,
    },
    /// Nothing answers there.
    #[error(
        "{address} does not answer ({reason}); does it run, and does every firewall between let UDP through?"
    )]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// Whoever answers is not (provably) of the token's cluster.
    #[error("{address} answers, but {reason}")]
    NotTheCluster {
        /// Where.
        address: SocketAddr,
        /// How it is known.
        reason: ChainError,
    },
    /// It admits but cannot prove that it knows the token, which pins no CA.
    #[error(
        "{address} answers, but cannot prove that it knows this join token: not the cluster it was made for"
    )]
    Unproven {
        /// Where.
        address: SocketAddr,
    },
    /// A cluster that may or may not be the right one does not want this token, which pins no CA.
    #[error("{address} refuses: {}", .refusal.explain())]
    RefusedHere {
        /// Where.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// Nodes that start together are not complete yet.
    #[error("{0}")]
    Nodes(Incomplete),
    /// The door asks to come back later.
    #[error("{address} says: {reason}")]
    Later {
        /// Where.
        address: SocketAddr,
        /// What it waits for.
        reason: String,
    },
}

fn on(interfaces: &[String]) -> String {
    if interfaces.is_empty() { String::new() } else { format!(" on {} by mDNS", interfaces.join(", ")) }
}

/// Why a node will never get in this way.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster's last word.
    #[error("{}", .0.explain())]
    Refused(Refusal),
    /// A token chosen up front ended before there was a cluster.
    #[error(
        "this join token has expired: make another with `skein token create` if its cluster exists, and with \
         `skein token generate` for all nodes if not"
    )]
    Expired,
    /// A pledge cannot be read or kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token does not work.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// This node's own keys do not work.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The sealing key does not work.
    #[error("cannot use the sealing key: {0}")]
    SealKey(#[from] SealError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], n))
    }

    #[test]
    fn a_peer_cannot_fill_the_log_or_move_the_cursor() {
        assert_eq!(said_by_peer("no\u{1b}[2J leader\n"), "no[2J leader");
        assert_eq!(said_by_peer(&"x".repeat(60_000)).len(), MAX_SAID);
    }

    #[test]
    fn waiting_is_said_in_plain_words() {
        let nobody = Waiting::NobodyInSight { interfaces: vec!["eth0".into(), "wlan0".into()] };
        assert!(nobody.to_string().starts_with("no peer found on eth0, wlan0 by mDNS; "), "{nobody}");
        let skew = Waiting::NotTheCluster { address: address(1), reason: ChainError::NotYet(40) };
        assert!(skew.to_string().contains("40 s"), "{skew}");
    }
}
