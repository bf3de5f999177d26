//! A node that is killed while it fetches a snapshot goes on with it when it comes back: what is on
//! its disk is not sent again. Two nodes in one process, both on simulated disks.

use std::{path::Path, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use skeinmesh::{
    disk::Disk,
    engine::MemoryEngine,
    node::{AckLevel, Node, Surroundings, Write},
    telemetry::Registry,
    testing::{DiskLatency, SimDisk},
};
use tokio::time::timeout;

use crate::library::{Running, start_with};

const PATIENCE: Duration = Duration::from_secs(60);
/// The reference engine makes a checkpoint every so many records.
const RECORDS: usize = 10_100;
/// Of one of them.
const BYTES: usize = 1_024;
const MIB: u64 = 1 << 20;

async fn engine(disk: &SimDisk, dir: &Path) -> MemoryEngine {
    MemoryEngine::open(Arc::new(disk.boot()), dir.join("engine")).await.unwrap()
}

fn surroundings(disk: &SimDisk) -> Surroundings {
    Surroundings { disk: Arc::new(disk.boot()), ..Surroundings::real() }
}

/// What a metric says.
fn metric(node: &Node, name: &str) -> u64 {
    let registry = Registry::new();
    node.register_metrics(&registry);
    let rendered = registry.render();
    let value = rendered.lines().find_map(|line| line.strip_prefix(&format!("{name} "))?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {rendered}"))
}

/// A node whose log begins behind a checkpoint.
async fn source(disk: &SimDisk, dir: &Path) -> Running {
    disk.create_dir(dir).await.unwrap();
    let source = start_with(dir, None, &[], surroundings(disk), engine(disk, dir).await).await;
    let first = dir.join("wal/00000000000000000001.wal");
    let body = vec![b'x'; BYTES];
    let put = |n: usize| {
        let write = Write::new(9, [n.to_string().as_bytes(), &body].concat(), PATIENCE);
        source.node.submit(Write { ack: Some(AckLevel::Local), ..write })
    };
    let mut written = stream::iter((0..RECORDS).map(put)).buffer_unordered(512);
    while let Some(receipt) = written.next().await {
        receipt.unwrap();
    }
    drop(written);
    let retired = async {
        while disk.files().contains(&first) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, retired).await.expect("a checkpoint lets the log go");
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_midway_gets_the_rest_only() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let home = tempfile::tempdir().unwrap();
    let (a_dir, b_dir) = (home.path().join("a"), home.path().join("b"));
    let (a_disk, b_disk) = (SimDisk::new(), SimDisk::new());
    let a = source(&a_disk, &a_dir).await;
    let (token, seed) = (a.node.founded().unwrap().token.clone(), a.node.mesh_addr().unwrap());

    b_disk.create_dir(&b_dir).await.unwrap();
    // So that there is a midway.
    b_disk.set_latency(DiskLatency { write: Duration::from_millis(150), ..DiskLatency::default() });
    let b =
        start_with(&b_dir, Some(token), &[seed], surroundings(&b_disk), engine(&b_disk, &b_dir).await).await;
    let midway = async {
        loop {
            match b.node.own_status().fetching {
                Some(progress) if progress.done >= 3 * MIB => return progress,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let seen = timeout(PATIENCE, midway).await.expect("it fetches");
    assert_eq!(seen.source, a.node.id());
    assert!(seen.done < seen.total && seen.total > 10_000 * BYTES as u64, "{seen:?}");
    // Everybody sees how far it is.
    let report = a.node.status().await;
    let report = report.nodes.iter().find(|node| node.id == b.node.id()).unwrap();
    let snapshot = report.snapshot.expect("in the status of the cluster");
    assert!(snapshot.bytes_total == seen.total && snapshot.bytes_done >= seen.done, "{snapshot:?}");

    // It is dead from here on: nothing of it comes to its disk any more.
    b_disk.kill();
    timeout(PATIENCE, b.node.shutdown()).await.expect("its tasks end");
    drop(b);
    let sent = metric(&a.node, "skein_snapshot_sent_bytes_total");
    let kept: u64 = b_disk
        .files()
        .into_iter()
        .filter(|path| path.starts_with(b_dir.join("incoming")))
        .map(|path| b_disk.content(&path).unwrap().len() as u64)
        .sum();
    assert!(kept >= seen.done, "{kept}");

    b_disk.set_latency(DiskLatency::default());
    let b = start_with(&b_dir, None, &[seed], surroundings(&b_disk), engine(&b_disk, &b_dir).await).await;
    let level = a.node.own_status().durable;
    let caught_up = async {
        while b.node.own_status().applied.seq < level.seq {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, caught_up).await.expect("the rest comes");
    assert_eq!(b.engine.contents(), a.engine.contents());
    assert_eq!(metric(&b.node, "skein_snapshot_received_bytes_total"), seen.total - kept);
    let again = metric(&a.node, "skein_snapshot_sent_bytes_total") - sent;
    assert!(again <= seen.total - kept, "{again} bytes were sent again, {kept} of {} were there", seen.total);
    assert_eq!(b.node.own_status().fetching, None);
    assert!(b_disk.files().iter().all(|path| !path.starts_with(b_dir.join("incoming"))));
}
