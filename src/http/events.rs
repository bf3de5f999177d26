//! `GET /api/v1/cluster/events`: the cluster once a second, as server-sent events, for the page.
//!
//! Nothing runs while nobody watches. Whoever watches asks the members when the last answer is a second
//! old; the others share it. What is kept is bounded: the places, the last five minutes of rates, and
//! per watcher the one event it has not read yet.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::HeaderMap,
    response::Response,
};
use bytes::Bytes;
use serde::Serialize;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use super::{
    Edge,
    error::{self, ApiError, Fault},
};
use crate::node::ClusterStatus;

/// Between two events.
const PERIOD: Duration = Duration::from_secs(1);
/// Streams at once.
const WATCHERS: usize = 64;
/// After so long a stream ends and the client comes again: what it was let in with may be revoked by now.
const LIFE: Duration = Duration::from_secs(600);
/// Rates that are kept for those who come.
const RECENT: usize = 300;
/// Counts further apart make no rate: nobody watched in between.
const GAP: Duration = Duration::from_secs(10);

/// Told by the listener with every request: turns true when the edge stops.
#[derive(Debug, Clone)]
pub(super) struct Stopping(pub(super) watch::Receiver<bool>);

impl Stopping {
    async fn told(mut self) {
        // A listener that is gone has stopped too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// What all streams share.
pub(super) struct Live {
    places: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

impl Default for Live {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(WATCHERS)), seen: Mutex::default() }
    }
}

impl Live {
    /// Streams that run now.
    pub(super) fn streams(&self) -> usize {
        WATCHERS.saturating_sub(self.places.available_permits())
    }
}

/// The last answer and what the next is compared with.
#[derive(Default)]
struct Seen {
    last: Option<(Instant, Bytes)>,
    counts: Option<Counts>,
    recent: VecDeque<Rates>,
}

/// Counters of every member that answered, at one moment.
struct Counts {
    at: Instant,
    commit: Option<u64>,
    nodes: BTreeMap<String, (u64, u64)>,
}

/// What the whole cluster did, per second; null where it is not known.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Rates {
    /// Milliseconds since 1970.
    at_ms: i64,
    /// Points acknowledged to clients.
    points: Option<f64>,
    /// Queries answered.
    queries: Option<f64>,
    /// Records committed.
    records: Option<f64>,
}

#[derive(Serialize)]
struct Event<'a> {
    at_ms: i64,
    status: &'a ClusterStatus,
    rates: &'a Rates,
}

/// `GET /api/v1/cluster/events`: an event `recent` with the rates of the last minutes, then an event
/// `cluster` a second. Ends when the edge stops.
pub(super) async fn stream(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let place = Arc::clone(&edge.live.places).try_acquire_owned().map_err(|_| {
        ApiError::new(Fault::Busy, format!("{WATCHERS} streams of events run on this node: use another one"))
    })?;
    let stopping = request.extensions().get::<Stopping>().cloned();
    let began = Instant::now();
    let watcher = Watcher { edge, stopping, next: None, ends: began + LIFE, _place: place };
    let events = futures::stream::unfold(watcher, Watcher::next);
    let mut headers = HeaderMap::new();
    error::set(&mut headers, "cache-control", "no-store");
    // A proxy in front may not wait for the end.
    error::set(&mut headers, "x-accel-buffering", "no");
    Ok(error::ok("text/event-stream", headers, Body::from_stream(events)))
}

/// One client.
struct Watcher {
    edge: Arc<Edge>,
    stopping: Option<Stopping>,
    /// When the next event is due; `None` before the first.
    next: Option<Instant>,
    ends: Instant,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let stopping = self.stopping.clone();
        let stopped = async {
            match stopping {
                Some(stopping) => stopping.told().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopped => None,
            () = tokio::time::sleep_until(self.ends) => None,
            event = self.event() => Some((Ok(event), self)),
        }
    }

