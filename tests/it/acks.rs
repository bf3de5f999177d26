//! `ack=`: each level is acknowledged when it is reached and not before, and what did not reach its
//! level in time says so, with how far it came.

use std::time::Duration;

use crate::{
    cluster::{Cluster, eventually, within},
    http::{Answer, send},
    process::{Process, Signal},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// One point at that level, as one batch however often it is sent.
fn put(node: &Process, key: &str, ack: &str, line: &str) -> Answer {
    let path = format!("/api/v3/write_lp?db=it&precision=nanosecond&timeout=1s&ack={ack}");
    let headers = [("idempotency-key", key)];
    send(&node.tcp(), "POST", &path, &headers, line.as_bytes(), PATIENCE).unwrap()
}

#[test]
fn all_waits_for_every_voter_and_a_retry_is_the_same_write() {
    let cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [edge, slow] = cluster.others(writer)[..] else { panic!("three nodes") };
    let whole = put(&cluster[edge], "first", "all", "acks,n=1 v=1u 1").expect(204);
    assert_eq!((whole.header("x-skein-ack"), whole.header("x-skein-forwarded")), (Some("all"), Some("true")));

    cluster[slow].signal(Signal::STOP);
    for node in [edge, writer] {
        let key = format!("at {node}");
        let line = format!("acks,n=2 v={node}u {}", 100 + node);
        // It is committed, and says so; what was asked for has not happened.
        let late = put(&cluster[node], &key, "all", &line).expect(504);
        assert_eq!(late.header("x-skein-ack"), Some("quorum"), "{late:?}");
        assert_eq!(late.header("x-skein-ack-asked"), Some("all"));
        assert!(late.body.contains("outcome unknown"), "{late:?}");
        // At less, the same batch is there already; at all, it is not, however often one asks.
        let less = put(&cluster[node], &key, "quorum", &line).expect(204);
        assert_eq!((less.lsn(), less.header("x-skein-ack")), (late.lsn(), Some("quorum")));
        put(&cluster[edge], &key, "all", &line).expect(504);
    }
    let before = cluster.writer();
    cluster[slow].signal(Signal::CONT);
    for node in [edge, writer] {
        let (key, line) = (format!("at {node}"), format!("acks,n=2 v={node}u {}", 100 + node));
        let mut refused = 0;
        let done = within(PATIENCE, "every voter has it", || {
            let answer = put(&cluster[edge], &key, "all", &line);
            refused += usize::from(answer.status == 504);
            (answer.status == 204).then_some(answer)
        });
        let (at, again) = (done.lsn(), put(&cluster[slow], &key, "all", &line).expect(204).lsn());
        let known = put(&cluster[writer], &key, "memory", &line).expect(204).lsn();
        assert_eq!((at, at), (again, known), "one record, {refused} answers before");
        assert_eq!(done.header("x-skein-ack"), Some("all"));
    }
    assert_eq!(cluster.writer(), before, "nothing of this moves the office");
    assert_eq!(cluster[slow].numbers("SELECT count(*) FROM acks"), [3]);
}

#[test]
fn without_a_majority_memory_alone_is_acknowledged() {
    let cluster = Cluster::of(3);
    let writer = cluster.writer();
    let others = cluster.others(writer);
    let first = put(&cluster[others[0]], "first", "memory", "acks v=1u 1").expect(204);
    assert_eq!(first.header("x-skein-ack"), Some("memory"));
    let at = first.header("x-skein-lsn").unwrap();
    let seen =
        cluster[others[1]].ask("SELECT v FROM acks", &[("min_lsn", at), ("timeout", "10s")]).expect(200);
    assert_eq!(crate::process::column(&seen), [1]);

    others.iter().for_each(|node| cluster[*node].signal(Signal::STOP));
    // Longer than any lease.
    std::thread::sleep(Duration::from_secs(1));
    let memory = put(&cluster[writer], "memory", "memory", "acks v=2u 2").expect(204);
    assert_eq!(memory.header("x-skein-ack"), Some("memory"));
    for level in ["local", "quorum", "all"] {
        // On the writer's disk it is; without a live lease that is not `local`.
        let line = format!("acks,level={level} v=3u 3");
        let answer = put(&cluster[writer], level, level, &line).expect(504);
        assert_eq!(
            (answer.header("x-skein-ack"), answer.header("x-skein-ack-asked")),
            (Some("memory"), Some(level))
        );
        assert!(answer.lsn() > memory.lsn());
    }
    let rows = cluster[writer].ask("SELECT v FROM acks", &[]).expect(200);
    assert_eq!(crate::process::column(&rows), [1], "what is not committed is not seen");

    others.iter().for_each(|node| cluster[*node].signal(Signal::CONT));
    for level in ["local", "quorum", "all"] {
        let line = format!("acks,level={level} v=3u 3");
        eventually("the same write at its level", || {
            (put(&cluster[others[0]], level, level, &line).status == 204).then_some(())
        });
    }
    assert_eq!(cluster[others[1]].numbers("SELECT count(*) FROM acks WHERE v = 3"), [3]);
}

#[test]
fn a_writer_that_slept_acknowledges_nothing_of_its_own() {
    let cluster = Cluster::of(3);
    let writer = cluster.writer();
    let others = cluster.others(writer);
    let office = put(&cluster[writer], "first", "local", "acks v=1u 1").expect(204).lsn().0;
    cluster[writer].signal(Signal::STOP);
    let asleep = std::thread::scope(|scope| {
        let waits = scope.spawn(|| put(&cluster[writer], "asleep", "local", "acks v=2u 2"));
        let mut tries = 0;
        eventually("another writer", || {
            // Each with a key of its own: the first may have come before the signal, into the old office.
            tries += 1;
            let answer = put(&cluster[others[0]], &format!("awake {tries}"), "local", "acks v=3u 3");
            (answer.status == 204 && answer.lsn().0 > office).then_some(())
        });
        cluster[writer].signal(Signal::CONT);
        waits.join().unwrap()
    });
    // It may have reached the others before the signal did. What was acknowledged is in the history that
    // the new office goes on with, at the position that was told; what was only on this disk is cut.
    assert!(asleep.status == 504 || asleep.status == 204, "{asleep:?}");
    let again = put(&cluster[others[1]], "asleep", "quorum", "acks v=2u 2").expect(204);
    assert!(asleep.status == 504 || asleep.lsn() == again.lsn(), "{asleep:?} {again:?}");
    assert_eq!(cluster[others[0]].numbers("SELECT v FROM acks ORDER BY v"), [1, 2, 3]);
}
