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
                // Past the harness, which keeps what a test that passes prints.
                let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {why}\n").as_bytes());
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
        }
    }
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
