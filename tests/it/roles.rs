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
    // What only a voter proposes it hands to one with the API token that came with it, and with that alone.
    let admin = cluster[first].skein_says(&["auth", "create", "--scope", "admin", "--name", "operator"]);
    let asked = |args: &[&str], token: Option<&str>| {
        let mut command = cluster[second].command(args);
        let output = command.envs(token.map(|token| ("SKEIN_API_TOKEN", token))).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let create = ["auth", "create", "--scope", "read", "--name", "made-at-a-reader"];
    let (done, _, why) = asked(&create, None);
    assert!(!done && why.contains("this node is no voter") && why.contains("SKEIN_API_TOKEN"), "{why}");
    let (done, made, why) = asked(&create, Some(admin.trim()));
    assert!(done && made.starts_with("skein_"), "{why}");
    let (done, _, why) = asked(&create, Some(admin.trim()));
    assert!(!done && why.contains("another API token of this name"), "a voter judges it: {why}");
    let (done, _, why) = asked(&["token", "create"], Some(made.trim()));
    assert!(!done && why.contains("the one sent is for read"), "of another scope: {why}");
    assert!(asked(&["token", "create"], Some(admin.trim())).1.starts_with("skein1-voter-"));
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
