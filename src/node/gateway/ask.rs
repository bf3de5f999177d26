//! A request of a client on its way to a node with data, and the answer on its way back.
//!
//! A node that breaks off or falls silent before the first byte of its answer is passed over and the next
//! one asked, if the request may be asked twice. After the first byte the answer breaks off: two halves of
//! two answers are no answer.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_bytes::ByteBuf;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    protocol::{
        Lane, StreamKind,
        http::{
            BODY_PIECE, Headers, HttpRequest, HttpResponse, LONG_BODIES, MAX_BODY_FRAME, MAX_HEAD, MAX_PIECE,
            Part,
        },
    },
    telemetry::Counter,
    transport::{Mesh, OpenError, RecvStream, SendStream, StreamError},
    types::{Balance, ClusterView, NodeId},
};

use super::choice::{Choice, Errand, UnderWay};

/// Shortest silence after which a node is given up; it sends a beat several times as often.
const SILENCE: Duration = Duration::from_secs(2);
/// A node says that it is ready before every link is made: so long behind its start a request waits for one.
const FIRST_LINKS: Duration = Duration::from_secs(5);
/// Statuses that say: not now, or not here. Another node may do better.
const ELSEWHERE: [u16; 2] = [429, 503];
/// The same in gRPC, whose HTTP status is always good.
const UNAVAILABLE: &[u8] = b"14";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody who could answer is linked. Nothing was sent.
    #[error("no {0} is linked to this node; see `skein status` at a node with data")]
    Nobody(&'static str),
    /// Nobody who was asked has got it.
    #[error("it could not be sent to {node}: {reason}")]
    Unsent {
        /// The last one that was tried.
        node: NodeId,
        /// What happened.
        reason: String,
    },
    /// Whoever was asked did not answer. What was asked may have been done if it changes something.
    #[error("{node} did not answer: {reason}")]
    Broken {
        /// The last one that was asked.
        node: NodeId,
        /// What happened.
        reason: String,
    },
}

/// An answer whose head and first piece are here.
#[derive(Debug)]
pub struct Answer {
    /// Who gives it.
    pub node: NodeId,
    /// Its head.
    pub head: HttpResponse,
    first: Option<Piece>,
    rest: Option<RecvStream>,
    patience: Duration,
    under_way: UnderWay,
}

/// What an answer's body is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Behind the last byte.
    Trailers(Headers),
}

impl Answer {
    /// The next piece; `None` when the answer is whole.
    ///
    /// # Errors
    /// The node broke off or fell silent: what came so far is not the answer.
    pub async fn next(&mut self) -> Result<Option<Piece>, AskError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(rest) = &mut self.rest else { return Ok(None) };
        match piece(rest, self.patience).await {
            Ok(Some(piece)) => Ok(Some(piece)),
            Ok(None) => {
                self.rest = None;
                Ok(None)
            }
            Err(reason) => {
                self.rest = None;
                self.under_way.suspect();
                Err(AskError::Broken { node: self.node, reason })
            }
        }
    }
}

/// Asks for one node.
#[derive(Debug)]
pub(in crate::node) struct Asker {
    mesh: Mesh,
    view: watch::Receiver<Arc<ClusterView>>,
    since: Instant,
    pub(super) choice: Choice,
    /// How often another node was asked, because one did not answer.
    pub(super) passed_over: Counter,
}

/// Why one node gave no answer.
enum Miss {
    /// It has not got the request.
    NotSent(String),
    /// It may have.
    Broken(String),
}

impl Asker {
    pub(in crate::node) fn new(
        mesh: Mesh,
        view: watch::Receiver<Arc<ClusterView>>,
        balance: Balance,
    ) -> Self {
        let (since, choice) = (Instant::now(), Choice::new(balance));
        Self { mesh, view, since, choice, passed_over: Counter::default() }
    }

    /// Asks one node after the other until one answers.
    pub(in crate::node) async fn ask(
        &self,
        errand: Errand,
        request: &HttpRequest,
        body: &Bytes,
    ) -> Result<Answer, AskError> {
        let long = body.len() > MAX_BODY_FRAME;
        let (view, order) = self.whom(errand, long).await;
        let patience = SILENCE.max(2 * view.profile.timing().election_max);
        let whom = match errand {
            _ if long => "node that takes bodies of more than 1 MiB from gateways (older versions do not)",
            Errand::Query => "node with data",
            Errand::Change => "voter",
        };
        let mut last = Err(AskError::Nobody(whom));
        for node in order {
            match self.attempt(node, request, body, patience).await {
                Ok(answer) if errand == Errand::Query && elsewhere(&answer.head) => {
                    last = Ok(answer);
                }
                Ok(answer) => return Ok(answer),
                Err(miss) => {
                    let error = match miss {
                        Miss::NotSent(reason) => AskError::Unsent { node, reason },
                        Miss::Broken(reason) => AskError::Broken { node, reason },
                    };
                    tracing::debug!(%error, "a node did not answer what this gateway passed on");
                    self.choice.suspect(node, Instant::now());
                    if errand == Errand::Change && matches!(error, AskError::Broken { .. }) {
                        return Err(error);
                    }
                    // An answer that says why not says more than silence.
                    last = last.or(Err(error));
                }
            }
            self.passed_over.add(1);
        }
        last
    }

