//! A cluster of one, on a real disk.

use std::path::Path;

use super::*;
use crate::{
    disk::RealDisk,
    raft::{ApiToken, TokenRecord},
    types::{Addresses, BootId, ClusterId, Member, Office, Role, TimingProfile, TokenId, Why},
};

pub(super) const SOON: Duration = Duration::from_secs(5);

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

async fn start(dir: &Path) -> (Control, tokio::task::JoinHandle<()>) {
    let timing = TimingProfile::Fast.timing();
    let config = RaftConfig { id: node(1), dir: dir.join("raft"), timing, seed: 1 };
    let (control, driver) = Control::start(config, Arc::new(RealDisk), MeshSlot::default()).await.unwrap();
    (control, tokio::spawn(driver.run()))
}

pub(in crate::raft) fn found() -> Command {
    let bytes = || serde_bytes::ByteBuf::from(vec![1]);
    Command::Found {
        cluster: ClusterId([7; 16]),
        name: "demo".into(),
        root: bytes(),
        member: Member {
            id: node(1),
            name: "n1".into(),
            role: Role::Voter,
            addresses: Addresses::default(),
            spki: vec![1],
            seal_key: vec![1],
            seal_key_signature: vec![1],
            serial: "1".into(),
            not_after: 1,
            version: "0".into(),
            features: 0,
        },
        sealed_ca: bytes(),
        profile: TimingProfile::Lan,
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
    }
}

pub(super) fn token(id: u64) -> TokenRecord {
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

#[tokio::test]
async fn a_cluster_of_one_is_founded_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (control, driver) = start(dir.path()).await;
    let nobody = control.propose(found(), Duration::from_millis(20)).await;
    assert_eq!(nobody, Err(ProposeError::NoLeader));
    control.initialize().await.unwrap();
    assert!(matches!(control.initialize().await, Err(ControlError::Initialized)));
    assert_eq!(control.propose(found(), SOON).await, Ok(Outcome::Done));
    // The view is out before the proposer hears of it.
    let view = control.view().borrow().clone();
    assert_eq!((view.name.as_str(), view.cluster), ("demo", ClusterId([7; 16])));
    assert!(view.is_voter(node(1)) && view.members.contains_key(&node(1)));
    assert!(control.is_leader() && control.leader_ready().await);
    let office = Office {
        epoch: 1,
        node: node(1),
        boot: BootId(3),
        membership: control.newest_membership(),
        at_ms: 0,
        why: Why::default(),
    };
    assert_eq!(control.propose(Command::SetWriter(office), SOON).await, Ok(Outcome::Done));
    assert_eq!(control.propose(Command::SetWriter(office), SOON).await, Ok(Outcome::Stale(Some(office))));
    let before = control.state();
    control.shutdown().await;
    driver.await.unwrap();
    assert!(matches!(control.propose(found(), SOON).await, Err(ProposeError::Stopped(_))));
    drop(control);

    let (control, driver) = start(dir.path()).await;
    let mut view = control.view();
    view.wait_for(|view| view.writer == Some(office) && view.leader == Some(node(1))).await.unwrap();
    assert_eq!(control.state(), before);
    control.shutdown().await;
    driver.await.unwrap();
}

/// A leader that restarted must not act on what it knows before it has applied all that it had committed in
/// its former life.
#[tokio::test]
async fn a_restarted_leader_is_not_ready_before_it_has_what_it_answered_for() {
    let dir = tempfile::tempdir().unwrap();
    let (control, driver) = start(dir.path()).await;
    control.initialize().await.unwrap();
    control.propose(found(), SOON).await.unwrap();
    // As a crash leaves it when the commit position has not been written yet: that comes a moment later.
    let image = tempfile::tempdir().unwrap();
    let mut id = 2;
    loop {
        control.propose(Command::CreateToken(token(id)), SOON).await.unwrap();
        copy(&dir.path().join("raft"), &image.path().join("raft"));
        let found =
            crate::raft::survey::survey(Arc::new(RealDisk), &image.path().join("raft")).await.unwrap();
        if found.committed < found.last {
            break;
        }
        id += 1;
    }
    control.shutdown().await;
    driver.await.unwrap();
    drop(control);

    let (control, driver) = start(image.path()).await;
    let ready = tokio::time::timeout(SOON, async {
        while !control.leader_ready().await {
            tokio::task::yield_now().await;
        }
    });
    ready.await.expect("a cluster of one has its majority");
    assert!(control.state().tokens.contains_key(&TokenId(id)), "it was answered for");
    assert!(control.confirm_state(SOON).await);
    control.shutdown().await;
    driver.await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_member_of_an_older_version_does_not_know_is_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (control, driver) = start(dir.path()).await;
    control.initialize().await.unwrap();
    control.propose(found(), SOON).await.unwrap();
    let Command::Found { member, .. } = found() else { panic!("a founding") };
    let update = |features| Command::Update {
        node: node(1),
        addresses: Addresses::default(),
        certificate: None,
        version: "0.9.1".into(),
        features,
    };
    let admit = |n, features| Command::Admit {
        member: Member { id: node(n), features, ..member.clone() },
        token: TokenId(1),
        at_ms: 1,
    };
    let done = async |command| assert_eq!(control.propose(command, SOON).await, Ok(Outcome::Done));
    let refused = async |command, says: &str| {
        let before = control.view().borrow().applied_index;
        match control.propose(command, SOON).await {
            Ok(Outcome::Rejected(why)) => assert!(why.contains(says), "{why}"),
            other => panic!("not refused: {other:?}"),
        }
        assert_eq!(control.view().borrow().applied_index, before, "an entry all the same");
    };
    let drain = |drained| Command::Drain { node: node(1), drained };
    refused(Command::RotateCa { at_ms: 1 }, "n1 (skein 0). Upgrade every member first").await;
    refused(drain(false), "n1 (skein 0)").await;
    done(update(0)).await;
    refused(drain(false), "n1 (skein 0.9.1)").await;
    done(update(features::OPERATOR_COMMANDS)).await;
    // Nothing of the kind was done yet, so an older one may come, and bars it again.
    done(admit(2, 0)).await;
    refused(drain(false), "1 of the members").await;
    done(Command::Remove { node: node(2), at_ms: 1 }).await;
    done(drain(false)).await;
    refused(admit(3, 0), "start a newer version").await;
    done(admit(3, features::OPERATOR_COMMANDS)).await;
    control.shutdown().await;
    driver.await.unwrap();
}

