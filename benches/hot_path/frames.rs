//! The head that goes before records on a replication stream.

use std::hint::black_box;

use criterion::Criterion;
use skeinmesh::{
    protocol::{
        frame::{self, MAX_MESSAGE},
        replication::Append,
    },
    types::Lsn,
};

pub fn measure(criterion: &mut Criterion) {
    let head = Append {
        epoch: 7,
        commit: Lsn::new(7, 1_000_000),
        count: 12,
        round: 99,
        echo: 98,
        confirmed_age_ms: Some(3),
    };
    let frame = frame::encode(&head);
    let mut group = criterion.benchmark_group("frame");
    group.bench_function("encode", |bench| bench.iter(|| frame::encode(black_box(&head))));
    group.bench_function("decode", |bench| {
        bench.iter(|| frame::decode::<Append>(black_box(&frame[4..]), MAX_MESSAGE));
    });
    group.finish();
}
