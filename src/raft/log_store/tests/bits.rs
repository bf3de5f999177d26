//! Every bit flipped and every cut, of small files whole and of 64 KiB.

use super::*;
use crate::testing::{SimDisk, sweep};

/// Every bit flipped: refused, or, in the last write, that one is gone and all before it is there.
/// Every file cut at every byte: what is left of a log is what it was at some moment.
#[tokio::test(start_paused = true)]
async fn every_flipped_bit_and_every_cut_is_seen() {
    let (disk, dir) = (crate::testing::SimDisk::new(), Path::new("/raft"));
    written(&disk, dir).await;
    let whole = vec![(1, 2), (1, 3), (2, 4), (2, 5)];
    let growing = |from: u64, to: u64| (from..=to).map(|index| (1, index)).collect::<Vec<_>>();
    let mut moments: Vec<Vec<(u64, u64)>> = (0..=4).map(|to| growing(1, to)).collect();
    moments.push([growing(1, 3), vec![(2, 4)]].concat());
    moments.push(whole[..3].to_vec());
    moments.push(whole.clone());
    let (mut refused, mut torn) = (0, 0);
    for name in ["log", "vote", "snapshot"] {
        let path = dir.join(name);
        let bytes = disk.content(&path).unwrap();
        // Free space holds nothing: a bit in it may be torn, and a file may end in it.
        let slots = (0..64).chain(4096..4096 + 64);
        let used: Vec<usize> = match name {
            "vote" => slots.collect(),
            "log" => (0..log_record::written(&bytes)).collect(),
            _ => (0..bytes.len()).collect(),
        };
        let whole_len = bytes.len();
        let flips = used.iter().flat_map(|at| (0..8).map(move |bit| (Some(at * 8 + bit), whole_len)));
        for (flipped, len) in flips.chain(used.iter().map(|len| (None, *len))) {
            let copy = disk.fork();
            match flipped {
                Some(bit) => assert!(copy.flip(&path, bit as u64 / 8, bit as u8 % 8)),
                None => copy.open(&path, Create::No).await.unwrap().resize(len as u64).await.unwrap(),
            }
            let context = format!("{name}, bit {flipped:?}, {len} bytes");
            let shared: Arc<dyn Disk> = Arc::new(copy.boot());
            let snapshot = Snapshots::open(shared.clone(), dir.join("snapshot")).await;
            assert_eq!(snapshot.is_err(), name == "snapshot", "{context}");
            match LogStore::open_with(shared, dir, SMALL, watch::Sender::new(None)).await {
                Err(error @ (LogError::Io { .. } | LogError::Newer { .. })) => panic!("{context}: {error}"),
                Err(LogError::Damaged { .. }) => refused += 1,
                Ok((store, _)) if name == "log" => {
                    let found = indices(&store);
                    assert!(moments.contains(&found), "{context}: {found:?}");
                    if flipped.is_some() {
                        assert!(whole.starts_with(&found) && found.len() >= 3, "{context}: {found:?}");
                    }
                    torn += 1;
                }
                Ok((store, _)) => {
                    assert_eq!(indices(&store), whole, "{context}");
                    // Of the two slots one is enough.
                    let voted = store.content().0;
                    assert_eq!(voted, Some(RaftVote::new_committed(2, NodeId::from(1))), "{context}");
                    assert!(flipped.is_some() || name == "snapshot", "{context}");
                }
            }
        }
    }
    assert!(refused > 1000 && torn > 100, "{refused} {torn}");
}

