//! A data directory that was copied: two processes with one identity are both refused, and the log of
//! whoever sees them names both, until one of them is gone. And one that was lost: that node is gone with it.

use std::{fs, path::Path};

use crate::cluster::{Cluster, eventually};

#[test]
fn a_copied_data_directory_is_noticed_and_both_addresses_are_named() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [stays, copied] = cluster.others(writer)[..] else { panic!("three nodes") };
    cluster[copied].stop();
    let copy = cluster.add();
    copy_all(&cluster[copied].dir, &cluster[copy].dir);
    let places = [cluster[copied].mesh.clone(), cluster[copy].mesh.clone()];
    // It knows the others, and they know its key.
    let [ready, _] = [copied, copy].map(|node| cluster[node].launch(&[]));
    let named = |by: usize| {
        let said = cluster[by].said();
        let line = said.lines().find(|line| line.contains("two processes use one identity"))?;
        places.iter().all(|place| line.contains(place.as_str())).then(|| line.to_owned())
    };
    let line = eventually("somebody names both", || named(writer).or_else(|| named(stays)));
    assert!(line.contains("empty its data directory"), "it says what to do: {line}");
    cluster[writer].write("clones v=1 1");

    // Without the copy it is a member again, after a while.
    cluster[copy].kill();
    fs::remove_dir_all(&cluster[copy].dir).unwrap();
    cluster.settled();
    cluster[copied].wait_ready(&ready).unwrap();
    cluster[copied].write("clones v=2 2");
}

#[test]
fn a_node_whose_disk_is_gone_is_a_new_node() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    cluster[writer].write("clones v=1 1");
    let wiped = cluster.others(writer)[0];
    let old = cluster[wiped].id.clone();
    cluster[wiped].kill();
    fs::remove_dir_all(&cluster[wiped].dir).unwrap();
    // Nothing makes it a member but a token.
    let seed = cluster[writer].mesh.clone();
    let refused = cluster[wiped].try_start(&["--seed", &seed]).unwrap_err();
    assert!(refused.code == Some(2) && refused.said.contains("token"), "{refused:?}");
    let token = cluster[writer].token(1);
    cluster[wiped].start(&["--join", &token, "--seed", &seed]);
    assert_ne!(cluster[wiped].id, old);
    // What it was is a voter that is away, in whose place it is not one until somebody removes that.
    eventually("it is seen down", || {
        let status = cluster[wiped].status()?;
        let shown = status["nodes"].as_array()?.iter().find(|node| node["id"] == old.as_str())?.clone();
        (shown["role"] == "voter" && shown["state"] == "down").then_some(())
    });
    cluster[writer].skein_says(&["node", "remove", &old]);
    cluster.settled();
    assert_eq!(cluster[wiped].numbers("SELECT count(*) FROM clones"), [1]);
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, kind) = (to.join(entry.file_name()), entry.file_type().unwrap());
        if kind.is_dir() {
            copy_all(&entry.path(), &path);
        } else if kind.is_file() {
            fs::copy(entry.path(), path).unwrap();
        }
    }
}
