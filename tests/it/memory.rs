//! What lies in the memory of a process, as a core dump would hold it, and on its disk: nowhere but at
//! voters is there a key of the cluster's CA. And what a process says and shows of itself: no secret.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use memchr::memmem::Finder;
use skeinmesh::{identity::ClusterCa, types::ClusterId};

use crate::{
    cluster::{Cluster, eventually},
    http::send,
    process::{Process, REQUEST},
};

const CHUNK: usize = 4 << 20;

/// Every form in which an Ed25519 key could lie about.
struct Needles(Vec<(&'static str, Vec<u8>)>);

impl Needles {
    /// Of the 32 bytes that the key is made of, and its file (PKCS#8), of which they are the end.
    fn of(seed: &[u8], pkcs8: &[u8]) -> Self {
        assert!(seed.len() == 32 && pkcs8.ends_with(seed));
        let digest = ring::digest::digest(&ring::digest::SHA512, seed);
        let (scalar, prefix) = digest.as_ref().split_at(32);
        let mut scalar = scalar.to_vec();
        (scalar[0], scalar[31]) = (scalar[0] & 248, (scalar[31] & 127) | 64);
        let base64 = data_encoding::BASE64.encode(pkcs8);
        Self(vec![
            ("seed", seed.to_vec()),
            // What signing works with.
            ("scalar", scalar),
            ("prefix", prefix.to_vec()),
            // Of the seed alone: every key's file begins alike.
            ("base64", base64.as_bytes()[24..].to_vec()),
            ("hex", data_encoding::HEXLOWER.encode(seed).into_bytes()),
        ])
    }

    /// Which of them are in these bytes.
    fn search(&self, bytes: &[u8], found: &mut BTreeSet<&'static str>) {
        for (form, needle) in &self.0 {
            if Finder::new(needle).find(bytes).is_some() {
                found.insert(form);
            }
        }
    }

    /// In all that a process may read of its own memory. The bytes that were read.
    fn in_memory(&self, process: &Process) -> (BTreeSet<&'static str>, u64) {
        let pid = process.pid();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let (mut found, mut total) = (BTreeSet::new(), 0);
        let mut buffer = vec![0; CHUNK];
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().unwrap(), words.next().unwrap());
            if !rights.starts_with('r') {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let [mut at, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
            while at < to {
                let wanted = CHUNK.min(usize::try_from(to - at).unwrap());
                // The kernel's own pages, and what was unmapped meanwhile.
                let Ok(len @ 1..) = memory.read_at(&mut buffer[..wanted], at) else { break };
                self.search(&buffer[..len], &mut found);
                total += len as u64;
                // A key may lie across two chunks.
                at += if at + len as u64 == to { len } else { len.saturating_sub(128).max(1) } as u64;
            }
        }
        (found, total)
    }

    /// In every file below a directory. The bytes that were read.
    fn on_disk(&self, dir: &Path) -> (BTreeSet<&'static str>, u64) {
        let (mut found, mut total) = (BTreeSet::new(), 0);
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                let (more, bytes) = self.on_disk(&entry.path());
                found.extend(more);
                total += bytes;
            } else if entry.file_type().unwrap().is_file() {
                // One that was replaced meanwhile is looked at under its new name, or was as short-lived.
                let bytes = fs::read(entry.path()).unwrap_or_default();
                self.search(&bytes, &mut found);
                total += bytes.len() as u64;
            }
        }
        (found, total)
    }
}

