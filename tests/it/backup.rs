//! `skein backup` and `skein restore`: everything acknowledged before is in it, all of it at one position,
//! and it comes back, as a cluster or into one.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, eventually},
    feed::Feed,
    http::send,
    process::{Process, REQUEST},
};

/// Two tables of two databases cannot be written at once, but two tables of one can: a reader that sees one
/// without the other sees a part of a batch.
fn write_pairs(node: &Process) -> (Arc<AtomicBool>, std::thread::JoinHandle<u64>) {
    let (stop, target) = (Arc::new(AtomicBool::new(false)), node.tcp());
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut n = 0;
        while !told.load(Ordering::Relaxed) {
            n += 1;
            let body = format!("left n={n}u {n}\nright n={n}u {n}\n");
            let path = "/api/v3/write_lp?db=pairs&precision=nanosecond";
            let answer = send(&target, "POST", path, &[], body.as_bytes(), REQUEST).unwrap();
            assert_eq!(answer.status, 204, "{answer:?}");
        }
        n
    });
    (stop, thread)
}

#[test]
fn a_backup_under_load_becomes_a_cluster_that_has_all_that_was_acknowledged_before_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("b.skein.tar");
    let (before, during, position, secrets);
    {
        let cluster = Cluster::of(3);
        let reader = cluster.others(cluster.writer())[0];
        cluster[reader].skein_says(&["db", "retention", "it", "36500d"]);
        // Made before, so that whatever keeps them is there to be taken along.
        let tokens = [
            ("a join token", cluster[reader].token(1)),
            ("an API token", cluster[reader].skein_says(&["auth", "create", "--scope", "read"])),
        ];
        let feed = Feed::at(cluster.running().map(|node| &cluster[node]), 0);
        feed.more(60);
        before = feed.finish();
        let feed = Feed::at(cluster.running().map(|node| &cluster[node]), 1);
        let (stop, pairs) = write_pairs(&cluster[reader]);
        feed.more(60);
        // From a node that does not write, while all of them are written to.
        let taken = cluster[reader].skein_says(&["backup", "--json", "--output", file.to_str().unwrap()]);
        feed.more(60);
        stop.store(true, Ordering::Relaxed);
        assert!(pairs.join().unwrap() > 0);
        during = feed.finish();
        let taken: Value = serde_json::from_str(&taken).unwrap();
        position = taken["position"].as_str().unwrap().to_owned();
        assert_eq!(taken["databases"][0]["name"], "it");
        assert_eq!(taken["bytes"].as_u64(), Some(fs::metadata(&file).unwrap().len()));
        let again = cluster[reader].skein(&["backup", "--output", file.to_str().unwrap()]);
        assert_eq!(again.status.code(), Some(2), "nothing is overwritten: {again:?}");
        let answer = send(&cluster[reader].tcp(), "GET", "/api/v1/backup", &[], b"", REQUEST).unwrap();
        assert_eq!(answer.status, 401, "on loopback too");
        secrets = secrets_of(&cluster, &tokens);
    }
    before.must_be_whole();
    let bytes = fs::read(&file).unwrap();
    for (what, secret) in secrets {
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{what} is in the backup");
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "and nothing beside it");

    let mut cluster = Cluster::empty();
    let first = cluster.add();
    let says = restore(&cluster[first], &file, &[]);
    assert!(says.status.success(), "{says:?}");
    let token = cluster[first].skein_alone(&["token", "generate"]);
    let joining = cluster[first].try_start(&["--join", token.trim()]).unwrap_err();
    assert!(
        joining.code == Some(2) && joining.said.contains("--new-cluster"),
        "it founds or does nothing: {joining:?}"
    );
    cluster[first].start(&["--new-cluster"]);
    assert!(!cluster[first].dir.join("restored.json").exists());
    cluster.join(2);
    let mut seen = None;
    for node in cluster.running() {
        let node = &cluster[node];
        let found = found(node, &position);
        let missing: Vec<_> = before.acked.difference(&found).collect();
        assert!(missing.is_empty(), "{} lacks {missing:?}", node.name);
        // Each client sends a row when the one before it is acknowledged: no hole within one position.
        for client in 0..3 {
            let of = |n: &&u64| **n / 1_000_000 == 1_000 + client;
            let rows = found.iter().filter(of).count() as u64;
            let last = found.iter().rfind(of).map_or(0, |n| n % 1_000_000);
            assert_eq!(rows, last, "{} has a hole in the rows of client {client}", node.name);
        }
        let sent = during.acked.iter().chain(during.failed.iter().map(|(n, _)| n)).chain(&before.acked);
        let sent: BTreeSet<u64> = sent.copied().collect();
        assert!(found.is_subset(&sent), "{}", node.name);
        let pairs = |table: &str| {
            let rows = node.ask(&format!("SELECT n FROM pairs.{table} ORDER BY n"), &[]).expect(200);
            crate::process::column(&rows)
        };
        assert_eq!(pairs("left"), pairs("right"), "{}: a part of a batch", node.name);
        assert!(seen.is_none_or(|seen| seen == found.len()), "every node has the same");
        seen = Some(found.len());
    }
    // It goes on behind the position, and keeps what it was told to.
    let epoch = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let status = cluster[first].status().unwrap();
    assert!(status["epoch"].as_u64() > Some(epoch(&position)), "{status}");
    let listed: Value = serde_json::from_str(&cluster[first].skein_says(&["db", "list", "--json"])).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["keep"]), (&json!("it"), &json!("36500d")));
    let writer = cluster.writer();
    cluster[writer].kill();
    let node = cluster.others(writer)[0];
    eventually("a write after a failover", || {
        (cluster[node].post("/write?db=it", "feed,client=new n=7u 7").status == 204).then_some(())
    });
    assert_eq!(cluster[node].numbers("SELECT n FROM feed WHERE client = 'new'"), [7]);
}

