//! One request, followed by its name through the logs of the nodes that it passes.

use std::time::Duration;

use crate::{
    cluster::{Cluster, within},
    gateway::{follows, with},
    http::{Answer, send},
    process::{Process, REQUEST},
};

const SOON: Duration = Duration::from_secs(20);

fn named(node: &Process, method: &str, path: &str, name: &str, body: &str) -> Answer {
    let headers = [("x-request-id", name)];
    send(&node.tcp(), method, path, &headers, body.as_bytes(), REQUEST)
        .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// The line of a node's log that has both.
fn line(node: &Process, name: &str, word: &str) -> String {
    let said = |line: &&str| line.contains(name) && line.contains(word);
    within(SOON, &format!("a line of {name} and {word:?} at {}", node.name), || {
        node.said().lines().find(said).map(str::to_owned)
    })
}

#[test]
fn the_name_of_a_request_is_in_the_log_of_every_node_it_passes() {
    let mut cluster = Cluster::of(3);
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    let source = follows(&cluster[gateway]);
    let writer = cluster.writer();
    let edge = cluster.others(writer).into_iter().find(|node| *node != gateway).unwrap();

    // A write, at a node that forwards it, and at the gateway.
    for (at, name) in [(edge, "order-66.a"), (gateway, "order-66.b")] {
        let path = "/api/v3/write_lp?db=it&p=skein_secret";
        let answer = named(&cluster[at], "POST", path, name, "cpu v=1 1").expect(204);
        assert_eq!(answer.header("x-request-id"), Some(name));
        let lsn = answer.header("x-skein-lsn").unwrap();
        let here = line(&cluster[at], name, "answered");
        assert!(here.contains("204") && here.contains(lsn) && !here.contains("skein_secret"), "{here}");
        let there = line(&cluster[writer], name, "wrote what was forwarded");
        assert!(there.contains(lsn) && there.contains(&cluster[at].id), "{there}");
    }

    // A query, which the gateway passes on.
    named(&cluster[gateway], "GET", "/api/v1/cluster", "look-1", "").expect(200);
    line(&cluster[gateway], "look-1", "answered");
    let answered = cluster.running().filter(|node| *node != gateway);
    let by: Vec<usize> = answered.filter(|node| cluster[*node].said().contains("look-1")).collect();
    assert_eq!(by.len(), 1, "one node answered, though the view comes from {source}");

    // Without a name there is one all the same, but no line at the usual level.
    let made = |at: usize| cluster[at].write("cpu v=2 2").header("x-request-id").unwrap().to_owned();
    let (one, other) = (made(edge), made(edge));
    assert!(one != other && !cluster[edge].said().contains(&one), "{one} {other}");
    // What would break a log is no name.
    let odd = named(&cluster[edge], "GET", "/ping", "a b", "");
    assert_ne!(odd.header("x-request-id"), Some("a b"));
}
