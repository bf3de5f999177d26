//! The cluster's CA is replaced while clients write, and whoever was away comes home.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually, within},
    feed::Feed,
    process::Process,
};

/// How every unsealed Ed25519 key of a node or CA begins (PKCS#8).
const PRIVATE_KEY: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

fn ca(node: &Process) -> Value {
    serde_json::from_str(&node.skein_says(&["ca", "status", "--json"])).unwrap()
}

/// The one root of a cluster that is not rotating.
#[track_caller]
fn root(node: &Process) -> String {
    let ca = ca(node);
    assert!(ca["rotation"].is_null(), "{ca:#}");
    assert_eq!(ca["roots"].as_array().unwrap().len(), 1, "{ca:#}");
    ca["roots"][0]["fingerprint"].as_str().unwrap().to_owned()
}

#[track_caller]
fn waits_for(node: &Process, whom: &[&str]) {
    within(Duration::from_secs(40), &format!("the rotation waits for {whom:?} only"), || {
        let ca = ca(node);
        let waiting = ca["rotation"]["waits_for"].as_array()?.clone();
        (ca["roots"].as_array()?.len() == 2 && waiting == whom).then_some(())
    });
}

#[track_caller]
fn is_over(node: &Process, old: &str) {
    within(Duration::from_secs(60), "the old root is retired", || {
        let ca = ca(node);
        let new = ca["roots"].as_array()?.len() == 1 && ca["roots"][0]["fingerprint"] != old;
        (new && ca["rotation"].is_null()).then_some(())
    });
}

fn gauge(node: &Process, name: &str) -> f64 {
    let metrics = node.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[track_caller]
fn join(cluster: &mut Cluster, role: &str) -> usize {
    let token = cluster[0].skein_says(&["token", "create", "--role", role]).trim().to_owned();
    let seed = cluster[0].mesh.clone();
    let node = cluster.add();
    cluster[node].start(&["--join", &token, "--seed", &seed]);
    node
}

/// Files below a directory in which an unsealed private key lies.
fn private_keys(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            private_keys(&entry.path(), found);
        } else if entry.file_type().unwrap().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let keys = bytes.windows(PRIVATE_KEY.len()).filter(|at| **at == PRIVATE_KEY).count();
            found.extend((0..keys).map(|_| entry.file_name().to_string_lossy().into_owned()));
        }
    }
}

