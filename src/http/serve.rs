//! The listeners: accepts connections on TCP and on the unix socket and runs HTTP/1 on them, or HTTP/2
//! where a client begins with it (h2c with prior knowledge, as gRPC does).

use std::{
    convert::Infallible,
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{AppState, auth::Peer, router};
use crate::config;

/// Where the edge listens.
#[derive(Debug)]
pub struct Listeners {
    /// For everybody, as far as authentication goes.
    pub tcp: TcpListener,
    /// For programs of the same user on the same machine; they may do everything.
    pub unix: Option<UnixListener>,
}

/// Longest that requests under way may take once the edge is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest request head, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection; further ones wait in the client.
const STREAMS: u32 = 64;
/// Bytes of answers that wait for one stream of HTTP/2.
const STREAM_BUFFER: usize = 128 * 1024;
/// An HTTP/2 client is asked so often whether it lives, and has as long to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Makes the unix socket at `path`, mode 0600, in place of one that a dead process left. The caller
/// holds the lock of the data directory, so that no living process listens there.
///
/// # Errors
/// The path is longer than a socket's may be (about 100 bytes), is some other file, or cannot be made.
pub fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(old) if old.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            let what = format!("{} is there and is no socket: move it away", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    // Until here the data directory's own mode (0700) keeps others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `shutdown` resolves, then accepts nothing more, lets requests under way end (10 s
/// at most) and returns. Dropping the future cuts every connection.
pub async fn serve(listeners: Listeners, state: AppState, shutdown: impl Future<Output = ()> + Send) {
    let config = Arc::clone(&state.config);
    serve_router(listeners, router(state), &config, shutdown).await;
}

async fn serve_router(
    listeners: Listeners,
    router: Router,
    config: &config::Http,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections = Arc::new(Connections::new(config, router));
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let Listeners { tcp, unix } = listeners;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = accept_tcp(&tcp, &connections.places) => match accepted {
                Ok((stream, place)) => {
                    // Without it small answers wait for the client's delayed ACK.
                    let _ = stream.set_nodelay(true);
                    tasks.spawn(Arc::clone(&connections).run(stream, Peer::Tcp, place, stopped.clone()));
                }
                Err(error) => accept_failed(&error).await,
            },
            // Without a place: whoever fills the port cannot lock the operator out.
            accepted = accept_unix(unix.as_ref()) => match accepted {
                Ok(stream) => {
                    tasks.spawn(Arc::clone(&connections).run(stream, Peer::Local, None, stopped.clone()));
                }
                Err(error) => accept_failed(&error).await,
            },
        }
        while tasks.try_join_next().is_some() {}
    }
    drop((tcp, unix));
    stop.send_replace(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("requests still ran when the HTTP edge stopped; their connections are cut");
    }
}

/// The place is taken before the accept: what has no place waits in the kernel's queue.
async fn accept_tcp(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Option<OwnedSemaphorePermit>)> {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "cannot accept an HTTP connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// What all connections share.
struct Connections {
    http: auto::Builder<TokioExecutor>,
    router: Router,
    places: Arc<Semaphore>,
    header_timeout: Duration,
}

impl Connections {
    fn new(config: &config::Http, router: Router) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(HEAD_LIMIT);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(STREAM_BUFFER)
            .max_header_list_size(HEAD_LIMIT as u32);
        let places = Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS));
        Self { http, router, places: Arc::new(places), header_timeout: config.header_timeout }
    }

    /// Runs one connection to its end; `_place` is free again after it.
    async fn run(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        _place: Option<OwnedSemaphorePermit>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let service = TowerToHyperService::new(self.router.clone());
        let (heard, mut hears) = watch::channel(None);
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            heard.send_replace(Some(Instant::now()));
            request.extensions_mut().insert(peer);
            let answer = service.call(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        // The guard that `wait_for` gives is no part of the future that is spawned.
        let told = async { stopped.wait_for(|stop| *stop).await.is_ok() };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            silent = silence(&mut hears, self.header_timeout) => match silent {
                Silent::FromTheStart => return tracing::debug!("an HTTP connection brought no request"),
                // What runs is answered. HTTP/1 has seen to this itself by now.
                Silent::Since => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }
}

/// How long a client has said nothing.
enum Silent {
    FromTheStart,
    Since,
}

/// Resolves when no request has begun for so long. HTTP/2 has no such limit of its own, nor has the
/// time until it is known which of the two a client speaks.
async fn silence(hears: &mut watch::Receiver<Option<Instant>>, longest: Duration) -> Silent {
    let began = Instant::now();
    loop {
        let heard = *hears.borrow_and_update();
        sleep_until(heard.unwrap_or(began) + longest).await;
        match (heard, hears.has_changed()) {
            (_, Ok(true)) => {}
            (None, _) => return Silent::FromTheStart,
            (Some(_), _) => return Silent::Since,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Extension, routing::get};
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http2::{SendRequest, handshake};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A running edge of two paths: who am I, and an answer that takes a second.
    struct Running {
        dir: tempfile::TempDir,
        tcp: std::net::SocketAddr,
        stop: tokio::sync::oneshot::Sender<()>,
        done: tokio::task::JoinHandle<()>,
    }

    async fn running(config: config::Http) -> Running {
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
            );
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let done = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            serve_router(Listeners { tcp, unix }, router, &config, stopped).await;
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
        assert!(tcp.ends_with("Tcp"), "{tcp}");
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
        assert!(next.ends_with("Tcp"), "{next}");
        assert!(!holder.await.unwrap().contains("200 OK"));
    }

    /// A connection of HTTP/2, and its end.
    async fn http2(
        tcp: std::net::SocketAddr,
    ) -> (SendRequest<Empty<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>) {
        let stream = TokioIo::new(TcpStream::connect(tcp).await.unwrap());
        let (send, connection) = handshake(TokioExecutor::new(), stream).await.unwrap();
        (send, tokio::spawn(connection))
    }

    async fn ask_http2(mut send: SendRequest<Empty<Bytes>>, path: &str) -> String {
        let request = hyper::Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap();
        let answer = send.send_request(request).await.unwrap();
        assert_eq!(answer.version(), hyper::Version::HTTP_2);
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    }

    #[tokio::test]
    async fn one_port_speaks_both_and_cuts_who_is_silent() {
        let config = config::Http { header_timeout: Duration::from_millis(200), ..config::Http::default() };
        let edge = running(config).await;
        let (send, ended) = http2(edge.tcp).await;
        // What is under way when the time is over is answered.
        let (slow, who) = tokio::join!(ask_http2(send.clone(), "/slow"), ask_http2(send.clone(), "/who"));
        assert_eq!((slow.as_str(), who.as_str()), ("done", "Tcp"));
        ended.await.unwrap().unwrap();
        assert!(send.is_closed());
        assert!(ask(TcpStream::connect(edge.tcp).await.unwrap(), WHO).await.ends_with("Tcp"));
        // Nothing, the first letter of both, and all that HTTP/2 begins with.
        for said in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            // Cut, in whatever way.
            let _ = stream.read_to_end(&mut rest).await;
        }
    }

    #[tokio::test]
    async fn what_runs_over_http2_ends_when_the_edge_does() {
        let edge = running(config::Http::default()).await;
        let (send, ended) = http2(edge.tcp).await;
        let slow = tokio::spawn(ask_http2(send.clone(), "/slow"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        edge.stop.send(()).unwrap();
        assert_eq!(slow.await.unwrap(), "done");
        edge.done.await.unwrap();
        ended.await.unwrap().unwrap();
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
}
