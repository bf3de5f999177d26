//! The bytes of format 1, as `docs/wal-format.md` tells them: a log made anew has those of the
//! fixture, and the fixture is read.

use super::*;
use crate::{
    protocol::forward::BatchId,
    testing::fixture,
    types::{BootId, NodeId},
};

fn fixed(seed: u64) -> Box<dyn FnMut() -> u64 + Send + Sync> {
    let mut nonce = seed;
    Box::new(move || {
        nonce += 0x0101_0101_0101_0101;
        nonce
    })
}

async fn open_fixed(disk: &SimDisk, quarantine: bool) -> Wal {
    let config = WalConfig { segment_bytes: 4096 + 700, quarantine, ..config() };
    let opened = Wal::open(Arc::new(disk.boot()), config, CLUSTER, fixed(0x1000)).await;
    let (wal, driver, _) = opened.unwrap();
    tokio::spawn(driver.run());
    wal
}

/// One of everything that a log's directory can hold.
async fn everything() -> SimDisk {
    let disk = SimDisk::new();
    let wal = open_fixed(&disk, false).await;
    wal.set_promise(1).await.unwrap();
    let batch_id = DedupKey::Batch(BatchId { edge: NodeId([7; 16]), boot: BootId(8), counter: 9 });
    let client = DedupKey::Client { key: [0xaa; 16], body: [0xbb; 16] };
    wal.append(1, draft(RecordKind::EpochStart, 20, 1)).unwrap();
    wal.append(1, Draft { key: Some(batch_id), ..batch(100, 2) }).unwrap();
    wal.settle().await.unwrap();
    for n in 3..=6 {
        wal.append(1, batch(150, n)).unwrap();
        wal.settle().await.unwrap();
    }
    wal.set_promise(2).await.unwrap();
    wal.append(2, draft(RecordKind::EpochStart, 20, 7)).unwrap();
    wal.append(2, Draft { key: Some(client), ..batch(33, 8) }).unwrap();
    wal.append(2, draft(RecordKind::Control, 5, 9)).unwrap();
    wal.append(2, draft(RecordKind::ConfigMark, 16, 10)).unwrap();
    wal.settle().await.unwrap();
    wal.note_commit(Lsn::new(2, 8));
    assert!(wal.retire(4).await.unwrap() > 1);
    wal.cut(9).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    wal.announce(Lsn::new(3, 50), 0xcafe, EpochTable::from_entries(vec![(1, 1), (2, 7), (3, 20)]).unwrap())
        .await
        .unwrap();
    drop(wal);
    disk.crash(0);
    disk
}

