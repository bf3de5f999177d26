//! SIGTERM: office and leadership move first, no write fails, and the process ends well and soon.

use std::time::{Duration, Instant};

use crate::{
    cluster::Cluster,
    feed::{Feed, Sent},
    process::Signal,
};

/// A stop takes no longer.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_stopped_writer_hands_over() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let others = cluster.others(writer);
    let feed = Feed::at(others.iter().map(|node| &cluster[*node]), 1);
    feed.more(50);
    let took = cluster[writer].stop();
    feed.more(50);
    let sent = feed.finish();
    println!("the writer stopped in {took:?}; slowest write {:?}", sent.slowest);
    assert!(took < SOON, "{took:?}");
    sent.must_be_whole();
    assert!(
        cluster[writer].said().contains("handing over"),
        "it has stopped without a word: {}",
        cluster[writer].said()
    );
    for node in &others {
        sent.must_be_at(&cluster[*node]);
        let status = cluster[*node].status().unwrap();
        assert_ne!(status["leader"], cluster[writer].id.as_str());
        assert!(status["leader"].is_string() && status["writer"].is_string(), "{status:#}");
    }
    cluster[writer].start(&[]);
    cluster.settled();
    sent.must_be_at(&cluster[writer]);

    // All at once: nobody can hand over for good, and still each of them ends.
    let last = cluster[writer].write("feed,client=last n=7u 7").lsn();
    let since = Instant::now();
    for node in cluster.processes() {
        node.signal(Signal::TERM);
    }
    for node in cluster.processes() {
        let ended = node.ended(Duration::from_secs(20));
        println!("{} ended {:?} after SIGTERM to all", node.name, since.elapsed());
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert!(since.elapsed() < SOON + Duration::from_secs(2), "{:?}", since.elapsed());
    let lines: Vec<_> = cluster.processes().iter_mut().map(|node| node.launch(&[])).collect();
    for (node, lines) in cluster.processes().iter_mut().zip(&lines) {
        node.wait_ready(lines).unwrap_or_else(|ended| panic!("{ended:?}"));
    }
    let sent = sent.and(Sent { acked: [7].into(), ..Sent::default() });
    cluster.settled();
    let next = cluster[0].write("feed,client=last n=8u 8").lsn();
    assert!(next > last);
    let sent = sent.and(Sent { acked: [8].into(), ..Sent::default() });
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }
}
