//! Nodes of two versions in one cluster: an older one, which lacks a feature, and this one. They work
//! together, are replaced one after the other under load, and none goes back once the upgrade is finalised.

use std::time::Duration;

use crate::{
    cluster::{Cluster, within},
    feed::{Feed, Sent},
    process::Process,
};

/// The bits of the commands of draining and of rotating the CA, and of finalising (docs/wire.md).
const OLDER: (&str, &str) = ("SKEIN_WITHOUT_FEATURES", "10");
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
        if node < 2 {
            within(SOON, "nobody finalises while one lacks what another has", || {
                let early = cluster[2].skein(&["finalise"]);
                let said = String::from_utf8_lossy(&early.stderr).into_owned();
                (!early.status.success() && said.contains("Upgrade every member first")).then_some(())
            });
        }
        feed.more(30);
        let part = feed.finish();
        part.must_be_whole();
        sent = sent.and(part);
    }
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }

    // All of them know it, and have said so. Before anything of it is used one may still go back, and after
    // that is ruled out none: nothing else was done in between.
    within(SOON, "every member has said what it knows", || {
        cluster[0].skein_says(&["status"]).contains("skein finalise").then_some(())
    });
    for older in [true, false] {
        cluster[2].stop();
        is_older(&mut cluster[2], older);
        cluster[2].start(&[]);
        cluster.settled();
    }
    let doubt = cluster[1].skein(&["doctor"]);
    assert!(String::from_utf8_lossy(&doubt.stdout).contains("skein finalise"), "{doubt:?}");
    within(SOON, "the upgrade is finalised", || {
        cluster[1].skein(&["finalise"]).status.success().then_some(())
    });
    for node in 0..3 {
        within(SOON, "every member has heard", || {
            let status = cluster[node].skein_says(&["status"]);
            (status.contains("features 15") && !status.contains("finalise")).then_some(())
        });
    }
    assert_eq!(cluster[2].skein_says(&["finalise", "--json"]), "{\"level\":15,\"known\":15,\"behind\":[]}\n");

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
