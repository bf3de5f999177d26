//! Stored bytes that rot under a running node: seen before they are believed, and mended while it runs.

use std::{
    fmt::Write,
    fs,
    io::{Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    cluster::{Cluster, eventually},
    process::{Process, column},
};

/// Rows of one body.
const ROWS: u64 = 2_000;
const SUM: &str = "SELECT sum(n) FROM t";

#[test]
fn a_data_file_that_rots_under_a_follower_is_replaced_while_it_runs() {
    let cluster = cluster(3, &[("FLUSH_AGE", "300ms")]);
    let writer = cluster.writer();
    let victim = cluster.others(writer)[0];
    let (rows, file) = filled(&cluster, victim);
    flip(&file);

    let refused = cluster[victim].ask(SUM, &[]);
    assert_eq!(refused.status, 503, "{refused:?}");
    for word in [cluster[victim].id.as_str(), file.file_name().unwrap().to_str().unwrap(), "another node"] {
        assert!(refused.body.contains(word), "{word}: {}", refused.body);
    }
    // What was written meanwhile is not lost to it, and nothing that it has shown is taken back.
    let last = cluster[writer].write(&format!("t,host=late n=7u {}", rows + 1)).lsn();
    let lsn = format!("{}.{}", last.0, last.1);
    eventually("the file is replaced", || {
        let answer = cluster[victim].ask(SUM, &[("min_lsn", &lsn)]);
        (answer.status == 200).then(|| assert_eq!(column(&answer), [sum(rows) + 7]))
    });
    assert_eq!(metric(&cluster[victim], "skein_damage_replaced"), 1);
    assert_eq!(metric(&cluster[victim], "skein_damaged_files"), 0);
    cluster.settled();
}

#[test]
fn a_writer_hands_over_before_its_data_file_is_replaced() {
    let cluster = cluster(3, &[("FLUSH_AGE", "300ms")]);
    let victim = cluster.writer();
    let (rows, file) = filled(&cluster, victim);
    flip(&file);
    assert_eq!(cluster[victim].ask(SUM, &[]).status, 503);
    eventually("the file is replaced", || {
        let answer = cluster[victim].ask(SUM, &[("consistency", "linearizable")]);
        (answer.status == 200).then(|| assert_eq!(column(&answer), [sum(rows)]))
    });
    assert_ne!(cluster.writer(), victim);
    assert_eq!(metric(&cluster[victim], "skein_damage_replaced"), 1);
    cluster[victim].write("t,host=late n=1u 1").lsn();
}

#[test]
fn a_lone_node_says_which_file_and_answers_what_does_not_need_it() {
    let cluster = cluster(1, &[("FLUSH_AGE", "300ms")]);
    let (rows, file) = filled(&cluster, 0);
    cluster[0].write("other n=3u 1");
    let whole = fs::read(&file).unwrap();
    flip(&file);
    for _ in 0..2 {
        let refused = cluster[0].ask(SUM, &[]);
        assert_eq!(refused.status, 500, "{refused:?}");
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(refused.body.contains(name) && refused.body.contains("restore the file"), "{}", refused.body);
    }
    assert_eq!(cluster[0].numbers("SELECT n FROM other"), [3]);
    let status = cluster[0].status().unwrap();
    assert!(status["warnings"].to_string().contains("data files"), "{status:#}");
    // As it says.
    let mut cluster = cluster;
    cluster[0].kill();
    assert_eq!(cluster[0].skein(&["inspect", "manifest"]).status.code(), Some(0), "its length is right");
    let looked = cluster[0].skein(&["inspect", "manifest", "--verify"]);
    let says = String::from_utf8_lossy(&looked.stdout).into_owned();
    assert_eq!(looked.status.code(), Some(1));
    assert!(says.contains("DAMAGE") && says.contains(file.file_name().unwrap().to_str().unwrap()), "{says}");
    fs::write(&file, whole).unwrap();
    cluster[0].start(&[]);
    assert_eq!(cluster[0].numbers(SUM), [sum(rows)]);
}

#[test]
fn a_log_that_rots_under_a_running_node_is_found_and_mended() {
    let cluster = cluster(
        3,
        &[("FLUSH_AGE", "1h"), ("WAL_SEGMENT", "64KiB"), ("SCRUB_INTERVAL", "1s"), ("SCRUB_RATE", "64MiB")],
    );
    let rows = fill(&cluster[0]);
    for node in 0..3 {
        eventually("everybody has everything", || (cluster[node].numbers(SUM) == [sum(rows)]).then_some(()));
    }
    // The writer's too: it is in no hurry, for all of it is applied.
    let writer = cluster.writer();
    for node in [writer, cluster.others(writer)[0]] {
        let segment = sealed(&cluster[node]);
        flip(&segment);
        eventually("the scrub finds it, and it is retired", || {
            (metric(&cluster[node], "skein_log_damage_found") == 1
                && metric(&cluster[node], "skein_log_damaged") == 0
                && !segment.exists())
            .then_some(())
        });
        assert!(metric(&cluster[node], "skein_scrub_findings") >= 1);
        assert_eq!(metric(&cluster[node], "skein_repairing"), 0, "it is in the checkpoint: nothing is owed");
        assert_eq!(cluster[node].numbers(SUM), [sum(rows)]);
    }
    assert_eq!(cluster.writer(), writer);
    eventually("a pass comes to its end", || {
        let status = cluster[writer].status()?;
        status["nodes"].as_array()?.iter().all(|node| node["scrubbed"].is_i64()).then_some(())
    });
    cluster.settled();
}

/// So many voters with these settings of the section `storage`.
fn cluster(count: usize, storage: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::empty();
    for n in 0..count {
        let node = cluster.add();
        for (key, value) in storage {
            cluster[node].env.push((format!("SKEIN_STORAGE_{key}"), (*value).to_owned()));
        }
        if n == 0 {
            cluster[node].start(&["--new-cluster"]);
        } else {
            let (token, seed) = (cluster[0].token(1), cluster[0].mesh.clone());
            cluster[node].start(&["--join", &token, "--seed", &seed]);
        }
    }
    cluster.settled();
    cluster
}

/// Some hundred kilobytes; how many rows.
fn fill(node: &Process) -> u64 {
    for begin in (0..ROWS * 5).step_by(ROWS as usize) {
        let mut body = String::new();
        for n in begin..begin + ROWS {
            writeln!(body, "t,host=h{} n={n}u,text=\"{n:040}\" {}", n % 7, n + 1).unwrap();
        }
        node.post("/api/v3/write_lp?db=it&precision=nanosecond", &body).expect(204);
    }
    ROWS * 5
}

fn sum(rows: u64) -> u64 {
    (0..rows).sum()
}

/// Fills the cluster, waits until all of it is in files at that node, and names the largest of them.
fn filled(cluster: &Cluster, node: usize) -> (u64, PathBuf) {
    let rows = fill(&cluster[0]);
    eventually("all of it is flushed", || {
        let flushed = metric(&cluster[node], "skein_flushed_seq");
        (flushed == metric(&cluster[node], "skein_commit_seq") && cluster[node].numbers(SUM) == [sum(rows)])
            .then_some(())
    });
    let files = fs::read_dir(cluster[node].dir.join("engine/data/it/t")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let parquet = files.filter(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    (rows, parquet.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap())
}

/// The longest segment that is not written any more: a record that does not fit makes one of its length.
fn sealed(node: &Process) -> PathBuf {
    let files = fs::read_dir(node.dir.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|e| e == "wal") && !path.ends_with("spare.wal"))
        .collect();
    segments.sort();
    segments.pop();
    let longest = segments.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    assert!(fs::metadata(&longest).unwrap().len() > 65_536, "{longest:?} may have free space in its middle");
    longest
}

/// Flips a bit in the middle of a file, in place.
fn flip(path: &Path) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 4]).unwrap();
}

fn metric(node: &Process, name: &str) -> u64 {
    let metrics = node.get("/metrics").expect(200).body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}
