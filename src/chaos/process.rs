//! One `skein start` process in the network namespace and on the disk of its node.

use std::{
    fs::OpenOptions,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use skeinmesh::cli::{Client, Failure, Target};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{disk::Disk, logs, network};

/// The name under which this program is the one that is tested.
pub const PROGRAM: &str = "skein";

/// Small enough that logs are recycled, checkpoints made and snapshots fetched within a minute.
const SETTINGS: [(&str, &str); 5] = [
    ("SKEIN_STORAGE_WAL_SEGMENT", "1MiB"),
    ("SKEIN_STORAGE_WAL_KEEP_BYTES", "2MiB"),
    ("SKEIN_STORAGE_FLUSH_AGE", "5s"),
    ("SKEIN_LOG_FORMAT", "json"),
    ("SKEIN_LOG_FILTER", "info,openraft=warn"),
];
/// Lines of a log that are shown when its node ends.
const LAST_WORDS: usize = 4;

/// A node, running or not.
#[derive(Debug)]
pub struct Process {
    pub n: usize,
    pub disk: Disk,
    /// What stands before the program at its next start.
    pub before: Vec<String>,
    program: PathBuf,
    home: PathBuf,
    /// How many disks it had before this one.
    replaced: u32,
    child: Option<Child>,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

/// How a process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    pub said: String,
}

impl Process {
    /// Not started. `home` has the program and takes the log.
    pub fn new(n: usize, disk: Disk, home: &Path) -> Self {
        let program = std::env::var_os("SKEIN").map_or_else(|| home.join(PROGRAM), PathBuf::from);
        let home = home.to_owned();
        Self { n, disk, before: Vec::new(), program, home, replaced: 0, child: None, lines: None }
    }

    /// Empties its disk: it is another node from now on, with a log of its own. It must not run.
    pub fn renew(&mut self) -> Result<(), Failure> {
        self.replaced += 1;
        Ok(self.disk.wipe()?)
    }

    /// The log of all processes that ran on this disk. Its name is that of the node and its disk.
    fn log(&self) -> PathBuf {
        let name = network::name(self.n);
        let log = if self.replaced == 0 { name } else { format!("{name}-{}", self.replaced + 1) };
        self.home.join(format!("{log}.{}", logs::EXTENSION))
    }

    /// What ran on this disk before is another story.
    pub fn forget_log(&self) -> Result<(), Failure> {
        match std::fs::remove_file(self.log()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Starts it; `stdin` is what it may read.
    pub async fn launch(&mut self, flags: &[&str], stdin: Option<&str>) -> Result<(), Failure> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let name = network::name(self.n);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).args(&self.before).arg(&self.program);
        command.args(["start", "--name", &name, "--no-mdns", "--http-open"]);
        command.args(["--mesh", &network::mesh(self.n).to_string()]);
        command.args(["--http", &network::http(self.n).to_string()]);
        command.arg("--data-dir").arg(self.disk.data()).args(flags);
        for (key, _) in std::env::vars_os() {
            let keep = key == "SKEIN_MUTANT" || !key.to_string_lossy().starts_with("SKEIN_");
            if !keep {
                command.env_remove(key);
            }
        }
        command.envs(SETTINGS);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        // Ctrl-C is for the run, which ends the nodes itself.
        command.stdout(Stdio::piped()).stderr(log).kill_on_drop(true).process_group(0);
        let mut child = command.spawn().map_err(|e| Failure::new(format!("nsenter (util-linux): {e}")))?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).await?;
        }
        self.lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self, patience: Duration) -> Result<(), Failure> {
        let Some(lines) = &mut self.lines else { return Err(Failure::new("it does not run")) };
        let said = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("ready ") {
                    return true;
                }
            }
            false
        };
        let said = timeout(patience, said).await;
        match said {
            Ok(true) => Ok(()),
            Ok(false) => {
                let code = match self.ended(Duration::from_secs(5)).await {
                    Some(ended) => format!("{:?}", ended.code),
                    None => "none".to_owned(),
                };
                Err(Failure::new(format!("it ended with code {code}: {}", self.last_words())))
            }
            Err(_) => Err(Failure::new(format!("it is not ready after {patience:?}: {}", self.last_words()))),
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself, which is seen elsewhere.
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGSTOP, and waits until none of its threads runs: a system call may end yet, but nobody
    /// hears of it.
    pub async fn freeze(&self) -> Result<(), Failure> {
        self.signal(Signal::STOP);
        let Some(pid) = self.pid() else { return Ok(()) };
        while threads(pid)?.into_iter().any(|state| !matches!(state, 'T' | 't' | 'D' | 'Z' | 'X')) {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// SIGKILL, and waits for its end; says how it had ended before, if it had.
    pub async fn kill(&mut self) -> Result<Option<Ended>, Failure> {
        self.lines = None;
        let Some(mut child) = self.child.take() else { return Ok(None) };
        // Nothing to kill any more: then the status is not that of a kill.
        let _ = child.start_kill();
        let status = child.wait().await?;
        let by_us = status.signal() == Some(Signal::KILL.as_raw());
        Ok((!by_us).then(|| Ended { code: status.code(), said: self.last_words() }))
    }

    /// Whether somebody traces it, such as strace.
    pub fn is_traced(&self) -> bool {
        let status = self.pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let tracer = |status: &str| {
            status.lines().find_map(|line| line.strip_prefix("TracerPid:").map(str::trim).map(str::to_owned))
        };
        status.as_deref().and_then(tracer).is_some_and(|pid| pid != "0")
    }

    /// Whether it runs with that library.
    pub fn has_loaded(&self, library: &str) -> bool {
        let maps = self.pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).ok());
        maps.is_some_and(|maps| maps.contains(library))
    }

    /// How it ended, if it ends in that time.
    pub async fn ended(&mut self, patience: Duration) -> Option<Ended> {
        let child = self.child.as_mut()?;
        let status: ExitStatus = timeout(patience, child.wait()).await.ok()?.ok()?;
        self.child = None;
        self.lines = None;
        Some(Ended { code: status.code(), said: self.last_words() })
    }

    /// The HTTP edge by its socket, which may do everything.
    pub fn admin(&self) -> Client {
        Client::new(Target::Socket(self.disk.data().join("skein.sock")), None)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(LAST_WORDS).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// The states of a process's threads, as `/proc` names them.
fn threads(pid: u32) -> Result<Vec<char>, Failure> {
    let mut states = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        // `pid (name) S ...`, and a name may hold anything.
        states.extend(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
    }
    Ok(states)
}
