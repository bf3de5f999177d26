//! Files of a voter that has lost the two others, on a disk that loses power.

use std::{collections::BTreeMap, path::Path, time::Duration};

use openraft::{
    EntryPayload,
    async_runtime::Oneshot,
    storage::{IOFlushed, RaftLogStorage},
    type_config::alias::OneshotOf,
};
use serde_bytes::ByteBuf;

use super::*;
use crate::{
    raft::{
        ApiToken, Command, Control, MeshSlot, Outcome, RaftConfig, TokenRecord,
        type_config::{Entry, TypeConfig},
    },
    testing::{Fault, SimDisk},
    types::{Addresses, ClusterId, Lsn, Member, Role, TimingProfile, TokenId},
};

const DIR: &str = "node/raft";

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn member(n: u8) -> Member {
    Member {
        id: node(n),
        name: format!("n{n}"),
        role: Role::Voter,
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

fn token(id: u64) -> TokenRecord {
    TokenRecord {
        id: TokenId(id),
        role: Role::Voter,
        public_key: vec![1],
        mac_key: None,
        expires_ms: None,
        uses_left: None,
        revoked: false,
        created_ms: 0,
    }
}

fn recovery() -> Recovery {
    Recovery { generation: 1, by: node(1), nonce: 7, kept: Lsn::new(3, 9), signature: vec![1] }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// Voters 1, 2 and 3, node 4 just removed: node 1 has the entry, and has not heard that it is
/// committed. Node 2 leads.
fn entries() -> Vec<Entry> {
    let voters = BTreeSet::from([node(1), node(2), node(3)]);
    let found = Command::Found {
        cluster: ClusterId([7; 16]),
        name: "demo".into(),
        root: ByteBuf::from(vec![1]),
        member: member(1),
        sealed_ca: ByteBuf::from(vec![1]),
        profile: TimingProfile::Fast,
        token: token(1),
        api_token: ApiToken {
            name: "first".into(),
            hash: vec![1],
            admin: true,
            created_ms: 0,
            ..ApiToken::default()
        },
        after: 0,
        level: 0,
    };
    let admit = |n| Command::Admit { member: member(n), token: TokenId(1), at_ms: 0 };
    let office = Office {
        epoch: 1,
        node: node(2),
        boot: BootId(2),
        membership: crate::types::MembershipId { term: 1, index: 0 },
        at_ms: 0,
        why: crate::types::Why::default(),
    };
    let mut payloads = vec![EntryPayload::Membership(Membership::new_with_defaults(vec![voters], []))];
    let commands = [
        found,
        admit(2),
        admit(3),
        admit(4),
        Command::SetWriter(office),
        Command::CreateToken(token(2)),
        Command::Remove { node: node(4), at_ms: 5 },
    ];
    payloads.extend(commands.into_iter().map(EntryPayload::Normal));
    (0..).zip(payloads).map(|(index, payload)| Entry { log_id: id(1, index), payload }).collect()
}

async fn lay_down(disk: &SimDisk) {
    let disk: Arc<dyn Disk> = Arc::new(disk.boot());
    let (mut log, writer) = LogStore::open(disk, Path::new(DIR), watch::Sender::new(None)).await.unwrap();
    let writer = tokio::spawn(writer.run());
    log.save_vote(&Vote::new_committed(4, node(2))).await.unwrap();
    let (tx, rx) = OneshotOf::<TypeConfig>::channel();
    log.append(entries(), IOFlushed::signal(tx)).await.unwrap();
    rx.await.unwrap().unwrap();
    log.save_committed(Some(id(1, 5))).await.unwrap();
    drop(log);
    writer.await.unwrap();
}

/// As an operator does it, and does it again.
async fn recover(disk: &SimDisk) -> Result<(), ControlError> {
    let survivor = Survivor::open(Arc::new(disk.boot()), DIR.into()).await?;
    let half_done = survivor.state().recovery.clone();
    survivor.carry_on_alone(node(1), &half_done.unwrap_or_else(recovery)).await
}

/// The new cluster works, and holds everything that node 1 held.
async fn check(disk: &SimDisk, what: &str) {
    let booted: Arc<dyn Disk> = Arc::new(disk.boot());
    assert_eq!(recovery_in(booted.clone(), DIR.into()).await.unwrap(), Some(Some(recovery())), "{what}");
    let config = RaftConfig { id: node(1), dir: DIR.into(), timing: TimingProfile::Fast.timing(), seed: 1 };
    let started = Control::start(config, booted, MeshSlot::default()).await;
    let (control, driver) = started.unwrap_or_else(|error| panic!("{what}: {error}"));
    let driver = tokio::spawn(driver.run());
    let state = control.state();
    assert_eq!(state.recovery, Some(recovery()), "{what}");
    assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [node(1), node(2), node(3)], "{what}");
    assert!(state.removed.contains_key(&node(4)) && state.tokens.contains_key(&TokenId(2)), "{what}");
    let view = control.view().borrow().clone();
    assert_eq!(view.voters, [BTreeSet::from([node(1)])], "{what}");
    assert!(view.learners.is_empty() && view.recovery == Some(recovery()), "{what}");
    let base = view.writer.unwrap();
    assert_eq!((base.epoch, base.membership), (1 << 32, view.membership), "{what}");
    assert!(view.membership.term > 4, "{what}: {:?} may be of the other world", view.membership);
    // It elects itself, and the first epoch it gives is of the new generation.
    let office = Office { epoch: base.epoch + 1, node: node(1), boot: BootId(9), ..base };
    let named = control.propose(Command::SetWriter(office), Duration::from_secs(5)).await;
    assert_eq!(named, Ok(Outcome::Done), "{what}");
    // Whoever was a voter is taken in as a learner, like a newcomer.
    control.add_learner(node(2)).await.unwrap();
    assert!(control.view().borrow().learners.contains(&node(2)), "{what}");
    control.shutdown().await;
    driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_voter_carries_on_with_everything_its_log_holds() {
    let disk = SimDisk::new();
    lay_down(&disk).await;
    recover(&disk).await.unwrap();
    // A second time changes nothing.
    let files = || {
        let files = disk.files().into_iter().filter(|path| !path.ends_with(vote::VOTE));
        files.map(|path| (path.clone(), disk.content(&path))).collect::<BTreeMap<_, _>>()
    };
    let dir = Path::new(DIR);
    let (before, voted) = (files(), vote::read(&disk, dir).await.unwrap());
    recover(&disk).await.unwrap();
    assert!(files() == before, "the files are others");
    assert_eq!(vote::read(&disk, dir).await.unwrap(), voted);
    check(&disk, "undisturbed").await;
}

#[tokio::test(start_paused = true)]
async fn an_end_at_any_call_is_finished_by_the_next_run() {
    let laid_down = SimDisk::new();
    lay_down(&laid_down).await;
    let before = laid_down.calls();
    let calls = {
        let disk = laid_down.fork();
        recover(&disk).await.unwrap();
        disk.calls()
    };
    assert!(calls - before > 20, "{calls}");
    for call in before + 1..=calls {
        for (fault, seed) in [
            (Fault::PowerCut, Some(1)),
            (Fault::PowerCut, Some(2)),
            (Fault::PowerCut, Some(3)),
            (Fault::PowerCut, None),
            (Fault::Eio, Some(4)),
            (Fault::Enospc, None),
        ] {
            let what = format!("{fault:?} at call {call} of {before}..{calls}, seed {seed:?}");
            let disk = laid_down.fork();
            disk.fail_at(call, fault, false);
            let failed = recover(&disk).await.is_err();
            match seed {
                Some(seed) => disk.crash(seed),
                None => disk.kill(),
            }
            disk.clear_faults();
            assert!(failed, "{what}: the fault was not noticed");
            recover(&disk).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&disk, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_recovery_is_a_generation_of_its_own() {
    let disk = SimDisk::new();
    lay_down(&disk).await;
    recover(&disk).await.unwrap();
    let survivor = Survivor::open(Arc::new(disk.boot()), DIR.into()).await.unwrap();
    let (term, second) =
        (survivor.view().membership.term, Recovery { generation: 2, nonce: 8, ..recovery() });
    survivor.carry_on_alone(node(1), &second).await.unwrap();
    let survivor = Survivor::open(Arc::new(disk.boot()), DIR.into()).await.unwrap();
    assert_eq!(survivor.state().recovery, Some(second));
    assert_eq!(survivor.state().writer.unwrap().epoch, 2 << 32);
    assert!(survivor.view().membership.term > term);
}
