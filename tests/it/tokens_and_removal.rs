//! Who gets in, and who is put out: a token that does not work is refused with the reason, and a
//! removed node is cut off, ends, and stays out.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually, within},
    feed::{Feed, Sent},
    http::send,
    process::{Process, REQUEST, Signal},
};

#[test]
fn tokens_are_counted_revoked_and_checked() {
    let mut cluster = Cluster::of(1);
    let token = cluster[0].token(1);
    assert!(token.starts_with("skein1-voter-") && token.lines().count() == 1, "the token alone: {token:?}");
    let made = listed(&cluster[0]);
    let fresh = made.iter().filter(|t| t["uses_left"] == 1 && t["revoked"] == false).collect::<Vec<_>>();
    let [fresh] = &fresh[..] else { panic!("one token of one use: {made:?}") };
    let id = fresh["id"].as_str().unwrap().to_owned();
    let secret = token.rsplit('-').next().unwrap();
    assert!(!format!("{made:?}").contains(secret), "no list shows a token");

    // Mangled: seen before anything is written or anybody asked.
    let newcomer = cluster.add();
    let seed = cluster[0].mesh.clone();
    let mut mangled = token.clone().into_bytes();
    let last = mangled.len() - 5;
    mangled[last] = if mangled[last] == b'a' { b'b' } else { b'a' };
    let mangled = String::from_utf8(mangled).unwrap();
    refused(&mut cluster[newcomer], &mangled, &seed, 2, "typing error");
    refused(&mut cluster[newcomer], &token[..token.len() - 9], &seed, 2, "copy");
    refused(&mut cluster[newcomer], &token.replace("voter", "reader"), &seed, 2, "made for a voter");
    assert!(!cluster[newcomer].dir.exists(), "nothing is written for a token that cannot be right");

    // Used once, and spent.
    cluster[newcomer].start(&["--join", &token, "--seed", &seed]);
    cluster.settled();
    assert!(listed(&cluster[newcomer]).iter().any(|t| t["id"] == id.as_str() && t["uses_left"] == 0));
    let late = cluster.add();
    refused(&mut cluster[late], &token, &seed, 1, "spent");

    // The token alone, without mDNS and without a flag: it says where to ask. No more than it can carry.
    let told = ["token", "create", "--role", "reader", "--seed", &seed, "--seed", "[::1]:1"];
    let told = cluster[newcomer].skein_says(&told);
    let reader = cluster.add();
    cluster[reader].start(&["--join", told.trim()]);
    eventually("the reader is a member", || {
        cluster[0].status()?.to_string().contains(&cluster[reader].id).then_some(())
    });
    let many: Vec<&str> = ["--seed", "a:1"].into_iter().cycle().take(18).collect();
    for wrong in [&["--seed", "nowhere"][..], &many] {
        let none = cluster[0].skein(&[&["token", "create"], wrong].concat());
        let said = String::from_utf8_lossy(&none.stderr).into_owned();
        assert!(none.status.code() == Some(1) && said.contains("seeds"), "{said}");
    }
    cluster[0].skein_says(&["node", "remove", &cluster[reader].name.clone()]);
    cluster[reader].kill();

    // Revoked, by the other node.
    let token = cluster[newcomer].token(3);
    let made = listed(&cluster[newcomer]);
    let id = made.iter().find(|t| t["uses_left"] == 3).unwrap()["id"].as_str().unwrap().to_owned();
    cluster[newcomer].skein_says(&["token", "revoke", &id]);
    assert!(listed(&cluster[0]).iter().any(|t| t["id"] == id.as_str() && t["revoked"] == true));
    refused(&mut cluster[late], &token, &seed, 1, "revoked");
    let none = cluster[0].skein(&["token", "revoke", "ffffffffffffffff"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");

    // Of another cluster, and none at all.
    let mut other = Process::new(cluster[0].dir.parent().unwrap(), "other");
    other.start(&["--new-cluster"]);
    let foreign = other.token(1);
    waits(&mut cluster[late], &foreign, &seed, "another cluster");
    let ended = cluster[late].try_start(&["--seed", &seed]).unwrap_err();
    assert!(ended.code == Some(2) && ended.said.contains("token"), "{ended:?}");

    // Whoever was refused may come again with a good one.
    let token = cluster[0].token(1);
    let seed = cluster[newcomer].mesh.clone();
    cluster[late].start(&["--join", &token, "--seed", &seed]);
    cluster.settled();
}

#[test]
fn removed_nodes_are_cut_off_and_stay_out() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [stays, goes] = cluster.others(writer)[..] else { panic!("three nodes") };

    // A voter that does not write: while clients write at it and at another.
    let at_it = Feed::at([&cluster[goes]], 1);
    let feed = Feed::at([&cluster[stays]], 2);
    feed.more(50);
    let id = cluster[goes].id.clone();
    let name = cluster[goes].name.clone();
    let said = cluster[stays].skein_says(&["node", "remove", &name]);
    let removed = Instant::now();
    assert!(said.contains("removed") && said.contains(&id), "{said}");
    ends_for_good(&mut cluster[goes]);
    println!("ended {:?} after it was removed", removed.elapsed());
    feed.more(50);
    let at_it = at_it.finish();
    let late = at_it.last_ack.unwrap().saturating_duration_since(removed);
    assert!(late < Duration::from_secs(2), "a removed node still wrote after {late:?}");
    let sent = feed.finish();
    sent.must_be_whole();
    let sent = sent.and(at_it);
    for node in [writer, stays] {
        not_a_member(&cluster[node], &id);
        sent.must_be_at(&cluster[node]);
    }
    cluster.settled();

    // The writer: another takes over before it goes. And one that sleeps through its removal.
    cluster.join(1);
    let new = cluster.running().last().unwrap();
    let epoch = cluster[writer].status().unwrap()["epoch"].as_u64().unwrap();
    let feed = Feed::at([&cluster[stays], &cluster[new]], 3);
    feed.more(50);
    let writer = cluster.writer();
    let (id, by) = (cluster[writer].id.clone(), cluster.others(writer)[0]);
    cluster[by].skein_says(&["node", "remove", &id]);
    ends_for_good(&mut cluster[writer]);
    if cluster.running().eq([stays, new]) {
        feed.more(50);
        feed_is_whole(feed, &sent, &cluster, [stays, new]);
    }
    let next = cluster.writer();
    assert!(cluster[next].status().unwrap()["epoch"].as_u64().unwrap() > epoch);
    not_a_member(&cluster[next], &id);

    // The writer once more, which hears of nothing: of its successor, its removal, and that it is cut off.
    cluster.join(1);
    let asleep = cluster.writer();
    let (id, others) = (cluster[asleep].id.clone(), cluster.others(asleep));
    assert_eq!(links(&cluster[others[0]]), 2);
    cluster[asleep].signal(Signal::STOP);
    let by = eventually("another writer", || {
        let writer = cluster[others[0]].status()?["writer"].as_str()?.to_owned();
        others.iter().copied().find(|node| cluster[*node].id == writer)
    });
    cluster[by].skein_says(&["node", "remove", &id]);
    // Its connections are closed by the others, whatever it does.
    within(Duration::from_secs(2), "the link is cut", || {
        others.iter().all(|node| links(&cluster[*node]) == 1).then_some(())
    });
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            let path = "/api/v3/write_lp?db=it&precision=nanosecond";
            send(&cluster[asleep].tcp(), "POST", path, &[], b"late n=1u 1", REQUEST)
        });
        std::thread::sleep(Duration::from_millis(200));
        cluster[asleep].signal(Signal::CONT);
        late.join().unwrap()
    });
    assert!(late.as_ref().map_or(true, |answer| answer.status >= 500), "the removed writer says {late:?}");
    ends_for_good(&mut cluster[asleep]);
    cluster[by].write("feed,client=last n=7u 7");
    assert_eq!(
        cluster[by].ask("SELECT * FROM late", &[]).status,
        404,
        "it wrote what it did not acknowledge"
    );

    // The last voter cannot be removed, and nobody who is not there.
    let nobody = cluster[by].skein(&["node", "remove", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
}

#[track_caller]
fn feed_is_whole(feed: Feed, before: &Sent, cluster: &Cluster, nodes: [usize; 2]) {
    let sent = feed.finish();
    sent.must_be_whole();
    let all = Sent {
        acked: before.acked.iter().chain(&sent.acked).copied().collect(),
        failed: before.failed.clone(),
        ..Sent::default()
    };
    for node in nodes {
        all.must_be_at(&cluster[node]);
    }
}

/// It ends with the reason and a tombstone, and does not start again.
#[track_caller]
fn ends_for_good(node: &mut Process) {
    let ended = node.ended(Duration::from_secs(5));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.said.contains("was removed from its cluster"), "{ended:?}");
    assert!(node.dir.join("removed").exists(), "no tombstone");
    for flags in [&[][..], &["--new-cluster"]] {
        let again = node.try_start(flags).unwrap_err();
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(
            again.said.contains("was removed from its cluster") && again.said.contains("new token"),
            "{again:?}"
        );
    }
}

