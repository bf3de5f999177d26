//! Wall clocks that are wrong: certificates are judged by them, and nothing else may suffer.

use std::{path::PathBuf, time::Duration};

use crate::{
    cluster::{Cluster, eventually, within},
    feed::{Feed, Sent},
    process::Process,
};

/// The library that shows a process another wall clock.
pub fn faketime() -> Option<PathBuf> {
    let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    dirs.map(|dir| PathBuf::from(dir).join("faketime/libfaketimeMT.so.1")).into_iter().find(|at| at.is_file())
}

/// Of the next start.
pub fn set_clock(node: &mut Process, library: &std::path::Path, off: &str) {
    let only_the_wall = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"];
    node.before = only_the_wall.map(str::to_owned).to_vec();
    node.before.push(format!("LD_PRELOAD={}", library.display()));
    node.before.push(format!("FAKETIME={off}"));
}

fn links(node: &Process) -> u64 {
    let metrics = node.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with("skein_links ")).expect("the gauge");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn is_ready(node: &Process) -> bool {
    node.get("/readyz").status == 200
}

#[test]
fn an_hour_is_borne_and_more_is_named_and_mended_by_setting_the_clock() {
    let Some(library) = faketime() else {
        println!("SKIPPED: wrong clocks: libfaketime is not installed");
        return;
    };
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [stays, wrong] = cluster.others(writer)[..] else { panic!("three nodes") };
    for off in ["-1h", "+1h"] {
        cluster[wrong].stop();
        set_clock(&mut cluster[wrong], &library, off);
        cluster[wrong].start(&[]);
        cluster.settled();
        let time = if off == "-1h" { 1 } else { 2 };
        cluster[wrong].write(&format!("clocks n={time}u {time}"));
    }
    // Longer than a certificate is good for. The others go on.
    let mut all = Sent::default();
    for (off, n) in [("+60d", 3), ("+400d", 4)] {
        cluster[wrong].stop();
        let feed = Feed::at([&cluster[writer], &cluster[stays]], n);
        feed.more(20);
        set_clock(&mut cluster[wrong], &library, off);
        cluster[wrong].start(&[]);
        eventually("it says what is wrong", || cluster[wrong].said().contains("set the clock").then_some(()));
        assert_eq!(links(&cluster[wrong]), 0, "{off}");
        assert!(!is_ready(&cluster[wrong]), "{off}");
        feed.more(50);
        let sent = feed.finish();
        sent.must_be_whole();
        all = all.and(sent);
        all.must_be_at(&cluster[stays]);

        // It has signed itself a certificate that nobody takes yet. With the right time it is told so,
        // and asks for another.
        cluster[wrong].stop();
        cluster[wrong].before.clear();
        cluster[wrong].start(&[]);
        within(Duration::from_secs(40), "it is back", || is_ready(&cluster[wrong]).then_some(()));
        cluster.settled();
        all.must_be_at(&cluster[wrong]);
        cluster[wrong].write(&format!("clocks n={n}u {n}"));
    }
    assert_eq!(cluster[wrong].numbers("SELECT n FROM clocks ORDER BY n"), [1, 2, 3, 4]);
}

/// All of them, a reader too, were off until after their certificates had ended.
#[test]
fn a_cluster_whose_certificates_have_all_ended_comes_home() {
    let Some(library) = faketime() else {
        println!("SKIPPED: expired certificates: libfaketime is not installed");
        return;
    };
    let mut cluster = Cluster::of(3);
    let token = cluster[0].skein_says(&["token", "create", "--role", "reader"]).trim().to_owned();
    let (seed, reader) = (cluster[0].mesh.clone(), cluster.add());
    cluster[reader].start(&["--join", &token, "--seed", &seed]);
    cluster[reader].write("home n=1u 1");
    for node in 0..4 {
        cluster[node].kill();
        set_clock(&mut cluster[node], &library, "+400d");
    }
    let lines: Vec<_> = cluster.processes().iter_mut().map(|node| node.launch(&[])).collect();
    for (node, lines) in cluster.processes().iter_mut().zip(&lines) {
        node.wait_ready(lines).unwrap_or_else(|ended| panic!("{}: {ended:?}", node.name));
    }
    within(Duration::from_secs(60), "all are linked and ready", || {
        (0..4).all(|node| links(&cluster[node]) == 3 && is_ready(&cluster[node])).then_some(())
    });
    cluster[reader].write("home n=2u 2");
    for node in 0..4 {
        eventually("both rows", || {
            (cluster[node].numbers("SELECT n FROM home ORDER BY n") == [1, 2]).then_some(())
        });
    }
}
