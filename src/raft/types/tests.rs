//! What API tokens of old bytes may do, and the bytes of the commands about them.

use super::*;

/// An API token as the first release wrote it.
#[derive(Serialize)]
struct OldApiToken {
    name: String,
    #[serde(with = "serde_bytes")]
    hash: Vec<u8>,
    admin: bool,
    created_ms: u64,
}

#[test]
fn a_token_of_old_bytes_may_what_it_might_and_no_more() {
    for admin in [true, false] {
        let old = OldApiToken { name: "admin".into(), hash: vec![7; 32], admin, created_ms: 5 };
        let bytes = crate::protocol::frame::encode(&old);
        let token: ApiToken = crate::protocol::frame::decode(&bytes, bytes.len()).unwrap();
        for scope in Scope::EVERY {
            assert_eq!(token.has(scope), admin, "{scope}");
        }
        assert_eq!((token.databases(), token.expires_ms, token.created_ms), (Databases::Every, None, 5));
        // And the other way round: what has no new fields is written as it was.
        assert_eq!(crate::protocol::frame::encode(&token), bytes);
    }
}

#[test]
fn scopes_databases_and_time() {
    let token = ApiToken {
        name: "grafana".into(),
        hash: (1..=32).collect(),
        read: true,
        databases: Some(BTreeSet::from(["home".to_owned()])),
        expires_ms: Some(1_000),
        ..ApiToken::default()
    };
    assert_eq!(token.id().to_string(), "0102030405060708");
    assert_eq!(Scope::EVERY.map(|scope| token.has(scope)), [true, false, false]);
    assert_eq!(token.scopes(), [Scope::Read]);
    assert!(token.databases().contains("home") && !token.databases().contains("other"));
    assert!(!token.is_expired(999) && token.is_expired(1_000));
    let admin = ApiToken { admin: true, databases: Some(BTreeSet::new()), ..ApiToken::default() };
    assert_eq!(Scope::EVERY.map(|scope| admin.has(scope)), [true; 3]);
    assert_eq!((admin.scopes(), admin.databases()), (vec![Scope::Admin], Databases::Every));
}

#[cfg(feature = "testing")]
#[test]
fn the_bytes_of_api_tokens_are_those_of_format_1() {
    let commands = [
        Command::CreateApiToken(ApiToken {
            name: "grafana".into(),
            hash: vec![7; 32],
            admin: false,
            read: true,
            write: true,
            databases: Some(BTreeSet::from(["home".to_owned(), "lab".to_owned()])),
            expires_ms: Some(1_800_000_000_000),
            created_ms: 1_700_000_000_000,
        }),
        Command::RevokeApiToken { token: TokenId(0x0707_0707_0707_0707) },
    ];
    let bytes = crate::protocol::frame::encode(&commands);
    crate::testing::fixture("raft/api-tokens", &bytes);
    let kept = crate::testing::read_fixture("raft/api-tokens");
    let read: Vec<Command> = crate::protocol::frame::decode(&kept, kept.len()).unwrap();
    assert_eq!(read, commands);
}

#[cfg(feature = "testing")]
#[test]
fn the_bytes_of_a_drain_are_those_of_format_1() {
    let node = NodeId([7; 16]);
    let commands = [Command::Drain { node, drained: true }, Command::Drain { node, drained: false }];
    let state = State { drained: [node].into(), ..State::default() };
    let bytes = crate::protocol::frame::encode(&(&commands, &state));
    crate::testing::fixture("raft/drained", &bytes);
    let kept = crate::testing::read_fixture("raft/drained");
    let read: ([Command; 2], State) = rmp_serde::from_slice(&kept).unwrap();
    assert_eq!(read, (commands, state));
}

#[cfg(feature = "testing")]
#[test]
fn the_bytes_of_a_finalised_cluster_are_those_of_format_1() {
    let Command::Found { cluster, name, root, member, sealed_ca, profile, token, api_token, after, .. } =
        crate::raft::control::found()
    else {
        panic!("a founding")
    };
    let found = Command::Found {
        cluster,
        name,
        root,
        member,
        sealed_ca,
        profile,
        token,
        api_token,
        after,
        level: 15,
    };
    let commands = [found, Command::Finalise { features: 31 }];
    let state = State { feature_level: 31, ..State::default() };
    let bytes = crate::protocol::frame::encode(&(&commands, &state));
    crate::testing::fixture("raft/finalised", &bytes);
    let kept = crate::testing::read_fixture("raft/finalised");
    let read: ([Command; 2], State) = rmp_serde::from_slice(&kept).unwrap();
    assert_eq!(read, (commands, state));
}