#[track_caller]
fn found(node: &Process, position: &str) -> BTreeSet<u64> {
    let rows = node.ask("SELECT n FROM feed", &[("min_lsn", position)]).expect(200);
    crate::process::column(&rows).into_iter().collect()
}

/// What must be in no backup.
fn secrets_of(cluster: &Cluster, tokens: &[(&str, String)]) -> Vec<(String, Vec<u8>)> {
    let mut secrets = Vec::new();
    for node in cluster.running() {
        let node = &cluster[node];
        for name in ["node.key", "seal.key"] {
            let key = fs::read(node.dir.join(name)).unwrap();
            // The last bytes, whatever wraps them.
            secrets.push((format!("{name} of {}", node.name), key[key.len() - 24..].to_vec()));
        }
        if let Ok(token) = fs::read_to_string(node.dir.join("admin.token")) {
            let token = token.trim();
            let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
            secrets.push(("the admin token".into(), token.as_bytes().to_vec()));
            secrets.push(("its hash".into(), digest.as_ref().to_vec()));
        }
    }
    for (what, token) in tokens {
        let token = token.trim();
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        // Of a join token the secret comes last; before it stands what is no secret.
        secrets.push(((*what).into(), token.as_bytes()[token.len() - 24..].to_vec()));
        secrets.push((format!("the hash of {what}"), digest.as_ref().to_vec()));
    }
    assert_eq!(secrets.len(), 12);
    secrets
}

/// `skein restore` into the directory of a node that never ran.
fn restore(node: &Process, file: &Path, more: &[&str]) -> Output {
    node.skein(&[&["restore", file.to_str().unwrap()], more].concat())
}

