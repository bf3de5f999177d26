//! The listeners: accepts connections on TCP and on the unix socket and runs HTTP/1 on them.

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
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::{AppState, auth::Peer, events::Stopping, router};
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
    http: http1::Builder,
    router: Router,
    places: Arc<Semaphore>,
}

impl Connections {
    fn new(config: &config::Http, router: Router) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(config.header_timeout).max_buf_size(HEAD_LIMIT);
        let places = Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS));
        Self { http, router, places: Arc::new(places) }
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
        let stopping = stopped.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Stopping(stopping.clone()));
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
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Extension, routing::get};
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
