//! Namespaces of its own for the program: processes, mounts and networks that were made inside end
//! with it, also by SIGKILL, because the kernel ends them.

use std::{fs, io, os::unix::process::CommandExt, process::Command};

use skeinmesh::cli::Failure;

use crate::commands;

/// Becomes `unshare`, which starts this program again as the first process of a new process
/// namespace. Comes back only if that fails.
pub fn enter() -> Failure {
    let again = |error: io::Error| Failure::new(format!("unshare (util-linux): {error}"));
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return again(error),
    };
    let new = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut command = Command::new("unshare");
    command.args(new).arg(program).args(std::env::args_os().skip(1)).arg("--inside");
    again(command.exec())
}

/// What the new namespaces lack: names of networks that nobody else sees, and a loopback.
pub fn furnish() -> Result<(), Failure> {
    let names = "/run/netns";
    fs::create_dir_all(names)?;
    commands::run("mount", &["-t", "tmpfs", "skein-chaos", names])?;
    commands::run("ip", &["link", "set", "lo", "up"])
}
