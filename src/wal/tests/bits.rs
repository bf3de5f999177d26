//! Every bit of a 64 KiB log flipped, and every file of it cut at every byte: what is read then is a
//! prefix of what was written, and what is missing is called damage. Only the very last group may pass
//! for a torn tail, or, where the end of the file is gone, what is above the watermark.
//!
//! One bit of every 17th byte and every 29th cut, so that each field has its turn; with
//! `SKEIN_SWEEP=all` every bit and every cut, which takes twenty minutes.

use super::{super::recovery, *};
use crate::disk::{Create, Disk as _};

/// Every byte and bit, instead of some.
fn thorough() -> bool {
    std::env::var_os("SKEIN_SWEEP").is_some_and(|all| all == "all")
}

/// A log of several segments behind a base, whose watermark knows all but the last two groups.
async fn long_log() -> (SimDisk, Vec<Record>) {
    let disk = SimDisk::new();
    let config = WalConfig { segment_bytes: 4096 + 14_000, ..config() };
    let (wal, _, _) = open_with(&disk, config).await.unwrap();
    wal.set_promise(5).await.unwrap();
    for n in 0..60 {
        wal.append(5 + n / 40, batch((n * 97 % 2300) as usize, n)).unwrap();
        if n % 3 == 0 {
            wal.settle().await.unwrap();
        }
    }
    wal.settle().await.unwrap();
    assert!(wal.retire(20).await.unwrap() > 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..2 {
        wal.append(6, batch(200, n)).unwrap();
        wal.settle().await.unwrap();
    }
    let records = all(&wal).await;
    disk.kill();
    let segments = disk.files().into_iter().filter(|path| path.to_string_lossy().contains("/00"));
    let bytes: usize = segments.map(|path| disk.content(&path).unwrap().len()).sum();
    assert!((56 << 10..96 << 10).contains(&bytes), "{bytes}");
    (disk, records)
}

/// Reads the log and compares. True if everything was there; `unsure`: so many records may be missing
/// without being called damage.
async fn look(disk: &SimDisk, records: &[Record], unsure: u64, context: &str) -> bool {
    let reading = match recovery::read(disk, Path::new(DIR), Some(CLUSTER)).await {
        Ok(reading) => reading,
        Err(error) => panic!("{context}: {error}"),
    };
    assert_eq!(reading.promise.epoch, 5, "{context}");
    let last = records.last().unwrap().lsn.seq;
    let (end, missing) = (reading.scan.end, last - reading.scan.end.seq.min(last));
    // The chain value at the end tells all that lies before it.
    let at_end = records.iter().find(|record| record.lsn == end).map(|record| record.digest);
    let nothing = end.seq < records[0].lsn.seq;
    assert!(nothing || at_end == Some(reading.scan.digest), "{context}: another history up to {end}");
    if reading.damage.is_empty() {
        assert!(missing <= unsure, "{context}: {missing} records are gone without a word");
    }
    missing == 0
}

#[tokio::test(start_paused = true)]
async fn every_flipped_bit_is_seen() {
    let (bits, stride) = if thorough() { (8, 1) } else { (1, 17) };
    let (disk, records) = long_log().await;
    assert!(look(&disk, &records, 0, "untouched").await);
    let (mut seen, mut harmless) = (0, 0);
    for path in disk.files().into_iter().filter(|path| !path.ends_with("spare.wal")) {
        let len = disk.content(&path).unwrap().len() as u64;
        for at in (0..len).step_by(stride) {
            for bit in (0..bits).map(|bit| (bit + (at % 8) as u8) % 8) {
                assert!(disk.flip(&path, at, bit));
                let context = format!("{} byte {at} bit {bit}", path.display());
                let whole = look(&disk, &records, 1, &context).await;
                if whole {
                    harmless += 1
                } else {
                    seen += 1
                }
                assert!(disk.flip(&path, at, bit));
            }
        }
    }
    // Harmless are the zeros of headers and of free space, and one of two slots.
    assert!(seen > 2_000 && harmless > 600, "{seen} {harmless}");
}

#[tokio::test(start_paused = true)]
async fn every_cut_of_a_file_is_seen() {
    let (disk, records) = long_log().await;
    let mut shorter = 0;
    for path in disk.files() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if segment::parse_segment_name(&name).is_none() {
            continue;
        }
        let whole = disk.content(&path).unwrap();
        let copy = disk.fork();
        let file = copy.open(&path, Create::No).await.unwrap();
        for len in (0..whole.len() as u64).rev().step_by(if thorough() { 1 } else { 29 }) {
            file.resize(len).await.unwrap();
            // What the watermark does not know yet goes with the end of the file.
            shorter += u32::from(!look(&copy, &records, 2, &format!("{name} cut to {len}")).await);
        }
    }
    assert!(shorter > 1_400, "{shorter}");
}
