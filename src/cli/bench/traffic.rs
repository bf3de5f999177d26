//! Single rows written at every living node without end, and the ledger of what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use crate::types::{Epoch, Lsn};

use super::{
    bodies::Format,
    cluster::Edge,
    connection::{Acked, Connection},
    load::now_ns,
    report::Errors,
};

/// Between an answer and the next write of a client.
const PAUSE: Duration = Duration::from_millis(5);

/// The clients and what they know.
pub(super) struct Traffic {
    ledger: Arc<Ledger>,
    clients: BTreeMap<usize, AbortHandle>,
    ack: String,
}

/// Shared by the clients.
struct Ledger {
    /// Every row has a serial number, and a timestamp of its own.
    first_ns: u64,
    state: Mutex<State>,
    /// The latest epoch in which a write was acknowledged, and when the first was.
    epoch: watch::Sender<Option<(Epoch, Instant)>>,
}

#[derive(Default)]
struct State {
    next: u64,
    acked: BTreeSet<u64>,
    levels: BTreeSet<String>,
    errors: Errors,
}

/// Database of the rows.
pub(super) const DATABASE: &str = "bench";
/// Table of the rows.
pub(super) const TABLE: &str = "probe";

impl Traffic {
    /// Nobody writes yet.
    pub(super) fn new(ack: &str) -> Self {
        let ledger = Ledger { first_ns: now_ns(), state: Mutex::default(), epoch: watch::Sender::new(None) };
        Self { ledger: Arc::new(ledger), clients: BTreeMap::new(), ack: ack.to_owned() }
    }

    /// A client at that node from now on.
    pub(super) fn begin(&mut self, node: usize, edge: Edge) {
        let connection = Connection::new(edge, Format::LineProtocol, DATABASE, &self.ack);
        let client = tokio::spawn(write_on(self.ledger.clone(), connection));
        if let Some(before) = self.clients.insert(node, client.abort_handle()) {
            before.abort();
        }
    }

    /// No client at that node any more; what it sent last may or may not be written.
    pub(super) fn end(&mut self, node: usize) {
        if let Some(client) = self.clients.remove(&node) {
            client.abort();
        }
    }

    pub(super) fn end_all(&mut self) {
        for (_, client) in std::mem::take(&mut self.clients) {
            client.abort();
        }
    }

    /// The latest epoch in which a write was acknowledged.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.ledger.epoch.borrow().map(|(epoch, _)| epoch)
    }

    /// When the first write was acknowledged in an epoch later than that one; `None` if that does
    /// not happen within `patience`.
    pub(super) async fn first_after(&self, epoch: Epoch, patience: Duration) -> Option<Instant> {
        let mut latest = self.ledger.epoch.subscribe();
        let later = latest.wait_for(|latest| latest.is_some_and(|(at, _)| at > epoch));
        let found = timeout(patience, later).await.ok()?.ok()?;
        found.map(|(_, when)| when)
    }

    /// Serial numbers of the acknowledged rows.
    pub(super) fn acked(&self) -> BTreeSet<u64> {
        self.ledger.lock().acked.clone()
    }

    /// The levels that the nodes named.
    pub(super) fn levels(&self) -> String {
        self.ledger.lock().levels.iter().cloned().collect::<Vec<_>>().join("+")
    }

    /// What went wrong at nodes that a client was at.
    pub(super) fn errors(&self) -> Errors {
        self.ledger.lock().errors.clone()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end_all();
    }
}

async fn write_on(ledger: Arc<Ledger>, mut connection: Connection) {
    loop {
        let (serial, body) = ledger.row();
        let answer = connection.post(body.into()).await;
        ledger.note(serial, answer, Instant::now());
        sleep(PAUSE).await;
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self) -> (u64, String) {
        let mut state = self.lock();
        let serial = state.next;
        state.next += 1;
        (serial, format!("{TABLE} n={serial}u {}", self.first_ns + serial))
    }

    fn note(&self, serial: u64, answer: Result<Acked, String>, now: Instant) {
        let mut state = self.lock();
        match answer {
            Ok(Acked { at: Lsn { epoch, .. }, level, .. }) => {
                state.acked.insert(serial);
                state.levels.insert(level);
                self.epoch.send_if_modified(|latest| {
                    let later = latest.is_none_or(|(known, _)| epoch > known);
                    if later {
                        *latest = Some((epoch, now));
                    }
                    later
                });
            }
            Err(error) => *state.errors.entry(error).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_acknowledgement_of_a_later_epoch_ends_a_failover() {
        let traffic = Traffic::new("quorum");
        let ledger = traffic.ledger.clone();
        let acked = |epoch| Ok(Acked { at: Lsn::new(epoch, 9), level: "quorum".into(), forwarded: false });
        assert_eq!(traffic.epoch(), None);
        let (first, body) = ledger.row();
        assert!(body.starts_with("probe n=0u "), "{body}");
        ledger.note(first, acked(3), Instant::now());
        assert_eq!(traffic.epoch(), Some(3));
        assert_eq!(traffic.first_after(3, Duration::from_secs(1)).await, None);
        let at = Instant::now();
        for (epoch, wait) in [(3, 5), (4, 10), (4, 10)] {
            let (serial, _) = ledger.row();
            let now = Instant::now() + Duration::from_millis(wait);
            ledger.note(serial, acked(epoch), now);
        }
        assert_eq!(
            traffic.first_after(3, Duration::from_secs(1)).await,
            Some(at + Duration::from_millis(10))
        );
        let (unknown, _) = ledger.row();
        ledger.note(unknown, Err("504 outcome unknown".into()), at);
        assert_eq!(traffic.acked(), BTreeSet::from([0, 1, 2, 3]));
        assert_eq!((traffic.levels().as_str(), traffic.errors()["504 outcome unknown"]), ("quorum", 1));
    }
}
