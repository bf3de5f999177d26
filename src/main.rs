//! The program `skein`.

use std::process::ExitCode;

fn main() -> ExitCode {
    skeinmesh::cli::main()
}