/// As above with 64 KiB of log in some hundred groups, and a snapshot as long: each byte of the log has
/// its turn with one bit, some bits of the snapshot are drawn. `SKEIN_SWEEP=all` takes every bit and cut.
#[tokio::test(start_paused = true)]
async fn every_flipped_bit_of_64_kib_is_seen() {
    let (disk, dir) = (SimDisk::new(), Path::new("/raft"));
    let shared: Arc<dyn Disk> = Arc::new(disk.boot());
    let (mut store, writer) =
        LogStore::open_with(shared.clone(), dir, SMALL, watch::Sender::new(None)).await.unwrap();
    tokio::spawn(writer.run());
    store.save_vote(&RaftVote::new_committed(1, NodeId::from(1))).await.unwrap();
    let sealed = |index: u64| {
        let sealed = serde_bytes::ByteBuf::from(vec![index as u8; (index * 131 % 900) as usize]);
        Entry::new_normal(id(1, index), Command::SealCa { node: NodeId::from(index), sealed, of: None })
    };
    let mut index = 0;
    let content = loop {
        let group = index + 1..=index + 1 + index % 3;
        index = *group.end();
        append(&mut store, group.map(sealed).collect()).await.unwrap();
        let content = disk.content(&dir.join("log")).unwrap();
        if log_record::written(&content) >= 64 << 10 {
            break content;
        }
    };
    let whole = indices(&store);
    let written = log_record::written(&content);
    // The entries that the file holds, where it can be read.
    let look = |bytes: &[u8]| {
        let scan = log_record::scan(bytes, log_record::written(bytes)).ok()?;
        let mut memory = Memory::default();
        for payload in scan.payloads {
            let record = frame::decode(payload, MAX_PAYLOAD).expect("its checksum is right");
            memory.play(record, payload.len() as u64).unwrap();
        }
        Some(memory.entries.keys().map(|index| (1, *index)).collect::<Vec<_>>())
    };
    assert_eq!(look(&content).as_ref(), Some(&whole));
    let (mut bent, mut refused, mut torn) = (content.clone(), 0, 0);
    let bits = if sweep::is_thorough() { 8 } else { 1 };
    for at in MAGIC.len()..written {
        for bit in (0..bits).map(|bit| (bit + at) % 8) {
            bent[at] ^= 1 << bit;
            match look(&bent) {
                None => refused += 1,
                // At most three records are in the last group.
                Some(found) => {
                    let last = found.len() + 3 >= whole.len() && found.len() < whole.len();
                    assert!(last && whole.starts_with(&found), "byte {at} bit {bit}: {} left", found.len());
                    torn += 1;
                }
            }
            bent[at] ^= 1 << bit;
        }
    }
    assert!(refused > 60_000 * bits && torn > 100, "{refused} {torn}");
    for len in sweep::cuts(written as u64, 500).into_iter().filter(|len| *len as usize >= MAGIC.len()) {
        let found = look(&content[..len as usize]).expect("a file that ends early is torn");
        assert!(whole.starts_with(&found) && found.len() < whole.len(), "cut to {len}");
    }

    let (snapshots, _) = Snapshots::open(shared, dir.join("snapshot")).await.unwrap();
    let meta = SnapshotMeta { last_log_id: Some(id(1, 1)), ..Default::default() };
    let name = "n".repeat(64 << 10);
    let state = frame::encode(&State { name, ..Default::default() });
    snapshots.save(Snapshot { meta, snapshot: state }).await.unwrap();
    disk.kill();
    let path = dir.join("snapshot");
    let len = disk.content(&path).unwrap().len() as u64;
    let opened = async |disk: &SimDisk| Snapshots::open(Arc::new(disk.boot()), path.clone()).await.is_ok();
    assert!(len > 64 << 10 && opened(&disk).await);
    for (at, bit) in sweep::bits(len, 3_000) {
        assert!(disk.flip(&path, at, bit));
        assert!(!opened(&disk).await, "byte {at} bit {bit} of the snapshot");
        assert!(disk.flip(&path, at, bit));
    }
    for len in sweep::cuts(len, 500) {
        disk.open(&path, Create::No).await.unwrap().resize(len).await.unwrap();
        assert!(!opened(&disk).await, "the snapshot cut to {len}");
    }
}
