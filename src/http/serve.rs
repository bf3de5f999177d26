//! The listeners: accepts connections on TCP and on the unix socket and runs HTTP on them.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::{Answering, AppState, connection::Connections, relay::Relay, site, tls::EdgeTls};
use crate::config;

/// Where the edge listens.
#[derive(Debug)]
pub struct Listeners {
    /// For everybody, as far as authentication goes.
    pub tcp: TcpListener,
    /// For programs of the same user on the same machine; they may do everything.
    pub unix: Option<UnixListener>,
    /// What is spoken on TCP instead of plain HTTP.
    pub tls: Option<EdgeTls>,
}

/// Longest that requests under way may take once the edge is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    let (config, node) = (Arc::clone(&state.config), state.node.clone());
    let site = site(state);
    let (stop, stopped) = watch::channel(false);
    let relay = Relay::new(site.clone(), node.clone(), stopped);
    let _answering = node.answer_gateways(Arc::new(relay));
    let shutdown = async {
        shutdown.await;
        stop.send_replace(true);
    };
    serve_site(listeners, site, &config, shutdown).await;
}

pub(super) async fn serve_site(
    listeners: Listeners,
    site: Answering,
    config: &config::Http,
    shutdown: impl Future<Output = ()> + Send,
) {
    let Listeners { tcp, unix, tls } = listeners;
    let connections = Arc::new(Connections::new(config, site, tls.clone()));
    // The semaphore is never closed.
    let places = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let mut follow = pin!(async {
        match &tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    });
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            never = &mut follow => match never {},
            accepted = accept_tcp(&tcp, &places) => match accepted {
                Ok((stream, address, place)) => {
                    // Without it small answers wait for the client's delayed ACK.
                    let _ = stream.set_nodelay(true);
                    let (connections, stopped) = (Arc::clone(&connections), stopped.clone());
                    tasks.spawn(async move {
                        connections.run_tcp(stream, address, stopped).await;
                        drop(place);
                    });
                }
                Err(error) => accept_failed(&error).await,
            },
            // Without a place: whoever fills the port cannot lock the operator out.
            accepted = accept_unix(unix.as_ref()) => match accepted {
                Ok(stream) => {
                    let (connections, stopped) = (Arc::clone(&connections), stopped.clone());
                    tasks.spawn(async move { connections.run_unix(stream, stopped).await });
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
) -> io::Result<(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>)> {
    let place = Arc::clone(places).acquire_owned().await.ok();
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, place))
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

#[cfg(test)]
mod tests;