#[test]
fn no_key_of_the_ca_is_in_a_readers_or_gateways_memory_or_disk() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed: [u8; 32] = rand::random();
    let ca = ClusterCa::create(ClusterId([7; 16]), &seed, now).unwrap();
    let home = tempfile::tempdir().unwrap();
    let pem = |name: &str, label: &str, der: &[u8]| {
        let text = data_encoding::BASE64.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
        let path = home.path().join(name);
        let body = lines.join("\n");
        fs::write(&path, format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = pem("ca.crt", "CERTIFICATE", ca.certificate());
    let key = pem("ca.key", "PRIVATE KEY", ca.private_key());
    let needles = Needles::of(&seed, ca.private_key());
    drop(ca);
    assert_eq!(needles.on_disk(home.path()).0, BTreeSet::from(["base64"]), "the search finds the key's file");

    let mut cluster = Cluster::empty();
    let voter = cluster.add();
    cluster[voter].start(&["--new-cluster", "--ca-cert", &certificate, "--ca-key", &key]);
    fs::remove_file(&key).unwrap();
    let mut others = Vec::new();
    for role in ["reader", "gateway"] {
        let token = cluster[voter].skein_says(&["token", "create", "--role", role]).trim().to_owned();
        let (seed, node) = (cluster[voter].mesh.clone(), cluster.add());
        cluster[node].start(&["--join", &token, "--seed", &seed]);
        cluster[node].write(&format!("memory,at={role} v=1i 1"));
        others.push(node);
    }
    // A voter opens the key when it signs, and has just done so twice.
    let in_a_voter = needles.in_memory(&cluster[voter]);
    assert!(!in_a_voter.0.is_empty(), "not found even where it is used, in {} bytes", in_a_voter.1);

    for node in &others {
        eventually("it is up", || (cluster[*node].get("/readyz").status == 200).then_some(()));
        let own = fs::read(cluster[*node].dir.join("node.key")).unwrap();
        let own = Needles::of(&own[own.len() - 32..], &own);
        let name = cluster[*node].name.clone();
        assert!(own.in_memory(&cluster[*node]).0.contains("seed"), "{name}: its own key is found");
        assert!(own.on_disk(&cluster[*node].dir).0.contains("seed"), "{name}: its own key is found");
        for (place, (found, bytes)) in
            [("memory", needles.in_memory(&cluster[*node])), ("disk", needles.on_disk(&cluster[*node].dir))]
        {
            println!("{name}: {bytes} bytes of {place} searched");
            assert_eq!(found, BTreeSet::new(), "the CA's key is in the {place} of {name}");
        }
    }
    // On a voter's disk it is, and sealed.
    assert_eq!(needles.on_disk(&cluster[voter].dir).0, BTreeSet::new());
}

#[test]
fn no_secret_is_said_or_shown() {
    let mut cluster = Cluster::empty();
    let (first, second, third) = (cluster.add(), cluster.add(), cluster.add());
    for node in cluster.processes() {
        // More than anybody logs who is not looking for something.
        node.env = vec![("SKEIN_LOG_FILTER".into(), "debug,skeinmesh=trace".into())];
    }
    cluster[first].start(&["--new-cluster"]);
    let (in_file, in_argv) = (cluster[first].token(1), cluster[first].token(1));
    let seed = cluster[first].mesh.clone();
    let file = cluster[first].dir.join("for-n2");
    fs::write(&file, &in_file).unwrap();
    cluster[second].start(&["--join", &format!("@{}", file.display()), "--seed", &seed]);
    cluster[third].start(&["--join", &in_argv, "--seed", &seed]);
    cluster.settled();
    let api = cluster[second].skein_says(&["auth", "create", "--scope", "write"]).trim().to_owned();
    let admin = fs::read_to_string(cluster[first].dir.join("admin.token")).unwrap().trim().to_owned();
    for secret in [&api, &admin] {
        let bearer = format!("Bearer {secret}");
        let headers = [("authorization", bearer.as_str())];
        for node in [first, second] {
            let write = send(&cluster[node].tcp(), "POST", "/write?db=it", &headers, b"cpu v=1 1", REQUEST);
            write.unwrap().expect(204);
        }
    }

    let mut secrets: Vec<(String, Vec<u8>)> = vec![
        ("the API token".into(), api.into_bytes()),
        ("the admin token".into(), admin.into_bytes()),
        ("a join token".into(), in_file.into_bytes()),
    ];
    for node in [first, second, third] {
        for name in ["node.key", "seal.key"] {
            let key = fs::read(cluster[node].dir.join(name)).unwrap();
            let raw = key[key.len() - 32..].to_vec();
            let form = |form: &str| format!("{name} of {}, {form}", cluster[node].name);
            secrets.push((form("hex"), data_encoding::HEXLOWER.encode(&raw).into_bytes()));
            // As `Debug` has bytes.
            secrets.push((form("numbers"), format!("{raw:?}").trim_matches(['[', ']']).into()));
            secrets.push((form("base64"), data_encoding::BASE64.encode(&key).as_bytes()[24..40].to_vec()));
            secrets.push((form("raw"), raw));
        }
    }
    let in_argv = ("a join token of an argument".to_owned(), in_argv.into_bytes());
    let mut looked_at = 0;
    for node in [first, second, third] {
        let node = &cluster[node];
        let proc = |name: &str| fs::read(format!("/proc/{}/{name}", node.pid())).unwrap();
        let mut shown = vec![("log".to_owned(), node.said().into_bytes())];
        shown.extend(["cmdline", "environ", "status", "maps"].map(|name| (name.to_owned(), proc(name))));
        for task in fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().map(Result::unwrap) {
            // One that has ended meanwhile has no name.
            shown.push(("a thread's name".into(), fs::read(task.path().join("comm")).unwrap_or_default()));
        }
        for path in ["/metrics", "/api/v1/cluster", "/api/v1/nodes", "/health", "/readyz?verbose", "/"] {
            shown.push((path.to_owned(), node.get(path).expect(200).bytes.to_vec()));
        }
        for command in [
            &["status", "--json"][..],
            &["token", "list"],
            &["auth", "list"],
            &["ca", "status", "--json"],
            &["node", "list"],
        ] {
            shown.push((command.join(" "), node.skein_says(command).into_bytes()));
        }
        for (place, bytes) in &shown {
            for (secret, needle) in &secrets {
                let found = Finder::new(needle).find(bytes).is_some();
                assert!(!found, "{}: {secret} is in its {place}", node.name);
                looked_at += 1;
            }
            // The one exception, which also shows that the search finds what is there.
            let excepted = place == "cmdline" && node.name == "n3";
            let found = Finder::new(&in_argv.1).find(bytes).is_some();
            assert_eq!(found, excepted, "{}: {} in its {place}", node.name, in_argv.0);
        }
        // Raft's own lines hold every command: it was a log worth searching.
        let said = node.said();
        let deep = said.lines().filter(|line| line.contains("DEBUG") && line.contains("openraft")).count();
        assert!(deep > 0, "{}: the log of {} bytes says as little as ever", node.name, said.len());
    }
    println!("{looked_at} pairs of a secret and a place");
}
