//! One connection of a client: what it speaks, and the bounds it has until it ends.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Frame, Incoming, SizeHint},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
    time::timeout,
};

use super::{
    auth::Peer,
    events::Stopping,
    opening::{self, Speaks},
    patience::Patient,
    tls::EdgeTls,
};
use crate::config;

/// Longest request head, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;
/// Requests of one HTTP/2 connection that are answered at a time.
const STREAMS: u32 = 128;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
/// How long an idle HTTP/2 connection that was told to end may take for it.
const FAREWELL: Duration = Duration::from_secs(10);
/// To whoever speaks plain HTTP where TLS is spoken.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 111\r\n\
    connection: close\r\n\r\n\
    {\"code\":\"invalid\",\"message\":\"this port speaks TLS: use https://\",\"error\":\"this port speaks TLS: use https://\"}
";

/// What all connections share.
pub(super) struct Connections {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    router: Router,
    tls: Option<EdgeTls>,
    /// How long a client may be silent while nothing of its own is under way.
    patience: Duration,
    /// How long it may take nothing of an answer.
    answer_patience: Duration,
}

impl Connections {
    pub(super) fn new(config: &config::Http, router: Router, tls: Option<EdgeTls>) -> Self {
        let patience = config.header_timeout;
        let mut http1 = auto::Builder::new(TokioExecutor::new()).http1_only();
        http1.http1().timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(HEAD_LIMIT);
        let mut http2 = auto::Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD_LIMIT as u32);
        Self { http1, http2, router, tls, patience, answer_patience: config.answer_timeout }
    }

    /// Runs a connection over TCP to its end.
    pub(super) async fn run_tcp(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        mut stopped: watch::Receiver<bool>,
    ) {
        let peer = Peer::Tcp(from.ip());
        let Some(tls) = &self.tls else { return self.run_plain(stream, peer, stopped).await };
        let mut first = [0];
        let opened = tokio::select! {
            peeked = timeout(self.patience, stream.peek(&mut first)) => peeked,
            () = told(&mut stopped) => return,
        };
        match (opened, first) {
            (Ok(Ok(1..)), [b'A'..=b'Z']) => return refuse_plain(stream).await,
            (Ok(Ok(1..)), _) => {}
            _ => return,
        }
        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = told(&mut stopped) => return,
        };
        match accepted {
            Ok((stream, http2)) => self.serve(stream, peer, http2, stopped).await,
            Err(error) => tracing::debug!(%error, "a TLS handshake with a client failed"),
        }
    }

    /// Runs a connection over the unix socket to its end.
    pub(super) async fn run_unix(&self, stream: UnixStream, stopped: watch::Receiver<bool>) {
        self.run_plain(stream, Peer::Local, stopped).await;
    }

    async fn run_plain<S>(&self, stream: S, peer: Peer, mut stopped: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened = tokio::select! {
            opened = timeout(self.patience, opening::look(stream)) => opened,
            () = told(&mut stopped) => return,
        };
        match opened {
            Ok(Ok((stream, speaks @ (Speaks::Http1 | Speaks::Http2)))) => {
                self.serve(stream, peer, speaks == Speaks::Http2, stopped).await;
            }
            Ok(Ok((_, Speaks::Nothing)) | Err(_)) | Err(_) => {}
        }
    }

    async fn serve<S>(&self, stream: S, peer: Peer, http2: bool, mut stopped: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (running, stopping) = (Running::default(), Stopping(stopped.clone()));
        let (router, counted) = (TowerToHyperService::new(self.router.clone()), running.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(stopping.clone());
            // HTTP/1 has its own clock between requests.
            let one = http2.then(|| counted.begin());
            let answer = router.call(request.map(Body::new));
            async move {
                let answer: Response<Body> = answer.await.unwrap_or_else(|never| match never {});
                Ok::<_, Infallible>(answer.map(|body| Counted { body, _one: one }))
            }
        });
        let builder = if http2 { &self.http2 } else { &self.http1 };
        let stream = TokioIo::new(Patient::new(stream, self.answer_patience));
        let mut connection = pin!(builder.serve_connection(stream, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(&mut stopped) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = running.idle_for(self.patience), if http2 => {
                connection.as_mut().graceful_shutdown();
                loop {
                    match timeout(FAREWELL, connection.as_mut()).await {
                        Ok(ended) => break ended,
                        Err(_) if running.is_idle() => return,
                        Err(_) => {}
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }
}

/// Waits until the edge is told to stop.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the edge is gone, which is the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn refuse_plain(mut stream: TcpStream) {
    let answer = async {
        // What is not read before the close would reset the connection and take the answer along.
        let mut request = [0; 4096];
        let _ = stream.try_read(&mut request);
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await
    };
    let answered: Result<io::Result<()>, _> = timeout(FAREWELL, answer).await;
    if !matches!(answered, Ok(Ok(()))) {
        tracing::debug!("a client that speaks no TLS did not wait for the answer");
    }
}

/// How many requests of a connection are being answered.
#[derive(Clone)]
struct Running(watch::Sender<usize>);

impl Default for Running {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Running {
    fn begin(&self) -> One {
        self.0.send_modify(|running| *running += 1);
        One(self.0.clone())
    }

    fn is_idle(&self) -> bool {
        *self.0.borrow() == 0
    }

    /// Waits until nothing has been answered for so long.
    async fn idle_for(&self, limit: Duration) {
        let mut running = self.0.subscribe();
        loop {
            let idle = *running.borrow_and_update() == 0;
            let changed = running.changed();
            if !idle {
                // The sender is held by `self`.
                let _ = changed.await;
            } else if timeout(limit, changed).await.is_err() {
                return;
            }
        }
    }
}

/// One request that is being answered; over when dropped.
struct One(watch::Sender<usize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// The body of an answer, which is being answered until it is gone.
struct Counted {
    body: Body,
    _one: Option<One>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