/// Every file but the spare, by its path below the log's directory.
fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let below = |path: &Path| path.strip_prefix(DIR).unwrap().to_string_lossy().into_owned();
    let files = disk.files().into_iter().map(|path| (below(&path), disk.content(&path).unwrap()));
    files.filter(|file| file.0 != "spare.wal").collect()
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_those_of_format_1() {
    let disk = everything().await;
    let written = files(&disk);
    let names: Vec<&str> = written.iter().map(|file| file.0.as_str()).collect();
    assert!(
        ["base", "base.next", "promise", "watermark", "orphan/2.10-2.10.orphan"]
            .iter()
            .all(|name| names.contains(name))
    );
    for (name, bytes) in &written {
        fixture(&format!("wal/{name}"), bytes);
    }

    // Damage, and what it leaves.
    let last = disk.files().into_iter().rfind(|path| path.to_string_lossy().contains("/000")).unwrap();
    let content = disk.content(&last).unwrap();
    let used = content.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(disk.flip(&last, used as u64, 0));
    drop(open_fixed(&disk, true).await);
    disk.kill();
    let damaged = files(&disk);
    assert!(damaged.iter().any(|file| file.0.starts_with("quarantine/")), "nothing was set aside");
    for (name, bytes) in damaged.iter().filter(|(n, _)| n == "promise" || n.starts_with("quarantine/")) {
        fixture(&format!("wal-damaged/{name}"), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_of_format_1_is_read() {
    let made = everything().await;
    let disk = SimDisk::new();
    for dir in ["", "orphan"] {
        disk.create_dir(&Path::new(DIR).join(dir)).await.unwrap();
    }
    for (name, _) in files(&made) {
        let path = Path::new(DIR).join(&name);
        let file = disk.open(&path, crate::disk::Create::New).await.unwrap();
        let bytes = crate::testing::read_fixture(&format!("wal/{name}"));
        file.write(0, vec![bytes.into()], crate::disk::Durability::Now).await.unwrap();
        disk.sync_dir(path.parent().unwrap()).await.unwrap();
    }
    let wal = open_fixed(&disk, false).await;
    assert_eq!((wal.end(), wal.promise(), wal.commit()), (Lsn::new(2, 9), 2, Lsn::new(2, 8)));
    assert_eq!(wal.epochs().entries(), [(1, 1), (2, 7)]);
    let records = all(&wal).await;
    check_sequence(&records, wal.first_seq());
    let kinds: Vec<RecordKind> = records.iter().rev().take(3).map(|record| record.kind).collect();
    assert_eq!(kinds, [RecordKind::Control, RecordKind::Batch, RecordKind::EpochStart]);
    assert_eq!(records[records.len() - 2].key, Some(DedupKey::Client { key: [0xaa; 16], body: [0xbb; 16] }));
    assert_eq!(wal.begin_anew(Lsn::new(3, 50)).await.unwrap(), Some(Lsn::new(3, 50)));
    assert_eq!(wal.epochs().entries(), [(1, 1), (2, 7), (3, 20)]);
    assert_eq!(wal.chain_at(50).await.unwrap(), Some(0xcafe));
}

/// Some are copied behind their header and some are not: on disk, over the wire and in an orphan file it is the same.
#[tokio::test(start_paused = true)]
async fn long_payloads_are_written_read_sent_and_cut_from_where_they_are() {
    let lengths = [4_088, 4_096, 4_100, 4_104, 100_000, 8, 65_536];
    let roomy = || WalConfig { segment_bytes: 1 << 20, group_bytes: 1 << 20, tail_bytes: 400, ..config() };
    let (one, two) = (SimDisk::new(), SimDisk::new());
    let (wal, _, _) = open_with(&one, roomy()).await.unwrap();
    // All in one group.
    let made: Vec<Record> =
        (0..).zip(lengths).map(|(n, len)| wal.append(1, batch(len, n)).unwrap()).collect();
    let pieces: Vec<usize> = made.iter().map(|record| record.raw.parts().count()).collect();
    assert_eq!(pieces, [1, 2, 1, 2, 2, 1, 2]);
    wal.settle().await.unwrap();
    one.crash(1);
    let (wal, _, recovered) = open_with(&one, roomy()).await.unwrap();
    assert_eq!(recovered.end, Lsn::new(1, 7));
    let read = all(&wal).await;
    assert!(read.iter().all(|record| record.raw.parts().count() == 1));
    assert_eq!(read, made);

    let (replica, _, _) = open_with(&two, roomy()).await.unwrap();
    let mut sent = BytesMut::new();
    made.iter().flat_map(|record| record.raw.parts()).for_each(|part| sent.extend_from_slice(part));
    assert_eq!(replica.append_replica(sent.clone().freeze()).unwrap(), Lsn::new(1, 7));
    replica.settle().await.unwrap();
    assert_eq!(all(&replica).await, made);
    assert_eq!(replica.chain_at(7).await.unwrap(), Some(made[6].digest));

    let report = wal.cut(0).await.unwrap();
    let orphan = one.content(&report.orphan.unwrap()).unwrap();
    assert_eq!(orphan[ORPHAN_HEADER..], sent[..]);
}
