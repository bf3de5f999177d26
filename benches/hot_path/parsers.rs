//! From a body to the payload of a record and back.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use skeinmesh::engine::columnar::{
    batch,
    ingest::{line_protocol, msgpack},
    schema::Schemas,
};

use super::bodies::{self, ROWS};

pub fn measure(criterion: &mut Criterion) {
    let (options, text, columns) = (bodies::options(), bodies::line_protocol(0), bodies::msgpack(0));
    let first = line_protocol::parse(text.as_bytes(), &options, &Schemas::default(), &mut |_| true);
    let points = first.expect("a good body").batch.expect("points");
    let mut schemas = Schemas::default();
    for table in &points.tables {
        schemas.merge(&points.database, &table.table, &table.schema).expect("a good schema");
    }
    let payload = batch::encode(&points).expect("a payload");

    let mut group = criterion.benchmark_group("body");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("line protocol", |bench| {
        bench.iter(|| line_protocol::encode(black_box(text.as_bytes()), &options, &schemas, &mut |_| true));
    });
    group.bench_function("msgpack", |bench| {
        bench.iter(|| msgpack::encode(black_box(&columns), &options, &schemas, &mut |_| true));
    });
    group.bench_function("encode", |bench| bench.iter(|| batch::encode(black_box(&points))));
    group.bench_function("decode", |bench| bench.iter(|| batch::decode(black_box(&payload))));
    group.finish();
}
