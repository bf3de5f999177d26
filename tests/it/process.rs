//! One `skein start` process with its directory and log, and what can be done to it.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};

use crate::http::{Answer, Target, send};

/// Until a node has said that it is ready.
const READY: Duration = Duration::from_secs(40);
/// Of one request that is no test of patience.
pub const REQUEST: Duration = Duration::from_secs(20);

/// A node, running or not.
pub struct Process {
    pub name: String,
    /// Its data directory.
    pub dir: PathBuf,
    /// `--mesh` of the next start: a free port, kept over restarts until [`Self::move_away`].
    pub mesh: String,
    /// `--http` of the next start.
    pub listen: String,
    /// What stands before the program: a shell, a network namespace.
    pub before: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// No `--no-mdns`.
    pub mdns: bool,
    /// Its id, once it has been ready.
    pub id: String,
    log: PathBuf,
    /// Length of the log when the process was started.
    logged: usize,
    http: Option<SocketAddr>,
    child: Option<Child>,
}

/// True when every thread of a process is stopped.
fn has_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        // The name, in brackets, may hold anything; one that ends meanwhile has none.
        let stat = std::fs::read_to_string(task.path().join("stat"));
        stat.map_or(true, |stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    })
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub said: String,
}

impl Process {
    pub fn new(home: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: home.join(name),
            mesh: free_address(),
            listen: "127.0.0.1:0".into(),
            before: Vec::new(),
            env: Vec::new(),
            mdns: false,
            id: String::new(),
            log: home.join(format!("{name}.log")),
            logged: 0,
            http: None,
            child: None,
        }
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(&mut self, flags: &[&str]) {
        if let Err(ended) = self.try_start(flags) {
            panic!("{} did not start: {ended:?}", self.name);
        }
    }

    /// Starts it and waits until it is ready or has ended.
    #[track_caller]
    pub fn try_start(&mut self, flags: &[&str]) -> Result<(), Ended> {
        let ready = self.launch(flags);
        self.wait_ready(&ready)
    }

