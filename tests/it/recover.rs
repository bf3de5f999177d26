//! A majority is gone for good: one survivor carries on alone when an operator says so, the world
//! before and the world after never mix, and whoever was left out comes back as a learner.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    feed::Feed,
    process::{Ended, Process},
};

/// Epochs of the first recovered world are above this.
const FIRST_GENERATION: u64 = 1 << 32;
/// Until a node that was left out has heard so and has ended.
const GIVES_WAY: Duration = Duration::from_secs(20);

#[test]
fn one_survivor_carries_on_and_the_others_come_back_as_learners() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [survivor, gone] = cluster.others(writer)[..] else { panic!("three nodes") };
    let feed = Feed::at(cluster.processes().iter(), 1);
    feed.more(200);
    let sent = feed.finish();
    sent.must_be_at(&cluster[survivor]);
    let refused = recover(&cluster[survivor], &[]);
    assert!(refused.code == Some(1) && refused.said.contains("must not run"), "{refused:?}");
    cluster[writer].kill();
    cluster[gone].kill();
    fs::remove_dir_all(&cluster[gone].dir).unwrap();
    let row = "feed,client=late n=5u 5";
    let path = "/api/v3/write_lp?db=it&precision=nanosecond";
    // At first it may have sent it to a writer that it does not know to be dead: 504 then.
    eventually("no writes", || (cluster[survivor].post(path, row).status == 503).then_some(()));
    cluster[survivor].stop();

    // It shows where everybody stands, and does nothing unless told to.
    let before = files(&cluster[survivor]);
    let shown = recover(&cluster[survivor], &[]);
    assert!(shown.code == Some(1) && shown.said.contains("nothing was changed"), "{shown:?}");
    let missing = shown.said.lines().filter(|line| line.contains("no answer")).count();
    assert_eq!(missing, 2, "{shown:?}");
    assert!(shown.said.contains("has the highest log") && shown.said.contains("Lost: "), "{shown:?}");
    let survey: Value =
        serde_json::from_str(json_line(&recover(&cluster[survivor], &["--json"]).said)).unwrap();
    assert_eq!((&survey["majority"], &survey["recovered"]), (&Value::Bool(false), &Value::Null));
    let reachable = survey["members"].as_array().unwrap().iter().filter(|m| m["reachable"] == true);
    assert_eq!(reachable.count(), 1, "{survey:#}");
    assert!(files(&cluster[survivor]) == before, "a survey has changed something");
    let done = recover(&cluster[survivor], &["--accept-loss"]);
    assert!(done.code == Some(0) && done.said.contains("generation 1"), "{done:?}");

    // It writes, and everything it had is there.
    cluster[survivor].start(&[]);
    let after = eventually("the survivor writes", || {
        let answer = cluster[survivor].post(path, row);
        (answer.status == 204).then_some(answer)
    });
    assert!(after.lsn().0 > FIRST_GENERATION, "{after:?}");
    let sent = sent.and(crate::feed::Sent { acked: [5].into(), ..Default::default() });
    sent.must_be_at(&cluster[survivor]);

    // One of the lost comes back as it was: it is kept out, hears why, and ends.
    let ended = left_out(&mut cluster[writer]);
    assert!(ended.said.contains("comes back as a learner"), "{ended:?}");
    assert_eq!(links(&cluster[survivor]), 0);
    eventually("the survivor says who is kept out", || {
        let warnings = cluster[survivor].status()?["warnings"].to_string();
        warnings.contains("before its recovery").then_some(())
    });
    let feed = Feed::at([&cluster[survivor]], 2);
    feed.more(50);
    cluster[writer].start(&[]);
    cluster.settled();
    feed.more(50);
    let new = feed.finish();
    new.must_be_whole();
    let sent = sent.and(new);
    assert!(cluster[writer].dir.join("wal.before-recovery-1").exists());
    for node in [survivor, writer] {
        sent.must_be_at(&cluster[node]);
    }

    // The other one is replaced. Then this is a cluster like any other.
    let name = cluster[gone].name.clone();
    cluster[survivor].skein_says(&["node", "remove", &name]);
    cluster.join(1);
    let new = cluster.running().last().unwrap();
    cluster[survivor].kill();
    eventually("the others go on", || {
        (cluster[new].post(path, "feed,client=l n=6u 6").status == 204).then_some(())
    });
    let sent = sent.and(crate::feed::Sent { acked: [6].into(), ..Default::default() });
    for node in [writer, new] {
        sent.must_be_at(&cluster[node]);
    }
}

