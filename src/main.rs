//! The program `skein`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A write of one row makes some hundred allocations on one thread that others free: the system's allocator
// takes a quarter more of the writer's time for them. Without huge pages, of which a node at rest would hold
// 30 MB (docs/benchmarks.md, "Small writes").
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    skeinmesh::cli::main()
}
