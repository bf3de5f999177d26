//! Rows into memory, and from memory into a Parquet file, fsynced.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use skeinmesh::{
    disk::RealDisk,
    engine::{
        Operation, StorageEngine,
        columnar::{ColumnarConfig, ColumnarEngine, batch},
    },
    types::Lsn,
};
use tokio::runtime::Runtime;

use super::bodies::{self, ROWS};

/// Records of a flush.
const RECORDS: u64 = 500;
/// One record each of this many is late by as many: clients that write at once.
const CLIENTS: u64 = 12;

pub fn measure(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let payloads: Vec<Bytes> = (0..RECORDS).map(|nth| bodies::payload(shuffled(nth))).collect();
    let (engine, mut at, mut next) = (Rows::new(&runtime), 0, payloads.iter().cycle());

    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("apply", |bench| {
        bench.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                at += 1;
                let payload = next.next().cloned().unwrap_or_default();
                let began = Instant::now();
                engine.apply(at, payload);
                took += began.elapsed();
                if at.is_multiple_of(RECORDS) {
                    // Memory of rows is given back now and then, as it is by a node.
                    engine.drop_all(&mut at);
                }
            }
            took
        });
    });
    group.throughput(Throughput::Elements(RECORDS * ROWS));
    group.sample_size(10);
    group.bench_function("flush of shuffled records", |bench| {
        bench.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let engine = Rows::new(&runtime);
                for (at, payload) in (1..).zip(&payloads) {
                    engine.apply(at, payload.clone());
                }
                let began = Instant::now();
                runtime.block_on(engine.engine.checkpoint(Bytes::new())).expect("a disk");
                took += began.elapsed();
            }
            took
        });
    });
    group.finish();
}

/// Within each [`CLIENTS`] the other way round.
fn shuffled(nth: u64) -> u64 {
    nth / CLIENTS * CLIENTS + (CLIENTS - 1 - nth % CLIENTS)
}

struct Rows {
    engine: Arc<ColumnarEngine>,
    _home: tempfile::TempDir,
}

impl Rows {
    fn new(runtime: &Runtime) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let config = ColumnarConfig { flush_bytes: usize::MAX, ..ColumnarConfig::default() };
        let open = ColumnarEngine::open(Arc::new(RealDisk), home.path().join("engine"), config);
        Self { engine: runtime.block_on(open).expect("an engine"), _home: home }
    }

    fn apply(&self, seq: u64, payload: Bytes) {
        let batch = Operation::Batch { encoding: batch::ENCODING, payload };
        self.engine.apply(Lsn::new(1, seq), &batch).expect("rows");
    }

    fn drop_all(&self, seq: &mut u64) {
        *seq += 1;
        let all = Operation::DropDatabase { database: "bench".into() };
        self.engine.apply(Lsn::new(1, *seq), &all).expect("a database");
    }
}