    async fn event(&mut self) -> Bytes {
        let first = self.next.is_none();
        if let Some(due) = self.next {
            tokio::time::sleep_until(due).await;
        }
        self.next = Some(Instant::now() + PERIOD);
        let mut seen = self.edge.live.seen.lock().await;
        let event = match &seen.last {
            // A little less than a period, so that each watcher's own beat gets a new one.
            Some((at, event)) if at.elapsed() < PERIOD * 9 / 10 => event.clone(),
            _ => {
                let status = self.edge.app.node.status().await;
                let event = seen.note(&status, Instant::now(), (self.edge.app.now_ns)() / 1_000_000);
                seen.last = Some((Instant::now(), event.clone()));
                event
            }
        };
        if first { [frame("recent", &seen.recent), event].concat().into() } else { event }
    }
}

impl Seen {
    /// The event that tells of `status`; its counts become what the next is compared with.
    fn note(&mut self, status: &ClusterStatus, at: Instant, at_ms: i64) -> Bytes {
        let counts = Counts::of(status, at);
        let rates = rates(self.counts.as_ref(), &counts, at_ms);
        self.counts = Some(counts);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let event = frame("cluster", &Event { at_ms, status, rates: &rates });
        self.recent.push_back(rates);
        event
    }
}

impl Counts {
    fn of(status: &ClusterStatus, at: Instant) -> Self {
        let counts =
            |node: &crate::node::NodeReport| Some((node.id.to_string(), (node.points?, node.queries?)));
        Self {
            at,
            commit: status.commit.map(|commit| commit.seq),
            nodes: status.nodes.iter().filter_map(counts).collect(),
        }
    }
}

/// What happened between two looks. A member counts if it was there at both; one that has started anew
/// counts from zero.
fn rates(before: Option<&Counts>, now: &Counts, at_ms: i64) -> Rates {
    let none = Rates { at_ms, points: None, queries: None, records: None };
    let Some(before) = before else { return none };
    let seconds = now.at.saturating_duration_since(before.at);
    if seconds.is_zero() || seconds > GAP {
        return none;
    }
    let per_second = |count: u64| count as f64 / seconds.as_secs_f64();
    let grown = |now: u64, before: u64| if now < before { now } else { now - before };
    let both = || now.nodes.iter().filter_map(|(id, now)| Some((now, before.nodes.get(id)?)));
    Rates {
        points: Some(per_second(both().map(|(now, before)| grown(now.0, before.0)).sum())),
        queries: Some(per_second(both().map(|(now, before)| grown(now.1, before.1)).sum())),
        records: now.commit.zip(before.commit).map(|(now, before)| per_second(now.saturating_sub(before))),
        ..none
    }
}

/// An event in the form of the HTML standard; JSON has no line breaks of its own.
fn frame(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|error| {
        tracing::warn!(%error, "an event cannot be written as JSON");
        "null".to_owned()
    });
    format!("event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(at: Instant, commit: u64, nodes: &[(&str, u64, u64)]) -> Counts {
        let nodes = nodes.iter().map(|(id, points, queries)| ((*id).to_owned(), (*points, *queries)));
        Counts { at, commit: Some(commit), nodes: nodes.collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_count_only_what_is_known_twice() {
        let start = Instant::now();
        let before = counts(start, 10, &[("a", 100, 5), ("b", 70, 0), ("gone", 9, 9)]);
        let later = start + Duration::from_secs(2);
        // b has started anew, c has just come, one is gone.
        let now = counts(later, 40, &[("a", 300, 7), ("b", 20, 0), ("c", 1000, 1000)]);
        let seen = rates(Some(&before), &now, 7);
        assert_eq!(
            seen,
            Rates { at_ms: 7, points: Some(110.0), queries: Some(1.0), records: Some(15.0) },
            "200 of a and 20 of b in two seconds"
        );
        assert_eq!(rates(None, &now, 7).points, None);
        let much_later = counts(later + GAP + Duration::from_secs(1), 99, &[("a", 900, 9)]);
        assert_eq!(rates(Some(&now), &much_later, 7).points, None);
        assert_eq!(frame("recent", &[seen]).iter().filter(|byte| **byte == b'\n').count(), 3);
    }
}
