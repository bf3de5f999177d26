//! What a node says that is not let in: in the log of whoever started it, in plain words, with what to do.
//! Spent, revoked and mangled tokens, and another cluster's, are in `tokens_and_removal`.

use std::{
    net::UdpSocket,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    clocks::{faketime, set_clock},
    cluster::{Cluster, eventually},
    process::Process,
};

/// Starts it, waits until it has said that, and sees that it goes on trying. The sentence.
#[track_caller]
fn says(node: &mut Process, flags: &[&str], what: &str) -> String {
    let _ready = node.launch(flags);
    let said = eventually(what, || {
        let said = node.said();
        let at = said.find(what)?;
        // Up to its end: the log is read while it is written.
        said[at..].split_once('\n').map(|(line, _)| line.to_owned())
    });
    assert!(node.is_running() && node.try_ended(Duration::ZERO).is_none(), "it gave up: {}", node.said());
    node.stop();
    said
}

/// The number in front of `" s"` in it.
#[track_caller]
fn seconds(said: &str) -> u64 {
    let before = said.split(" s").next().unwrap();
    let number = before.rsplit(' ').next().unwrap();
    number.parse().unwrap_or_else(|_| panic!("no seconds: {said:?}"))
}

#[test]
fn nobody_found_and_nobody_that_answers() {
    let mut cluster = Cluster::of(1);
    let token = cluster[0].token(1);
    let late = cluster.add();
    // Bound to loopback, so that this is the only interface there is for it. The cluster does not announce
    // itself, and others' do not count for this token.
    if cfg!(feature = "mdns") {
        cluster[late].mdns = true;
        let said = says(&mut cluster[late], &["--join", &token], "no peer found on");
        assert!(said.starts_with("no peer found on lo by mDNS; is one running on this network?"), "{said}");
        assert!(said.contains("--seed HOST:PORT"), "{said}");
        cluster[late].mdns = false;
    }
    let said = says(&mut cluster[late], &["--join", &token], "no peer found;");
    assert!(said.starts_with("no peer found; is one running"), "nothing was listened on: {said}");

    // What lets no UDP through looks like this: no answer, and no error.
    let hole = UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed = hole.local_addr().unwrap().to_string();
    let said =
        says(&mut cluster[late], &["--join", &token, "--seed", &seed], &format!("{seed} does not answer"));
    assert!(said.contains("does every firewall between let UDP through?"), "{said}");
    let said =
        says(&mut cluster[late], &["--join", &token, "--seed", "nowhere.invalid:7400"], "cannot resolve");
    assert!(said.starts_with("cannot resolve nowhere.invalid:7400: "), "{said}");

    // It needed nothing but an address.
    let seed = cluster[0].mesh.clone();
    cluster[late].start(&["--join", &token, "--seed", &seed]);
    cluster.settled();
}

#[test]
fn a_token_that_has_ended_or_is_for_another_role() {
    let mut cluster = Cluster::of(1);
    let seed = cluster[0].mesh.clone();
    let made =
        |flags: &[&str]| cluster[0].skein_says(&[&["token", "create"], flags].concat()).trim().to_owned();
    let (ended, voter) = (made(&["--ttl", "1s", "--role", "gateway"]), made(&[]));
    let list: Value = serde_json::from_str(&cluster[0].skein_says(&["token", "list", "--json"])).unwrap();
    let ends = list["tokens"].as_array().unwrap().iter().find(|token| token["role"] == "gateway").unwrap()
        ["expires_ms"]
        .as_u64()
        .unwrap();
    eventually("the token has ended", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        (now > u128::from(ends)).then_some(())
    });
    let late = cluster.add();
    for (token, more, code, why) in [
        (&ended, &[][..], 1, "this join token has expired; make one with `skein token create`"),
        (&voter, &["--role", "reader"], 2, "this join token is for a voter, --role says reader"),
    ] {
        let flags = [&["--join", token, "--seed", &seed], more].concat();
        let refused = cluster[late].try_start(&flags).unwrap_err();
        assert_eq!(refused.code, Some(code), "{refused:?}");
        assert!(refused.said.contains(why), "{why:?} is not in {refused:?}");
    }
}

#[test]
fn a_clock_that_is_off_and_by_how_much() {
    let Some(library) = faketime() else {
        println!("SKIPPED: wrong clocks: libfaketime is not installed");
        return;
    };
    let mut cluster = Cluster::of(1);
    let (token, seed) = (cluster[0].token(2), cluster[0].mesh.clone());
    let flags = ["--join", &token, "--seed", &seed];
    let late = cluster.add();
    // The door sees who is ahead; who is further behind than certificates are backdated sees it first.
    for (off, what, least) in [
        ("+2h", "this node's clock is", 7_200),
        ("-2h", "by this node's clock its certificate is valid only in", 3_000),
    ] {
        set_clock(&mut cluster[late], &library, off);
        let said = says(&mut cluster[late], &flags, what);
        let seconds = seconds(&said);
        // As of the door's certificate, which is as old as the cluster; and messages take their time.
        assert!((least..=least + 600).contains(&seconds), "{said}");
        assert!(said.contains("set it (NTP)") || said.contains("set the clock (NTP)"), "{said}");
        assert_eq!(said.contains("ahead of the cluster's"), off == "+2h", "{said}");
    }
    cluster[late].before.clear();
    cluster[late].start(&flags);
    cluster.settled();
}