#[track_caller]
fn not_a_member(node: &Process, id: &str) {
    let status = node.status().unwrap();
    let members = status["nodes"].as_array().unwrap();
    assert!(members.iter().all(|member| member["id"] != id), "{status:#}");
}

fn links(node: &Process) -> u64 {
    let metrics = node.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with("skein_links ")).expect("the gauge");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Whoever answers there could be anybody: no reason to give up, but one to say.
#[track_caller]
fn waits(node: &mut Process, token: &str, seed: &str, why: &str) {
    let _ready = node.launch(&["--join", token, "--seed", seed]);
    within(Duration::from_secs(10), "it says what it waits for", || node.said().contains(why).then_some(()));
    assert!(node.try_ended(Duration::from_secs(1)).is_none(), "it gave up: {}", node.said());
    node.stop();
}

#[track_caller]
fn refused(node: &mut Process, token: &str, seed: &str, code: i32, why: &str) {
    let ended = node.try_start(&["--join", token, "--seed", seed]).unwrap_err();
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.said.contains(why), "{why:?} is not in {ended:?}");
}

fn listed(node: &Process) -> Vec<Value> {
    let list: Value = serde_json::from_str(&node.skein_says(&["token", "list", "--json"])).unwrap();
    list["tokens"].as_array().unwrap().clone()
}
