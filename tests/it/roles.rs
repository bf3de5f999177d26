//! Office and roles move when an operator says so.

use serde_json::Value;

use crate::cluster::{Cluster, eventually};

fn node(cluster: &Cluster, at: usize, of: usize) -> Value {
    let status = cluster[at].status().unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["id"] == cluster[of].id.as_str()).unwrap().clone()
}

#[test]
fn office_moves_and_a_voter_becomes_a_reader_and_a_voter_again() {
    let cluster = Cluster::of(3);
    cluster.settled();
    let first = cluster.writer();
    cluster[first].write("cpu v=1 1");
    let said = cluster[first].skein_says(&["transfer"]);
    assert!(said.starts_with(&format!("{} handed over to ", cluster[first].name)), "{said}");
    let second = eventually("another writer", || Some(cluster.writer()).filter(|writer| *writer != first));
    let terms = cluster[second].status().unwrap()["terms"].clone();
    assert_eq!(terms.as_array().unwrap().last().unwrap()["why"], "handed_over");

    // The writer itself is demoted: it hands over first, and keeps its data.
    cluster[first].skein_says(&["node", "demote", &cluster[second].name.clone()]);
    let demoted = node(&cluster, first, second);
    assert_eq!(
        (&demoted["role"], &demoted["wants"], &demoted["is_writer"]),
        (&"reader".into(), &"reader".into(), &false.into())
    );
    cluster[first].write("cpu v=2 2");
    assert_eq!(cluster[second].numbers("SELECT count(*) FROM cpu"), [2]);
    let again = cluster[first].skein(&["node", "demote", &cluster[second].name]);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is no voter"),
        "{again:?}"
    );

    cluster[first].skein_says(&["node", "promote", &cluster[second].name.clone()]);
    eventually("a voter again", || (node(&cluster, first, second)["role"] == "voter").then_some(()));
    cluster[second].write("cpu v=3 3");
    assert_eq!(cluster[first].numbers("SELECT count(*) FROM cpu"), [3]);
}
