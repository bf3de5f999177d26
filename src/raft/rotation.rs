//! Rotation of the cluster's CA, step by step through raft's state:
//!
//! 1. *asked*: an operator's wish is an entry ([`Command::RotateCa`](super::Command::RotateCa)); one root.
//! 2. *overlap*: the leader has made a new root, its key sealed to every voter, and the old root vouches
//!    for it. Two roots are trusted, the new one signs. Each member renews and says so.
//! 3. *over*: every member has (or is not waited for): the old root goes, with its key.
//!
//! Each step is one entry that says what it was decided from, and apply refuses it where that no longer
//! holds. So whoever leads, and wherever it was cut short, [`next_step`] of the state tells what comes
//! next, and doing a step twice does nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::types::{Outcome, State};
use crate::{
    identity::{fingerprint, succession},
    types::{CaRotation, Member, NodeId, Role, Succession},
};

/// Steps from root to root that are kept. Who was away for longer has to join anew.
const SUCCESSIONS_KEPT: usize = 16;

/// A rotation that is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// What every node may see of it.
    pub progress: CaRotation,
    /// The new root's key per voter, sealed; empty until there is one.
    #[serde(default)]
    pub sealed_ca: BTreeMap<NodeId, ByteBuf>,
}

/// What a rotation needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    /// A new root, by the leader.
    MakeRoot,
    /// The new key for a voter (to be) that has none, by anyone who has it.
    Seal(NodeId),
    /// The end of the old root, by the leader.
    Retire,
}

/// The next step, if one can be done now.
pub fn next_step(state: &State, voters: &BTreeSet<NodeId>) -> Option<RotationStep> {
    let rotation = state.rotation.as_ref()?;
    if state.roots.len() < 2 {
        return Some(RotationStep::MakeRoot);
    }
    if let Some(without) = key_holders(state, voters).find(|id| !rotation.sealed_ca.contains_key(id)) {
        return Some(RotationStep::Seal(without));
    }
    rotation.progress.waits_for(&state.members).is_empty().then_some(RotationStep::Retire)
}

/// Members that need the CA's key: the voters, and whoever is about to become one. Who was one and is a
/// reader now has a copy of the old key, and gets none of the new.
pub fn key_holders<'a>(state: &'a State, voters: &'a BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> + 'a {
    let sealed: BTreeSet<NodeId> = voters.iter().chain(state.sealed_ca.keys()).copied().collect();
    let needs = |id: &NodeId, member: &Member| voters.contains(id) || member.role == Role::Voter;
    sealed.into_iter().filter(move |id| state.members.get(id).is_some_and(|member| needs(id, member)))
}

/// Who has every key a voter needs now.
pub fn fully_sealed(state: &State) -> BTreeSet<NodeId> {
    let next = state.rotation.as_ref().filter(|_| state.roots.len() > 1).map(|r| &r.sealed_ca);
    let both = |id: &&NodeId| next.is_none_or(|sealed| sealed.contains_key(id));
    state.sealed_ca.keys().filter(both).copied().collect()
}

pub(super) fn ask(state: &mut State, at_ms: u64) -> Outcome {
    if state.cluster.is_none() {
        return rejected("there is no cluster yet");
    }
    if state.rotation.is_some() {
        return rejected("the CA is being rotated already: see `skein ca status`");
    }
    let progress = CaRotation { asked_ms: at_ms, ..CaRotation::default() };
    state.rotation = Some(Rotation { progress, ..Rotation::default() });
    Outcome::Done
}

/// From here on two roots are trusted. Join tokens that pin the old one end: soon nobody could prove to
/// their bearers that this is the cluster.
pub(super) fn add_root(
    state: &mut State,
    voters: &BTreeSet<NodeId>,
    succession: Succession,
    mut sealed: BTreeMap<NodeId, ByteBuf>,
) -> Outcome {
    let (Some(cluster), Some(rotation)) = (state.cluster, &mut state.rotation) else {
        return rejected("no rotation of the CA is under way");
    };
    let [old] = state.roots.as_slice() else {
        return match state.roots.last() {
            Some(new) if *new == succession.root => Outcome::Done,
            _ => rejected("another new root was made first"),
        };
    };
    if !succession::follows(&succession, cluster, old) {
        return rejected("the new root is not signed by the one before it");
    }
    if !voters.iter().all(|voter| sealed.contains_key(voter)) {
        return rejected("the voters have changed: the new key is not sealed to each of them");
    }
    sealed.retain(|id, _| state.members.contains_key(id));
    rotation.sealed_ca = sealed;
    state.roots.push(ByteBuf::from(succession.root.clone()));
    state.successions.push(succession);
    let surplus = state.successions.len().saturating_sub(SUCCESSIONS_KEPT);
    state.successions.drain(..surplus);
    state.tokens.values_mut().filter(|token| token.mac_key.is_none()).for_each(|token| token.revoked = true);
    Outcome::Done
}

