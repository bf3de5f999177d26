//! Machines on a LAN that are none: network namespaces whose `eth0` are ports of one bridge, which is in a
//! namespace of its own. They share one temporary directory; all of it goes with the value.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::cli::{Failure, processes::until_ready};

/// What this machine has on the bridge, if anything.
const OWN: u8 = 254;

/// Why there can be none here, if so.
pub(super) fn impossible() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        Some("network namespaces need root".to_owned())
    } else if std::process::Command::new("ip").arg("-V").output().is_err() {
        Some("there is no ip (iproute2)".to_owned())
    } else {
        None
    }
}

/// See the module.
pub(super) struct Machines {
    count: usize,
    home: tempfile::TempDir,
}

/// What a link and its queue have carried so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Carried {
    pub(super) bytes: u64,
    /// Packets that found the queue full.
    pub(super) dropped: u64,
}

impl Machines {
    /// So many, with a directory named for the command `what`.
    pub(super) fn make(count: usize, what: &str) -> Result<Self, Failure> {
        let home = tempfile::Builder::new().prefix(&format!("skein-{what}-")).tempdir()?;
        let machines = Self { count, home };
        let hub = machines.hub();
        ip(&["netns", "add", &hub])?;
        let bridge = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
        ip(&[&["-n", &hub, "link", "add", "br0"], &bridge[..]].concat())?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for node in 0..count {
            let (name, port) = (machines.name(node), port(node));
            let address = format!("{}/24", machines.address(node));
            ip(&["netns", "add", &name])?;
            let pair = ["type", "veth", "peer", "name", "eth0", "netns", &name];
            ip(&[&["-n", &hub, "link", "add", &port], &pair[..]].concat())?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(machines)
    }

    /// Gives every link that rate in either direction, in the words of `tc`, and a queue of 100 ms.
    pub(super) fn shape(&self, rate: &str) -> Result<(), Failure> {
        let bucket = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms"];
        for node in 0..self.count {
            for (space, link) in [(self.name(node), "eth0".to_owned()), (self.hub(), port(node))] {
                let add = ["-n", &space, "qdisc", "add", "dev", &link];
                said("tc", &[&add, &bucket[..]].concat())?;
            }
        }
        Ok(())
    }

    /// Puts this machine on the bridge too, by a link that is not shaped.
    pub(super) fn let_in_this_one(&self) -> Result<(), Failure> {
        let (hub, own) = (self.hub(), own_link());
        let pair = ["type", "veth", "peer", "name", "bench", "netns", &hub];
        ip(&[&["link", "add", &own], &pair[..]].concat())?;
        ip(&["-n", &hub, "link", "set", "bench", "master", "br0", "up"])?;
        ip(&["addr", "add", &format!("{}/24", address(OWN)), "dev", &own])?;
        ip(&["link", "set", &own, "up"])
    }

    /// What a machine has sent by its link.
    pub(super) fn sent(&self, node: usize) -> Result<Carried, Failure> {
        let qdisc = said("tc", &["-n", &self.name(node), "-s", "-j", "qdisc", "show", "dev", "eth0"])?;
        carried(&qdisc).ok_or_else(|| Failure::new("tc does not say what a queue has carried"))
    }

    /// `skein start` on one of them with these flags and variables; a token goes in on standard input.
    pub(super) async fn start(
        &self,
        node: usize,
        flags: &[&str],
        variables: &[(&str, &str)],
        token: Option<&str>,
    ) -> Result<Child, Failure> {
        let log = self.log(node);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name(node)])
            .arg(std::env::current_exe()?)
            .arg("start")
            .arg("--data-dir")
            .arg(self.data_dir(node))
            .args(flags)
            .envs(variables.iter().copied())
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
        until_ready(&self.name(node), BufReader::new(stdout).lines(), &log).await?;
        Ok(child)
    }

    /// Its address on the bridge.
    pub(super) fn address(&self, node: usize) -> Ipv4Addr {
        address(u8::try_from(node + 1).unwrap_or(u8::MAX))
    }

    /// Host and port there.
    pub(super) fn authority(&self, node: usize, port: u16) -> String {
        SocketAddr::from((self.address(node), port)).to_string()
    }

    pub(super) fn data_dir(&self, node: usize) -> PathBuf {
        self.home.path().join(node.to_string())
    }

    /// The unix socket of its node: no link lies between that and this command.
    pub(super) fn socket(&self, node: usize) -> PathBuf {
        self.data_dir(node).join("skein.sock")
    }

    pub(super) fn log(&self, node: usize) -> PathBuf {
        self.home.path().join(format!("{node}.log"))
    }

    fn name(&self, node: usize) -> String {
        format!("skein-bench-{}-{node}", std::process::id())
    }

    fn hub(&self) -> String {
        self.name(self.count)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // It goes with its other end, but only when the namespace is gone for good.
        let _ = ip(&["link", "del", &own_link()]);
        for node in 0..=self.count {
            // What was never made cannot be removed.
            let _ = ip(&["netns", "del", &self.name(node)]);
        }
    }
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, 79, last)
}

/// What this machine's link to the bridge is called.
fn own_link() -> String {
    format!("skben{}", std::process::id())
}

fn port(node: usize) -> String {
    format!("port{node}")
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    said("ip", args).map(drop)
}

/// What the program says, if it does what it is told.
fn said(program: &str, args: &[&str]) -> Result<Vec<u8>, Failure> {
    let output = std::process::Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{program} {}: {}", args.join(" "), said.trim())))
}

fn carried(qdisc: &[u8]) -> Option<Carried> {
    #[derive(Deserialize)]
    struct Queue {
        bytes: u64,
        drops: u64,
    }
    let queues: Vec<Queue> = serde_json::from_slice(qdisc).ok()?;
    queues.first().map(|queue| Carried { bytes: queue.bytes, dropped: queue.drops })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_tells_what_it_carried() {
        let said = br#"[{"kind":"tbf","handle":"8001:","root":true,"options":{"rate":50000000},
            "bytes":1500,"packets":1,"drops":2,"overlimits":3,"backlog":0,"qlen":0}]"#;
        assert_eq!(carried(said), Some(Carried { bytes: 1500, dropped: 2 }));
        assert_eq!(carried(b"[]"), None);
    }
}
