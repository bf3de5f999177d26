//! Nodes find each other without any address, by mDNS: on one machine, and across two network
//! namespaces joined by a bridge.

use std::{
    io::Write,
    process::{Command, Output},
};

use crate::cluster::{Cluster, eventually};

/// On loopback, and again after both have moved to other ports.
#[test]
fn on_one_machine() {
    let mut cluster = Cluster::empty();
    let (first, second) = (cluster.add(), cluster.add());
    cluster.processes().iter_mut().for_each(|node| node.mdns = true);
    cluster[first].start(&["--new-cluster"]);
    let token = cluster[first].token(1);

    // Without token: a cluster is in sight, so neither guess is safe.
    let ended = cluster[second].try_start(&[]).unwrap_err();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.said.contains("--join") && ended.said.contains("--new-cluster"), "{ended:?}");

    cluster[second].start(&["--join", &token]);
    cluster.settled();
    cluster[first].kill();
    cluster[second].kill();
    for node in cluster.processes() {
        node.move_away();
        node.start(&[]);
    }
    cluster.settled();
    cluster[second].write("cpu v=1 1");
}

#[test]
fn across_namespaces() {
    let net = match Net::make() {
        Ok(net) => net,
        Err(why) => {
            // Past the harness, which keeps what a test that passes prints.
            writeln!(std::io::stderr(), "SKIPPED: mdns::across_namespaces: {why}").unwrap();
            return;
        }
    };
    let mut cluster = Cluster::empty();
    let (first, second) = (cluster.add(), cluster.add());
    for (node, namespace) in cluster.processes().iter_mut().zip(&net.namespaces) {
        node.before = ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec();
        node.mesh = "0.0.0.0:7400".into();
        node.mdns = true;
        // By name it would be skipped: other machines' containers have such interfaces.
        node.env = vec![("SKEIN_DISCOVERY_ALLOW_INTERFACES".into(), "veth*".into())];
    }
    cluster[first].start(&["--new-cluster"]);
    let token = cluster[first].token(1);
    cluster[second].start(&["--join", &token]);
    cluster.settled();
    for (node, address) in [(first, "10.213.77.1:7400"), (second, "10.213.77.2:7400")] {
        eventually("the bridge's address is told", || {
            (cluster[node].known_address()? == address).then_some(())
        });
    }

    // Another address for each, and nobody told anybody.
    cluster[first].kill();
    cluster[second].kill();
    for (namespace, end) in net.namespaces.iter().zip([11, 12]) {
        let address = format!("10.213.77.{end}/24");
        must(&["-n", namespace, "addr", "flush", "dev", "veth0"]);
        must(&["-n", namespace, "addr", "add", &address, "dev", "veth0"]);
    }
    for node in cluster.processes() {
        node.start(&[]);
    }
    cluster.settled();
    eventually("the new address is told", || {
        (cluster[first].known_address()? == "10.213.77.11:7400").then_some(())
    });
}

/// Two namespaces whose `veth0` are ports of one bridge in a third; removed with the value.
struct Net {
    namespaces: [String; 2],
    hub: String,
}

impl Net {
    fn make() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let id = std::process::id();
        let name = |end: &str| format!("skein-it-{id}-{end}");
        let net = Self { namespaces: [name("a"), name("b")], hub: name("hub") };
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
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().chain([&self.hub]) {
            // What was never made cannot be removed.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

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