/// A member says of which root the certificate is that it shows from now on.
pub(super) fn note_shown(state: &mut State, node: NodeId, root: &[u8]) -> Outcome {
    if !state.members.contains_key(&node) {
        return super::state_machine::not_a_member(node);
    }
    let newest = state.roots.last().is_some_and(|newest| fingerprint(newest) == root);
    match &mut state.rotation {
        Some(rotation) if newest && state.roots.len() > 1 => {
            rotation.progress.renewed.insert(node);
            Outcome::Done
        }
        _ if newest => Outcome::Done,
        _ => rejected("that is not the root that signs now"),
    }
}

/// The old root is retired without waiting for these.
pub(super) fn drop_members(state: &mut State, nodes: BTreeSet<NodeId>) -> Outcome {
    let Some(rotation) = &mut state.rotation else {
        return rejected("no rotation of the CA is under way");
    };
    if let Some(stranger) = nodes.iter().find(|id| !state.members.contains_key(id)) {
        return super::state_machine::not_a_member(*stranger);
    }
    rotation.progress.dropped.extend(nodes);
    Outcome::Done
}

/// The root with this fingerprint goes, and the copies of its key with it.
pub(super) fn retire(state: &mut State, voters: &BTreeSet<NodeId>, root: &[u8]) -> Outcome {
    if state.roots.iter().all(|there| fingerprint(there) != root) {
        return Outcome::Done;
    }
    let [old, _] = state.roots.as_slice() else { return rejected("it is the only root") };
    let Some(rotation) = &mut state.rotation else { return rejected("no rotation of the CA is under way") };
    if fingerprint(old) != root {
        return rejected("that is the root that signs");
    }
    let waits_for = rotation.progress.waits_for(&state.members);
    if !waits_for.is_empty() {
        return rejected("members have not renewed their certificates yet");
    }
    if !voters.iter().all(|voter| rotation.sealed_ca.contains_key(voter)) {
        return rejected("a voter has no copy of the new key yet");
    }
    state.sealed_ca = std::mem::take(&mut rotation.sealed_ca);
    state.sealed_ca.retain(|id, _| state.members.contains_key(id));
    state.roots.remove(0);
    state.rotation = None;
    Outcome::Done
}

/// Gives a voter (to be) a copy of the key of the root with this fingerprint. Without one it is of a
/// version that knew of one root only.
pub(super) fn seal(state: &mut State, node: NodeId, sealed: ByteBuf, of: Option<&[u8]>) -> Outcome {
    if !state.members.contains_key(&node) {
        return super::state_machine::not_a_member(node);
    }
    let is = |at: usize| match (of, state.roots.get(at)) {
        (Some(of), Some(root)) => fingerprint(root) == of,
        (None, _) => at == 0 && state.successions.is_empty(),
        (Some(_), None) => false,
    };
    let (first, second) = (is(0), is(1));
    match &mut state.rotation {
        _ if first => state.sealed_ca.insert(node, sealed),
        Some(rotation) if second => rotation.sealed_ca.insert(node, sealed),
        _ => return rejected("that CA key is of no root of the cluster"),
    };
    Outcome::Done
}

/// Nothing of a member that goes is kept, and nobody waits for it.
pub(super) fn forget(state: &mut State, node: NodeId) {
    if let Some(rotation) = &mut state.rotation {
        rotation.sealed_ca.remove(&node);
        rotation.progress.renewed.remove(&node);
        rotation.progress.dropped.remove(&node);
    }
}

fn rejected(reason: &str) -> Outcome {
    Outcome::Rejected(reason.into())
}

#[cfg(test)]
mod tests;