#[tokio::test]
async fn a_snapshot_replaces_the_log_and_a_restart_starts_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let (control, driver) = start(dir.path()).await;
    control.initialize().await.unwrap();
    control.propose(found(), SOON).await.unwrap();
    for id in 2..30 {
        control.propose(Command::CreateToken(token(id)), SOON).await.unwrap();
    }
    let raft = &control.inner.raft;
    raft.trigger().snapshot().await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.snapshot.is_some(), "snapshot").await.unwrap();
    let upto = raft.metrics().borrow_watched().snapshot.unwrap().index;
    raft.trigger().purge_log(upto).await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.purged.is_some(), "purge").await.unwrap();
    control.propose(Command::CreateToken(token(99)), SOON).await.unwrap();
    let before = control.state();
    control.shutdown().await;
    driver.await.unwrap();
    drop(control);

    let (control, driver) = start(dir.path()).await;
    assert!(control.view().borrow().applied_index >= upto, "the snapshot is applied before anything else");
    control.view().wait_for(|view| view.leader.is_some()).await.unwrap();
    control.propose(Command::CreateToken(token(100)), SOON).await.unwrap();
    assert_eq!(control.state().tokens.len(), before.tokens.len() + 1);
    control.shutdown().await;
    driver.await.unwrap();
    drop(control);

    // A log whose beginning is only in a lost snapshot must not start as an empty cluster.
    std::fs::remove_file(dir.path().join("raft/snapshot")).unwrap();
    let timing = TimingProfile::Fast.timing();
    let config = RaftConfig { id: node(1), dir: dir.path().join("raft"), timing, seed: 1 };
    let started = Control::start(config, Arc::new(RealDisk), MeshSlot::default()).await;
    assert!(matches!(started, Err(ControlError::Log(LogError::Damaged { .. }))));
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn a_disk_that_fails_stops_raft_and_says_so() {
    use crate::testing::{Fault, SimDisk};
    let disk = SimDisk::new();
    let config =
        RaftConfig { id: node(1), dir: "/raft".into(), timing: TimingProfile::Fast.timing(), seed: 1 };
    let (control, driver) = Control::start(config, Arc::new(disk.boot()), MeshSlot::default()).await.unwrap();
    tokio::spawn(driver.run());
    control.initialize().await.unwrap();
    control.propose(found(), SOON).await.unwrap();
    disk.fail_at(disk.calls() + 1, Fault::Eio, true);
    let lost = control.propose(Command::CreateToken(token(5)), SOON).await;
    assert!(lost.is_err_and(|e| e.outcome_unknown()));
    let mut failed = control.failed();
    let reason = failed.wait_for(|failed| failed.is_some()).await.unwrap().clone().unwrap();
    assert!(reason.contains("could not be written"), "{reason}");
    assert!(!control.state().tokens.contains_key(&TokenId(5)));
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn a_full_disk_refuses_what_can_wait_and_keeps_its_last_space_for_raft_itself() {
    use crate::testing::SimDisk;
    let disk = SimDisk::new();
    let config =
        RaftConfig { id: node(1), dir: "/raft".into(), timing: TimingProfile::Fast.timing(), seed: 1 };
    let (control, driver) = Control::start(config, Arc::new(disk.boot()), MeshSlot::default()).await.unwrap();
    tokio::spawn(driver.run());
    control.initialize().await.unwrap();
    control.propose(found(), SOON).await.unwrap();
    disk.set_limit(Some(disk.used()));
    let update = |length| Command::Update {
        node: node(1),
        addresses: Addresses::default(),
        certificate: None,
        version: "v".repeat(length),
        features: 0,
    };
    // What it wants allocated in advance is not to be had.
    let mut room = control.inner.room.clone();
    while !room.borrow().full {
        assert_eq!(control.propose(update(50_000), SOON).await, Ok(Outcome::Done));
    }
    assert_eq!(control.propose(Command::CreateToken(token(5)), SOON).await, Err(ProposeError::Full));
    let office = Office {
        epoch: 1,
        node: node(1),
        boot: BootId(3),
        membership: control.newest_membership(),
        at_ms: 0,
        why: Why::default(),
    };
    assert_eq!(control.propose(Command::SetWriter(office), SOON).await, Ok(Outcome::Done));
    let refused = loop {
        match control.propose(update(50_000), SOON).await {
            Ok(Outcome::Done) => {}
            other => break other,
        }
    };
    assert_eq!(refused, Err(ProposeError::Full), "it waits for space instead");
    let left = *room.borrow();
    assert!(left.left >= left.own && control.is_leader(), "{left:?}");
    disk.set_limit(None);
    room.wait_for(|room| !room.full).await.unwrap();
    assert_eq!(control.propose(Command::CreateToken(token(5)), SOON).await, Ok(Outcome::Done));
}
