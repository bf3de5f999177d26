//! A running edge, spoken to byte by byte.

use axum::{
    Extension, Router,
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;
use crate::http::{auth::Peer, front::answering};

mod smuggling;

/// A running edge of two paths: who am I, and an answer that takes a second.
struct Running {
    dir: tempfile::TempDir,
    tcp: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

async fn running(config: config::Http) -> Running {
    running_with(config, None).await
}

async fn running_with(config: config::Http, tls: Option<EdgeTls>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let unix = Some(bind_socket(&dir.path().join("skein.sock")).unwrap());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let router = Router::new()
        .route("/who", get(|Extension(peer): Extension<Peer>| async move { format!("{peer:?}") }))
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "done"
            }),
        )
        .route("/echo", post(|body: Bytes| async move { format!("[{}]", String::from_utf8_lossy(&body)) }))
        .route("/smuggled", get(|| async { "SMUGGLED" }).post(|| async { "SMUGGLED" }));
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let done = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        serve_site(Listeners { tcp, unix, tls }, answering(router), &config, stopped).await;
    });
    Running { dir, tcp: address, stop, done }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const WHO: &str = "GET /who HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-peer: Local\r\n\r\n";

#[tokio::test]
async fn only_the_unix_socket_makes_a_local_admin() {
    let edge = running(config::Http::default()).await;
    let tcp = ask(TcpStream::connect(edge.tcp).await.unwrap(), WHO).await;
    assert!(tcp.ends_with("Tcp(127.0.0.1)"), "{tcp}");
    let path = edge.dir.path().join("skein.sock");
    let unix = ask(UnixStream::connect(path).await.unwrap(), WHO).await;
    assert!(unix.ends_with("Local"), "{unix}");
}

#[tokio::test]
async fn what_runs_ends_and_nothing_new_begins() {
    let edge = running(config::Http::default()).await;
    let slow = TcpStream::connect(edge.tcp).await.unwrap();
    let slow = tokio::spawn(ask(slow, "GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    edge.stop.send(()).unwrap();
    // The connection would live on, but is closed behind the answer.
    assert!(slow.await.unwrap().ends_with("done"));
    edge.done.await.unwrap();
    assert!(TcpStream::connect(edge.tcp).await.is_err());
}

#[tokio::test]
async fn slow_heads_are_cut_and_a_full_port_leaves_the_socket_free() {
    let config = config::Http {
        header_timeout: Duration::from_millis(200),
        max_connections: 1,
        ..config::Http::default()
    };
    let edge = running(config).await;
    let holder = TcpStream::connect(edge.tcp).await.unwrap();
    let holder = tokio::spawn(ask(holder, "GET /who HTTP/1.1\r\nhost: "));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let path = edge.dir.path().join("skein.sock");
    assert!(ask(UnixStream::connect(path).await.unwrap(), WHO).await.ends_with("Local"));
    // It has no place until the holder has been cut.
    let next = ask(TcpStream::connect(edge.tcp).await.unwrap(), WHO).await;
    assert!(next.ends_with("Tcp(127.0.0.1)"), "{next}");
    assert!(!holder.await.unwrap().contains("200 OK"));
}

#[tokio::test]
async fn the_socket_is_private_and_replaces_only_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skein.sock");
    let first = bind_socket(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(first);
    assert!(path.exists());
    bind_socket(&path).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(bind_socket(&file).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn who_says_nothing_is_cut() {
    let config = config::Http { header_timeout: Duration::from_millis(200), ..config::Http::default() };
    let edge = running(config).await;
    // Many times what it should take: whoever is not cut at all fails here.
    tokio::time::timeout(Duration::from_secs(60), silent_clients(&edge)).await.expect("some are never cut");
    // The edge itself stands.
    assert!(ask(TcpStream::connect(edge.tcp).await.unwrap(), WHO).await.contains("200"));
}

async fn silent_clients(edge: &Running) {
    // Before the first byte, in the middle of HTTP/2's first ones, in a head that never ends.
    let heads = ["", "P", "PRI * HTTP/2.0\r\n", "GET /who HTTP/1.1\r\nhost: localhost\r\n"];
    for head in heads {
        let answer = ask(TcpStream::connect(edge.tcp).await.unwrap(), head).await;
        assert!(!answer.contains("200"), "{head:?}: {answer}");
    }
    // Between two requests.
    let kept = WHO.replace("connection: close\r\n", "");
    let answer = ask(TcpStream::connect(edge.tcp).await.unwrap(), &kept).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // An HTTP/2 connection without requests; one that is asked for something is let finish.
    let (mut send, connection) = http2(edge.tcp).await;
    let request = hyper::Request::get("http://localhost/slow").body(Empty::<Bytes>::new()).unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
    connection.await.unwrap().unwrap();
}

type Http2 =
    (hyper::client::conn::http2::SendRequest<Empty<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>);

/// HTTP/2 without TLS, known in advance.
async fn http2(address: SocketAddr) -> Http2 {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (send, tokio::spawn(connection))
}

#[tokio::test]
async fn both_versions_on_one_port_and_the_peer_is_known_in_both() {
    let edge = running(config::Http::default()).await;
    let (mut send, _connection) = http2(edge.tcp).await;
    for _ in 0..3 {
        let request = hyper::Request::get("http://localhost/who").header("x-peer", "Local");
        let answer = send.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (200.try_into().unwrap(), hyper::Version::HTTP_2));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "Tcp(127.0.0.1)");
    }
    // An open HTTP/2 connection does not hold up the end.
    edge.stop.send(()).unwrap();
    edge.done.await.unwrap();
}

#[tokio::test]
async fn long_heads_are_refused() {
    let edge = running(config::Http::default()).await;
    let long = "x".repeat(80 * 1024);
    let head = format!("GET /who HTTP/1.1\r\nhost: localhost\r\nx-long: {long}\r\n\r\n");
    let answer = ask(TcpStream::connect(edge.tcp).await.unwrap(), &head).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{}", &answer[..answer.len().min(80)]);
    let many: String = (0..300).map(|n| format!("x-{n}: y\r\n")).collect();
    let head = format!("GET /who HTTP/1.1\r\nhost: localhost\r\n{many}\r\n");
    let answer = ask(TcpStream::connect(edge.tcp).await.unwrap(), &head).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let (mut send, _connection) = http2(edge.tcp).await;
    let request = hyper::Request::get("http://localhost/who").header("x-long", long);
    let answered = send.send_request(request.body(Empty::new()).unwrap()).await;
    assert!(answered.is_err() || answered.unwrap().status() == 431);
}
