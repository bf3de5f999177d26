//! The program `skein`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A write of one row makes some hundred allocations, of which one thread makes what another frees: with the
// system's allocator it costs the writer a quarter more (docs/benchmarks.md, "Small writes"). Without huge
// pages, of which a node at rest would hold 30 MB.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    skeinmesh::cli::main()
}
