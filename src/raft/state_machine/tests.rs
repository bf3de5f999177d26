//! One test per rule of apply.

use std::collections::BTreeSet;

use openraft::{Membership, vote::leader_id_std::CommittedLeaderId};

use super::*;
use crate::types::{Addresses, BootId, ClusterId, MembershipId, Role, TimingProfile, TokenId, Why};

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn member(n: u8, role: Role) -> Member {
    Member {
        id: node(n),
        name: format!("n{n}"),
        role,
        addresses: Addresses::default(),
        spki: vec![n],
        seal_key: vec![n],
        seal_key_signature: vec![n],
        serial: "1".into(),
        not_after: 1,
        version: "0".into(),
        features: 0,
    }
}

fn token(id: u64, role: Role, uses: Option<u32>, expires_ms: Option<u64>) -> TokenRecord {
    TokenRecord {
        id: TokenId(id),
        role,
        public_key: vec![1],
        mac_key: None,
        expires_ms,
        uses_left: uses,
        revoked: false,
        created_ms: 0,
    }
}

fn bytes(n: u8) -> serde_bytes::ByteBuf {
    serde_bytes::ByteBuf::from(vec![n])
}

fn found(n: u8) -> Command {
    Command::Found {
        cluster: ClusterId([n; 16]),
        name: "demo".into(),
        root: bytes(n),
        member: member(n, Role::Voter),
        sealed_ca: bytes(n),
        profile: TimingProfile::Wan,
        token: token(1, Role::Voter, Some(2), Some(1000)),
        api_token: ApiToken {
            name: "first".into(),
            hash: vec![9],
            admin: true,
            created_ms: 0,
            ..ApiToken::default()
        },
        after: 0,
        level: 0,
    }
}

fn membership(index: u64, sets: &[&[u8]], learners: &[u8]) -> StoredMembership {
    let set = |ids: &&[u8]| ids.iter().map(|n| node(*n)).collect::<BTreeSet<_>>();
    let learners = learners.iter().map(|n| node(*n));
    StoredMembership::new(
        Some(LogId::new(CommittedLeaderId::new(3), index)),
        Membership::new_with_defaults(sets.iter().map(set).collect(), learners),
    )
}

/// A founded cluster of node 1, and the membership in force.
fn founded() -> (State, StoredMembership) {
    let (mut state, membership) = (State::default(), membership(0, &[&[1]], &[]));
    assert_eq!(apply(&mut state, &membership, found(1)), Outcome::Done);
    (state, membership)
}

fn admit_command(n: u8, role: Role, token: u64, at_ms: u64) -> Command {
    Command::Admit { member: member(n, role), token: TokenId(token), at_ms }
}

#[test]
fn a_cluster_is_founded_once() {
    let (mut state, membership) = founded();
    let before = state.clone();
    assert!(matches!(apply(&mut state, &membership, found(2)), Outcome::Rejected(_)));
    assert_eq!(state, before);
    assert_eq!(state.profile, TimingProfile::Wan);
    assert!(state.sealed_ca.contains_key(&node(1)));
}

#[test]
fn somebody_is_left_who_may_write() {
    let (mut state, _) = founded();
    let m = membership(1, &[&[1, 2, 3]], &[4]);
    for n in 2..=4 {
        let before = state.clone();
        let twice = admit_command(n, Role::Voter, 1, 10);
        if apply(&mut state, &m, twice) != Outcome::Done {
            state = before;
            state.members.insert(node(n), member(n, Role::Voter));
        }
    }
    let drain = |n, drained| Command::Drain { node: node(n), drained };
    assert!(matches!(apply(&mut state, &m, drain(9, true)), Outcome::Rejected(_)));
    assert_eq!(state.feature_level, 0, "nothing was done that old versions do not know");
    assert_eq!(apply(&mut state, &m, drain(1, true)), Outcome::Done);
    assert_eq!(state.feature_level, features::OPERATOR_COMMANDS);
    assert_eq!(apply(&mut state, &m, drain(2, true)), Outcome::Done);
    assert!(matches!(apply(&mut state, &m, drain(3, true)), Outcome::Rejected(_)));
    assert_eq!(apply(&mut state, &m, drain(4, true)), Outcome::Done, "a reader is no voter");
    assert!(matches!(apply(&mut state, &m, drain(9, true)), Outcome::Rejected(_)));
    assert_eq!(apply(&mut state, &m, drain(2, false)), Outcome::Done);
    assert_eq!(apply(&mut state, &m, drain(3, true)), Outcome::Done);
    assert_eq!(state.drained, [node(1), node(3), node(4)].into());
    let gone = Command::Remove { node: node(4), at_ms: 1 };
    assert_eq!(apply(&mut state, &m, gone), Outcome::Done);
    assert_eq!(state.drained, [node(1), node(3)].into());
}

