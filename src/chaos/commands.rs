//! Programs of the host: which are there, and running one.

use std::{path::PathBuf, process::Command};

use skeinmesh::cli::Failure;

/// Runs it; what it said on standard error is the reason if it fails.
pub fn run(program: &str, args: &[&str]) -> Result<(), Failure> {
    let said = |why: String| Failure::new(format!("{program} {}: {why}", args.join(" ")));
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(said(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(said(error.to_string())),
    }
}

/// Whether it can be started at all.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The library that shows a process another wall clock. Not by its program `faketime`, which stays
/// between us and the node.
pub fn faketime() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|library| library.is_file())
}
