//! Every node gets another address at once, and nobody tells anybody: the cluster heals alone.

use crate::{
    cluster::{Cluster, eventually},
    http::send,
    namespaces::Net,
    process::{Process, REQUEST},
};

#[test]
fn all_nodes_change_address_and_port_at_once_and_the_cluster_heals_alone() {
    let Some(net) = Net::make(3, "moved") else { return };
    let mut cluster = Cluster::empty();
    let nodes: Vec<usize> = (0..3).map(|_| cluster.add()).collect();
    net.house(&mut cluster);
    cluster[0].start(&["--new-cluster"]);
    let token = cluster[0].token(2);
    for node in &nodes[1..] {
        cluster[*node].start(&["--join", &token]);
    }
    cluster.settled();
    write(&cluster[0], 1);
    shown_at(&cluster, &nodes, 1, 7400);

    // Other addresses under them while they run: nobody has any of the old ones any more.
    net.renumber(21);
    shown_at(&cluster, &nodes, 21, 7400);
    cluster.settled();
    write(&cluster[1], 2);

    // All of them gone, and back with other addresses and other ports.
    for node in &nodes {
        cluster[*node].kill();
    }
    net.renumber(31);
    let mut started = Vec::new();
    for node in &nodes {
        cluster[*node].mesh = format!("0.0.0.0:{}", 7500 + node);
        started.push(cluster[*node].launch(&[]));
    }
    for (node, lines) in nodes.iter().zip(started) {
        if let Err(ended) = cluster[*node].wait_ready(&lines) {
            panic!("node {node} did not come back: {ended:?}");
        }
    }
    shown_at(&cluster, &nodes, 31, 7500);
    cluster.settled();
    write(&cluster[2], 3);
    for node in &nodes {
        let asked = ["query", "-d", "it", "--format", "csv", "--consistency", "linearizable"];
        let rows = cluster[*node].skein_says(&[&asked[..], &["SELECT n FROM moved ORDER BY n"]].concat());
        assert_eq!(rows.split_whitespace().collect::<Vec<_>>(), ["n", "1", "2", "3"]);
    }
}

/// Over its socket: its ports are in another namespace.
#[track_caller]
fn write(node: &Process, n: u64) {
    let line = format!("moved n={n}i {n}");
    send(&node.unix(), "POST", "/write?db=it", &[], line.as_bytes(), REQUEST).unwrap().expect(204);
}

/// Waits until every node knows every node at its new address.
#[track_caller]
fn shown_at(cluster: &Cluster, nodes: &[usize], from: usize, port: usize) {
    for node in nodes {
        // Ports are one after the other only once they have moved.
        let port = if port == 7400 { port } else { port + node };
        let at = format!("10.213.77.{}:{port}", from + node);
        for by in nodes {
            eventually(&format!("node {by} knows node {node} at {at}"), || {
                let status = cluster[*by].status()?;
                let shown =
                    status["nodes"].as_array()?.iter().find(|n| n["id"] == cluster[*node].id.as_str())?;
                (shown["mesh_addr"] == at.as_str()).then_some(())
            });
        }
    }
}