#[test]
fn databases_come_back_into_a_running_cluster_on_every_node() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("b.tar");
    let path = file.to_str().unwrap();
    let mut cluster = Cluster::of(3);
    let node = &cluster[cluster.others(cluster.writer())[0]];
    node.write(
        "cpu,host=a\\ b n=1u,f=0.5,text=\"x\ny\",yes=true,i=-3i 1000\ncpu,host=c n=2u 2000\nmem n=3u 1",
    );
    node.write("cpu,host=c more=7i 2000");
    node.post("/write?db=away", "cpu n=9u 5").expect(204);
    node.skein_says(&["db", "retention", "it", "36500d"]);
    node.skein_says(&["backup", "--output", path, "-d", "it"]);
    let whole = fs::read(&file).unwrap();
    assert!(!whole.windows(4).any(|four| four == b"away"), "only the database that was asked for");
    let all = "SELECT * FROM cpu ORDER BY time";
    let want = node.ask(all, &[]).expect(200).json();
    assert_eq!(want.as_array().unwrap().len(), 2);
    let listed = || node.skein_says(&["db", "list", "--json"]);
    let before = listed();

    // What is not whole, or not a backup, changes nothing.
    let spoilt = home.path().join("spoilt.tar");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 4;
    for (what, bytes) in [("damaged", &damaged[..]), ("cut", &whole[..whole.len() - 512]), ("foreign", b"PK")]
    {
        fs::write(&spoilt, bytes).unwrap();
        for command in [
            &["restore", spoilt.to_str().unwrap(), "-d", "it", "--as", "b"][..],
            &["restore", spoilt.to_str().unwrap()],
        ] {
            let refused = restore(node, &spoilt, &command[2..]);
            assert_eq!(refused.status.code(), Some(1), "{what}: {refused:?}");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("spoilt.tar"), "{refused:?}");
        }
        let verified = std::process::Command::new(env!("CARGO_BIN_EXE_skein"))
            .args(["backup", "verify", spoilt.to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(verified.status.code(), Some(1), "{what}");
    }
    let refused = restore(node, &file, &[]);
    assert_eq!(refused.status.code(), Some(1), "there is a database it: {refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--as"), "{refused:?}");
    assert_eq!(listed(), before);

    let says = restore(node, &file, &["-d", "it", "--as", "again"]);
    assert!(says.status.success(), "{says:?}");
    for node in cluster.running().map(|node| &cluster[node]) {
        let again = node.ask("SELECT * FROM again.cpu ORDER BY time", &[("consistency", "linearizable")]);
        assert_eq!(again.expect(200).json(), want, "{}", node.name);
        assert_eq!(node.numbers("SELECT n FROM again.mem"), [3]);
        let listed: Value = serde_json::from_str(&node.skein_says(&["db", "list", "--json"])).unwrap();
        let keeps: Vec<_> = listed.as_array().unwrap().iter().map(|db| (&db["name"], &db["keep"])).collect();
        assert!(keeps.contains(&(&json!("again"), &json!("36500d"))), "{keeps:?}");
    }
    // A second time it brings nothing twice, and only when it is told to.
    assert_eq!(restore(node, &file, &["-d", "it", "--as", "again"]).status.code(), Some(1));
    assert!(restore(node, &file, &["-d", "it", "--as", "again", "--merge"]).status.success());
    assert_eq!(node.numbers("SELECT count(*) FROM again.cpu"), [2]);
    // And what was lost is there again.
    node.skein_says(&["db", "drop", "it"]);
    assert!(restore(node, &file, &[]).status.success());
    assert_eq!(node.ask(all, &[("consistency", "linearizable")]).expect(200).json(), want);
    let rows = send(&node.tcp(), "POST", "/api/v1/databases/it/rows", &[], b"SKEINROW", REQUEST).unwrap();
    assert_eq!(rows.status, 401);

    // Without a majority nobody knows what is acknowledged, and what is here can still be had.
    let name = node.name.clone();
    let asked = cluster.running().find(|other| cluster[*other].name == name).unwrap();
    for other in cluster.others(asked) {
        cluster[other].kill();
    }
    let alone = home.path().join("alone.tar");
    let refused = cluster[asked].skein(&["backup", "-o", alone.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--local"), "{refused:?}");
    assert!(!alone.exists());
    cluster[asked].skein_says(&["backup", "--local", "-o", alone.to_str().unwrap()]);
    cluster[asked].skein_alone(&["backup", "verify", alone.to_str().unwrap()]);
}

#[test]
fn a_restore_that_was_cut_short_starts_nothing_and_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("b.tar");
    {
        let cluster = Cluster::of(1);
        cluster[0].write("cpu n=1u 1000\nmem n=2u 1000");
        cluster[0].skein_says(&["backup", "--output", file.to_str().unwrap()]);
    }
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    let node = &mut cluster[node];
    assert!(restore(node, &file, &[]).status.success());
    // As if the machine had stopped when one of the files was there.
    let word = node.dir.join("restored.json");
    let mut said: Value = serde_json::from_slice(&fs::read(&word).unwrap()).unwrap();
    said["whole"] = false.into();
    fs::write(&word, said.to_string()).unwrap();
    fs::remove_file(node.dir.join("engine/MANIFEST")).unwrap();
    let table = fs::read_dir(node.dir.join("engine/data/it/cpu")).unwrap().next().unwrap().unwrap();
    fs::write(table.path(), b"half").unwrap();

    let ended = node.try_start(&["--new-cluster"]).unwrap_err();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.said.contains("skein restore"), "{ended:?}");
    let again = restore(node, &file, &[]);
    assert!(again.status.success(), "{again:?}");
    let twice = restore(node, &file, &[]);
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");
    node.start(&["--new-cluster"]);
    assert_eq!((node.numbers("SELECT n FROM cpu"), node.numbers("SELECT n FROM mem")), (vec![1], vec![2]));
    node.kill();
    node.start(&[]);
    assert_eq!(node.numbers("SELECT n FROM cpu"), [1]);
}
