//! One test per rule of the rotation.

use super::*;
use crate::{
    identity::ClusterCa,
    protocol::frame,
    raft::TokenRecord,
    types::{Addresses, ClusterId, Member, Role, TokenId},
};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const NOW: u64 = 1_800_000_000;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn ca(n: u8) -> ClusterCa {
    ClusterCa::create(CLUSTER, &[n; 32], NOW).unwrap()
}

fn fp(ca: &ClusterCa) -> Vec<u8> {
    ca.fingerprint().to_vec()
}

fn voters(ids: &[u8]) -> BTreeSet<NodeId> {
    ids.iter().map(|n| node(*n)).collect()
}

fn sealed(ids: &[u8], mark: u8) -> BTreeMap<NodeId, ByteBuf> {
    ids.iter().map(|n| (node(*n), ByteBuf::from(vec![mark, *n]))).collect()
}

fn member(n: u8) -> (NodeId, Member) {
    let member = Member {
        id: node(n),
        name: String::new(),
        role: Role::Voter,
        addresses: Addresses::default(),
        spki: vec![],
        seal_key: vec![],
        seal_key_signature: vec![],
        serial: String::new(),
        not_after: 0,
        version: String::new(),
        features: 0,
    };
    (node(n), member)
}

fn token(id: u64, pinned: bool) -> (TokenId, TokenRecord) {
    let record = TokenRecord {
        id: TokenId(id),
        role: Role::Voter,
        public_key: vec![1],
        mac_key: (!pinned).then(|| ByteBuf::from(vec![1])),
        expires_ms: None,
        uses_left: None,
        revoked: false,
        created_ms: 0,
    };
    (TokenId(id), record)
}

/// Voters 1 and 2, reader 3, a token that pins the root and one that was chosen up front.
fn state(root: &ClusterCa) -> State {
    State {
        cluster: Some(CLUSTER),
        roots: vec![root.certificate().to_vec().into()],
        members: [member(1), member(2), member(3)].into(),
        sealed_ca: sealed(&[1, 2], 1),
        tokens: [token(1, true), token(2, false)].into(),
        ..State::default()
    }
}

fn add(state: &mut State, old: &ClusterCa, new: &ClusterCa, to: &[u8]) -> Outcome {
    let succession = succession::sign(old, CLUSTER, new.certificate());
    add_root(state, &voters(&[1, 2]), succession, sealed(to, 2))
}

fn is_rejected(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Rejected(_))
}

#[test]
fn from_one_root_to_the_next() {
    let (old, new) = (ca(1), ca(2));
    let mut state = state(&old);
    let both = voters(&[1, 2]);
    assert_eq!(next_step(&state, &both), None);
    assert!(is_rejected(&add(&mut state, &old, &new, &[1, 2])), "nobody asked for it");
    assert_eq!(ask(&mut state, 5), Outcome::Done);
    assert!(matches!(ask(&mut state, 6), Outcome::Rejected(why) if why.contains("skein ca status")));
    assert_eq!(next_step(&state, &both), Some(RotationStep::MakeRoot));

    assert_eq!(add(&mut state, &old, &new, &[1, 2]), Outcome::Done);
    assert_eq!(add(&mut state, &old, &new, &[1, 2]), Outcome::Done, "a lost answer");
    assert!(is_rejected(&add(&mut state, &old, &ca(3), &[1, 2])), "of a leader that was deposed");
    assert_eq!(state.roots, [old.certificate(), new.certificate()]);
    assert!(state.tokens[&TokenId(1)].revoked && !state.tokens[&TokenId(2)].revoked);
    assert_eq!(next_step(&state, &both), None, "three members have to renew");

    for n in [1, 2, 3] {
        assert!(is_rejected(&retire(&mut state, &both, &fp(&old))), "{n} is missing");
        assert!(is_rejected(&note_shown(&mut state, node(n), &fp(&old))), "not the one that signs");
        assert_eq!(note_shown(&mut state, node(n), &fp(&new)), Outcome::Done);
    }
    assert_eq!(next_step(&state, &both), Some(RotationStep::Retire));
    assert!(is_rejected(&retire(&mut state, &both, &fp(&new))), "never the one that signs");
    assert_eq!(retire(&mut state, &both, &fp(&old)), Outcome::Done);
    assert_eq!(retire(&mut state, &both, &fp(&old)), Outcome::Done, "a lost answer");
    assert_eq!(state.roots, [new.certificate()]);
    assert_eq!((state.sealed_ca.clone(), state.rotation.clone()), (sealed(&[1, 2], 2), None));
    assert_eq!(next_step(&state, &both), None);
    assert!(is_rejected(&retire(&mut state, &both, &fp(&new))), "it is the only root");
    assert_eq!(note_shown(&mut state, node(1), &fp(&new)), Outcome::Done, "said once too often");
    assert!(is_rejected(&note_shown(&mut state, node(9), &fp(&new))));
    // Who knew the first root only believes the new one.
    assert!(
        succession::trusted(&[old.certificate()], CLUSTER, &state.successions)
            .contains(&new.certificate().to_vec())
    );
}

