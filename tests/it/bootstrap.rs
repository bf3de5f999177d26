//! Nodes that start together with one token chosen up front make one cluster, whatever becomes of them
//! meanwhile.

use std::{sync::mpsc, time::Duration};

use crate::{
    cluster::{Cluster, eventually},
    process::Process,
};

/// All at once, by seeds that name each of them, itself included; then one more, later.
#[test]
fn three_at_once_by_seeds_and_a_fourth_later() {
    let mut cluster = Cluster::empty();
    let together = Together::new(&mut cluster, &[]);
    start_all(&mut cluster, &together);
    cluster.settled();
    one_cluster_of_all(&cluster);
    cluster[1].write("cpu v=1 1");

    // The token has no end and no count, and the same command joins.
    let fourth = cluster.add();
    let flags = together.flags(&cluster);
    cluster[fourth].start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    is_a_member_of(&cluster[fourth], &cluster[0]);
    // Or without the flag; and it can be taken back.
    let (fifth, sixth) = (cluster.add(), cluster.add());
    let seed = cluster[1].mesh.clone();
    cluster[fifth].start(&["--join", &together.file(), "--seed", &seed]);
    let tokens = cluster[0].skein_says(&["token", "list", "--json"]);
    let tokens: serde_json::Value = serde_json::from_str(&tokens).unwrap();
    let [token] = &tokens["tokens"].as_array().unwrap()[..] else { panic!("one token: {tokens}") };
    assert!(token["expires_ms"].is_null() && token["uses_left"].is_null(), "{token}");
    cluster[0].skein_says(&["token", "revoke", token["id"].as_str().unwrap()]);
    let ended = cluster[sixth].try_start(&["--join", &together.file(), "--seed", &seed]).unwrap_err();
    assert!(ended.code == Some(1) && ended.said.contains("revoked"), "{ended:?}");

    // The same command on a member's directory rejoins.
    cluster[0].kill();
    let flags = together.flags(&cluster);
    cluster[0].start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    cluster[0].write("cpu v=2 2");
}

/// SIGKILL of each, over and over, while they find each other, pledge themselves, make and join.
#[test]
fn killed_and_restarted_all_the_way() {
    let mut cluster = Cluster::empty();
    let together = Together::new(&mut cluster, &[]);
    let flags = together.flags(&cluster);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut lines =
        [cluster[0].launch(&flags), cluster[1].launch(&flags)].map(Some).into_iter().collect::<Vec<_>>();
    // Two of three wait, and say so; and again after a restart.
    for _ in 0..2 {
        for node in [0, 1] {
            eventually("two have met", || cluster[node].said().contains("2 of 3 nodes seen").then_some(()));
        }
        cluster[0].kill();
        lines[0] = Some(cluster[0].launch(&flags));
        cluster[1].kill();
        lines[1] = Some(cluster[1].launch(&flags));
    }
    // With the third it may come true at any moment; each dies in many of them.
    lines.push(Some(cluster[2].launch(&flags)));
    for round in 0..18_u64 {
        std::thread::sleep(Duration::from_millis(60 + round * 97 % 600));
        let node = usize::try_from(round % 3).unwrap();
        cluster[node].kill();
        lines[node] = Some(cluster[node].launch(&flags));
    }
    wait_for_all(&mut cluster, lines.into_iter().flatten().collect());
    cluster.settled();
    one_cluster_of_all(&cluster);
    cluster[2].write("cpu v=1 1");
}

/// Nobody is given an address.
#[cfg(feature = "mdns")]
#[test]
fn three_at_once_by_mdns() {
    let mut cluster = Cluster::empty();
    let together = Together::new(&mut cluster, &[]);
    cluster.processes().iter_mut().for_each(|node| node.mdns = true);
    let join = together.file();
    let lines = cluster
        .processes()
        .iter_mut()
        .map(|node| node.launch(&["--join", &join, "--bootstrap-expect", "3"]))
        .collect();
    wait_for_all(&mut cluster, lines);
    cluster.settled();
    one_cluster_of_all(&cluster);
}

