//! Nodes on a network of their own: each in a network namespace, all on one bridge, found by mDNS.

use std::{
    io::Write,
    process::{Command, Output},
};

use crate::cluster::Cluster;

/// Namespaces whose `veth0` are ports of one bridge in another one; removed with the value.
pub struct Net {
    namespaces: Vec<String>,
    hub: String,
}

impl Net {
    /// So many, or `None` where there is no way to make them, which is said.
    pub fn make(count: usize, test: &str) -> Option<Self> {
        match Self::try_make(count) {
            Ok(net) => Some(net),
            Err(why) => {
                skipped(test, &why);
                None
            }
        }
    }

    fn try_make(count: usize) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let id = unique();
        let name = |end: &str| format!("skein-it-{id}-{end}");
        let namespaces = (0..count).map(|n| name(&n.to_string())).collect();
        let net = Self { namespaces, hub: name("hub") };
        let hub = net.hub.as_str();
        ip(&["netns", "add", hub])?;
        ip(&[
            "-n",
            hub,
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        ip(&["-n", hub, "link", "set", "br0", "up"])?;
        for (namespace, n) in net.namespaces.iter().zip(1..) {
            let (port, address) = (format!("port{n}"), format!("10.213.77.{n}/24"));
            ip(&["netns", "add", namespace])?;
            ip(&[
                "-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "veth0", "netns", namespace,
            ])?;
            ip(&["-n", hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", namespace, "addr", "add", &address, "dev", "veth0"])?;
            ip(&["-n", namespace, "link", "set", "veth0", "up"])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    /// The next starts of the cluster's nodes are in a namespace each, with mDNS and no other hint.
    pub fn house(&self, cluster: &mut Cluster) {
        for (node, namespace) in cluster.processes().iter_mut().zip(&self.namespaces) {
            node.before = ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec();
            node.mesh = "0.0.0.0:7400".into();
            node.mdns = true;
            // By name it would be skipped: other machines' containers have such interfaces.
            node.env = vec![("SKEIN_DISCOVERY_ALLOW_INTERFACES".into(), "veth*".into())];
        }
    }

    /// Gives every namespace another address in place of the one it has: these, one after the other.
    #[track_caller]
    pub fn renumber(&self, from: u8) {
        for (namespace, end) in self.namespaces.iter().zip(from..) {
            let address = format!("10.213.77.{end}/24");
            must(&["-n", namespace, "addr", "flush", "dev", "veth0"]);
            must(&["-n", namespace, "addr", "add", &address, "dev", "veth0"]);
        }
    }

    /// Nothing comes in or out of that namespace any more, and nobody is told.
    #[track_caller]
    pub fn cut(&self, n: usize) {
        must(&["-n", &self.namespaces[n], "link", "set", "veth0", "down"]);
    }

    /// Ends a cut.
    #[track_caller]
    pub fn mend(&self, n: usize) {
        must(&["-n", &self.namespaces[n], "link", "set", "veth0", "up"]);
    }

    /// What stands before a program that is to run in that namespace.
    pub fn inside(&self, n: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespaces[n]].map(str::to_owned).to_vec()
    }

    /// A second bridge: `both` gets `veth1` on it besides, and `only` is moved to it. Addresses there are
    /// 10.213.78.1, .2, ...
    #[track_caller]
    pub fn second_lan(&self, both: usize, only: usize) {
        let hub = self.hub.as_str();
        let bridge = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
        must(&[&["-n", hub, "link", "add", "br1"], &bridge[..]].concat());
        must(&["-n", hub, "link", "set", "br1", "up"]);
        let space = self.namespaces[both].as_str();
        must(&["-n", hub, "link", "add", "second", "type", "veth", "peer", "name", "veth1", "netns", space]);
        must(&["-n", hub, "link", "set", "second", "master", "br1", "up"]);
        must(&["-n", space, "addr", "add", &format!("10.213.78.{}/24", both + 1), "dev", "veth1"]);
        must(&["-n", space, "link", "set", "veth1", "up"]);
        must(&["-n", hub, "link", "set", &format!("port{}", only + 1), "master", "br1"]);
        let space = self.namespaces[only].as_str();
        must(&["-n", space, "addr", "flush", "dev", "veth0"]);
        must(&["-n", space, "addr", "add", &format!("10.213.78.{}/24", only + 1), "dev", "veth0"]);
    }

    /// Takes every IPv4 address away, and waits for the link-local ones of IPv6; false without IPv6.
    #[track_caller]
    pub fn only_link_local(&self) -> bool {
        let usable = |space: &str| {
            let shown = ip(&["-n", space, "-6", "addr", "show", "dev", "veth0", "scope", "link"]).unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            shown.contains("fe80:") && !shown.contains("tentative")
        };
        for space in &self.namespaces {
            must(&["-n", space, "-4", "addr", "flush", "dev", "veth0"]);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while !usable(space) {
                if std::time::Instant::now() > deadline {
                    return false;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        true
    }

    /// Says where that name is, to what is started in that namespace from now on, and later to what runs
    /// there already.
    #[track_caller]
    pub fn name(&self, n: usize, name: &str, address: &str) {
        let dir = std::path::Path::new("/etc/netns").join(&self.namespaces[n]);
        std::fs::create_dir_all(&dir).unwrap();
        // In place: what was mounted is this very file.
        std::fs::write(dir.join("hosts"), format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
    }

    /// A port of the bridge in the namespace of this process, with that address; it goes with the rest.
    #[track_caller]
    pub fn attend(&self, address: &str) {
        let (name, own) = (format!("skit{}", unique()), std::process::id().to_string());
        must(&[
            "-n", &self.hub, "link", "add", "guest", "type", "veth", "peer", "name", &name, "netns", &own,
        ]);
        must(&["-n", &self.hub, "link", "set", "guest", "master", "br0", "up"]);
        must(&["addr", "add", &format!("{address}/24"), "dev", &name]);
        must(&["link", "set", &name, "up"]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().chain([&self.hub]) {
            // What was never made cannot be removed.
            let _ = ip(&["netns", "del", namespace]);
            let _ = std::fs::remove_dir_all(std::path::Path::new("/etc/netns").join(namespace));
        }
    }
}

/// Says that a test cannot run here, past the harness, which keeps what a test that passes prints.
pub fn skipped(test: &str, why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {why}\n").as_bytes());
}

/// Of this process and of this call.
fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

#[track_caller]
fn must(args: &[&str]) {
    ip(args).unwrap_or_else(|why| panic!("{why}"));
}

fn ip(args: &[&str]) -> Result<Output, String> {
    match Command::new("ip").args(args).output() {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => {
            Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("ip (iproute2): {error}")),
    }
}
