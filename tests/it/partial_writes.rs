//! What is wrong with a write is told by line, wherever it is first seen; the good lines are
//! written, or none when the client wants all or nothing.

use std::{sync::Barrier, thread};

use crate::{cluster::Cluster, http::Answer};

#[test]
fn bad_lines_are_told_exactly() {
    let cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [one, other] = cluster.others(writer)[..] else { panic!("three nodes") };

    // Malformed, and against the schema, at a node that forwards what is good.
    let path = "/api/v3/write_lp?db=it&precision=nanosecond";
    let body = "mix,k=a v=1i,note=\"two\nlines\" 1\nmix,k=a v= 2\n# a comment\nmix,k=a v=3i 3\nmix,k=a v=\"x\" 4\nmix,k=a\n";
    let answer = cluster[one].post(path, body).expect(400);
    assert_eq!(answer.bad_lines(), [3, 6, 7], "physical lines, the quoted newline counts: {answer:?}");
    let why = answer.json()["lines"][1]["error"].as_str().unwrap().to_owned();
    assert!(["`v`", "v"].iter().any(|name| why.contains(name)), "{why}");
    assert!(why.contains("int") && why.contains("string"), "both types: {why}");
    assert!(answer.json()["error"].as_str().unwrap().contains("partial write"));
    assert_eq!(cluster[other].numbers("SELECT time::bigint AS t FROM mix ORDER BY t"), [1, 3]);
    // The same at the other APIs.
    for path in ["/write?db=it", "/api/v2/write?bucket=it"] {
        let answer = cluster[other].post(path, "mix,k=a v=5i 5\nmix,k=a v=true 6").expect(400);
        assert_eq!(answer.bad_lines(), [2], "{path}");
    }

    // All or nothing.
    let whole = "/api/v3/write_lp?db=it&precision=nanosecond&accept_partial=false";
    let answer = cluster[one].post(whole, "mix,k=a v=7i 7\nmix,k=a v=\"x\" 8\nmix,k=a v=9i 9").expect(400);
    assert_eq!(answer.bad_lines(), [2]);
    assert!(answer.header("x-skein-lsn").is_none(), "nothing was written: {answer:?}");
    assert_eq!(cluster[writer].numbers("SELECT time::bigint AS t FROM mix ORDER BY t"), [1, 3, 5]);
    cluster[one].post(whole, "mix,k=a v=7i 7\nmix,k=a v=9i 9").expect(204);
    assert_eq!(cluster[writer].numbers("SELECT count(*) FROM mix"), [5]);
}

/// Two edges see a table without column `v` and bring it with different types at the same moment:
/// only the writer can tell that one of them is too late.
#[test]
fn a_conflict_that_only_the_writer_sees_is_told_by_line_too() {
    let cluster = Cluster::of(3);
    let writer = cluster.writer();
    let edges = cluster.others(writer);
    for round in 0..8 {
        // Every second time the client wants all or nothing, and the table is there before.
        let whole = round % 2 == 1;
        let table = format!("race{round}");
        if whole {
            let at = cluster[writer].write(&format!("{table} ok=0i 9")).lsn();
            let lsn = format!("{}.{}", at.0, at.1);
            for edge in &edges {
                cluster[*edge].ask(&format!("SELECT * FROM {table}"), &[("min_lsn", &lsn)]).expect(200);
            }
        }
        let path = format!("/api/v3/write_lp?db=it&precision=nanosecond&accept_partial={}", !whole);
        let barrier = Barrier::new(2);
        let send = |edge: usize, value: &str, first: u64| {
            let lines = [
                format!("{table} ok=1i {first}"),
                format!("{table} v={value} {}", first + 1),
                format!("{table} ok=1i {}", first + 2),
            ];
            barrier.wait();
            cluster[edges[edge]].post(&path, &lines.join("\n"))
        };
        let (int, text) = thread::scope(|scope| {
            let int = scope.spawn(|| send(0, "1i", 10));
            let text = scope.spawn(|| send(1, "\"x\"", 20));
            (int.join().unwrap(), text.join().unwrap())
        });
        let (won, lost, first_won, first_lost) =
            if int.status == 204 { (int, text, 10, 20) } else { (text, int, 20, 10) };
        assert_eq!(won.status, 204, "one of them is first: {won:?} {lost:?}");
        loser_is_told(&lost);
        let mut want = vec![first_won, first_won + 1, first_won + 2];
        if whole {
            want.push(9);
        } else {
            want.extend([first_lost, first_lost + 2]);
        }
        want.sort_unstable();
        for node in 0..3 {
            let found = cluster[node].numbers(&format!("SELECT time::bigint AS t FROM {table} ORDER BY t"));
            assert_eq!(found, want, "round {round} at {}", cluster[node].name);
        }
    }
}

#[track_caller]
fn loser_is_told(lost: &Answer) {
    assert_eq!(lost.status, 400, "{lost:?}");
    assert_eq!(lost.bad_lines(), [2], "{lost:?}");
    let why = lost.json()["lines"][0]["error"].as_str().unwrap().to_owned();
    assert!(
        why.contains('v') && why.contains("int") && why.contains("string"),
        "column and both types: {why}"
    );
}
