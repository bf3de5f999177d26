//! A damaged log: in a cluster it is repaired from the writer, and the node votes again only then;
//! a majority of damaged logs stops the cluster until the loss is accepted; a lone node refuses to
//! start, and says before it goes on what is lost.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    process::{Process, column},
};

#[test]
fn a_damaged_voter_fetches_what_it_lost_and_votes_again() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let victim = cluster.others(writer)[0];
    let mut rows = 0;
    write_rows(&cluster[writer], &mut rows, 40);
    // Killed, so that nothing is flushed: its rows are in its log only.
    eventually("the victim has everything", || holds(&cluster[victim], rows));
    cluster[victim].kill();
    write_rows(&cluster[writer], &mut rows, 10);
    let first_bad = damage(&cluster[victim]);

    cluster[victim].start(&[]);
    eventually("the log is repaired", || {
        cluster[victim].said().contains("the log is repaired").then_some(())
    });
    eventually("everything is there again", || holds(&cluster[victim], rows));
    cluster.settled();
    let metrics = cluster[victim].get("/metrics").expect(200).body;
    assert!(metrics.contains("skein_repairing 0\n") && !metrics.contains("skein_quarantined_bytes 0\n"));
    let status = cluster[victim].status().unwrap();
    assert!(status["warnings"].to_string().contains("wal/quarantine"), "{status:#}");

    // It is a voter like any other: without the writer nothing goes without it.
    cluster[writer].kill();
    cluster[victim].write(&format!("t n={rows}u {}", rows + 1));
    rows += 1;
    assert_eq!(cluster[victim].numbers("SELECT count(*) FROM t"), [rows]);
    cluster[victim].kill();
    let report = inspect(&cluster[victim], &["wal"]);
    assert_eq!((&report["repair"], &report["damage"]), (&Value::Null, &Value::Array(Vec::new())));
    let aside = report["quarantine"].as_array().unwrap();
    assert!(!aside.is_empty() && first_bad > 1, "{report:#}");
}

#[test]
fn a_damaged_majority_stops_until_the_loss_is_accepted() {
    let mut cluster = Cluster::of(3);
    let mut rows = 0;
    write_rows(&cluster[0], &mut rows, 30);
    for node in 0..3 {
        eventually("everybody has everything", || holds(&cluster[node], rows));
    }
    for node in 0..3 {
        cluster[node].kill();
    }
    damage(&cluster[0]);
    damage(&cluster[1]);
    for node in 0..3 {
        cluster[node].start(&[]);
    }
    eventually("a leader says why no writer is named", || {
        (0..3).any(|node| cluster[node].said().contains("no writer can be named")).then_some(())
    });
    eventually("status says so", || {
        let status = cluster[2].status()?;
        status["warnings"].to_string().contains("--accept-loss").then_some(())
    });
    assert_eq!(cluster[0].get("/readyz").status, 503);

    // One of the two is enough: then a majority answers, and the third has every record.
    cluster[0].kill();
    cluster[0].skein_says(&["inspect", "wal", "--repair", "--accept-loss"]);
    cluster[0].start(&[]);
    cluster.settled();
    for node in 0..3 {
        eventually("everything is there again", || holds(&cluster[node], rows));
    }
    eventually("the other one is repaired", || {
        cluster[1].said().contains("the log is repaired").then_some(())
    });
}

