//! A writer whose disk does not keep up lets go of the office, and writes go on: three nodes in one
//! process, one of them on a simulated disk.

use std::{sync::Arc, time::Duration};

use skeinmesh::{
    disk::Disk,
    node::{AckLevel, Consistency, Receipt, SubmitError, Surroundings, Write},
    testing::{DiskLatency, SimDisk},
    types::NodeId,
};
use tokio::time::timeout;

use crate::library::{Running, start, start_at};

const PATIENCE: Duration = Duration::from_secs(30);

struct Three {
    /// In office at first, on the simulated disk.
    a: Running,
    disk: SimDisk,
    b: Running,
    c: Running,
    _home: tempfile::TempDir,
}

async fn three() -> Three {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name);
    let disk = SimDisk::new();
    disk.create_dir(&place("a")).await.unwrap();
    let surroundings = Surroundings { disk: Arc::new(disk.boot()), ..Surroundings::real() };
    let a = start_at(&place("a"), None, &[], surroundings).await;
    let token = a.node.founded().unwrap().token.clone();
    let seed = a.node.mesh_addr().unwrap();
    let b = start(&place("b"), Some(token.clone()), &[seed]).await;
    let c = start(&place("c"), Some(token), &[seed]).await;
    let mut view = c.node.view();
    let voters = view.wait_for(|view| view.voters.len() == 1 && view.all_voters().len() == 3);
    timeout(PATIENCE, voters).await.expect("three voters").unwrap();
    let three = Three { a, disk, b, c, _home: home };
    three.put("first", AckLevel::All).await.unwrap();
    assert_eq!(three.writer(), three.a.node.id());
    three
}

impl Three {
    fn writer(&self) -> NodeId {
        self.b.node.view().borrow().writer.unwrap().node
    }

    async fn put(&self, payload: &str, ack: AckLevel) -> Result<Receipt, SubmitError> {
        put_on(&self.b, payload, ack).await
    }

    /// Writes until the disk of the writer, which has not a byte to give, is full and it lets go.
    async fn fill(&self) {
        self.disk.set_limit(Some(self.disk.used()));
        let body = "x".repeat(100_000);
        let full = async {
            // 1 MiB per segment, and one in reserve.
            while self.writer() == self.a.node.id() {
                match self.put(&body, AckLevel::Quorum).await {
                    Ok(_) => {}
                    Err(SubmitError::Full) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(PATIENCE, full).await.expect("another writer");
    }
}

async fn put_on(node: &Running, payload: &str, ack: AckLevel) -> Result<Receipt, SubmitError> {
    let write = Write::new(9, payload.as_bytes().to_vec(), PATIENCE);
    node.node.submit(Write { ack: Some(ack), ..write }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn office_leaves_a_slow_disk_and_what_was_in_flight_is_not_lost() {
    let three = three().await;
    // Slower than anybody waits: the two others have all that is on its way.
    three.disk.set_latency(DiskLatency { sync: Duration::from_secs(3600), ..DiskLatency::default() });
    let in_flight = three.put("in flight", AckLevel::Quorum).await.expect("another writer has it");
    assert_eq!(in_flight.ack, AckLevel::Quorum);
    assert_ne!(in_flight.writer, three.a.node.id());
    assert_ne!(three.writer(), three.a.node.id());
    for level in [AckLevel::Local, AckLevel::Quorum] {
        let next = three.put("next", level).await.unwrap();
        assert!(next.at.epoch > 1 && next.at > in_flight.at);
    }
    let point = Consistency::MinLsn(in_flight.at);
    three.c.node.read_point(point, PATIENCE).await.expect("it is on the way to everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn office_leaves_a_full_disk() {
    let three = three().await;
    three.fill().await;
    three.put("there is space here", AckLevel::Quorum).await.unwrap();
    // With space it is a follower like any other.
    three.disk.set_limit(None);
    let all = three.put("and there again", AckLevel::All).await.unwrap();
    assert!(three.a.node.own_status().durable.seq >= all.at.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn raft_goes_on_with_a_full_disk() {
    let three = three().await;
    three.fill().await;
    // The writer goes, in raft too if it leads: of the two that are left one has a full disk, and
    // nothing is elected or named without it.
    let b_writes = three.writer() == three.b.node.id();
    let (goes, stays) = if b_writes { (&three.b, &three.c) } else { (&three.c, &three.b) };
    let before = stays.node.view().borrow().writer.unwrap();
    goes.node.shutdown().await;
    let gone = goes.node.id();
    let mut view = stays.node.view();
    let named = view.wait_for(|view| {
        let other = view.writer.is_some_and(|office| office.epoch > before.epoch && office.node != gone);
        other && view.leader.is_some_and(|leader| leader != gone)
    });
    let named = timeout(PATIENCE, named).await.expect("another writer is named").unwrap().writer;
    let mut view = three.a.node.view();
    let known =
        view.wait_for(|view| view.writer.is_some_and(|office| Some(office.epoch) >= named.map(|o| o.epoch)));
    timeout(PATIENCE, known).await.expect("the full one has it in its raft log").unwrap();
    assert!(three.a.node.own_status().disk_troubled);
    three.disk.set_limit(None);
    put_on(stays, "space again", AckLevel::Quorum).await.unwrap();
}