/// What was proposed before the cluster was finalised and is applied behind it, in either order.
#[test]
fn whoever_is_older_has_no_place_behind_a_finalisation() {
    let (mut state, m) = founded();
    let all = features::FINALISE | features::OPERATOR_COMMANDS;
    let update = |features| Command::Update {
        node: node(1),
        addresses: Addresses::default(),
        certificate: None,
        version: "1".into(),
        features,
    };
    let admit = |n, features| Command::Admit {
        member: Member { features, ..member(n, Role::Voter) },
        token: TokenId(1),
        at_ms: 10,
    };
    let finalise = Command::Finalise { features: all };
    let rejected = |outcome: Outcome| matches!(outcome, Outcome::Rejected(_));

    // A member that lacks it came first: nothing is finalised, and whoever comes may still be older.
    let before = state.clone();
    assert!(rejected(apply(&mut state, &m, finalise.clone())));
    assert_eq!(state, before);
    assert_eq!(apply(&mut state, &m, update(all)), Outcome::Done);
    assert_eq!(apply(&mut state, &m, finalise), Outcome::Done);
    assert_eq!(state.feature_level, all);

    // Behind it an older one neither comes nor goes back, and spends no use of a token.
    let before = state.clone();
    assert!(rejected(apply(&mut state, &m, admit(2, features::OPERATOR_COMMANDS))));
    assert!(rejected(apply(&mut state, &m, update(features::OPERATOR_COMMANDS))));
    assert_eq!(state, before);
    assert_eq!(apply(&mut state, &m, admit(2, all | 64)), Outcome::Done);
    assert_eq!(apply(&mut state, &m, update(all | 64)), Outcome::Done);

    // A new cluster begins where its first node stands.
    let Command::Found { cluster, name, root, member, sealed_ca, profile, token, api_token, after, .. } =
        found(1)
    else {
        panic!("a founding");
    };
    let level = all;
    let found =
        Command::Found { cluster, name, root, member, sealed_ca, profile, token, api_token, after, level };
    let mut state = State::default();
    assert_eq!(apply(&mut state, &m, found), Outcome::Done);
    assert_eq!(state.feature_level, all);
}

#[test]
fn epochs_of_a_restored_cluster_begin_behind_those_of_its_data() {
    let (mut state, m) = (State::default(), membership(0, &[&[1]], &[]));
    let Command::Found { cluster, name, root, member, sealed_ca, profile, token, api_token, .. } = found(1)
    else {
        panic!("a founding");
    };
    let restored = Command::Found {
        cluster,
        name,
        root,
        member,
        sealed_ca,
        profile,
        token,
        api_token,
        after: 7,
        level: 0,
    };
    assert_eq!(apply(&mut state, &m, restored), Outcome::Done);
    assert_eq!(state.feature_level, features::OPERATOR_COMMANDS, "who does not know this would go astray");
    let office = |epoch| Command::SetWriter(Office { epoch, boot: BootId(5), ..state.writer.unwrap() });
    let next = |epoch, mut state: State| {
        let Command::SetWriter(office) = office(epoch) else { panic!("an office") };
        let office = Office { membership: membership_id(&m), ..office };
        (apply(&mut state, &m, Command::SetWriter(office)), state.writer.unwrap().epoch)
    };
    assert!(state.terms.is_empty(), "nobody has written here");
    assert!(matches!(next(1, state.clone()), (Outcome::Stale(_), 7)));
    assert_eq!(next(8, state.clone()), (Outcome::Done, 8));
}

#[test]
fn admitting_spends_one_use_per_node_and_asking_again_spends_none() {
    let (mut state, m) = founded();
    for _ in 0..3 {
        assert_eq!(apply(&mut state, &m, admit_command(2, Role::Voter, 1, 10)), Outcome::Done);
        assert_eq!(state.tokens[&TokenId(1)].uses_left, Some(1));
    }
    assert_eq!(apply(&mut state, &m, admit_command(3, Role::Voter, 1, 10)), Outcome::Done);
    assert_eq!(apply(&mut state, &m, admit_command(4, Role::Voter, 1, 10)), Outcome::Refused(Refusal::Spent));
    // Its token is spent, but node 3 is in.
    assert_eq!(apply(&mut state, &m, admit_command(3, Role::Voter, 1, 10)), Outcome::Done);
    assert_eq!(state.members.len(), 3);
}

