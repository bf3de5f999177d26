//! What every row passes on its way, piece by piece: parsers, the payload of a record, the log, frames,
//! the memtable and the flush. `cargo bench --manifest-path benches/Cargo.toml [-- NAME]`.

mod bodies;
mod engine;
mod frames;
mod log;
mod parsers;

use criterion::{Criterion, criterion_main};

fn all() {
    let mut criterion = Criterion::default().configure_from_args();
    parsers::measure(&mut criterion);
    frames::measure(&mut criterion);
    log::measure(&mut criterion);
    engine::measure(&mut criterion);
}

criterion_main!(all);
