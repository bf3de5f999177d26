//! From nothing to three voters on a LAN: network namespaces on one bridge, and in each what somebody
//! would type there. Nobody is told an address; mDNS finds the first node.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    cli::{
        Client, Failure, Target,
        processes::{token, until_ready},
    },
    node::ClusterStatus,
    types::Role,
};

use super::report::progress;

/// Longest wait for three voters.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(50);
/// Machines on the LAN.
const NODES: usize = 3;

/// What it took.
#[derive(Debug, Serialize)]
pub(super) struct Lan {
    /// Commands that somebody types: one per machine.
    pub(super) commands: usize,
    /// Strings that are copied from one to the others.
    pub(super) copied: usize,
    /// From the first command until the first node was ready. It looks for a cluster first.
    pub(super) first_s: f64,
    /// Until the third one was.
    pub(super) ready_s: f64,
    /// Until all three vote and one of them writes.
    pub(super) voters_s: f64,
}

impl Lan {
    pub(super) fn text(&self) -> String {
        format!(
            "three nodes on a LAN by mDNS: {} commands, {} string copied, no address; the first was ready after {:.2} s, \
             all three after {:.2} s, three voters after {:.2} s\n",
            self.commands, self.copied, self.first_s, self.ready_s, self.voters_s
        )
    }
}

/// Why it cannot be done here, if so.
pub(super) fn skipped(unwanted: bool) -> Option<String> {
    if unwanted {
        Some("--no-lan".to_owned())
    } else if cfg!(not(feature = "mdns")) {
        Some("this program was built without mdns".to_owned())
    } else if !rustix::process::geteuid().is_root() {
        Some("network namespaces need root".to_owned())
    } else if std::process::Command::new("ip").arg("-V").output().is_err() {
        Some("there is no ip (iproute2)".to_owned())
    } else {
        None
    }
}

pub(super) async fn measure() -> Result<Lan, Failure> {
    progress("three nodes in network namespaces, from nothing");
    let net = Net::make()?;
    let home = tempfile::Builder::new().prefix("skein-lan-").tempdir()?;
    let mut children = Vec::new();
    let began = Instant::now();
    children.push(start(&net, home.path(), 0, None).await?);
    let first_s = began.elapsed().as_secs_f64();
    // What a terminal shows by itself; a pipe is not told.
    let client = Client::new(Target::Socket(dir(home.path(), 0).join("skein.sock")), None);
    let token = token(&client, Role::Voter, NODES - 1).await?;
    for node in 1..NODES {
        children.push(start(&net, home.path(), node, Some(&token)).await?);
    }
    let ready_s = began.elapsed().as_secs_f64();
    let voters = async {
        while !client.get("/api/v1/cluster").await.is_ok_and(|status| is_formed(&status)) {
            sleep(LOOK).await;
        }
    };
    if timeout(PATIENCE, voters).await.is_err() {
        let log = std::fs::read_to_string(log(home.path(), NODES - 1)).unwrap_or_default();
        return Err(Failure::new(format!("the three did not become voters; the last one says:\n{log}")));
    }
    let voters_s = began.elapsed().as_secs_f64();
    for child in &mut children {
        child.kill().await?;
    }
    Ok(Lan { commands: NODES, copied: 1, first_s, ready_s, voters_s })
}

fn is_formed(status: &ClusterStatus) -> bool {
    let voters = status.nodes.iter().filter(|node| node.role == Role::Voter).count();
    voters == NODES && status.writer.is_some()
}

fn dir(home: &Path, node: usize) -> PathBuf {
    home.join(node.to_string())
}

fn log(home: &Path, node: usize) -> PathBuf {
    home.join(format!("{node}.log"))
}

/// `skein start`, with nothing that a machine of its own would not have by itself.
async fn start(net: &Net, home: &Path, node: usize, token: Option<&str>) -> Result<Child, Failure> {
    let log = log(home, node);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &net.name(node)])
        .arg(std::env::current_exe()?)
        .arg("start")
        .arg("--data-dir")
        .arg(dir(home, node))
        .stdin(if token.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true)
        .process_group(0);
    if token.is_some() {
        command.args(["--join", "-"]);
    }
    let mut child = command.spawn()?;
    if let (Some(text), Some(mut pipe)) = (token, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).await?;
    }
    let stdout = child.stdout.take().ok_or_else(|| Failure::new("no pipe to a node"))?;
    until_ready(&net.name(node), BufReader::new(stdout).lines(), &log).await?;
    Ok(child)
}

/// Namespaces whose `eth0` are ports of one bridge in a namespace of its own; removed with the value.
struct Net {
    id: u32,
}

impl Net {
    fn name(&self, node: usize) -> String {
        format!("skein-bench-{}-{node}", self.id)
    }

    fn make() -> Result<Self, Failure> {
        let net = Self { id: std::process::id() };
        let hub = net.name(NODES);
        ip(&["netns", "add", &hub])?;
        let bridge = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
        ip(&[&["-n", &hub, "link", "add", "br0"], &bridge[..]].concat())?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for node in 0..NODES {
            let (name, port) = (net.name(node), format!("port{node}"));
            let address = format!("10.213.79.{}/24", node + 1);
            ip(&["netns", "add", &name])?;
            let pair = ["type", "veth", "peer", "name", "eth0", "netns", &name];
            ip(&[&["-n", &hub, "link", "add", &port], &pair[..]].concat())?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in 0..=NODES {
            // What was never made cannot be removed.
            let _ = ip(&["netns", "del", &self.name(node)]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    let output = std::process::Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("ip {}: {}", args.join(" "), said.trim())))
}
