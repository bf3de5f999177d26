//! HTTPS on the edge: as the node or with a certificate of one's own, both versions of HTTP, and a
//! new certificate without a connection lost.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    cluster::{Cluster, within},
    http::{Target, send},
    process::{Process, REQUEST},
};

const SECRET: (&str, &str) = ("SKEIN_API_TOKEN", "");

fn address(node: &Process) -> SocketAddr {
    match node.tcp() {
        Target::Tcp(address) => address,
        Target::Unix(_) => panic!("tcp"),
    }
}

/// A handshake in which only these roots count.
async fn connect(
    node: &Process,
    roots: &Path,
    name: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).unwrap() {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(address(node)).await?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn ping(host: &str) -> Request<Full<Bytes>> {
    Request::get(format!("https://{host}/ping")).header("host", host).body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_node_in_both_versions_of_http() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].listen = "0.0.0.0:0".into();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    assert!(cluster[node].said().contains("in the clear"), "a warning without TLS");
    cluster[node].stop();
    cluster[node].start(&["--http-tls", "node"]);
    cluster.settled();
    let node = &cluster[node];
    assert!(!node.said().contains("in the clear"), "{}", node.said());
    let ca = node.dir.join("ca.pem");

    let h2 = connect(node, &ca, "mesh.internal", &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut ask, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(h2)).await.unwrap();
    let running = tokio::spawn(connection);
    assert_eq!(ask.send_request(ping("mesh.internal")).await.unwrap().status(), 204);
    // A name that neither the certificate nor the configuration has.
    assert_eq!(ask.send_request(ping("evil.example")).await.unwrap().status(), 403);
    running.abort();
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        let h1 = connect(node, &ca, "mesh.internal", alpn).await.unwrap();
        let (mut ask, connection) = http1::handshake(TokioIo::new(h1)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(ask.send_request(ping("mesh.internal")).await.unwrap().status(), 204, "{alpn:?}");
    }

    // Whoever speaks plain HTTP hears what to do instead.
    let plain = send(&node.tcp(), "GET", "/ping", &[], b"", REQUEST).unwrap();
    assert!(plain.status == 400 && plain.body.contains("https://"), "{plain:?}");

    // The commands: with the cluster's CA from the data directory, and with the file that is named.
    let url = format!("https://localhost:{}", address(node).port());
    let token = fs::read_to_string(node.dir.join("admin.token")).unwrap();
    node.skein_says(&["auth", "list"]);
    let run = |args: &[&str], dir: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_skein"));
        command.args(args).args(["--url", &url]).env_remove("SKEIN_CA").env("SKEIN_DATA_DIR", dir);
        command.env(SECRET.0, token.trim()).output().unwrap()
    };
    let empty = tempfile::tempdir().unwrap();
    let trusts = run(&["query", "-d", "it", "select 7"], &node.dir);
    assert!(trusts.status.success() && String::from_utf8_lossy(&trusts.stdout).contains('7'), "{trusts:?}");
    let named = run(&["auth", "list", "--ca", ca.to_str().unwrap()], empty.path());
    assert!(named.status.success(), "{named:?}");
    let nobody = run(&["auth", "list"], empty.path());
    assert_eq!(nobody.status.code(), Some(2), "{nobody:?}");
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("--ca"), "{nobody:?}");

    // Of another cluster.
    let other = rcgen::generate_simple_self_signed(vec!["mesh.internal".to_owned()]).unwrap();
    let foreign = empty.path().join("foreign.pem");
    fs::write(&foreign, other.cert.pem()).unwrap();
    assert!(connect(node, &foreign, "mesh.internal", &[]).await.is_err());
    let distrusts = run(&["auth", "list", "--ca", foreign.to_str().unwrap()], empty.path());
    assert_eq!(distrusts.status.code(), Some(1), "{distrusts:?}");
    assert!(String::from_utf8_lossy(&distrusts.stderr).contains("no TLS with"), "{distrusts:?}");
    assert!(!String::from_utf8_lossy(&distrusts.stderr).contains(token.trim()));
}

/// A certificate for that name and its key, in place of those that were there.
fn write_certificate(dir: &Path, name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert.display().to_string(), key.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ones_own_certificate_which_changes_under_open_connections() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let (cert, key) = write_certificate(dir, "first.example");
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].env = vec![("SKEIN_HTTP_HOSTS".into(), "first.example,second.example".into())];
    // Of no use: said before anything is done.
    for (flags, word) in [
        (["--http-cert", "/nowhere", "--http-key", &key], "/nowhere"),
        (["--http-cert", &key, "--http-key", &key], "no certificate"),
        (["--http-cert", &cert, "--http-key", &cert], "no private key"),
    ] {
        let ended = cluster[node].try_start(&flags).unwrap_err();
        assert!(ended.code == Some(2) && ended.said.contains(word), "{ended:?}");
    }
    cluster[node].start(&["--new-cluster", "--http-cert", &cert, "--http-key", &key]);
    cluster.settled();
    let node = &cluster[node];
    let trusted = |name: &str| {
        let file = dir.join(format!("{name}.pem"));
        fs::copy(&cert, &file).unwrap();
        file
    };
    let first = trusted("first");
    let open = connect(node, &first, "first.example", &[b"http/1.1"]).await.unwrap();
    let (mut ask, connection) = http1::handshake(TokioIo::new(open)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(ask.send_request(ping("first.example")).await.unwrap().status(), 204);

    // A half, as it is for a moment while two files are replaced: the old one stays.
    let old_key = fs::read_to_string(&key).unwrap();
    write_certificate(dir, "second.example");
    let new_key = fs::read_to_string(&key).unwrap();
    fs::write(&key, &old_key).unwrap();
    within(REQUEST, "the half is seen", || node.said().contains("is of no use").then_some(()));
    assert!(connect(node, &first, "first.example", &[]).await.is_ok());
    fs::write(&key, new_key).unwrap();
    within(REQUEST, "the whole is seen", || node.said().contains("a new certificate").then_some(()));
    let second = trusted("second");
    let new = connect(node, &second, "second.example", &[b"http/1.1"]).await.unwrap();
    assert!(connect(node, &first, "first.example", &[]).await.is_err(), "the old one is shown no more");
    let (mut later, connection) = http1::handshake(TokioIo::new(new)).await.unwrap();
    tokio::spawn(connection);
    // Both connections answer.
    for (ask, host) in [(&mut ask, "first.example"), (&mut later, "second.example")] {
        let answer = ask.send_request(ping(host)).await.unwrap();
        assert_eq!(answer.status(), 204);
        answer.into_body().collect().await.unwrap();
    }
    assert!(!node.said().contains("PRIVATE KEY"));

    // Whoever connects and says nothing, or nonsense, is cut off and holds up nobody.
    let idle = TcpStream::connect(address(node)).await.unwrap();
    let mut nonsense = TcpStream::connect(address(node)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut nonsense, &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]).await.unwrap();
    let again = connect(node, &second, "second.example", &[]);
    tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap();
    drop((idle, nonsense));
}
