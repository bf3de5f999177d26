//! Reads at the consistency asked for: your own writes at any node, no stale answer where none is
//! allowed, and a position that history has lost is refused for good.

use std::time::{Duration, Instant};

use crate::{cluster::Cluster, process::Signal, process::column};

#[test]
fn positions_and_ages_are_kept() {
    let mut cluster = Cluster::of(3);
    let count = "SELECT count(*) FROM feed";
    for n in 1..=30_u64 {
        let (at, ask) = ((n as usize) % 3, (n as usize + 1) % 3);
        let lsn = cluster[at].write(&format!("feed n={n}u {n}")).lsn();
        let text = format!("{}.{}", lsn.0, lsn.1);
        // Your own write, at another node, every other time without naming it.
        let how = if n % 2 == 0 { ("min_lsn", text.as_str()) } else { ("consistency", "linearizable") };
        let answer = cluster[ask].ask(count, &[how]).expect(200);
        assert_eq!(column(&answer), [n], "{how:?} at {}", cluster[ask].name);
        assert!(answer.lsn() >= lsn);
    }

    // A position of the future is waited for, and not for ever.
    let writer = cluster.writer();
    let epoch = cluster[writer].status().unwrap()["epoch"].as_u64().unwrap();
    let since = Instant::now();
    let answer = cluster[0].ask(count, &[("min_lsn", &format!("{epoch}.999999")), ("timeout", "700ms")]);
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    assert!((Duration::from_millis(600)..Duration::from_secs(3)).contains(&since.elapsed()));

    // Once the epoch has moved on, it can never come: 410, at once, at every node.
    let gone = format!("{epoch}.999999");
    cluster[writer].kill();
    let left = cluster.others(writer);
    let after = cluster[left[0]].write("feed n=31u 31").lsn();
    assert!(after.0 > epoch);
    for node in &left {
        // Linearizable, so that the node has the new epoch.
        assert_eq!(cluster[*node].numbers(count), [31]);
        let since = Instant::now();
        let answer = cluster[*node].ask(count, &[("min_lsn", &gone)]).expect(410);
        assert!(answer.json()["message"].as_str().unwrap().contains("lost position"), "{answer:?}");
        assert!(since.elapsed() < Duration::from_secs(2));
    }

    // An age: kept while a majority is there, refused when it is not.
    for node in &left {
        let answer = cluster[*node].ask(count, &[("max_staleness", "200ms"), ("timeout", "5s")]).expect(200);
        let age: u64 = answer.header("x-skein-staleness-ms").expect("its age is told").parse().unwrap();
        assert!(age <= 200, "{age} ms");
    }
    let [alone, paused] = left[..] else { panic!("two are left") };
    cluster[paused].signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(1));
    let answer = cluster[alone].ask(count, &[]).expect(200);
    assert_eq!(column(&answer), [31], "local reads go on");
    for how in [("max_staleness", "200ms"), ("consistency", "linearizable")] {
        let answer = cluster[alone].ask(count, &[how, ("timeout", "1s")]).expect(503);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    // An age that is long enough needs nobody.
    let answer = cluster[alone].ask(count, &[("max_staleness", "10m"), ("timeout", "1s")]).expect(200);
    let age: u64 = answer.header("x-skein-staleness-ms").expect("its age is told").parse().unwrap();
    assert!(age >= 900, "{age} ms, and it has heard nobody for longer");
    cluster[paused].signal(Signal::CONT);
    assert_eq!(cluster[alone].numbers(count), [31]);

    let answer = cluster[alone].ask(count, &[("min_lsn", "1.1"), ("consistency", "linearizable")]);
    answer.expect(400);
}