#[test]
fn a_token_refuses_for_each_reason_and_is_not_spent_by_it() {
    let (mut state, m) = founded();
    let before = state.clone();
    let refused = |state: &mut State, command| match apply(state, &m, command) {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut state, admit_command(2, Role::Voter, 99, 10)), Refusal::UnknownToken);
    assert_eq!(refused(&mut state, admit_command(2, Role::Voter, 1, 1000)), Refusal::Expired);
    assert_eq!(refused(&mut state, admit_command(2, Role::Reader, 1, 10)), Refusal::OtherRole);
    assert_eq!(state, before);
    apply(&mut state, &m, Command::RevokeToken { token: TokenId(1) });
    assert_eq!(refused(&mut state, admit_command(2, Role::Voter, 1, 10)), Refusal::Revoked);
    assert_eq!(state.tokens[&TokenId(1)].uses_left, Some(2));
    assert_eq!(state.members.len(), 1);
}

#[test]
fn a_token_without_limits_admits_any_number() {
    let (mut state, m) = founded();
    apply(&mut state, &m, Command::CreateToken(token(2, Role::Reader, None, None)));
    for n in 2..40 {
        assert_eq!(apply(&mut state, &m, admit_command(n, Role::Reader, 2, u64::MAX)), Outcome::Done);
    }
}

#[test]
fn a_removed_node_never_comes_back() {
    let (mut state, m) = founded();
    apply(&mut state, &m, admit_command(2, Role::Voter, 1, 10));
    apply(&mut state, &m, Command::SealCa { node: node(2), sealed: bytes(2), of: None });
    let remove = || Command::Remove { node: node(2), at_ms: 77 };
    // A voter retires first, and only if another is left.
    let retire = || Command::Retire { node: node(2) };
    assert!(matches!(apply(&mut state, &membership(4, &[&[2]], &[]), retire()), Outcome::Rejected(_)));
    let both = membership(5, &[&[1, 2]], &[]);
    assert_eq!(apply(&mut state, &both, retire()), Outcome::Done);
    assert_eq!(state.members[&node(2)].role, Role::Reader);
    for voting in [both, membership(6, &[&[1, 2], &[1]], &[])] {
        assert!(matches!(apply(&mut state, &voting, remove()), Outcome::Rejected(_)));
    }
    assert_eq!(apply(&mut state, &membership(7, &[&[1]], &[2]), remove()), Outcome::Done);
    assert!(!state.members.contains_key(&node(2)) && !state.sealed_ca.contains_key(&node(2)));
    assert_eq!(state.removed[&node(2)], 77);
    assert_eq!(apply(&mut state, &m, Command::Remove { node: node(2), at_ms: 99 }), Outcome::Done);
    assert_eq!(state.removed[&node(2)], 77);
    assert_eq!(
        apply(&mut state, &m, admit_command(2, Role::Voter, 1, 10)),
        Outcome::Refused(Refusal::Removed)
    );
    let stranger = Command::Remove { node: node(9), at_ms: 1 };
    assert!(matches!(apply(&mut state, &m, stranger), Outcome::Rejected(_)));
}

#[test]
fn only_members_are_updated_and_sealed_to() {
    let (mut state, m) = founded();
    let update = |n, certificate| Command::Update {
        node: node(n),
        addresses: Addresses { mesh: vec!["127.0.0.1:1".parse().unwrap()], http: None },
        certificate,
        version: "2".into(),
        features: 5,
    };
    assert!(matches!(apply(&mut state, &m, update(2, None)), Outcome::Rejected(_)));
    let seal = Command::SealCa { node: node(2), sealed: bytes(2), of: None };
    assert!(matches!(apply(&mut state, &m, seal), Outcome::Rejected(_)));
    assert_eq!(apply(&mut state, &m, update(1, None)), Outcome::Done);
    assert_eq!((state.members[&node(1)].serial.as_str(), state.members[&node(1)].features), ("1", 5));
    assert_eq!(apply(&mut state, &m, update(1, Some(("ff".into(), 9)))), Outcome::Done);
    assert_eq!(state.members[&node(1)].not_after, 9);
}

