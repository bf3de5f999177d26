//! The log on the disk that holds the temporary directory: records of 1000 rows in groups, each group
//! fsynced, and reading records back from memory.

use std::{sync::Arc, time::Duration};

use criterion::{Criterion, Throughput};
use skeinmesh::{
    disk::RealDisk,
    types::ClusterId,
    wal::{Draft, Record, RecordKind, Wal, WalConfig},
};
use tokio::runtime::Runtime;

use super::bodies::{self, ROWS};

/// Records that are appended before anything is waited for: the connections of the bench.
const GROUP: u64 = 12;

pub fn measure(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let home = tempfile::tempdir().expect("a directory");
    let draft = Draft::unkeyed(RecordKind::Batch, 1, 0, bodies::payload(0));
    let mut nonce = 0_u64;
    let draw = Box::new(move || {
        nonce += 1;
        nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    let config = WalConfig::new(home.path().join("wal"));
    let open = Wal::open(Arc::new(RealDisk), config, ClusterId([1; 16]), draw);
    let (wal, driver, _) = runtime.block_on(open).expect("a log");
    let driver = runtime.spawn(driver.run());

    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(GROUP * ROWS));
    group.sample_size(20);
    group.bench_function("append, 12 records and one fsync", |bench| {
        bench.iter(|| {
            runtime.block_on(async {
                for _ in 0..GROUP {
                    wal.append(1, draft.clone()).expect("a place");
                }
                wal.settle().await.expect("a disk")
            })
        });
        // What was written goes, or the disk would fill.
        runtime.block_on(wal.retire(wal.durable().seq)).expect("a disk");
    });
    let records: Vec<Record> = runtime.block_on(async {
        for _ in 0..GROUP {
            wal.append(1, draft.clone()).expect("a place");
        }
        let end = wal.settle().await.expect("a disk");
        wal.reader(end.seq + 1 - GROUP).read(usize::MAX).await.expect("records")
    });
    let records: Vec<_> = records.iter().map(|record| record.raw.to_bytes()).collect();
    group.bench_function("check 12 records of a replica", |bench| {
        bench.iter(|| {
            for record in &records {
                Record::decode_replicated(record.clone()).expect("a record");
            }
        });
    });
    group.finish();
    drop(wal);
    let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), driver).await });
    ended.expect("the log ends").expect("a task").expect("a disk");
}
