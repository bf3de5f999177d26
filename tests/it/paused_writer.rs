//! A writer that is paused, as a virtual machine is, and wakes up after another has taken over:
//! it steps down, and what it acknowledged stands.

use std::time::Duration;

use crate::{
    cluster::{Cluster, within},
    feed::Feed,
    process::Signal,
};

#[test]
fn a_writer_that_slept_steps_down() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let others = cluster.others(writer);
    let epoch = cluster[writer].status().unwrap()["epoch"].as_u64().unwrap();
    let near = Feed::at([&cluster[writer]], 1);
    let feed = Feed::at(others.iter().map(|node| &cluster[*node]), 2);
    near.more(50);
    cluster[writer].signal(Signal::STOP);
    // Its client waits in front of it, and it has no idea that time passes.
    std::thread::sleep(Duration::from_secs(3));
    feed.more(50);
    cluster[writer].signal(Signal::CONT);
    within(Duration::from_secs(10), "the old writer knows the new one", || {
        let status = cluster[writer].status()?;
        let moved = status["writer"].as_str()? != cluster[writer].id && status["epoch"].as_u64()? > epoch;
        moved.then_some(())
    });
    near.more(50);
    let near = near.finish();
    let sent = feed.finish();
    sent.must_be_whole();
    println!("slowest write {:?}; at the paused node {:?}, {:?}", sent.slowest, near.slowest, near.failed);
    let sent = sent.and(near);
    cluster.settled();
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }
    let through = cluster[writer].write("feed,client=last n=7u 7");
    assert_eq!(through.header("x-skein-forwarded"), Some("true"));
    assert_ne!(through.header("x-skein-writer"), Some(cluster[writer].id.as_str()));
    assert!(through.lsn().0 > epoch);
    // It is a follower like any other: the new writer may go.
    let next = cluster.writer();
    cluster[next].kill();
    let last = cluster[writer].write("feed,client=last n=8u 8");
    assert!(last.lsn() > through.lsn());
}