#[test]
fn a_new_root_under_load_over_restarts_and_changes_of_the_leader() {
    let mut cluster = Cluster::of(3);
    let reader = join(&mut cluster, "reader");
    let sleeper = join(&mut cluster, "reader");
    let (sleeper_id, sleeper_name) = (cluster[sleeper].id.clone(), cluster[sleeper].name.clone());
    let old_token = cluster[0].token(5);
    let old = root(&cluster[0]);
    cluster[0].write("first n=7u 7");
    assert_eq!(cluster[sleeper].numbers("SELECT n FROM first"), [7]);
    cluster[sleeper].stop();

    // Clients at the writer, another voter and the reader; the third voter is restarted on the way.
    let writer = cluster.writer();
    let voters: Vec<usize> = (0..3).filter(|node| *node != writer).collect();
    let (stays, restarted) = (voters[0], voters[1]);
    let feed = Feed::at([&cluster[writer], &cluster[stays], &cluster[reader]], 1);
    feed.more(50);

    cluster[stays].skein_says(&["ca", "rotate"]);
    let again = cluster[writer].skein(&["ca", "rotate"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("being rotated already"), "{again:?}");
    // One of them is killed in the middle of it, and leader and writer change.
    cluster[restarted].kill();
    cluster[restarted].start(&[]);
    cluster[stays].skein_says(&["transfer"]);
    waits_for(&cluster[reader], &[&sleeper_id]);
    feed.more(100);
    assert_eq!(gauge(&cluster[reader], "skein_ca_roots"), 2.0);
    assert!((29.0..=30.0).contains(&gauge(&cluster[reader], "skein_certificate_days_left")));
    assert!(gauge(&cluster[reader], "skein_ca_days_left") > 3_000.0);
    assert_eq!(gauge(&cluster[reader], "skein_ca_rotation_waits_for"), 1.0);
    let warned = eventually("a warning", || {
        let status = cluster[writer].status()?;
        let warnings = status["warnings"].as_array()?.clone();
        warnings
            .iter()
            .find_map(|warning| Some(warning.as_str()?.to_owned()).filter(|w| w.contains("--drop")))
    });
    assert!(warned.contains("does not answer"), "{warned}");
    let shown = cluster[reader].skein_says(&["ca", "status"]);
    assert!(
        shown.contains("4 of 5 members have renewed") && shown.contains("old, does not answer"),
        "{shown}"
    );

    // Between two roots a voter becomes a reader and the reader a voter, to whom both keys are sealed first.
    let [demoted, promoted] = [restarted, reader].map(|node| cluster[node].name.clone());
    cluster[writer].skein_says(&["node", "demote", &demoted]);
    cluster[stays].skein_says(&["node", "promote", &promoted]);
    eventually("the reader votes", || (role(&cluster[stays], &promoted)? == "voter").then_some(()));
    waits_for(&cluster[stays], &[&sleeper_id]);
    assert_eq!(role(&cluster[stays], &demoted).unwrap(), "reader");

    // Without the one that sleeps it comes to its end, everywhere.
    cluster[writer].skein_says(&["ca", "rotate", "--drop", &sleeper_name]);
    for node in [writer, stays, restarted, reader] {
        is_over(&cluster[node], &old);
    }
    feed.more(100);
    let sent = feed.finish();
    sent.must_be_whole();
    println!("{} writes over a rotation, slowest {:?}", sent.acked.len(), sent.slowest);
    let new = root(&cluster[reader]);
    assert_ne!(new, old);
    for node in [writer, stays, restarted, reader] {
        assert_eq!(root(&cluster[node]), new);
        let pem = eventually("the clients' copy of the root", || {
            let pem = fs::read_to_string(cluster[node].dir.join("ca.pem")).ok()?;
            (pem.matches("BEGIN CERTIFICATE").count() == 1).then_some(pem)
        });
        assert!(!pem.is_empty());
        let said = cluster[node].said();
        assert!(said.contains("CA rotation: root") && said.contains("is retired"), "{said}");
    }

    // No key of another node, and none of a CA, lies on a disk in the clear: not a reader's, not a voter's.
    for node in [restarted, reader] {
        let mut keys = Vec::new();
        private_keys(&cluster[node].dir, &mut keys);
        assert_eq!(keys, ["node.key"]);
    }

    // Tokens that pin the old root ended with it, and say so.
    let tokens: Value = serde_json::from_str(&cluster[0].skein_says(&["token", "list", "--json"])).unwrap();
    let usable = tokens["tokens"].as_array().unwrap().iter().filter(|token| token["revoked"] == false);
    assert_eq!(usable.count(), 0, "{tokens:#}");
    let seed = cluster[writer].mesh.clone();
    let late = cluster.add();
    let _ready = cluster[late].launch(&["--join", &old_token, "--seed", &seed]);
    eventually("a reason", || cluster[late].said().contains("the CA was rotated since").then_some(()));
    cluster[late].stop();
    // At the door of the new voter: it signs by itself. One without the key would have asked the leader.
    let token = cluster[reader].token(1);
    eventually("the door knows the token", || {
        let list: Value =
            serde_json::from_str(&cluster[reader].skein_says(&["token", "list", "--json"])).unwrap();
        list["tokens"].as_array()?.iter().any(|token| token["revoked"] == false).then_some(())
    });
    let seed = cluster[reader].mesh.clone();
    cluster[late].start(&["--join", &token, "--seed", &seed]);
    let signed = format!("\"signed in\",\"node\":\"{}\"", cluster[late].id);
    for node in [writer, stays, restarted, reader] {
        assert_eq!(cluster[node].said().contains(&signed), node == reader, "{signed} at {node}");
    }

    // The sleeper's certificate is of a root that nobody trusts, and it knows no other: it comes home by
    // its key, and by what the old root has signed.
    let before = fs::read(cluster[sleeper].dir.join("cluster.json")).unwrap();
    cluster[sleeper].start(&[]);
    eventually("it is back", || (root_of(&cluster[sleeper])? == new).then_some(()));
    sent.must_be_at(&cluster[sleeper]);
    let said = cluster[sleeper].said();
    assert!(said.contains("rotated while this node was away"), "{said}");
    assert_ne!(fs::read(cluster[sleeper].dir.join("cluster.json")).unwrap(), before);
    // And what it has come home with lasts.
    cluster[sleeper].stop();
    cluster[sleeper].start(&[]);
    eventually("it is back again", || (root_of(&cluster[sleeper])? == new).then_some(()));
}

fn role(by: &Process, name: &str) -> Option<String> {
    let status = by.status()?;
    let node = status["nodes"].as_array()?.iter().find(|node| node["name"] == name)?;
    Some(node["role"].as_str()?.to_owned())
}

fn root_of(node: &Process) -> Option<String> {
    let status = node.status()?;
    let up = status["nodes"].as_array()?.iter().filter(|node| node["state"] == "up").count();
    (up > 1).then_some(())?;
    Some(status["ca"]["roots"][0]["fingerprint"].as_str()?.to_owned())
}

#[test]
fn a_voter_that_slept_through_a_rotation_votes_again() {
    let mut cluster = Cluster::of(3);
    let old = root(&cluster[0]);
    let writer = cluster.writer();
    let [stays, sleeps] = cluster.others(writer)[..] else { panic!("three nodes") };
    cluster[sleeps].kill();
    let sleeper = cluster[sleeps].id.clone();
    cluster[stays].skein_says(&["ca", "rotate"]);
    waits_for(&cluster[writer], &[&sleeper]);
    cluster[stays].skein_says(&["ca", "rotate", "--drop", &sleeper]);
    is_over(&cluster[writer], &old);
    cluster[writer].write("feed,client=c n=1u 1");

    cluster[sleeps].start(&[]);
    cluster.settled();
    // It has both a vote that counts and the new key: the other two are not a majority without it.
    cluster[stays].stop();
    within(Duration::from_secs(20), "a write that it has a part in", || {
        let path = "/api/v3/write_lp?db=it&precision=nanosecond";
        (cluster[sleeps].post(path, "feed,client=c n=2u 2").status == 204).then_some(())
    });
    let token = cluster[sleeps].token(1);
    let seed = cluster[sleeps].mesh.clone();
    let joiner = cluster.add();
    cluster[joiner].start(&["--join", &token, "--seed", &seed]);
    assert_eq!(cluster[joiner].numbers("SELECT n FROM feed ORDER BY n"), [1, 2]);
}

/// The leader makes the new root; when it dies first, or in the middle, the next one goes on.
#[test]
fn a_leader_that_dies_in_the_middle_is_carried_on_from() {
    let mut cluster = Cluster::of(3);
    let old = root(&cluster[0]);
    let leads = |cluster: &Cluster| {
        let leader =
            cluster.running().find_map(|node| cluster[node].status()?["leader"].as_str().map(str::to_owned));
        cluster.running().find(|node| leader.as_ref() == Some(&cluster[*node].id))
    };
    let leader = eventually("a leader", || leads(&cluster));
    cluster[leader].skein_says(&["ca", "rotate"]);
    cluster[leader].kill();
    eventually("another leader", || leads(&cluster));
    let (id, others) = (cluster[leader].id.clone(), cluster.others(leader));
    waits_for(&cluster[others[0]], &[&id]);
    cluster[leader].start(&[]);
    for node in 0..3 {
        is_over(&cluster[node], &old);
    }
    cluster.settled();
    let new = root(&cluster[0]);
    assert!((1..3).all(|node| root(&cluster[node]) == new));
    cluster[leader].write("rotated v=1u 1");
}
