//! A member's directory on a disk that loses power at any moment of a recovery.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_bytes::ByteBuf;

use super::*;
use crate::{
    identity::NodeKey,
    raft::{ApiToken, Command, Control, MeshSlot, RaftConfig, TokenRecord},
    testing::{Fault, SimDisk},
    types::{ClusterId, EpochTable, Member, TimingProfile, TokenId},
    wal::{Draft, RecordKind},
};

const CLUSTER: ClusterId = ClusterId([9; 16]);
const NOW: u64 = 1_800_000_000;
const SOON: Duration = Duration::from_secs(5);
/// Small, because a simulated disk holds it in memory for each of many runs.
const SEGMENT: u64 = 1 << 16;

fn surroundings(disk: &SimDisk) -> Surroundings {
    let drawn = AtomicU64::new(1);
    Surroundings {
        disk: Arc::new(disk.boot()),
        clock: Arc::new(|| i64::try_from(NOW * 1_000_000_000).unwrap()),
        entropy: Arc::new(move |bytes| {
            let byte = drawn.fetch_add(1, Ordering::Relaxed).to_le_bytes()[0];
            bytes.fill(byte);
        }),
    }
}

fn member(key: &NodeKey, seal_key: Vec<u8>, role: Role) -> Member {
    Member {
        id: key.id(),
        name: "n1".into(),
        role,
        addresses: Addresses::default(),
        spki: key.spki().to_vec(),
        seal_key,
        seal_key_signature: vec![],
        serial: "1".into(),
        not_after: NOW,
        version: VERSION.into(),
        features: 0,
    }
}

/// A cluster of one with three records in its log, the last two not known to be committed.
async fn lay_down(disk: &SimDisk, dir: &Path, role: Role) {
    let around = surroundings(disk);
    around.disk.create_dir(dir).await.unwrap();
    let store = Store::new(around.disk.clone(), dir);
    let (key, seal_key) = store.keys([[1; 32], [2; 32]]).await.unwrap();
    let ca = ClusterCa::create(CLUSTER, &[3; 32], NOW).unwrap();
    let public = seal::seal_key_public(&seal_key).unwrap();
    let sealed = seal::seal(ca.private_key(), &public, CLUSTER, key.id(), &mut around.rng()).unwrap();
    let member = member(&key, public, role);
    let (id, raft) = (key.id(), dir.join("raft"));
    let identity = Identity::stranger(key, NOW).unwrap();
    let issued = ca.issue(&identity.csr().unwrap(), CLUSTER, [4; 16], NOW).unwrap();
    let timing = TimingProfile::Fast.timing();
    let config = RaftConfig { id, dir: raft, timing, seed: 1 };
    let (control, driver) = Control::start(config, around.disk.clone(), MeshSlot::default()).await.unwrap();
    let driver = tokio::spawn(driver.run());
    control.initialize().await.unwrap();
    let found = Command::Found {
        cluster: CLUSTER,
        name: "home".into(),
        root: ByteBuf::from(ca.certificate().to_vec()),
        member,
        sealed_ca: ByteBuf::from(sealed),
        profile: TimingProfile::Fast,
        token: TokenRecord {
            id: TokenId(1),
            role: Role::Voter,
            public_key: vec![],
            mac_key: None,
            expires_ms: None,
            uses_left: None,
            revoked: false,
            created_ms: 0,
        },
        api_token: ApiToken {
            name: "admin".into(),
            hash: vec![],
            admin: true,
            created_ms: 0,
            ..ApiToken::default()
        },
        after: 0,
        level: 0,
    };
    control.propose(found, SOON).await.unwrap();
    control.shutdown().await;
    driver.await.unwrap();
    let record = ClusterRecord {
        cluster: CLUSTER,
        name: "home".into(),
        roots: vec![ca.certificate().to_vec()],
        certificate: issued.certificate,
        peers: vec![],
        recovery: None,
        gateway: false,
    };
    store.set_cluster(&record).await.unwrap();

    let (wal, driver, _) = open_log(&around, dir).await;
    let driver = tokio::spawn(driver.run());
    wal.set_promise(3).await.unwrap();
    for _ in 0..3 {
        let (kind, payload) = (RecordKind::EpochStart, Bytes::from_static(b"x"));
        wal.append(3, Draft::unkeyed(kind, 0, 0, payload)).unwrap();
    }
    wal.settle().await.unwrap();
    wal.note_commit(Lsn::new(3, 1));
    drop(wal);
    driver.await.unwrap().unwrap();
}