#[test]
fn a_new_root_is_vouched_for_and_sealed_to_every_voter() {
    let (old, new, evil) = (ca(1), ca(2), ca(9));
    let mut state = state(&old);
    ask(&mut state, 5);
    let before = state.clone();
    assert!(is_rejected(&add(&mut state, &evil, &new, &[1, 2])));
    assert!(is_rejected(&add(&mut state, &old, &new, &[1])), "a voter would lose the key");
    assert_eq!(state, before);
    // A copy for a node that is no member any more is not kept.
    assert_eq!(add(&mut state, &old, &new, &[1, 2, 8]), Outcome::Done);
    assert_eq!(state.rotation.unwrap().sealed_ca, sealed(&[1, 2], 2));
}

#[test]
fn who_was_a_voter_and_is_a_reader_gets_no_new_key() {
    let (old, new) = (ca(1), ca(2));
    let mut state = state(&old);
    state.members.get_mut(&node(3)).unwrap().role = Role::Reader;
    state.sealed_ca = sealed(&[1, 2, 3], 1);
    assert_eq!(key_holders(&state, &voters(&[1, 2])).collect::<Vec<_>>(), [node(1), node(2)]);
    // Still a voter while it is being demoted.
    assert_eq!(key_holders(&state, &voters(&[1, 2, 3])).count(), 3);
    assert_eq!(ask(&mut state, 0), Outcome::Done);
    assert_eq!(add(&mut state, &old, &new, &[1, 2]), Outcome::Done);
    assert_ne!(next_step(&state, &voters(&[1, 2])), Some(RotationStep::Seal(node(3))));
}

#[test]
fn a_voter_that_came_meanwhile_gets_both_keys() {
    let (old, new) = (ca(1), ca(2));
    let mut state = state(&old);
    ask(&mut state, 5);
    add(&mut state, &old, &new, &[1, 2]);
    let key = |mark: u8| ByteBuf::from(vec![mark, 3]);
    assert_eq!(seal(&mut state, node(3), key(1), Some(&fp(&old))), Outcome::Done);
    assert_eq!(fully_sealed(&state), voters(&[1, 2]), "it may not vote with the old key alone");
    // It votes all the same: a promotion was under way when the root was made.
    let three = voters(&[1, 2, 3]);
    assert_eq!(next_step(&state, &three), Some(RotationStep::Seal(node(3))));
    for n in [1, 2, 3] {
        note_shown(&mut state, node(n), &fp(&new));
    }
    assert!(is_rejected(&retire(&mut state, &three, &fp(&old))), "a voter would hold no key");
    assert_eq!(seal(&mut state, node(3), key(2), Some(&fp(&new))), Outcome::Done);
    assert_eq!(fully_sealed(&state), three);
    assert_eq!(next_step(&state, &three), Some(RotationStep::Retire));
    assert_eq!(retire(&mut state, &three, &fp(&old)), Outcome::Done);
    assert_eq!(state.sealed_ca, sealed(&[1, 2, 3], 2));
    // A copy of the old key that comes late, of a leader that lags, or of a version that names no root.
    assert!(is_rejected(&seal(&mut state, node(3), key(1), Some(&fp(&old)))));
    assert!(is_rejected(&seal(&mut state, node(3), key(1), None)));
    assert!(is_rejected(&seal(&mut state, node(9), key(2), Some(&fp(&new)))));
    assert_eq!(state.sealed_ca, sealed(&[1, 2, 3], 2));
}

