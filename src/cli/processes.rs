//! A cluster of node processes on this machine, for the demo and the benches.

use std::{
    fs::OpenOptions,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures::future::join_all;
use hyper::Method;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use crate::{node::ClusterStatus, types::Role};

use super::{Client, Failure, Target};

/// Until a started node has said that it is ready.
const READY: Duration = Duration::from_secs(60);
/// Until a node that was told to stop has stopped.
const STOP: Duration = Duration::from_secs(10);

/// A node that was let in.
pub(super) struct Joined {
    /// Which.
    pub(super) node: usize,
    /// From the start of its process until it said that it is ready.
    pub(super) took: Duration,
}

/// A new join token, of the node that the client asks.
pub(super) async fn token(client: &Client, role: Role, uses: usize) -> Result<String, Failure> {
    let ask = serde_json::json!({ "role": role, "ttl": "10m", "uses": uses }).to_string();
    let answer: serde_json::Value = client.send(Method::POST, "/api/v1/tokens", ask).await?.json().await?;
    Ok(answer["token"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a node says that it is ready. Its id.
pub(super) async fn until_ready(name: &str, mut said: Said, log: &Path) -> Result<String, Failure> {
    let ready = async {
        while let Some(line) = said.next_line().await? {
            if line.starts_with("ready ") {
                let id = line.split(' ').find_map(|word| word.strip_prefix("node="));
                return Ok::<_, io::Error>(id.map(str::to_owned));
            }
        }
        Ok(None)
    };
    if let Ok(Ok(Some(id))) = timeout(READY, ready).await {
        return Ok(id);
    }
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let end: Vec<&str> = log.lines().rev().take(5).collect();
    let end: Vec<&str> = end.into_iter().rev().collect();
    Err(Failure::new(format!("{name} did not start; its log ends:\n{}", end.join("\n"))))
}

/// All of them, in one temporary directory that goes with the value.
pub(super) struct Nodes {
    home: tempfile::TempDir,
    all: Vec<One>,
    /// Environment of the processes, besides this one's.
    variables: Vec<(String, String)>,
}

struct One {
    name: String,
    mesh: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
    /// Its id, once it has been ready.
    id: Option<String>,
}

/// What a node says on standard output.
pub(super) type Said = Lines<BufReader<ChildStdout>>;

impl One {
    /// With addresses found by asking the system and let go again, so that a restarted node has its old
    /// ones; whoever makes several holds them until all are found.
    fn new(n: usize) -> io::Result<(Self, (UdpSocket, TcpListener))> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (mesh, http) = (udp.local_addr()?, tcp.local_addr()?);
        Ok((Self { name: format!("n{n}"), mesh, http, child: None, id: None }, (udp, tcp)))
    }
}

impl Nodes {
    /// Finds addresses and makes the directory, named for the command `what`. Starts nothing.
    pub(super) fn prepare(count: u16, what: &str) -> Result<Self, Failure> {
        let home = tempfile::Builder::new().prefix(&format!("skein-{what}-")).tempdir()?;
        let mut nodes = Self { home, all: Vec::new(), variables: Vec::new() };
        nodes.add(count)?;
        Ok(nodes)
    }

    /// Processes started from now on have these in their environment.
    pub(super) fn set(&mut self, variables: &[(&str, &str)]) {
        self.variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// So many more, not started.
    fn add(&mut self, count: u16) -> io::Result<Range<usize>> {
        let (first, mut held) = (self.all.len(), Vec::new());
        for _ in 0..count {
            let (one, addresses) = One::new(self.all.len() + 1)?;
            self.all.push(one);
            held.push(addresses);
        }
        Ok(first..self.all.len())
    }

    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(super) fn name(&self, node: usize) -> &str {
        self.all.get(node).map_or("?", |one| &one.name)
    }

    pub(super) fn urls(&self) -> Vec<(String, String)> {
        self.all.iter().map(|one| (one.name.clone(), format!("http://{}", one.http))).collect()
    }

    /// Host and port of a node's HTTP edge.
    pub(super) fn authority(&self, node: usize) -> String {
        self.all.get(node).map(|one| one.http.to_string()).unwrap_or_default()
    }

    /// Name and process id of each node that runs.
    pub(super) fn processes(&self) -> Vec<(String, u32)> {
        let of = |one: &One| Some((one.name.clone(), one.child.as_ref()?.id()?));
        self.all.iter().filter_map(of).collect()
    }

    pub(super) fn client(&self, node: usize) -> Client {
        Client::new(Target::Tcp { authority: self.authority(node) }, None)
    }

    pub(super) fn clients(&self) -> Vec<Client> {
        (0..self.all.len()).map(|node| self.client(node)).collect()
    }

    /// Makes the cluster, with the timeouts of that profile.
    pub(super) async fn start_first(&mut self, profile: &str) -> Result<(), Failure> {
        self.start(0, &["--new-cluster", "--profile", profile], None).await
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) async fn join_others(&mut self) -> Result<(), Failure> {
        self.join(1..self.all.len(), Role::Voter).await
    }

    /// These get a token for that role on standard input: it is in no command line.
    pub(super) async fn join(&mut self, these: Range<usize>, role: Role) -> Result<(), Failure> {
        if these.is_empty() {
            return Ok(());
        }
        let token = token(&self.owner(), role, these.len()).await?;
        let seed = self.seed();
        for node in these {
            self.start(node, &["--join", "-", "--seed", &seed], Some(&token)).await?;
        }
        Ok(())
    }

    /// Lets so many new nodes in, all started at once, by one token of as many uses. How long each took
    /// from the start of its process until it said that it is ready.
    pub(super) async fn join_at_once(&mut self, count: u16, role: Role) -> Result<Vec<Joined>, Failure> {
        let token = token(&self.owner(), role, count.into()).await?;
        let (seed, mut waiting) = (self.seed(), Vec::new());
        for node in self.add(count)? {
            let began = Instant::now();
            let said = self.launch(node, &["--join", "-", "--seed", &seed], Some(&token)).await?;
            let (name, log) = (self.name(node).to_owned(), self.log(node));
            waiting.push(async move {
                let id = until_ready(&name, said, &log).await?;
                Ok::<_, Failure>((node, id, began.elapsed()))
            });
        }
        let mut joined = Vec::new();
        for one in join_all(waiting).await {
            let (node, id, took) = one?;
            if let Some(one) = self.all.get_mut(node) {
                one.id = Some(id);
            }
            joined.push(Joined { node, took });
        }
        Ok(joined)
    }

    /// Takes a node out of the cluster, and waits until it has ended.
    pub(super) async fn remove(&mut self, node: usize) -> Result<(), Failure> {
        let owner = self.owner();
        let Some(one) = self.all.get_mut(node) else { return Ok(()) };
        let Some(id) = &one.id else { return Err(Failure::new(format!("{} was never ready", one.name))) };
        owner.send(Method::DELETE, &format!("/api/v1/nodes/{id}"), "").await?;
        if let Some(mut child) = one.child.take()
            && timeout(STOP, child.wait()).await.is_err()
        {
            child.kill().await?;
        }
        Ok(())
    }

    /// The first node, over its socket: who may use that is its owner.
    fn owner(&self) -> Client {
        Client::new(Target::Socket(self.data_dir(0).join("skein.sock")), None)
    }

    fn seed(&self) -> String {
        self.all.first().map(|one| one.mesh.to_string()).unwrap_or_default()
    }

    pub(super) fn data_dir(&self, node: usize) -> PathBuf {
        self.home.path().join(self.name(node))
    }

    fn log(&self, node: usize) -> PathBuf {
        self.home.path().join(format!("{}.log", self.name(node)))
    }

    pub(super) async fn restart(&mut self, node: usize) -> Result<(), Failure> {
        self.start(node, &[], None).await
    }

    async fn start(&mut self, node: usize, more: &[&str], stdin: Option<&str>) -> Result<(), Failure> {
        let said = self.launch(node, more, stdin).await?;
        let id = until_ready(self.name(node), said, &self.log(node)).await?;
        if let Some(one) = self.all.get_mut(node) {
            one.id = Some(id);
        }
        Ok(())
    }

    async fn launch(&mut self, node: usize, more: &[&str], stdin: Option<&str>) -> Result<Said, Failure> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(node))?;
        let data_dir = self.data_dir(node);
        let Some(one) = self.all.get_mut(node) else { return Err(Failure::new("there is no such node")) };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("start")
            .args(["--name", &one.name, "--no-mdns", "--log-format", "json"])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--mesh", &one.mesh.to_string(), "--http", &one.http.to_string()])
            .args(more)
            .envs(self.variables.iter().cloned())
            .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            // Ctrl-C is for the command, which stops the nodes itself.
            .process_group(0);
        let mut child = command.spawn()?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).await?;
        }
        let said = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        one.child = Some(child);
        said.ok_or_else(|| Failure::new("no pipe to a node"))
    }

    pub(super) async fn status(&self, node: usize) -> Option<ClusterStatus> {
        let client = self.client(node);
        timeout(Duration::from_secs(2), client.get("/api/v1/cluster")).await.ok()?.ok()
    }

    /// Any answer, from the node that gives one first.
    pub(super) async fn any_status(&self) -> Option<ClusterStatus> {
        for node in 0..self.all.len() {
            if self.all.get(node).is_some_and(|one| one.child.is_some())
                && let Some(status) = self.status(node).await
            {
                return Some(status);
            }
        }
        None
    }

    pub(super) async fn wait_until_formed(&self, patience: Duration) -> Result<(), Failure> {
        // Five vote; an even number is no better than the odd one below, so a fourth waits too.
        let voters = match self.all.len() {
            4 => 3,
            n => n.min(5),
        };
        let deadline = Instant::now() + patience;
        loop {
            let status = self.any_status().await;
            let formed = status.is_some_and(|status| {
                let have = status.nodes.iter().filter(|n| n.role == Role::Voter).count();
                status.writer.is_some() && status.nodes.len() == self.all.len() && have >= voters
            });
            if formed {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!(
                    "the nodes did not form a cluster; see {}",
                    self.home().display()
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|one| one.name == name)
    }

    pub(super) async fn writer(&self) -> Result<usize, Failure> {
        let status = self.any_status().await.ok_or_else(|| Failure::new("no node answers"))?;
        let name = status.nodes.iter().find(|node| node.is_writer).map(|node| node.name.clone());
        name.and_then(|name| self.index_of(&name)).ok_or_else(|| Failure::new("the cluster has no writer"))
    }

    /// The first living node that is not this one (or this one, if there is no other).
    pub(super) fn other_than(&self, node: usize) -> usize {
        let living = |at: &usize| self.all.get(*at).is_some_and(|one| one.child.is_some());
        (0..self.all.len()).filter(living).find(|at| *at != node).unwrap_or(node)
    }

    pub(super) fn is_alive(&self, node: usize) -> bool {
        self.all.get(node).is_some_and(|one| one.child.is_some())
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self, node: usize) -> Result<(), Failure> {
        if let Some(mut child) = self.all.get_mut(node).and_then(|one| one.child.take()) {
            child.kill().await?;
        }
        Ok(())
    }

    /// True when a node has applied all that any node knows to be committed. Of use without load.
    pub(super) async fn is_level(&self, node: usize) -> bool {
        let name = self.name(node).to_owned();
        let Some(own) = self.status(node).await else { return false };
        let Some(others) = self.status(self.other_than(node)).await else { return false };
        let applied = own.nodes.iter().find(|n| n.name == name).and_then(|n| n.applied);
        applied.is_some() && others.commit.is_some() && applied >= others.commit
    }

    pub(super) async fn caught_up(&self, node: usize) -> bool {
        let name = self.name(node);
        match self.status(node).await {
            Some(status) => {
                status.nodes.iter().any(|n| n.name == name && n.lag_records.is_some_and(|lag| lag <= 2))
            }
            None => false,
        }
    }

    /// SIGTERM for all, then no more patience.
    pub(super) async fn stop(&mut self) {
        for one in &self.all {
            let pid = one.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                // A node that is gone needs no signal.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for one in &mut self.all {
            if let Some(mut child) = one.child.take()
                && timeout(STOP, child.wait()).await.is_err()
            {
                let _ = child.kill().await;
            }
        }
    }
}
