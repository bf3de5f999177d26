//! The writer is killed while clients write at the other nodes: none of them sees a failure, and
//! everything acknowledged is at every node.

use crate::{
    cluster::{Cluster, eventually},
    feed::{Feed, Sent},
    process::column,
};

#[test]
fn a_killed_writer_fails_no_request_and_loses_no_row() {
    let mut cluster = Cluster::of(3);
    // Whoever took over once must be able to hand it on.
    let mut all: Option<Sent> = None;
    for round in 1..=2 {
        let writer = cluster.writer();
        let survivors = cluster.others(writer);
        let epoch = cluster[writer].status().unwrap()["epoch"].as_u64().unwrap();
        // In front of it all: a client of the writer itself, whose last request may fail.
        let near = Feed::at([&cluster[writer]], 10 * round);
        let feed = Feed::at(survivors.iter().map(|node| &cluster[*node]), 10 * round + 1);
        feed.more(100);
        cluster[writer].kill();
        let near = near.finish();
        feed.more(100);
        let sent = feed.finish();
        sent.must_be_whole();
        println!("round {round}: slowest write {:?}", sent.slowest);
        let sent = match all.take() {
            Some(before) => before.and(sent),
            None => sent,
        };
        let sent = sent.and(near);

        let after = cluster[survivors[0]].status().unwrap()["epoch"].as_u64().unwrap();
        assert!(after > epoch, "epoch {after} after {epoch}");
        for node in &survivors {
            sent.must_be_at(&cluster[*node]);
        }
        let last = cluster[survivors[1]].write("feed,client=last n=7u 7");
        let (epoch, seq) = last.lsn();
        cluster[writer].start(&[]);
        cluster.settled();
        eventually("the victim has caught up", || {
            let own = cluster[writer].status()?;
            let own =
                own["nodes"].as_array()?.iter().find(|node| node["id"] == cluster[writer].id.as_str())?;
            (own["lag_records"].as_u64()? <= 2).then_some(())
        });
        let sent = sent.and(Sent { acked: [7].into(), ..Sent::default() });
        sent.must_be_at(&cluster[writer]);
        // The same without a question to the new writer: by position alone.
        let lsn = format!("{epoch}.{seq}");
        let found = cluster[writer].ask("SELECT count(*) FROM feed", &[("min_lsn", &lsn)]).expect(200);
        assert!(column(&found)[0] >= sent.acked.len() as u64);
        all = Some(sent);
    }
}
