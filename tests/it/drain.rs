//! `skein node drain`: a node may be taken away for a while, and no write notices.

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    feed::Feed,
};

fn node(cluster: &Cluster, at: usize, of: usize) -> Option<Value> {
    let status = cluster[at].status()?;
    status["nodes"].as_array()?.iter().find(|node| node["id"] == cluster[of].id.as_str()).cloned()
}

#[test]
fn a_drained_writer_is_stopped_and_comes_back_and_no_write_fails() {
    let mut cluster = Cluster::of(3);
    let drained = cluster.writer();
    let others = cluster.others(drained);
    let name = cluster[drained].name.clone();
    let feed = Feed::at(others.iter().map(|node| &cluster[*node]), 1);
    feed.more(50);
    // Said to itself, and to another node, which finds nothing left to do.
    let said = cluster[drained].skein_says(&["node", "drain", &name]);
    assert!(said.contains("safe to stop"), "{said}");
    cluster[others[0]].skein_says(&["node", "drain", &name]);
    let seen = node(&cluster, others[0], drained).unwrap();
    assert_eq!((&seen["is_writer"], &seen["is_leader"]), (&false.into(), &false.into()), "{seen}");
    assert_eq!(seen["state"], "draining");
    assert_eq!(cluster[drained].get("/readyz").status, 503);
    feed.more(50);

    // Two of three voters are left: taking another one would stop writes, and that is said.
    cluster[drained].kill();
    let unsafe_now = cluster[others[0]].skein(&["node", "drain", &cluster[others[1]].name.clone()]);
    assert_eq!(unsafe_now.status.code(), Some(1), "{unsafe_now:?}");
    assert!(String::from_utf8_lossy(&unsafe_now.stderr).contains("1 of 3 voters"), "{unsafe_now:?}");
    cluster[others[0]].skein_says(&["node", "undrain", &cluster[others[1]].name.clone()]);
    feed.more(50);

    // It stands in raft's state: it comes back drained, and whoever writes then, it is not this one.
    cluster[drained].start(&[]);
    eventually("it is back", || (node(&cluster, others[0], drained)?["state"] == "draining").then_some(()));
    let writer = || cluster[others[0]].status().map(|status| status["writer"].clone());
    let before = writer();
    let said = cluster[others[0]].skein_says(&["transfer"]);
    let now = eventually("another writer", || writer().filter(|now| Some(now) != before.as_ref()));
    assert!(now.is_string() && now != cluster[drained].id.as_str(), "{said}");
    let sent = feed.finish();
    sent.must_be_whole();
    let refused = cluster[others[0]].skein(&["transfer", &name]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");

    // And when it is undrained, it takes what it is given: by name.
    cluster[others[0]].skein_says(&["node", "undrain", &name]);
    let said = cluster[others[0]].skein_says(&["transfer", &name]);
    assert!(said.contains(&format!("handed over to {name}")), "{said}");
    assert_eq!(cluster[others[0]].status().unwrap()["writer"], cluster[drained].id.as_str());
    sent.must_be_at(&cluster[drained]);
}

#[test]
fn a_lone_node_cannot_be_drained() {
    let cluster = Cluster::of(1);
    let refused = cluster[0].skein(&["node", "drain", "n1"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no other voter"), "{refused:?}");
    assert_eq!(cluster[0].get("/readyz").status, 200);
}