async fn open_log(around: &Surroundings, dir: &Path) -> (Wal, crate::wal::WalDriver, Recovered) {
    let config = WalConfig { segment_bytes: SEGMENT, ..WalConfig::new(dir.join("wal")) };
    Wal::open(around.disk.clone(), config, CLUSTER, Box::new(|| 1)).await.unwrap()
}

async fn carry_on(disk: &SimDisk, dir: &Path) -> Result<Recovery, NodeError> {
    carry_on_with(disk, dir, Lsn::ZERO).await
}

async fn carry_on_with(disk: &SimDisk, dir: &Path, checkpoint: Lsn) -> Result<Recovery, NodeError> {
    let dir = DataDir::open(dir).unwrap();
    Survivor::open_with(dir, surroundings(disk), checkpoint, SEGMENT).await?.carry_on().await
}

#[tokio::test(start_paused = true)]
async fn an_end_at_any_call_leaves_the_old_cluster_or_one_that_only_has_to_be_finished() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let laid_down = SimDisk::new();
    lay_down(&laid_down, dir, Role::Voter).await;
    let before = laid_down.calls();
    let calls = {
        let disk = laid_down.fork();
        let recovery = carry_on(&disk, dir).await.unwrap();
        assert_eq!((recovery.generation, recovery.kept), (1, Lsn::new(3, 3)));
        disk.calls()
    };
    let (mut untouched, mut half_done) = (0, 0);
    for call in before + 1..=calls {
        let seed = [Some(call), Some(call + 1), None][(call % 3) as usize];
        let what = format!("power cut at call {call} of {before}..{calls}, seed {seed:?}");
        let disk = laid_down.fork();
        disk.fail_at(call, Fault::PowerCut, false);
        carry_on(&disk, dir).await.expect_err(&what);
        match seed {
            Some(seed) => disk.crash(seed),
            None => disk.kill(),
        }
        disk.clear_faults();
        let around = surroundings(&disk);
        let store = Store::new(around.disk.clone(), dir);
        let world = store.cluster().await.unwrap().unwrap().recovery;
        match check(&around, dir, world.as_ref()).await {
            Ok(()) => untouched += usize::from(world.is_none()),
            Err(NodeError::HalfRecovered { .. }) => half_done += 1,
            Err(other) => panic!("{what}: {other}"),
        }
        if world.is_none() {
            let recovery = carry_on(&disk, dir).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            let record = store.cluster().await.unwrap().unwrap();
            assert_eq!((recovery.generation, record.recovery.as_ref()), (1, Some(&recovery)), "{what}");
            assert!(recovery::is_signed(&recovery, CLUSTER, &record.roots), "{what}");
        }
        let world = store.cluster().await.unwrap().unwrap().recovery;
        check(&around, dir, world.as_ref()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let (wal, _, log) = open_log(&around, dir).await;
        assert_eq!((log.durable, wal.promise()), (Lsn::new(3, 3), 3), "{what}");
    }
    assert!(untouched > 10 && half_done > 2, "{untouched} {half_done}");
}

#[tokio::test(start_paused = true)]
async fn who_could_let_nobody_in_cannot_carry_on() {
    let home = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    lay_down(&disk, home.path(), Role::Reader).await;
    let error = carry_on(&disk, home.path()).await.unwrap_err().to_string();
    assert!(error.contains("cannot carry on alone: it is a reader"), "{error}");
}