#[test]
fn tokens_are_created_once() {
    let (mut state, m) = founded();
    let create = |uses| Command::CreateToken(token(2, Role::Reader, uses, None));
    assert_eq!(apply(&mut state, &m, create(Some(1))), Outcome::Done);
    assert_eq!(apply(&mut state, &m, create(Some(1))), Outcome::Done);
    apply(&mut state, &m, admit_command(2, Role::Reader, 2, 0));
    // The proposer of the first one asks again after a use: that must not give the use back.
    assert!(matches!(apply(&mut state, &m, create(Some(1))), Outcome::Rejected(_)));
    let revoke = Command::RevokeToken { token: TokenId(42) };
    assert!(matches!(apply(&mut state, &m, revoke), Outcome::Rejected(_)));
}

#[test]
fn api_tokens_have_one_name_and_one_id_each_and_leave_nothing() {
    let (mut state, m) = founded();
    let token = |name: &str, hash: u8| ApiToken {
        name: name.into(),
        hash: vec![hash; 32],
        read: true,
        ..ApiToken::default()
    };
    let create = |token: ApiToken| Command::CreateApiToken(token);
    assert_eq!(apply(&mut state, &m, create(token("x", 1))), Outcome::Done);
    assert_eq!(apply(&mut state, &m, create(token("x", 1))), Outcome::Done, "a lost answer");
    for other in [token("x", 2), token("y", 1), ApiToken { admin: true, ..token("x", 1) }] {
        assert!(matches!(apply(&mut state, &m, create(other)), Outcome::Rejected(_)));
    }
    let revoke = Command::RevokeApiToken { token: token("x", 1).id() };
    assert_eq!(apply(&mut state, &m, revoke.clone()), Outcome::Done);
    assert!(matches!(apply(&mut state, &m, revoke), Outcome::Rejected(_)));
    assert_eq!(state.api_tokens.keys().collect::<Vec<_>>(), ["first"]);
    for n in 1..MAX_API_TOKENS {
        let hash = (1_000 + n as u64).to_be_bytes().to_vec();
        let more = ApiToken { name: n.to_string(), hash, ..ApiToken::default() };
        assert_eq!(apply(&mut state, &m, create(more)), Outcome::Done);
    }
    assert!(matches!(apply(&mut state, &m, create(token("one too many", 7))), Outcome::Rejected(_)));
}

fn office(epoch: u64, n: u8, index: u64) -> Office {
    Office {
        epoch,
        node: node(n),
        boot: BootId(1),
        membership: MembershipId { term: 3, index },
        at_ms: 0,
        why: Why::default(),
    }
}

#[test]
fn an_epoch_is_neither_skipped_nor_given_twice() {
    let (mut state, m) = founded();
    assert_eq!(apply(&mut state, &m, Command::SetWriter(office(2, 1, 0))), Outcome::Stale(None));
    assert_eq!(apply(&mut state, &m, Command::SetWriter(office(0, 1, 0))), Outcome::Stale(None));
    assert_eq!(apply(&mut state, &m, Command::SetWriter(office(1, 1, 0))), Outcome::Done);
    let holds = state.writer;
    let rival = Office { boot: BootId(2), ..office(1, 1, 0) };
    for late in [rival, office(1, 1, 0), office(3, 1, 0), office(0, 1, 0)] {
        assert_eq!(apply(&mut state, &m, Command::SetWriter(late)), Outcome::Stale(holds));
    }
    assert_eq!(apply(&mut state, &m, Command::SetWriter(office(2, 1, 0))), Outcome::Done);
}

#[test]
fn an_office_counted_under_another_membership_is_stale() {
    let (mut state, _) = founded();
    // The majority was counted among {1, 2, 3} (entry 5); node 4 came in before this applied.
    let now = membership(8, &[&[1, 2, 3], &[1, 2, 3, 4]], &[]);
    assert_eq!(apply(&mut state, &now, Command::SetWriter(office(1, 1, 5))), Outcome::Stale(None));
    // Same index, other term: another entry.
    let other_term = Office { membership: MembershipId { term: 2, index: 8 }, ..office(1, 1, 8) };
    assert_eq!(apply(&mut state, &now, Command::SetWriter(other_term)), Outcome::Stale(None));
    // The joint entry and the uniform one behind it are two memberships.
    assert_eq!(apply(&mut state, &now, Command::SetWriter(office(1, 4, 8))), Outcome::Done);
    let uniform = membership(9, &[&[1, 2, 3, 4]], &[]);
    assert!(matches!(apply(&mut state, &uniform, Command::SetWriter(office(2, 4, 8))), Outcome::Stale(_)));
    assert_eq!(apply(&mut state, &uniform, Command::SetWriter(office(2, 4, 9))), Outcome::Done);
}