    /// The nodes that could answer, the best first.
    async fn whom(&self, errand: Errand, long: bool) -> (Arc<ClusterView>, Vec<NodeId>) {
        let (mut links, mut views) = (self.mesh.links(), self.view.clone());
        let takes = |features: u64| !long || features & LONG_BODIES != 0;
        loop {
            let view = views.borrow_and_update().clone();
            let linked: BTreeSet<NodeId> = links
                .borrow_and_update()
                .iter()
                .filter(|(_, link)| takes(link.features))
                .map(|(node, _)| *node)
                .collect();
            let order = self.choice.order(errand, &view, &linked, Instant::now());
            let changed = async {
                tokio::select! { it = links.changed() => it, it = views.changed() => it }
            };
            if !order.is_empty() || !matches!(timeout_at(self.since + FIRST_LINKS, changed).await, Ok(Ok(())))
            {
                return (view, order);
            }
        }
    }

    async fn attempt(
        &self,
        node: NodeId,
        request: &HttpRequest,
        body: &Bytes,
        patience: Duration,
    ) -> Result<Answer, Miss> {
        let under_way = self.choice.begin(node);
        let silent = || format!("silent for {} ms", patience.as_millis());
        let opened = timeout(patience, self.mesh.open(node, StreamKind::Http, Lane::Request)).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error @ (OpenError::NotLinked(_) | OpenError::Stream(_)))) => {
                return Err(Miss::NotSent(error.to_string()));
            }
            Err(_) => return Err(Miss::NotSent(silent())),
        };
        match send(&mut stream.send, request, body, patience).await {
            // Who wants no more of a body says why in the answer.
            Ok(()) | Err(Some(StreamError::Abandoned)) => {}
            Err(Some(StreamError::NotServed)) => {
                return Err(Miss::NotSent("it serves no gateways".to_owned()));
            }
            Err(Some(error)) => return Err(Miss::Broken(error.to_string())),
            Err(None) => return Err(Miss::Broken(silent())),
        }
        let mut recv = stream.recv;
        let head = loop {
            let part = timeout(patience, recv.read_message::<Part>(MAX_HEAD)).await;
            match part.map_err(|_| Miss::Broken(silent()))? {
                Ok(Part::Beat) => {}
                Ok(Part::Head(head)) => break head,
                Ok(Part::Data | Part::Trailers(_) | Part::End) => {
                    return Err(Miss::Broken("an answer without a head".to_owned()));
                }
                // Neither has happened once it works on the request: its first beat comes before that.
                Err(StreamError::NotServed) => {
                    return Err(Miss::NotSent("it serves no gateways".to_owned()));
                }
                Err(error) => return Err(Miss::Broken(error.to_string())),
            }
        };
        let first = piece(&mut recv, patience).await.map_err(Miss::Broken)?;
        self.choice.answered(node);
        let rest = first.is_some().then_some(recv);
        Ok(Answer { node, head, first, rest, patience, under_way })
    }
}

/// Sends a request in whole. `None` of an error: for so long nothing was taken.
async fn send(
    to: &mut SendStream,
    request: &HttpRequest,
    body: &Bytes,
    patience: Duration,
) -> Result<(), Option<StreamError>> {
    let first = async {
        to.write_message(request).await?;
        if body.len() <= MAX_BODY_FRAME { to.write_frame(body.clone()).await } else { Ok(()) }
    };
    timeout(patience, first).await.map_err(|_| None)?.map_err(Some)?;
    if body.len() > MAX_BODY_FRAME {
        let mut rest = body.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(BODY_PIECE));
            timeout(patience, to.write_frame(piece)).await.map_err(|_| None)?.map_err(Some)?;
        }
    }
    to.finish().map_err(Some)
}

fn elsewhere(head: &HttpResponse) -> bool {
    let unavailable = |(name, value): &(String, ByteBuf)| name == "grpc-status" && value[..] == *UNAVAILABLE;
    ELSEWHERE.contains(&head.status) || head.headers.iter().any(unavailable)
}

/// The next piece of a body, past the beats.
async fn piece(recv: &mut RecvStream, patience: Duration) -> Result<Option<Piece>, String> {
    let next = async {
        let mut quiet = timeout(patience, recv.read_message::<Part>(MAX_HEAD)).await;
        while matches!(quiet, Ok(Ok(Part::Beat))) {
            quiet = timeout(patience, recv.read_message::<Part>(MAX_HEAD)).await;
        }
        match quiet {
            Ok(Ok(Part::Data)) => match timeout(patience, recv.read_frame(MAX_PIECE)).await {
                Ok(bytes) => Ok(Some(Piece::Data(bytes.map_err(|e| e.to_string())?))),
                Err(_) => Err(None),
            },
            Ok(Ok(Part::Trailers(trailers))) => Ok(Some(Piece::Trailers(trailers))),
            Ok(Ok(Part::End)) => Ok(None),
            Ok(Ok(Part::Head(_) | Part::Beat)) => Err(Some("a second head".to_owned())),
            Ok(Err(error)) => Err(Some(error.to_string())),
            Err(_) => Err(None),
        }
    };
    next.await.map_err(|said: Option<String>| {
        said.unwrap_or_else(|| format!("silent for {} ms", patience.as_millis()))
    })
}
