//! What a person sees of a cluster: `skein doctor` and `skein status --watch`.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    process::Process,
};

/// Exit code and findings.
fn doctor(node: &Process) -> (Option<i32>, Vec<Value>) {
    let output = node.skein(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), report["findings"].as_array().unwrap().clone())
}

fn level(findings: &[Value], check: &str) -> String {
    let found = findings.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {findings:?}"))["level"].as_str().unwrap().to_owned()
}

#[test]
fn the_doctor_finds_nothing_then_a_dead_node_then_a_lost_majority() {
    let mut cluster = Cluster::of(3);
    cluster.settled();
    let own = cluster.writer();
    let findings = eventually("links told by all", || {
        let (code, findings) = doctor(&cluster[own]);
        (code == Some(0)).then_some(findings)
    });
    for check in ["quorum", "writer", "links", "clocks", "certificates", "versions", "lag", "reach"] {
        assert_eq!(level(&findings, check), "ok", "{check} in {findings:?}");
    }
    // The disk of this node was measured, and its file is gone.
    assert!(findings.iter().any(|f| f["check"] == "fsync" && f["says"].as_str().unwrap().contains("of 20")));

    let others = cluster.others(own);
    let name = cluster[others[0]].name.clone();
    cluster[others[0]].kill();
    let findings = eventually("a dead node found", || {
        let (code, findings) = doctor(&cluster[own]);
        (code == Some(1)).then_some(findings)
    });
    assert_eq!((level(&findings, "quorum"), level(&findings, "reach")), ("warn".into(), "fail".into()));
    let reach = findings.iter().find(|finding| finding["check"] == "reach").unwrap();
    assert!(
        reach["says"].as_str().unwrap().contains(&name) && reach["todo"].as_str().unwrap().contains("UDP")
    );

    cluster[others[1]].kill();
    eventually("a lost majority found", || {
        (level(&doctor(&cluster[own]).1, "quorum") == "fail").then_some(())
    });
    // Without any node it is about this machine, and still says so.
    cluster[own].kill();
    let (code, findings) = doctor(&cluster[own]);
    assert_eq!((code, level(&findings, "node")), (Some(1), "fail".into()));
    level(&findings, "space");
}

#[test]
fn watching_prints_a_line_for_each_change_and_ends_on_ctrl_c() {
    let mut cluster = Cluster::of(1);
    cluster.settled();
    let mut watching = cluster[0].command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(
        first.contains(&format!("writer {} epoch", cluster[0].name)) && first.contains("voter up"),
        "{first}"
    );
    for n in 0..50 {
        cluster[0].write(&format!("cpu v={n} {n}"));
    }
    // What only grows is no change: the next line is that nobody answers.
    cluster[0].stop();
    let mut gone = lines.next().unwrap();
    while gone.contains("draining") {
        gone = lines.next().unwrap();
    }
    assert!(gone.contains("skein.sock"), "{gone}");
    cluster[0].start(&[]);
    lines.find(|line| line.contains("voter up")).unwrap();
    kill_process(Pid::from_child(&watching), Signal::INT).unwrap();
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}
