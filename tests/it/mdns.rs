//! Nodes find each other without any address, by mDNS: on one machine, and across two network
//! namespaces joined by a bridge.

use crate::{
    cluster::{Cluster, eventually},
    namespaces::Net,
};

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
    let Some(net) = Net::make(2, "mdns::across_namespaces") else { return };
    let mut cluster = Cluster::empty();
    let (first, second) = (cluster.add(), cluster.add());
    net.house(&mut cluster);
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
    net.renumber(11);
    for node in cluster.processes() {
        node.start(&[]);
    }
    cluster.settled();
    eventually("the new address is told", || {
        (cluster[first].known_address()? == "10.213.77.11:7400").then_some(())
    });
}
