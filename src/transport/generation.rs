//! Two worlds with one cluster id never link: the hello is where they are told apart.
//!
//! Which world a node is of is fixed for its process run ([`Recovery`]), so a link that has come up
//! stays within one, and no stream on it has to look again: not raft, not seals, not the log.
//!
//! One thing is said before the hello and has consequences: that a node was removed. So it carries
//! the world in which that happened, and a removal in a world that was left behind means nothing.

use std::{collections::BTreeMap, sync::Arc};

use tracing::{error, warn};

use super::{close::CloseCode, contact::Contact, mesh::Inner};
use crate::{
    identity::recovery::is_signed,
    protocol::hello::Hello,
    types::{NodeId, Recovery, generation},
};

/// Members that were met and are of another world, with their generation.
pub type Foreign = Arc<BTreeMap<NodeId, u64>>;

impl Inner {
    /// True when the peer is of this node's world. Otherwise says so, once, and if the peer's is a
    /// newer one that the CA vouches for, tells this node.
    pub(super) fn same_world(&self, hello: &Hello) -> bool {
        let view = self.view();
        let (ours, theirs) = (view.recovery.as_ref(), hello.recovery.as_ref());
        let (peer, their_generation) = (hello.node, generation(theirs));
        if ours == theirs {
            self.foreign.send_if_modified(|met| {
                let was = met.contains_key(&peer);
                if was {
                    Arc::make_mut(met).remove(&peer);
                }
                was
            });
            return true;
        }
        let news = self.foreign.send_if_modified(|met| {
            let known = met.get(&peer) == Some(&their_generation);
            if !known {
                Arc::make_mut(met).insert(peer, their_generation);
            }
            !known
        });
        let newer = theirs.filter(|theirs| theirs.replaces(ours));
        let believed = newer.filter(|newer| is_signed(newer, view.cluster, &view.roots));
        if news {
            say(peer, ours, theirs, believed.is_some());
        }
        if let Some(recovery) = believed {
            self.superseded.send_replace(Some(recovery.clone()));
        }
        false
    }

    /// True when the removal that this connection was closed with happened in this node's world, or
    /// in a newer one.
    pub(super) fn removal_counts(&self, contact: &Contact) -> bool {
        let Some(quinn::ConnectionError::ApplicationClosed(close)) = contact.conn.close_reason() else {
            return false;
        };
        let view = self.view();
        let ours = world(view.recovery.as_ref());
        let theirs = std::str::from_utf8(&close.reason).ok().and_then(world_of);
        // Without a word on it, it is of a cluster that was never recovered.
        let theirs = theirs.unwrap_or_default();
        theirs == ours || theirs.0 > ours.0
    }
}

/// Generation and nonce.
fn world(recovery: Option<&Recovery>) -> (u64, u64) {
    recovery.map_or((0, 0), |recovery| (recovery.generation, recovery.nonce))
}

/// What a removed peer is told.
pub(super) fn removal_reason(recovery: Option<&Recovery>) -> String {
    let (generation, nonce) = world(recovery);
    format!("{} (world {generation}-{nonce})", CloseCode::Removed)
}

fn world_of(reason: &str) -> Option<(u64, u64)> {
    let (_, world) = reason.strip_suffix(')')?.rsplit_once("(world ")?;
    let (generation, nonce) = world.split_once('-')?;
    Some((generation.parse().ok()?, nonce.parse().ok()?))
}

fn say(peer: NodeId, ours: Option<&Recovery>, theirs: Option<&Recovery>, believed: bool) {
    let (own, other) = (generation(ours), generation(theirs));
    match theirs {
        Some(recovery) if believed => warn!(
            %peer, by = %recovery.by, own, other,
            "refused: the cluster was recovered without this node, which must give way"
        ),
        Some(_) if other > own => warn!(
            %peer, own, other,
            "refused: it speaks of a recovery that the cluster's CA has not signed"
        ),
        Some(recovery) if other == own => error!(
            %peer, generation = own, by = %recovery.by, ours = ?ours.map(|ours| ours.by),
            "refused: two nodes were recovered, each without the other; only one can go on. Stop the other, move \
             its data directory away and join it with a new token"
        ),
        _ => warn!(
            %peer, own, other,
            "refused: it is of the cluster before its recovery. It ends when it hears so, and comes back as a \
             learner at its next start"
        ),
    }
}