#[test]
fn a_lone_node_refuses_and_says_what_would_be_lost() {
    let mut cluster = Cluster::of(1);
    let mut rows = 0;
    let first_row = write_rows(&cluster[0], &mut rows, 40);
    let locked = cluster[0].skein(&["inspect", "wal"]);
    assert_eq!(locked.status.code(), Some(74), "a node runs on it: {locked:?}");
    assert!(String::from_utf8_lossy(&locked.stderr).contains("in use"));
    cluster[0].kill();
    let first_bad = damage(&cluster[0]);
    let before = log_bytes(&cluster[0]);

    let ended = cluster[0].try_start(&[]).unwrap_err();
    assert_eq!(ended.code, Some(74));
    assert!(ended.said.contains("skein inspect wal --repair"), "{}", ended.said);
    let looked = cluster[0].skein(&["inspect", "wal"]);
    assert_eq!(looked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&looked.stdout).contains("DAMAGE in "), "{looked:?}");
    assert!(String::from_utf8_lossy(&looked.stdout).contains(" at byte "), "{looked:?}");
    let asked = cluster[0].skein(&["inspect", "wal", "--repair", "--json"]);
    assert_eq!(asked.status.code(), Some(1));
    assert_eq!(log_bytes(&cluster[0]), before, "looking changes nothing");
    let loss: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!((loss["lost_first"].as_u64(), loss["accepted"].as_bool()), (Some(first_bad), Some(false)));

    let told = cluster[0].skein_says(&["inspect", "wal", "--repair", "--accept-loss"]);
    let says = format!("lost: records {first_bad} to {}", loss["lost_last"]);
    assert!(told.starts_with(&says), "{told}");
    cluster[0].start(&[]);
    cluster.settled();
    assert_eq!(cluster[0].numbers("SELECT count(*) FROM t"), [first_bad - first_row]);
    cluster[0].write("t n=999u 999");
    assert_eq!(cluster[0].numbers("SELECT count(*) FROM t"), [first_bad - first_row + 1]);
    for what in ["raft", "manifest", "snapshot"] {
        assert_eq!(cluster[0].skein(&["inspect", what]).status.code(), Some(74));
    }
    cluster[0].stop();
    let raft = inspect(&cluster[0], &["raft"]);
    assert_eq!(raft["cluster"]["writer"]["node"], cluster[0].id.as_str());
    assert_eq!(raft["cluster"]["members"][0]["name"], "n1");
    let manifest = inspect(&cluster[0], &["manifest"]);
    assert_eq!(manifest["rows"], first_bad - first_row + 1);
    assert_eq!(manifest["tables"][0]["table"], "t");
    inspect(&cluster[0], &["snapshot"]);
}

/// Rows, one record each; the seq of the first.
fn write_rows(node: &Process, rows: &mut u64, more: u64) -> u64 {
    let mut first = u64::MAX;
    for n in *rows..*rows + more {
        first = first.min(node.write(&format!("t n={n}u {}", n + 1)).lsn().1);
    }
    *rows += more;
    first
}

fn holds(node: &Process, rows: u64) -> Option<()> {
    let found = node.ask("SELECT count(*) FROM t", &[]);
    (found.status == 200 && column(&found) == [rows]).then_some(())
}

/// Flips a bit in the middle of the log of a node that is down; the first record that is bad then.
fn damage(node: &Process) -> u64 {
    let report = inspect(node, &["wal"]);
    let segment = &report["segments"][0];
    let path = segment_path(node, segment);
    let mut bytes = fs::read(&path).unwrap();
    let middle = (4096 + segment["bytes"].as_u64().unwrap()) / 2;
    bytes[middle as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let looked = node.skein(&["inspect", "wal", "--json"]);
    assert_eq!(looked.status.code(), Some(1), "{looked:?}");
    let report: Value = serde_json::from_slice(&looked.stdout).unwrap();
    let offset = report["damage"][0]["offset"].as_u64();
    assert!(offset.is_some_and(|offset| offset <= middle), "{offset:?} of {middle}: {report:#}");
    report["damage"][0]["first"].as_u64().unwrap_or_else(|| panic!("{report:#}"))
}

fn segment_path(node: &Process, segment: &Value) -> PathBuf {
    node.dir.join("wal").join(segment["file"].as_str().unwrap())
}

fn log_bytes(node: &Process) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(node.dir.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// `skein inspect ... --json`, which must find no damage.
fn inspect(node: &Process, what: &[&str]) -> Value {
    let args: Vec<&str> = ["inspect"].iter().chain(what).chain(&["--json"]).copied().collect();
    serde_json::from_str(&node.skein_says(&args)).unwrap()
}