#[test]
fn only_a_voter_takes_office() {
    let (mut state, _) = founded();
    let m = membership(6, &[&[1, 2]], &[3]);
    for n in [3, 9] {
        assert_eq!(apply(&mut state, &m, Command::SetWriter(office(1, n, 6))), Outcome::Stale(None));
    }
    assert_eq!(apply(&mut state, &m, Command::SetWriter(office(1, 2, 6))), Outcome::Done);
}

#[test]
fn a_snapshot_carries_the_whole_state() {
    let (mut state, m) = founded();
    apply(&mut state, &m, admit_command(2, Role::Voter, 1, 10));
    apply(&mut state, &m, Command::SetWriter(office(1, 1, 0)));
    let bytes = crate::protocol::frame::encode(&state);
    let meta = SnapshotMeta { last_log_id: *m.log_id(), last_membership: m.clone() };
    let back = decode_state(&meta, &bytes).unwrap();
    assert_eq!(*back.state, state);
    assert_eq!(back.membership, m);
    assert!(decode_state(&meta, &bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn the_last_terms_of_office_are_remembered_and_no_more() {
    let (mut state, m) = founded();
    for epoch in 1..=40 {
        let named = Office { at_ms: epoch * 10, why: Why::Silent, ..office(epoch, 1, 0) };
        assert_eq!(apply(&mut state, &m, Command::SetWriter(named)), Outcome::Done);
        assert!(matches!(apply(&mut state, &m, Command::SetWriter(named)), Outcome::Stale(_)));
    }
    let epochs: Vec<u64> = state.terms.iter().map(|term| term.epoch).collect();
    assert_eq!(epochs, (9..=40).collect::<Vec<u64>>());
    assert_eq!((state.terms.last().copied(), state.terms[0].at_ms), (state.writer, 90));
}

/// A register, and a state, of a node that does not know of times and terms; and what it makes of ours.
#[test]
fn offices_of_before_times_were_noted_are_read() {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Old {
        epoch: u64,
        node: NodeId,
        boot: BootId,
        membership: MembershipId,
    }
    let Office { epoch, node, boot, membership, .. } = office(7, 1, 3);
    let old = Old { epoch, node, boot, membership };
    let bytes = rmp_serde::to_vec_named(&old).unwrap();
    assert_eq!(rmp_serde::from_slice::<Office>(&bytes).unwrap(), office(7, 1, 3));
    assert_eq!(rmp_serde::to_vec_named(&office(7, 1, 3)).unwrap(), bytes, "nothing noted, nothing written");
    let noted = Office { at_ms: 1_700_000_000_000, why: Why::HandedOver, ..office(7, 1, 3) };
    let ours = rmp_serde::to_vec_named(&noted).unwrap();
    assert_eq!(rmp_serde::from_slice::<Office>(&ours).unwrap(), noted);
    assert_eq!(
        rmp_serde::from_slice::<Old>(&ours).unwrap(),
        old,
        "an older node skips what it does not know"
    );
    // The words are part of the format.
    assert!(ours.windows(11).any(|at| at == b"handed_over") && ours.windows(5).any(|at| at == b"at_ms"));
    let (state, _) = founded();
    let bytes = rmp_serde::to_vec_named(&state).unwrap();
    assert!(!bytes.windows(5).any(|at| at == b"terms"));
    assert_eq!(rmp_serde::from_slice::<State>(&bytes).unwrap(), state);
}

#[test]
fn a_reader_enlists_and_a_gateway_stays_one() {
    let (mut state, m) = founded();
    assert!(matches!(apply(&mut state, &m, Command::Enlist { node: node(2) }), Outcome::Rejected(_)));
    for (n, role) in [(2, Role::Reader), (3, Role::Gateway)] {
        state.members.insert(node(n), member(n, role));
    }
    assert_eq!(apply(&mut state, &m, Command::Enlist { node: node(2) }), Outcome::Done);
    assert_eq!(state.members[&node(2)].role, Role::Voter);
    for change in [Command::Enlist { node: node(3) }, Command::Retire { node: node(3) }] {
        assert!(matches!(apply(&mut state, &m, change), Outcome::Rejected(_)));
    }
    assert_eq!(state.members[&node(3)].role, Role::Gateway);
}
