//! Removal, as far as a gateway has to do with it: whoever is removed is cut off by everybody, whatever it
//! does itself, is refused at the door, and a gateway's clients notice nothing of another's removal.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, eventually, within},
    feed::Feed,
    gateway::{follows, shown, with},
    process::{Process, Signal},
};

fn links(node: &Process) -> u64 {
    let metrics = node.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with("skein_links ")).expect("the gauge");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until each of these has so many links, and says how long that took.
#[track_caller]
fn cut_off(cluster: &Cluster, nodes: &[usize], left: u64, what: &str, since: Instant) {
    let mut waiting = nodes.to_vec();
    within(Duration::from_secs(2), "everybody has cut it off", || {
        waiting.retain(|node| {
            let cut = links(&cluster[*node]) == left;
            if cut {
                println!("{what}: cut off at {} after {:?}", cluster[*node].name, since.elapsed());
            }
            !cut
        });
        waiting.is_empty().then_some(())
    });
}

/// It ends with the reason and a tombstone.
#[track_caller]
fn is_put_out(node: &mut Process, since: Instant) {
    let ended = node.ended(Duration::from_secs(30));
    println!("{}: ended {:?} after its removal", node.name, since.elapsed());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.said.contains("was removed from its cluster"), "{ended:?}");
    assert!(node.dir.join("removed").exists(), "no tombstone");
}

/// With nothing on its own disk that keeps it back, the others do.
#[track_caller]
fn is_refused_at_the_door(node: &mut Process, flags: &[&str]) {
    fs::remove_file(node.dir.join("removed")).unwrap();
    let refused = match node.try_start(flags) {
        Err(refused) => refused,
        // It knows its cluster, and is ready to look for it; then it hears.
        Ok(()) => node.ended(Duration::from_secs(30)),
    };
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.said.contains("was removed from its cluster"), "{refused:?}");
    assert!(node.dir.join("removed").exists(), "it does not remember");
}

#[test]
fn removed_members_are_cut_off_by_gateways_and_voters_and_stay_out() {
    let mut cluster = Cluster::of(3);
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    follows(&cluster[gateway]);
    let reader_token = cluster[0].skein_says(&["token", "create", "--role", "reader", "--uses", "2"]);
    let door = cluster[0].mesh.clone();
    let reader = cluster.add();
    cluster[reader].start(&["--join", reader_token.trim(), "--seed", &door]);
    let writer = cluster.writer();
    let voters: Vec<usize> = (0..3).filter(|node| *node != writer).collect();
    let (stays, goes) = (voters[0], voters[1]);
    let token = cluster[writer].token(1);
    let seed = cluster[writer].mesh.clone();
    eventually("all are linked", || {
        [writer, stays, goes, gateway, reader].iter().all(|node| links(&cluster[*node]) == 4).then_some(())
    });

    // A voter that cannot do anything about it: what is seen is what the others do.
    let feed = Feed::at([&cluster[gateway]], 1);
    feed.more(20);
    let id = cluster[goes].id.clone();
    cluster[goes].signal(Signal::STOP);
    cluster[stays].skein_says(&["node", "remove", &id]);
    let removed = Instant::now();
    cut_off(&cluster, &[writer, stays, gateway, reader], 3, "a voter", removed);
    assert!(shown(&cluster[gateway], &cluster[goes]).is_none(), "it is no member by the gateway's word");
    feed.more(20);
    let sent = feed.finish();
    sent.must_be_whole();
    cluster[goes].signal(Signal::CONT);
    is_put_out(&mut cluster[goes], removed);
    is_refused_at_the_door(&mut cluster[goes], &[]);
    // A token does not help a key that was put out.
    is_refused_at_the_door(&mut cluster[goes], &["--join", &token, "--seed", &seed]);
    let left = [writer, stays, gateway, reader];
    assert!(left.iter().all(|node| links(&cluster[*node]) == 3), "a link to it");

    // A reader, whose machine is then used again: with nothing left and a new token it is a new node.
    let id = cluster[reader].id.clone();
    cluster[stays].skein_says(&["node", "remove", &id]);
    let removed = Instant::now();
    cut_off(&cluster, &[writer, stays, gateway], 2, "a reader", removed);
    is_put_out(&mut cluster[reader], removed);
    is_refused_at_the_door(&mut cluster[reader], &[]);
    fs::remove_dir_all(&cluster[reader].dir).unwrap();
    cluster[reader].start(&["--join", reader_token.trim(), "--seed", &door]);
    assert_ne!(cluster[reader].id, id);
    let again = cluster[reader].id.clone();
    sent.must_be_at(&cluster[reader]);
    cluster[stays].skein_says(&["node", "remove", &again]);
    is_put_out(&mut cluster[reader], Instant::now());
    eventually("the links of before", || {
        [writer, stays, gateway].iter().all(|node| links(&cluster[*node]) == 2).then_some(())
    });

    // The gateway itself, while a client writes through it.
    let feed = Feed::at([&cluster[gateway]], 2);
    feed.more(20);
    let id = cluster[gateway].id.clone();
    cluster[stays].skein_says(&["node", "remove", &id]);
    let removed = Instant::now();
    cut_off(&cluster, &[writer, stays], 1, "a gateway", removed);
    is_put_out(&mut cluster[gateway], removed);
    let through = feed.finish();
    let last = through.last_ack.unwrap().saturating_duration_since(removed);
    println!("a gateway: its last write was acknowledged {last:?} after its removal");
    is_refused_at_the_door(&mut cluster[gateway], &[]);
    let sent = sent.and(through);
    for node in [writer, stays] {
        sent.must_be_at(&cluster[node]);
    }
}
