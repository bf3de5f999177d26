//! Applies commands. Deterministic: the same entries make the same state on every node, whatever
//! the time and wherever it runs.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{
    applied::{Applied, Board},
    features, rotation,
    snapshot::{SnapshotBuilder, Snapshots, decode_state},
    type_config::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, membership_id},
    types::{ApiToken, Command, Outcome, State, TERMS_KEPT, TokenRecord},
};
use crate::{
    protocol::join::Refusal,
    types::{BootId, Member, MembershipId, NodeId, Office, Role, Why},
};

/// Most API tokens at a time: every one is compared with what a request shows.
const MAX_API_TOKENS: usize = 1_000;

/// The state, where it is published, and its snapshots.
pub(super) struct StateMachine {
    applied: Applied,
    board: Board,
    snapshots: Snapshots,
}

impl StateMachine {
    /// A state machine that goes on from `applied`, which is what `board` shows.
    pub(super) fn new(applied: Applied, board: Board, snapshots: Snapshots) -> Self {
        Self { applied, board, snapshots }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut published = true;
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = apply_entry(&mut self.applied, entry);
            published = responder.is_some();
            if let Some(responder) = responder {
                self.board.publish_applied(self.applied.clone());
                responder.send(outcome);
            }
        }
        if !published {
            self.board.publish_applied(self.applied.clone());
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { applied: self.applied.clone(), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let applied = decode_state(meta, &snapshot)?;
        self.snapshots.save_patiently(Snapshot { meta: meta.clone(), snapshot }).await?;
        self.applied = applied;
        self.board.publish_applied(self.applied.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.current().await)
    }
}

/// What the next entry of the log does.
pub(super) fn apply_entry(applied: &mut Applied, entry: Entry) -> Outcome {
    applied.last = Some(entry.log_id);
    match entry.payload {
        EntryPayload::Blank => Outcome::Done,
        EntryPayload::Membership(membership) => {
            applied.membership = StoredMembership::new(Some(entry.log_id), membership);
            Outcome::Done
        }
        EntryPayload::Normal(command) => {
            apply(Arc::make_mut(&mut applied.state), &applied.membership, command)
        }
    }
}

/// What `command` does to `state` under the membership in force. From the first one on that older versions
/// do not know, whoever comes has to know it.
fn apply(state: &mut State, membership: &StoredMembership, command: Command) -> Outcome {
    let features = features::needed(&command);
    let outcome = carry_out(state, membership, command);
    if outcome == Outcome::Done {
        state.feature_level |= features;
    }
    outcome
}

fn carry_out(state: &mut State, membership: &StoredMembership, command: Command) -> Outcome {
    match command {
        Command::Found {
            cluster,
            name,
            root,
            member,
            sealed_ca,
            profile,
            token,
            api_token,
            after,
            level: _,
        } => {
            if state.cluster.is_some() {
                return rejected("the cluster has been founded before");
            }
            // Nobody's office: no process ever draws boot 0, so the first leader names the next epoch's.
            let restored = (after > 0).then_some(Office {
                epoch: after,
                node: member.id,
                boot: BootId(0),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::Unknown,
            });
            *state = State {
                writer: restored,
                cluster: Some(cluster),
                name,
                roots: vec![root],
                sealed_ca: [(member.id, sealed_ca)].into(),
                members: [(member.id, member)].into(),
                tokens: [(token.id, token)].into(),
                api_tokens: [(api_token.name.clone(), api_token)].into(),
                profile,
                ..State::default()
            };
            Outcome::Done
        }
        Command::Admit { member, token, at_ms } => admit(state, member, token, at_ms),
        Command::Update { node, addresses, certificate, version, features } => {
            let level = state.feature_level;
            let Some(member) = state.members.get_mut(&node) else { return not_a_member(node) };
            if features::is_behind(level, features) {
                return rejected("the cluster was finalised at a newer version than this one");
            }
            member.addresses = addresses;
            if let Some((serial, not_after)) = certificate {
                (member.serial, member.not_after) = (serial, not_after);
            }
            (member.version, member.features) = (version, features);
            Outcome::Done
        }
        Command::Retire { node } => {
            if membership.voter_ids().all(|voter| voter == node) {
                return rejected("the node is the only voter: the cluster would be gone with it");
            }
            let Some(member) = state.members.get_mut(&node) else { return not_a_member(node) };
            if member.role == Role::Gateway {
                return rejected("a gateway is no voter, and has no data to be a reader with");
            }
            member.role = Role::Reader;
            Outcome::Done
        }
        Command::Enlist { node } => {
            let Some(member) = state.members.get_mut(&node) else { return not_a_member(node) };
            if member.role == Role::Gateway {
                return rejected("a gateway has no data, so it cannot become a voter: join it anew");
            }
            member.role = Role::Voter;
            Outcome::Done
        }
        Command::Drain { node, drained } => drain(state, membership, node, drained),
        Command::Finalise { .. } => {
            // Looked at again here: a member of an older version may have come meanwhile.
            features::lacking(state.members.values(), features::needed(&command))
                .map_or(Outcome::Done, Outcome::Rejected)
        }
        Command::Remove { node, at_ms } => {
            if state.removed.contains_key(&node) {
                return Outcome::Done;
            }
            if !state.members.contains_key(&node) {
                return not_a_member(node);
            }
            // Voters leave raft first, one step at a time (`membership.rs`), while they still answer:
            // without it two voters could remove one of them and never commit anything again.
            if membership.voter_ids().any(|voter| voter == node) {
                return rejected("the node is still a voter");
            }
            state.members.remove(&node);
            state.admitted_by.remove(&node);
            state.drained.remove(&node);
            state.sealed_ca.remove(&node);
            rotation::forget(state, node);
            state.removed.insert(node, at_ms);
            Outcome::Done
        }
        Command::SetWriter(office) => set_writer(state, membership, office),
        Command::CreateToken(token) => match state.tokens.get(&token.id) {
            Some(there) if *there != token => rejected("there is another join token of this id"),
            _ => {
                state.tokens.insert(token.id, token);
                Outcome::Done
            }
        },
        Command::RevokeToken { token } => match state.tokens.get_mut(&token) {
            Some(record) => {
                record.revoked = true;
                Outcome::Done
            }
            None => rejected("there is no such join token"),
        },
        Command::SealCa { node, sealed, of } => {
            rotation::seal(state, node, sealed, of.as_ref().map(|of| of.as_slice()))
        }
        Command::RotateCa { at_ms } => rotation::ask(state, at_ms),
        Command::AddRoot { succession, sealed } => {
            rotation::add_root(state, &membership.voter_ids().collect(), succession, sealed)
        }
        Command::ShowsRoot { node, root } => rotation::note_shown(state, node, &root),
        Command::DropFromRotation { nodes } => rotation::drop_members(state, nodes),
        Command::RetireRoot { root } => rotation::retire(state, &membership.voter_ids().collect(), &root),
        Command::CreateApiToken(token) => create_api_token(state, token),
        Command::RevokeApiToken { token } => {
            let before = state.api_tokens.len();
            state.api_tokens.retain(|_, there| there.id() != token);
            if state.api_tokens.len() < before {
                Outcome::Done
            } else {
                rejected("there is no such API token")
            }
        }
    }
}

/// Somebody must be left who may write and lead.
fn drain(state: &mut State, membership: &StoredMembership, node: NodeId, drained: bool) -> Outcome {
    if !state.members.contains_key(&node) {
        return not_a_member(node);
    }
    if !drained {
        state.drained.remove(&node);
        return Outcome::Done;
    }
    if membership.voter_ids().all(|voter| voter == node || state.drained.contains(&voter)) {
        return rejected("no other voter is left that may write: add one, or undrain one, first");
    }
    state.drained.insert(node);
    Outcome::Done
}

/// No name and no id twice, so that what is taken back is what was meant.
fn create_api_token(state: &mut State, token: ApiToken) -> Outcome {
    let same = |there: &&ApiToken| there.name == token.name || there.id() == token.id();
    match state.api_tokens.values().find(same) {
        Some(there) if *there == token => Outcome::Done,
        Some(_) => rejected("there is another API token of this name"),
        None if state.api_tokens.len() >= MAX_API_TOKENS => {
            rejected("there are 1,000 API tokens: take some back first (skein auth list, skein auth revoke)")
        }
        None => {
            state.api_tokens.insert(token.name.clone(), token);
            Outcome::Done
        }
    }
}

/// Spends a use of the token; a member that asks again (it lost the answer) spends nothing.
fn admit(state: &mut State, member: Member, token: crate::types::TokenId, at_ms: u64) -> Outcome {
    if state.removed.contains_key(&member.id) {
        return Outcome::Refused(Refusal::Removed);
    }
    if state.members.contains_key(&member.id) {
        return Outcome::Done;
    }
    if features::is_behind(state.feature_level, member.features) {
        return rejected("the cluster was finalised at a newer version than this one");
    }
    let Some(record) = state.tokens.get_mut(&token) else {
        return Outcome::Refused(Refusal::UnknownToken);
    };
    if let Some(refusal) = refusal(record, &member, at_ms) {
        return Outcome::Refused(refusal);
    }
    record.uses_left = record.uses_left.map(|uses| uses.saturating_sub(1));
    state.admitted_by.insert(member.id, token);
    state.members.insert(member.id, member);
    Outcome::Done
}

/// Why this token does not admit this member, if so.
fn refusal(token: &TokenRecord, member: &Member, at_ms: u64) -> Option<Refusal> {
    if token.revoked {
        Some(Refusal::Revoked)
    } else if token.expires_ms.is_some_and(|expires| expires <= at_ms) {
        Some(Refusal::Expired)
    } else if token.uses_left == Some(0) {
        Some(Refusal::Spent)
    } else if token.role != member.role {
        Some(Refusal::OtherRole)
    } else {
        None
    }
}

/// Rule 3 of section 6.4: only the next epoch, only under the membership whose majority was
/// counted, only a voter. Each clause has a counterexample without it; the tests name them.
fn set_writer(state: &mut State, membership: &StoredMembership, office: Office) -> Outcome {
    let current = state.writer.map_or(0, |writer| writer.epoch);
    // Model: membership_unchanged_since_seal
    let counted = office.membership == membership_id(membership);
    #[cfg(feature = "testing")]
    let counted = counted || crate::types::planted::is("setwriter_without_membership");
    // Model: next_epoch_only
    let takes = current.checked_add(1) == Some(office.epoch)
        && counted
        && membership.voter_ids().any(|voter| voter == office.node);
    if !takes {
        return Outcome::Stale(state.writer);
    }
    state.writer = Some(office);
    state.terms.push(office);
    let old = state.terms.len().saturating_sub(TERMS_KEPT);
    state.terms.drain(..old);
    Outcome::Done
}

fn rejected(reason: &str) -> Outcome {
    Outcome::Rejected(reason.into())
}

pub(super) fn not_a_member(node: NodeId) -> Outcome {
    Outcome::Rejected(format!("node {node} is not a member"))
}

#[cfg(test)]
mod tests;
