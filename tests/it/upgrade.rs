//! Nodes of two versions in one cluster: an older one, which lacks a feature, and this one. They work
//! together, are replaced one after the other under load, and none goes back once the feature was used.

use std::time::Duration;

use crate::{
    cluster::{Cluster, within},
    feed::{Feed, Sent},
    process::Process,
};

/// The bit of the commands of draining and of rotating the CA (docs/wire.md).
const OLDER: (&str, &str) = ("SKEIN_WITHOUT_FEATURES", "2");
const SOON: Duration = Duration::from_secs(20);

fn is_older(node: &mut Process, older: bool) {
    node.env.retain(|(name, _)| name != OLDER.0);
    if older {
        node.env.push((OLDER.0.into(), OLDER.1.into()));
    }
}

#[test]
fn node_after_node_is_replaced_under_load_and_none_goes_back() {
    let mut cluster = Cluster::empty();
    for node in 0..3 {
        cluster.add();
        is_older(&mut cluster[node], true);
    }
    cluster[0].start(&["--new-cluster"]);
    let (token, seed) = (cluster[0].token(2), cluster[0].mesh.clone());
    for node in 1..3 {
        cluster[node].start(&["--join", &token, "--seed", &seed]);
    }
    cluster.settled();

    let mut sent = Sent::default();
    for node in 0..3 {
        // While one of them lacks it nobody uses it, whichever is asked.
        for asked in 0..3 {
            let name = cluster[(asked + 1) % 3].name.clone();
            let refused = cluster[asked].skein(&["node", "drain", &name]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("Upgrade every member first"), "{said}");
        }
        let feed = Feed::at(cluster.others(node).into_iter().map(|node| &cluster[node]), node as u64 + 1);
        feed.more(30);
        cluster[node].stop();
        is_older(&mut cluster[node], false);
        cluster[node].start(&[]);
        cluster.settled();
        feed.more(30);
        let part = feed.finish();
        part.must_be_whole();
        sent = sent.and(part);
    }
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }

    // All of them know it, and have said so: it may be used, and is in the log from then on.
    let name = cluster[1].name.clone();
    within(SOON, "every member has said what it knows", || {
        cluster[0].skein(&["node", "drain", &name]).status.success().then_some(())
    });
    cluster[0].skein_says(&["node", "undrain", &name]);

    // An older one neither comes back nor comes in, and says why. The others go on, and it does as well
    // with the newer version.
    let feed = Feed::at([&cluster[0]], 9);
    cluster[2].stop();
    is_older(&mut cluster[2], true);
    let _lines = cluster[2].launch(&[]);
    let ended = cluster[2].ended(SOON);
    assert!(ended.code == Some(1) && ended.said.contains("Start the newer version again"), "{ended:?}");
    let newcomer = cluster.add();
    is_older(&mut cluster[newcomer], true);
    let token = cluster[0].token(1);
    let _lines = cluster[newcomer].launch(&["--join", &token, "--seed", &seed]);
    within(SOON, "it is told to come with a newer version", || {
        cluster[newcomer].said().contains("start a newer version").then_some(())
    });
    cluster[newcomer].kill();
    is_older(&mut cluster[2], false);
    cluster[2].start(&[]);
    cluster.settled();
    let sent = sent.and(feed.finish());
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }
}
