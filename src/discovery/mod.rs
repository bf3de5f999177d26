//! Candidate addresses: hints, never trust.

pub mod interfaces;
#[cfg(feature = "mdns")]
pub mod mdns;
pub mod seeds;
mod srv;
#[cfg(feature = "mdns")]
pub mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

pub use seeds::{Seed, SeedError};

use crate::types::{ClusterId, NodeId};

/// Most nodes that are remembered at a time: whoever shouts more ids is not listened to.
pub const MAX_CANDIDATES: usize = 256;
/// Most addresses that are remembered per node.
pub const MAX_ADDRESSES: usize = 16;

/// A node somebody says is there. Nothing in it is proven.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Mesh addresses to try, in a fixed order.
    pub addresses: Vec<SocketAddr>,
    /// The cluster it says it is of; `None` while it is of none.
    pub cluster: Option<ClusterId>,
    /// Software version it says it runs; empty when it does not say.
    pub version: String,
}

/// Everyone in sight, by node id; never this node itself.
pub type Candidates = BTreeMap<NodeId, Candidate>;

/// So many of these addresses, other ones in each round: whoever announces any number of them decides
/// neither how many are dialled nor which are never tried.
pub(crate) fn turn(all: BTreeSet<SocketAddr>, room: usize, round: usize) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = all.into_iter().collect();
    if all.len() > room {
        let turn = round.wrapping_mul(room) % all.len();
        all.rotate_left(turn);
        all.truncate(room);
    }
    all
}