#[test]
fn the_majority_that_was_given_up_comes_back_and_changes_nothing() {
    let mut cluster = Cluster::of(3);
    let survivor = cluster.writer();
    let [one, two] = cluster.others(survivor)[..] else { panic!("three nodes") };
    let feed = Feed::at([&cluster[survivor]], 1);
    feed.more(100);
    let sent = feed.finish();
    for node in 0..3 {
        sent.must_be_at(&cluster[node]);
    }
    for node in 0..3 {
        cluster[node].kill();
    }

    // While the others run, there is nothing to recover.
    cluster[one].start(&[]);
    let there = recover(&cluster[survivor], &["--accept-loss", "--from-here"]);
    assert!(there.code == Some(1) && there.said.contains("a majority of the voters is there"), "{there:?}");
    cluster[one].kill();
    let done = recover(&cluster[survivor], &["--accept-loss", "--json"]);
    let done: Value = serde_json::from_str(json_line(&done.said)).unwrap();
    assert_eq!(done["recovered"]["generation"], 1, "{done:#}");

    // The two that were given up are a majority of before, and go on by themselves, as long as they
    // do not meet the survivor: their positions are none of the new world's.
    let ready = [one, two].map(|node| (node, cluster[node].launch(&[])));
    for (node, ready) in ready {
        cluster[node].wait_ready(&ready).unwrap();
    }
    let lost = eventually("the old world writes", || {
        let path = "/api/v3/write_lp?db=it&precision=nanosecond";
        let answer = cluster[one].post(path, "feed,client=lost n=7u 7");
        (answer.status == 204).then_some(answer)
    });
    assert!(lost.lsn().0 < FIRST_GENERATION, "{lost:?}");

    cluster[survivor].start(&[]);
    let feed = Feed::at([&cluster[survivor]], 2);
    feed.more(20);
    for node in [one, two] {
        let ended = cluster[node].ended(GIVES_WAY);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.said.contains("recovered without this node"), "{ended:?}");
    }
    assert_eq!(links(&cluster[survivor]), 0);
    feed.more(20);
    for node in [one, two] {
        cluster[node].start(&[]);
    }
    cluster.settled();
    feed.more(20);
    let new = feed.finish();
    assert!(new.acked.len() >= 60);
    let sent = sent.and(new);
    for node in 0..3 {
        // Nobody has the row of the old world: it would be one that nobody sent.
        sent.must_be_at(&cluster[node]);
        assert_eq!(cluster[node].dir.join("wal.before-recovery-1").exists(), node != survivor);
    }
    let (epoch, seq) = lost.lsn();
    let position = format!("{epoch}.{seq}");
    let asked = cluster[one].ask("SELECT n FROM feed", &[("min_lsn", &position)]);
    assert_eq!(asked.status, 410, "{asked:?}");
}

/// Two of five are left, and what they hold is not the same: each is told which one to go on from, and the
/// other follows it.
#[test]
fn of_two_survivors_the_one_with_the_higher_log_carries_on() {
    let mut cluster = Cluster::of(5);
    let writer = cluster.writer();
    let [low, high, gone, lost] = cluster.others(writer)[..] else { panic!("five nodes") };
    let feed = Feed::at([&cluster[writer], &cluster[gone]], 1);
    feed.more(100);
    cluster[low].kill();
    feed.more(100);
    let sent = feed.finish();
    sent.must_be_at(&cluster[high]);
    for node in [writer, gone, lost, high] {
        cluster[node].kill();
    }

    // Each is asked while the other runs. The lower one is sent to the higher, whatever is agreed to.
    cluster[high].start(&[]);
    let survey = both_answer(&cluster[low]);
    assert_eq!((&survey["highest"], &survey["majority"]), (&cluster[high].id.as_str().into(), &false.into()));
    let there = recover(&cluster[low], &["--accept-loss"]);
    let name = cluster[high].name.clone();
    assert!(there.code == Some(1) && there.said.contains(&format!("{name} (")), "{there:?}");
    assert!(there.said.contains("holds more than this node"), "{there:?}");
    assert!(there.said.contains("stop it and run `skein recover` there"), "{there:?}");
    cluster[high].kill();

    cluster[low].start(&[]);
    assert_eq!(both_answer(&cluster[high])["highest"], cluster[high].id.as_str());
    let shown = recover(&cluster[high], &[]);
    assert!(shown.code == Some(1) && shown.said.contains("has the highest log"), "{shown:?}");
    let here = recover(&cluster[high], &["--accept-loss"]);
    assert!(here.code == Some(0) && here.said.contains("generation 1"), "{here:?}");

    // The lower one, which still runs, hears of it, ends, and comes back as a learner.
    cluster[high].start(&[]);
    let ended = cluster[low].ended(GIVES_WAY);
    assert!(ended.said.contains("recovered without this node"), "{ended:?}");
    let feed = Feed::at([&cluster[high]], 2);
    feed.more(50);
    cluster[low].start(&[]);
    cluster.settled();
    feed.more(20);
    let sent = sent.and(feed.finish());
    for node in [low, high] {
        sent.must_be_at(&cluster[node]);
    }
}

/// What is shown on a node's directory once another survivor is reached.
fn both_answer(node: &Process) -> Value {
    eventually("the other survivor answers", || {
        let survey: Value = serde_json::from_str(json_line(&recover(node, &["--json"]).said)).unwrap();
        let members = survey["members"].as_array().unwrap();
        let reachable = members.iter().filter(|member| member["reachable"] == true);
        (reachable.count() == 2).then_some(survey)
    })
}

/// `skein recover` on a node's directory; what it printed, on both outputs.
fn recover(node: &Process, flags: &[&str]) -> Ended {
    let mut line = vec!["recover"];
    line.extend(flags);
    let output = node.skein(&line);
    let said = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code(), said: String::from_utf8(said).unwrap() }
}

fn json_line(said: &str) -> &str {
    said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON: {said}"))
}

/// Starts a node that was left out of a recovery, which must end by itself.
#[track_caller]
fn left_out(node: &mut Process) -> Ended {
    let _ready = node.launch(&[]);
    let ended = node.ended(GIVES_WAY);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.said.contains("recovered without this node"), "{ended:?}");
    ended
}

/// What a recovery would change.
fn files(node: &Process) -> Vec<Vec<u8>> {
    // Neither the log nor the vote: they are opened as a start would, which writes them once more.
    let names = ["cluster.json", "raft/log"];
    names.map(|name| fs::read(node.dir.join(name)).unwrap()).into()
}

fn links(node: &Process) -> u64 {
    let metrics = node.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with("skein_links ")).expect("the gauge");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
