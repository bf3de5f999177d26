//! A data directory that was copied: two processes with one identity are both refused, and the log of
//! whoever sees them names both, until one of them is gone.

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
