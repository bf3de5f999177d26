//! A writer that is cut off by the network and removed meanwhile: it acknowledges nothing, and learns on
//! contact that it is out.

use std::time::Duration;

use crate::{
    cluster::{Cluster, within},
    http::{Answer, send},
    namespaces::Net,
    process::{Process, column},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Over its socket: its ports are in another namespace.
fn write(node: &Process, line: &str, ack: &str) -> Answer {
    let path = format!("/api/v3/write_lp?db=it&precision=nanosecond&timeout=2s&ack={ack}");
    send(&node.unix(), "POST", &path, &[], line.as_bytes(), PATIENCE).unwrap()
}

#[test]
fn a_writer_that_is_removed_meanwhile_acknowledges_nothing_and_hears_of_it() {
    let Some(net) = Net::make(3, "cut off") else { return };
    let mut cluster = Cluster::empty();
    for _ in 0..3 {
        cluster.add();
    }
    net.house(&mut cluster);
    cluster[0].start(&["--new-cluster"]);
    let token = cluster[0].token(2);
    for node in 1..3 {
        cluster[node].start(&["--join", &token]);
    }
    cluster.settled();
    let writer = cluster.writer();
    let [one, two] = cluster.others(writer)[..] else { panic!("three nodes") };
    let id = cluster[writer].id.clone();
    write(&cluster[writer], "cut v=1u 1", "all").expect(204);

    net.cut(writer);
    within(PATIENCE, "another writer", || {
        let status = cluster[one].status()?;
        status["writer"].as_str().is_some_and(|writer| *writer != id).then_some(())
    });
    cluster[one].skein_says(&["node", "remove", &id]);
    write(&cluster[two], "cut v=2u 2", "quorum").expect(204);
    // It cannot know that it is out, and does not pretend.
    for ack in ["local", "quorum", "all"] {
        let answer = write(&cluster[writer], "lost v=1u 3", ack);
        assert!([503, 504].contains(&answer.status), "{ack}: {answer:?}");
    }

    net.mend(writer);
    let ended = cluster[writer].ended(PATIENCE);
    assert!(ended.code == Some(1) && ended.said.contains("was removed from its cluster"), "{ended:?}");
    assert!(cluster[writer].dir.join("removed").exists(), "no tombstone");
    write(&cluster[one], "cut v=3u 4", "all").expect(204);
    for node in [one, two] {
        let ask = |table: &str| {
            let path =
                format!("/api/v3/query_sql?db=it&q=SELECT%20v%20FROM%20{table}&consistency=linearizable");
            send(&cluster[node].unix(), "GET", &path, &[], b"", PATIENCE).unwrap()
        };
        assert_eq!(column(&ask("cut").expect(200)), [1, 2, 3]);
        assert!(ask("lost").status >= 400, "there is such a table");
    }
}