#[tokio::test]
async fn a_lone_voter_needs_no_recovery() {
    let home = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    lay_down(&disk, home.path(), Role::Voter).await;
    let dir = DataDir::open(home.path()).unwrap();
    let survivor = Survivor::open(dir, surroundings(&disk), Lsn::ZERO).await.unwrap();
    let survey = survivor.survey(&[]).await.unwrap();
    assert!(survey.majority && survey.missing().is_empty() && survey.ahead().is_empty());
    assert_eq!((survey.durable(), survey.generation), (Lsn::new(3, 3), 0));
}

/// A member that was installing a snapshot at 5.9 when it ended.
async fn lay_down_an_installation(disk: &SimDisk, dir: &Path) -> Lsn {
    lay_down(disk, dir, Role::Voter).await;
    let around = surroundings(disk);
    let (wal, driver, _) = open_log(&around, dir).await;
    let driver = tokio::spawn(driver.run());
    wal.set_promise(5).await.unwrap();
    let epochs = EpochTable::from_entries(vec![(3, 1), (5, 4)]).unwrap();
    wal.announce(Lsn::new(5, 9), 77, epochs).await.unwrap();
    drop(wal);
    driver.await.unwrap().unwrap();
    Lsn::new(5, 9)
}

#[tokio::test(start_paused = true)]
async fn an_installation_that_was_cut_short_is_finished_or_given_up_before_anything_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let disk = SimDisk::new();
    let snapshot = lay_down_an_installation(&disk, dir).await;
    disk.kill();
    // The engine has it: the log has to begin behind it, or the engine would skip what comes next.
    for (checkpoint, kept) in [(snapshot, snapshot), (Lsn::new(3, 2), Lsn::new(3, 3))] {
        let before = disk.calls();
        let calls = {
            let disk = disk.fork();
            let recovery = carry_on_with(&disk, dir, checkpoint).await.unwrap();
            assert_eq!(recovery.kept, kept);
            disk.calls()
        };
        for call in before + 1..=calls {
            let disk = disk.fork();
            let what = format!("checkpoint {checkpoint}, power cut at call {call} of {before}..{calls}");
            disk.fail_at(call, Fault::PowerCut, false);
            carry_on_with(&disk, dir, checkpoint).await.expect_err(&what);
            disk.crash(call);
            let around = surroundings(&disk);
            let store = Store::new(around.disk.clone(), dir);
            if store.cluster().await.unwrap().unwrap().recovery.is_none() {
                let recovery = carry_on_with(&disk, dir, checkpoint).await;
                let recovery = recovery.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(recovery.kept, kept, "{what}");
            }
            let (wal, _, log) = open_log(&around, dir).await;
            assert_eq!((log.durable, wal.promise()), (kept, 5), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_the_others_had_is_not_taken_for_committed_in_what_takes_its_place() {
    let home = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    lay_down(&disk, home.path(), Role::Voter).await;
    let around = surroundings(&disk);
    let (wal, driver, _) = open_log(&around, home.path()).await;
    let driver = tokio::spawn(driver.run());
    // Heard of before the records came.
    wal.note_commit(Lsn::new(3, 9));
    drop(wal);
    driver.await.unwrap().unwrap();
    assert_eq!(open_log(&around, home.path()).await.2.commit, Lsn::new(3, 9));
    carry_on(&disk, home.path()).await.unwrap();
    assert_eq!(open_log(&around, home.path()).await.2.commit, Lsn::new(3, 3));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_ahead_of_its_log_cannot_carry_on() {
    let home = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    lay_down(&disk, home.path(), Role::Voter).await;
    let error = carry_on_with(&disk, home.path(), Lsn::new(3, 4)).await.unwrap_err().to_string();
    assert!(error.contains("holds records up to 3.4, and its log ends at 3.3"), "{error}");
}