#[test]
fn the_dead_are_not_waited_for_once_they_are_dropped_or_removed() {
    let (old, new) = (ca(1), ca(2));
    let mut state = state(&old);
    let both = voters(&[1, 2]);
    assert!(is_rejected(&drop_members(&mut state, voters(&[3]))), "nothing is under way");
    ask(&mut state, 5);
    add(&mut state, &old, &new, &[1, 2]);
    note_shown(&mut state, node(1), &fp(&new));
    assert!(is_rejected(&drop_members(&mut state, voters(&[3, 9]))), "nobody is dropped with a stranger");
    assert_eq!(drop_members(&mut state, voters(&[3])), Outcome::Done);
    assert_eq!(next_step(&state, &both), None);
    let progress = &state.rotation.as_ref().unwrap().progress;
    assert_eq!(progress.waits_for(&state.members), voters(&[2]));
    state.members.remove(&node(2));
    forget(&mut state, node(2));
    assert_eq!(next_step(&state, &voters(&[1])), Some(RotationStep::Retire));
    assert_eq!(retire(&mut state, &voters(&[1]), &fp(&old)), Outcome::Done);
    assert_eq!(state.sealed_ca, sealed(&[1], 2));
}

#[test]
fn state_and_commands_of_before_are_read_and_written_as_they_were() {
    let state = state(&ca(1));
    let bytes = frame::encode(&state);
    assert_eq!(frame::decode::<State>(&bytes, bytes.len()).unwrap(), state);
    let holds = |word: &[u8]| bytes.windows(word.len()).any(|at| at == word);
    assert!(!holds(b"rotation") && !holds(b"successions"), "nothing to say, nothing written");

    #[derive(Serialize)]
    enum OldCommand {
        SealCa { node: NodeId, sealed: ByteBuf },
    }
    let (node, sealed) = (node(1), ByteBuf::from(vec![1]));
    let old = frame::encode(&OldCommand::SealCa { node, sealed: sealed.clone() });
    let ours = super::super::Command::SealCa { node, sealed, of: None };
    assert_eq!(frame::encode(&ours), old);
    assert_eq!(frame::decode::<super::super::Command>(&old, old.len()).unwrap(), ours);

    let mut rotating = state;
    ask(&mut rotating, 5);
    add(&mut rotating, &ca(1), &ca(2), &[1, 2]);
    let bytes = frame::encode(&rotating);
    assert_eq!(frame::decode::<State>(&bytes, bytes.len()).unwrap(), rotating);
}

#[test]
fn the_steps_that_are_kept_are_the_last() {
    let mut state = state(&ca(1));
    let both = voters(&[1, 2]);
    for n in 1..=20 {
        ask(&mut state, 5);
        assert_eq!(add(&mut state, &ca(n), &ca(n + 1), &[1, 2]), Outcome::Done);
        drop_members(&mut state, voters(&[1, 2, 3]));
        assert_eq!(retire(&mut state, &both, &fp(&ca(n))), Outcome::Done);
    }
    assert_eq!(state.successions.len(), SUCCESSIONS_KEPT);
    let trusted = |n: u8| succession::trusted(&[ca(n).certificate()], CLUSTER, &state.successions);
    assert_eq!(trusted(5).last().unwrap(), ca(21).certificate());
    assert_eq!(trusted(4).len(), 1, "it was away for too long");
}

#[cfg(feature = "testing")]
#[test]
fn the_bytes_of_the_commands_are_those_of_format_1() {
    use super::super::Command;
    let commands = [
        Command::RotateCa { at_ms: 1_800_000_000_000 },
        Command::AddRoot {
            succession: Succession { root: vec![1; 3], after: vec![2; 32], signature: vec![3; 64] },
            sealed: sealed(&[1], 2),
        },
        Command::ShowsRoot { node: node(1), root: ByteBuf::from(vec![4; 32]) },
        Command::DropFromRotation { nodes: voters(&[1, 2]) },
        Command::RetireRoot { root: ByteBuf::from(vec![5; 32]) },
        Command::SealCa {
            node: node(1),
            sealed: ByteBuf::from(vec![6]),
            of: Some(ByteBuf::from(vec![7; 32])),
        },
    ];
    crate::testing::fixture("raft/ca-rotation", &frame::encode(&commands));
    let kept = crate::testing::read_fixture("raft/ca-rotation");
    let read: Vec<Command> = frame::decode(&kept, kept.len()).unwrap();
    assert_eq!(read, commands);
}
