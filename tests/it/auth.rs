//! Who may do what: an address others can reach needs a token, the unix socket is for the owner of
//! the files, and the files are for the owner alone.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    cluster::{Cluster, eventually},
    http::{Answer, Target, send},
    process::{Process, REQUEST},
};

const WRITE: (&str, &str) = ("POST", "/api/v3/write_lp?db=it&precision=nanosecond");
const STATUS: (&str, &str) = ("GET", "/api/v1/cluster");
const METRICS: (&str, &str) = ("GET", "/metrics");
const QUERY: (&str, &str) = ("GET", "/api/v3/query_sql?db=it&q=select%201");
const TOKENS: (&str, &str) = ("GET", "/api/v1/tokens");

#[test]
fn only_loopback_is_open_and_only_for_data() {
    let mut cluster = Cluster::empty();
    let open = cluster.add();
    cluster[open].start(&["--new-cluster"]);
    cluster.settled();
    for what in [WRITE, STATUS, METRICS, QUERY] {
        assert!(asked(&cluster[open].tcp(), what, &[]).status < 300, "{what:?} on loopback");
    }
    // Credentials that nobody asked for do no harm; members and tokens are never open.
    assert_eq!(asked(&cluster[open].tcp(), WRITE, &[("authorization", "Bearer x")]).status, 204);
    assert_eq!(asked(&cluster[open].tcp(), TOKENS, &[]).status, 401);
    assert_eq!(asked(&cluster[open].unix(), TOKENS, &[]).status, 200);
    // What a page of somebody else's can make a browser do.
    assert_eq!(asked(&cluster[open].tcp(), WRITE, &[("origin", "http://evil.example")]).status, 403);

    cluster[open].stop();
    cluster[open].listen = "0.0.0.0:0".into();
    cluster[open].start(&[]);
    let node = &cluster[open];
    // Before that it does not know whether it knows every token, and says 503.
    let ready = || (asked(&node.unix(), ("GET", "/readyz"), &[]).status == 200).then_some(());
    eventually("it is ready", ready);
    for what in [WRITE, STATUS, METRICS, QUERY, TOKENS] {
        let answer = asked(&node.tcp(), what, &[]);
        assert_eq!(answer.status, 401, "{what:?}");
        assert!(answer.header("www-authenticate").is_some() && answer.json()["code"] == "unauthorized");
        assert_eq!(asked(&node.tcp(), what, &[("authorization", "Bearer wrong")]).status, 401, "{what:?}");
        assert!(asked(&node.unix(), what, &[]).status < 300, "{what:?} over the unix socket");
    }
    for path in ["/ping", "/health", "/livez", "/readyz", "/startupz"] {
        assert!(asked(&node.tcp(), ("GET", path), &[]).status < 300, "{path} is for everybody");
    }
    let admin = fs::read_to_string(node.dir.join("admin.token")).unwrap();
    let bearer = format!("Bearer {}", admin.trim());
    let token = format!("Token {}", admin.trim());
    for what in [WRITE, STATUS, METRICS, QUERY, TOKENS] {
        for credentials in [("authorization", bearer.as_str()), ("authorization", token.as_str())] {
            let status = asked(&node.tcp(), what, &[credentials]).status;
            assert!(status < 300, "{what:?} with the admin token: {status}");
        }
    }
    assert!(!node.said().contains(admin.trim()), "a secret in the log");
    // A program elsewhere gets it by environment.
    let Target::Tcp(address) = node.tcp() else { panic!("tcp") };
    let url = format!("http://{address}");
    let refused = node.skein(&["query", "-d", "it", "--url", &url, "select 1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("SKEIN_API_TOKEN"), "{refused:?}");

    cluster[open].stop();
    cluster[open].start(&["--http-open"]);
    cluster.settled();
    for what in [WRITE, STATUS, METRICS, QUERY] {
        assert!(asked(&cluster[open].tcp(), what, &[]).status < 300, "{what:?} with --http-open");
    }
    assert_eq!(asked(&cluster[open].tcp(), TOKENS, &[]).status, 401, "never open");
}

#[test]
fn files_are_private_whatever_the_umask_and_the_directory_is_held_by_one() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].before = ["sh", "-c", "umask 000; exec \"$0\" \"$@\""].map(str::to_owned).to_vec();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    cluster[node].write("cpu v=1 1");
    let dir = cluster[node].dir.clone();
    assert_eq!(mode(&dir), 0o700);
    for file in ["node.key", "seal.key", "admin.token", "skein.sock"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }

    // A second process: told who holds it, and nothing of the first one's is touched.
    let mut second = Process::new(dir.parent().unwrap(), "second");
    second.dir = dir.clone();
    let ended = second.try_start(&[]).unwrap_err();
    assert!([Some(1), Some(74)].contains(&ended.code), "{ended:?}");
    assert!(ended.said.contains("in use") && ended.said.contains("pid"), "{ended:?}");
    assert_eq!(asked(&cluster[node].unix(), STATUS, &[]).status, 200, "the socket is still the first one's");

    // A key that others could read is not used; a directory is closed again.
    cluster[node].stop();
    fs::set_permissions(dir.join("node.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = cluster[node].try_start(&[]).unwrap_err();
    assert!(ended.said.contains("chmod 600"), "{ended:?}");
    fs::set_permissions(dir.join("node.key"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    cluster[node].start(&[]);
    assert_eq!(mode(&dir), 0o700);
    // SIGKILL leaves the socket behind; the next start takes its place.
    cluster[node].kill();
    assert!(dir.join("skein.sock").exists());
    cluster[node].start(&[]);
    cluster.settled();
    assert_eq!(mode(&dir.join("skein.sock")), 0o600);
    assert_eq!(cluster[node].numbers("SELECT count(*) FROM cpu"), [1]);
}

#[track_caller]
fn asked(target: &Target, (method, path): (&str, &str), headers: &[(&str, &str)]) -> Answer {
    let body: &[u8] = if method == "POST" { b"cpu v=1 1" } else { b"" };
    send(target, method, path, headers, body, REQUEST).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}