/// What cannot work is said before anything is tried.
#[test]
fn flags_that_cannot_work_are_refused() {
    let mut cluster = Cluster::empty();
    let together = Together::new(&mut cluster, &["--uses", "1"]);
    let file = together.file();
    for (flags, says) in [
        (&["--bootstrap-expect", "3"][..], "--join @FILE"),
        (&["--bootstrap-expect", "3", "--join", &file], "more --uses"),
        (&["--bootstrap-expect", "6", "--join", &file], "1 to 5"),
        (&["--new-cluster", "--join", &file], "--bootstrap-expect 1"),
        (&["--bootstrap-expect", "2", "--join", &file, "--role", "reader"], "start without --role"),
    ] {
        let ended = cluster[0].try_start(flags).unwrap_err();
        assert!(ended.code == Some(2) && ended.said.contains(says), "{flags:?}: {ended:?}");
    }
    // Alone it goes ahead at once, and the use is left for another.
    cluster[0].start(&["--bootstrap-expect", "1", "--join", &file]);
    let seed = cluster[0].mesh.clone();
    cluster[1].start(&["--join", &file, "--seed", &seed]);
    let ended = cluster[2].try_start(&["--join", &file, "--seed", &seed]).unwrap_err();
    assert!(ended.code == Some(1) && ended.said.contains("spent"), "{ended:?}");
}

/// Three nodes, not started, and the token they are to have.
struct Together {
    token: std::path::PathBuf,
}

impl Together {
    fn new(cluster: &mut Cluster, limits: &[&str]) -> Self {
        for _ in 0..3 {
            cluster.add();
        }
        // No node runs, and none is asked.
        let made = cluster[0].skein_alone(&[&["token", "generate"], limits].concat());
        assert!(made.starts_with("skein1-voter-") && made.lines().count() == 1, "the token alone: {made:?}");
        assert!(!cluster[0].dir.exists());
        let token = cluster[0].dir.parent().unwrap().join("token");
        std::fs::write(&token, made).unwrap();
        Self { token }
    }

    fn file(&self) -> String {
        format!("@{}", self.token.display())
    }

    /// The same for all: every address is among the seeds, the node's own too.
    fn flags(&self, cluster: &Cluster) -> Vec<String> {
        let mut flags = vec!["--bootstrap-expect".to_owned(), "3".into(), "--join".into(), self.file()];
        flags.extend((0..3).flat_map(|node| ["--seed".to_owned(), cluster[node].mesh.clone()]));
        flags
    }
}

fn start_all(cluster: &mut Cluster, together: &Together) {
    let flags = together.flags(cluster);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let lines = cluster.processes().iter_mut().map(|node| node.launch(&flags)).collect();
    wait_for_all(cluster, lines);
}

#[track_caller]
fn wait_for_all(cluster: &mut Cluster, lines: Vec<mpsc::Receiver<String>>) {
    for (node, lines) in lines.iter().enumerate() {
        if let Err(ended) = cluster[node].wait_ready(lines) {
            panic!("{} has ended: {ended:?}", cluster[node].name);
        }
    }
}

/// Every node names the same cluster and the same three members.
#[track_caller]
fn one_cluster_of_all(cluster: &Cluster) {
    let seen: Vec<_> = cluster.running().map(|node| cluster[node].status().unwrap()).collect();
    assert_eq!(seen.len(), 3);
    for status in &seen {
        assert_eq!(status["cluster_id"], seen[0]["cluster_id"]);
        assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status:#}");
    }
}

#[track_caller]
fn is_a_member_of(node: &Process, other: &Process) {
    eventually("it is a member", || {
        let (own, theirs) = (node.status()?, other.status()?);
        let listed = theirs["nodes"].as_array()?.iter().any(|n| n["id"] == node.id.as_str());
        // Its own copy of raft's state comes a moment later.
        (listed && own["cluster_id"] == theirs["cluster_id"]).then_some(())
    });
}