    /// Starts it; its lines on standard output come through the channel.
    #[track_caller]
    pub fn launch(&mut self, flags: &[&str]) -> mpsc::Receiver<String> {
        assert!(self.child.is_none(), "{} runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.logged = usize::try_from(log.metadata().unwrap().len()).unwrap();
        let mut line = self.before.clone();
        line.push(program().display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).args(["start", "--name", &self.name]).arg("--data-dir").arg(&self.dir);
        command.args(["--mesh", &self.mesh, "--http", &self.listen]);
        if !self.mdns {
            command.arg("--no-mdns");
        }
        bare(&mut command).args(flags).envs(self.env.iter().map(|(k, v)| (k, v)));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("skein starts");
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child);
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whoever waited may have seen enough; the pipe is read on.
                let _ = tell.send(line);
            }
        });
        lines
    }

    /// Waits until a launched node is ready or has ended.
    #[track_caller]
    pub fn wait_ready(&mut self, lines: &mpsc::Receiver<String>) -> Result<(), Ended> {
        let deadline = Instant::now() + READY;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("ready ") => {
                    let word = |key: &str| {
                        let found = line.split(' ').find_map(|word| word.strip_prefix(key));
                        found.unwrap_or_else(|| panic!("no {key} in {line:?}")).to_owned()
                    };
                    let url = word("http=");
                    let (_, at) = url.split_once("://").unwrap();
                    let mut at: SocketAddr = at.parse().unwrap();
                    if at.ip().is_unspecified() {
                        at.set_ip([127, 0, 0, 1].into());
                    }
                    self.http = Some(at);
                    self.id = word("node=");
                    return Ok(());
                }
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.ended(Duration::from_secs(5))),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} is not ready after {READY:?}", self.name),
            }
        }
    }

    /// The next start is at another mesh address.
    pub fn move_away(&mut self) {
        self.mesh = free_address();
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id: what stands before the program becomes the program.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// Sends a signal. After SIGSTOP it waits until every thread has stopped: on a busy machine the others
    /// work on until the one that takes the signal has its turn.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        kill_process(Pid::from_child(child), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while signal == Signal::STOP && !has_stopped(child.id()) {
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Numbers of its threads of that name.
    pub fn threads(&self, name: &str) -> Vec<String> {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let named = tasks.flatten().filter(|task| {
            // One that ends meanwhile has none.
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        });
        named.map(|task| task.file_name().to_string_lossy().into_owned()).collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended(Duration::from_secs(5));
    }

    /// SIGTERM; how long it took to end, which must be well.
    #[track_caller]
    pub fn stop(&mut self) -> Duration {
        let since = Instant::now();
        self.signal(Signal::TERM);
        let ended = self.ended(Duration::from_secs(15));
        assert_eq!(ended.code, Some(0), "{} after SIGTERM: {ended:?}", self.name);
        since.elapsed()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self, patience: Duration) -> Ended {
        let Some(status) = self.try_ended(patience) else {
            panic!("{} still runs after {patience:?}", self.name);
        };
        Ended { code: status.code().or(status.signal().map(|n| 128 + n)), said: self.said() }
    }

    /// Waits for its end, for so long.
    pub fn try_ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        let mut child = self.child.take()?;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it wrote to standard error since its last start.
    pub fn said(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.logged..).unwrap_or_default()).into_owned()
    }

    /// The HTTP edge over TCP.
    pub fn tcp(&self) -> Target {
        Target::Tcp(self.http.unwrap_or_else(|| panic!("{} was never ready", self.name)))
    }

    /// The HTTP edge over its unix socket.
    pub fn unix(&self) -> Target {
        Target::Unix(self.dir.join("skein.sock"))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> Answer {
        let sent = send(&self.tcp(), "POST", path, &[], body.as_bytes(), REQUEST);
        sent.unwrap_or_else(|e| panic!("{} POST {path}: {e}", self.name))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        let sent = send(&self.tcp(), "GET", path, &[], b"", REQUEST);
        sent.unwrap_or_else(|e| panic!("{} GET {path}: {e}", self.name))
    }

    /// Writes line protocol in nanoseconds into database `it`; all of it must be taken.
    #[track_caller]
    pub fn write(&self, lines: &str) -> Answer {
        self.post("/api/v3/write_lp?db=it&precision=nanosecond", lines).expect(204)
    }

    /// Asks in SQL, with more parameters such as `("consistency", "linearizable")`.
    #[track_caller]
    pub fn ask(&self, sql: &str, more: &[(&str, &str)]) -> Answer {
        let mut asked = json!({ "db": "it", "q": sql });
        for (name, value) in more {
            asked[name] = (*value).into();
        }
        let headers = [("content-type", "application/json")];
        let sent = send(
            &self.tcp(),
            "POST",
            "/api/v3/query_sql",
            &headers,
            asked.to_string().as_bytes(),
            Duration::from_secs(70),
        );
        sent.unwrap_or_else(|e| panic!("{} {sql}: {e}", self.name))
    }

    /// The one column of an answer in whole numbers, linearizable.
    #[track_caller]
    pub fn numbers(&self, sql: &str) -> Vec<u64> {
        let answer = self.ask(sql, &[("consistency", "linearizable"), ("timeout", "20s")]).expect(200);
        column(&answer)
    }

    /// `/api/v1/cluster`, if it answers soon.
    pub fn status(&self) -> Option<Value> {
        let answer = send(&self.unix(), "GET", "/api/v1/cluster", &[], b"", Duration::from_secs(3)).ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Its mesh address, as the cluster knows it.
    pub fn known_address(&self) -> Option<String> {
        let status = self.status()?;
        let own = status["nodes"].as_array()?.iter().find(|node| node["id"] == self.id.as_str())?;
        own["mesh_addr"].as_str().map(str::to_owned)
    }

    /// Runs a command of the program against this node.
    pub fn skein(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command of the program against this node, not run yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        bare(&mut command).args(args).arg("--data-dir").arg(&self.dir).stdin(Stdio::null());
        command
    }

    /// As [`Self::skein`]; it must succeed. What it prints.
    #[track_caller]
    pub fn skein_says(&self, args: &[&str]) -> String {
        let output = self.skein(args);
        assert!(output.status.success(), "skein {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command prints that asks no node; it must succeed.
    #[track_caller]
    pub fn skein_alone(&self, args: &[&str]) -> String {
        let mut command = Command::new(program());
        let output = bare(&mut command).args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "skein {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A new join token, by the command line.
    #[track_caller]
    pub fn token(&self, uses: usize) -> String {
        self.skein_says(&["token", "create", "--uses", &uses.to_string()]).trim().to_owned()
    }

    /// For a test that fails.
    pub fn print_end_of_log(&self) {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("---- end of {}'s log ({} lines)", self.name, lines.len());
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL also ends one that is stopped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The one column of a JSON answer in whole numbers.
pub fn column(answer: &Answer) -> Vec<u64> {
    let rows = answer.json();
    let rows = rows.as_array().unwrap_or_else(|| panic!("no rows: {answer:?}"));
    rows.iter().map(|row| row.as_object().unwrap().values().next().unwrap().as_u64().unwrap()).collect()
}

/// Where nobody listens, by asking the system and letting go again.
fn free_address() -> String {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The program; `$SKEIN` names another one.
pub fn program() -> PathBuf {
    std::env::var_os("SKEIN").map_or_else(|| env!("CARGO_BIN_EXE_skein").into(), PathBuf::from)
}

/// Without the settings of whoever runs the tests, except what is logged.
pub fn bare(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SKEIN_") {
            command.env_remove(name);
        }
    }
    // Raft's own lines would push everything else out of the end of the log.
    let filter = std::env::var("SKEIN_LOG_FILTER").unwrap_or_else(|_| "info,openraft=error".to_owned());
    command.env("SKEIN_LOG_FILTER", filter)
}
