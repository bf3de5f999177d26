//! One connection of a client: what it speaks, and the bounds it has until it ends.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Answering,
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
/// Longest piece of an answer over HTTP/2.
const PIECE: usize = 64 * 1024;
/// To whoever speaks plain HTTP where TLS is spoken.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 111\r\n\
    connection: close\r\n\r\n\
    {\"code\":\"invalid\",\"message\":\"this port speaks TLS: use https://\",\"error\":\"this port speaks TLS: use https://\"}
";

/// What all connections share.
pub(super) struct Connections {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    site: Answering,
    tls: Option<EdgeTls>,
    /// How long a client may be silent while nothing of its own is under way.
    patience: Duration,
    /// How long it may take nothing of an answer.
    answer_patience: Duration,
}

impl Connections {
    pub(super) fn new(config: &config::Http, site: Answering, tls: Option<EdgeTls>) -> Self {
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
        Self { http1, http2, site, tls, patience, answer_patience: config.answer_timeout }
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
        let (site, counted) = (self.site.clone(), running.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(stopping.clone());
            // HTTP/1 has its own clock between requests.
            let one = http2.then(|| counted.begin());
            let answer = site(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await.map(|body| Counted { body, rest: Bytes::new(), one })) }
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
            () = running.untaken_for(self.answer_patience), if http2 => {
                tracing::debug!("a client took nothing of an answer over HTTP/2");
                return;
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

/// The answers of a connection that are not over.
#[derive(Clone)]
struct Running {
    count: watch::Sender<usize>,
    given: Arc<Mutex<Given>>,
}

/// Answers of which a piece was given away, and the next one not asked for: the client has not taken it. Over
/// HTTP/2 nothing else shows that, for a client without a window may talk all the same.
#[derive(Debug, Default)]
struct Given {
    since: BTreeMap<u64, Instant>,
    next: u64,
}

impl Default for Running {
    fn default() -> Self {
        Self { count: watch::Sender::new(0), given: Arc::default() }
    }
}

impl Running {
    fn begin(&self) -> One {
        self.count.send_modify(|running| *running += 1);
        let mut given = self.given();
        given.next += 1;
        One { of: self.clone(), id: given.next }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        *self.count.borrow() == 0
    }

    /// Waits until nothing has been answered for so long.
    async fn idle_for(&self, limit: Duration) {
        let mut running = self.count.subscribe();
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

    /// Waits until a piece of an answer has not been taken for so long.
    async fn untaken_for(&self, limit: Duration) {
        loop {
            let oldest = self.given().since.values().min().copied();
            match oldest.map(|since| since + limit) {
                Some(until) if until <= Instant::now() => return,
                Some(until) => sleep_until(until).await,
                None => sleep(limit).await,
            }
        }
    }
}

/// One request that is being answered; over when dropped.
struct One {
    of: Running,
    id: u64,
}

impl One {
    fn asked_for_more(&self) {
        self.of.given().since.remove(&self.id);
    }

    fn gave(&self) {
        self.of.given().since.insert(self.id, Instant::now());
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.asked_for_more();
        self.of.count.send_modify(|running| *running -= 1);
    }
}

/// The body of an answer, which is being answered until it is gone.
struct Counted {
    body: Body,
    /// What was made and not given.
    rest: Bytes,
    one: Option<One>,
}

impl Counted {
    /// Over HTTP/2 a piece is so short that even a slow client takes it in time.
    fn give(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(one) = &self.one else { return frame };
        one.gave();
        match frame.into_data() {
            Ok(mut data) if data.len() > PIECE => {
                let piece = data.split_to(PIECE);
                self.rest = data;
                Frame::data(piece)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        }
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(one) = &self.one {
            one.asked_for_more();
        }
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.give(Frame::data(rest)))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| self.give(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of.lower() + rest);
        if let Some(upper) = of.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
