//! Every node killed at the same moment and started again: every acknowledged row is there. All
//! of them on other ports: one seed, or one address that still holds, is enough to find each other.

use std::time::Duration;

use crate::{
    cluster::{Cluster, eventually},
    feed::{Feed, Sent},
    process::Signal,
};

#[test]
fn a_cluster_comes_back_whole_also_on_other_ports() {
    let mut cluster = Cluster::of(3);
    let feed = Feed::at(cluster.processes().iter(), 1);
    feed.more(200);
    kill_all(&mut cluster);
    let sent = feed.finish();
    assert!(sent.acked.len() >= 200);
    start_all(&mut cluster, None);
    cluster.settled();
    all_is_there(&sent, &cluster);

    let feed = Feed::at(cluster.processes().iter(), 2);
    feed.more(50);
    kill_all(&mut cluster);
    let sent = sent.and(feed.finish());
    // What each has saved of the others is wrong now; two of them are told where the first one is.
    cluster.processes().iter_mut().for_each(|node| node.move_away());
    let seed = cluster[0].mesh.clone();
    cluster[0].start(&[]);
    start_all(&mut cluster, Some(&seed));
    cluster.settled();
    for node in 0..3 {
        eventually("the new address is told", || {
            (cluster[node].known_address()? == cluster[node].mesh).then_some(())
        });
    }
    all_is_there(&sent, &cluster);
    cluster[2].write("feed,client=last n=7u 7");

    // Two move and one stays: no seed is needed.
    kill_all(&mut cluster);
    cluster[0].move_away();
    cluster[2].move_away();
    start_all(&mut cluster, None);
    cluster.settled();
    let sent = sent.and(Sent { acked: [7].into(), ..Sent::default() });
    all_is_there(&sent, &cluster);
}

/// Nobody has time to notice that another is gone.
fn kill_all(cluster: &mut Cluster) {
    cluster.processes().iter().for_each(|node| node.signal(Signal::KILL));
    for node in cluster.processes() {
        node.ended(Duration::from_secs(5));
    }
}

/// Those that do not run, at once.
#[track_caller]
fn start_all(cluster: &mut Cluster, seed: Option<&str>) {
    let flags = seed.map_or(vec![], |seed| vec!["--seed", seed]);
    let stopped = cluster.processes().iter_mut().filter(|node| !node.is_running());
    let started: Vec<_> = stopped.map(|node| (node.launch(&flags), node)).collect();
    for (lines, node) in started {
        node.wait_ready(&lines).unwrap_or_else(|ended| panic!("{}: {ended:?}", node.name));
    }
}

#[track_caller]
fn all_is_there(sent: &Sent, cluster: &Cluster) {
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }
}
