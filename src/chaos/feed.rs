//! A client that adds rows and reads buckets of them, at any node, in every mode.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::types::Lsn;
use tokio::time::sleep;

use crate::{
    history::{Ack, Level, Mode, Read, Write, bucket},
    http::{Answer, Connections},
    ledger::Ledger,
};

/// What a write asks for, and how often.
const ACKS: [(Option<Level>, u32); 5] = [
    (Some(Level::Quorum), 4),
    (Some(Level::All), 2),
    (Some(Level::Local), 3),
    (Some(Level::Memory), 2),
    (None, 2),
];
/// Attempts of a write, at different nodes.
const ATTEMPTS: u32 = 3;
/// Share of acknowledged keyed writes that are sent again all the same.
const AGAIN: f64 = 0.15;
/// Share of reads.
const READS: f64 = 0.25;
/// Ages asked for with `max_staleness`, in milliseconds.
const AGES: [u64; 4] = [0, 50, 300, 2_000];
/// Buckets below the newest that are read.
const RECENT: u64 = 3;
/// Patience with one write: longer than a node holds it while there is no writer.
const PATIENCE: Duration = Duration::from_secs(6);
/// The same with a read.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Feed {
    client: usize,
    /// Where it asks first; anywhere if it has no home. So a node that sleeps holds up its own
    /// clients, and not soon all of them.
    home: Option<usize>,
    nodes: usize,
    pause: Duration,
    ledger: Arc<Ledger>,
    connections: Connections,
    rng: StdRng,
    /// The furthest committed position this client knows.
    session: Lsn,
    /// A row of its own that was last acknowledged below `quorum`, and where: asked for with `min_lsn`
    /// it is found, or the position is lost.
    weak: Option<(u64, Lsn)>,
}

/// What became of one attempt.
enum Attempt {
    Acked(Ack),
    Refused,
    Unknown,
}

impl Feed {
    /// The first clients have a home each, the others none.
    pub fn new(client: usize, nodes: usize, pause: Duration, ledger: Arc<Ledger>, seed: u64) -> Self {
        let (rng, home) = (StdRng::seed_from_u64(seed), Some(client).filter(|client| *client < nodes));
        let connections = Connections::default();
        Self { client, home, nodes, pause, ledger, connections, rng, session: Lsn::ZERO, weak: None }
    }

    /// Until the ledger says stop.
    pub async fn run(mut self) {
        while !self.ledger.stopped() {
            if self.rng.random_bool(READS) {
                self.read().await;
            } else {
                self.write().await;
            }
            let pause = self.pause.mul_f64(self.rng.random::<f64>() * 2.0);
            sleep(pause).await;
        }
    }

    async fn write(&mut self) {
        let n = self.ledger.next();
        let keyed = self.rng.random_bool(0.5);
        let asked = self.ack();
        // Without a time a row that is applied twice has two times, and is two rows.
        let time = if keyed { String::new() } else { format!(" {n}") };
        let line = format!("feed,b=b{},n={n} v=1i{time}\n", bucket(n));
        let key = keyed.then(|| format!("key-{n}"));
        let mut write =
            Write { n, keyed, asked, invoked: self.ledger.now(), taken: 0, acks: Vec::new(), refused: false };
        // Written down first: a read may find the row before this client hears of it.
        let at = {
            let mut history = self.ledger.history();
            history.writes.push(write.clone());
            history.writes.len() - 1
        };
        for attempt in 0..ATTEMPTS {
            let node = self.home.filter(|_| attempt == 0).unwrap_or_else(|| self.anywhere());
            match self.attempt(node, &line, asked, key.as_deref()).await {
                Attempt::Acked(ack) => {
                    write.taken += 1;
                    write.acks.push(ack);
                    break;
                }
                Attempt::Unknown => write.taken += 1,
                Attempt::Refused => sleep(Duration::from_millis(50)).await,
            }
            self.ledger.failed.fetch_add(1, Ordering::Relaxed);
        }
        write.refused = write.taken == 0;
        self.note(at, &write);
        if keyed && !write.acks.is_empty() && self.rng.random_bool(AGAIN) {
            write.taken += 1;
            self.note(at, &write);
            let node = self.anywhere();
            if let Attempt::Acked(ack) = self.attempt(node, &line, asked, key.as_deref()).await {
                write.acks.push(ack);
                self.note(at, &write);
            }
        }
    }

    fn note(&mut self, at: usize, write: &Write) {
        if let Some(ack) = write.quorum() {
            self.session = further(self.session, ack.at);
        } else if let Some(ack) = write.acks.last() {
            self.weak = Some((write.n, ack.at));
        }
        if let Some(place) = self.ledger.history().writes.get_mut(at) {
            place.clone_from(write);
        }
    }

    fn ack(&mut self) -> Option<Level> {
        let all: u32 = ACKS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.random_range(0..all);
        for (level, weight) in ACKS {
            if drawn < weight {
                return level;
            }
            drawn -= weight;
        }
        None
    }

    fn anywhere(&mut self) -> usize {
        self.rng.random_range(0..self.nodes)
    }

    async fn attempt(&mut self, node: usize, line: &str, asked: Option<Level>, key: Option<&str>) -> Attempt {
        let sent = self.connections.write(node, line, asked.map(Level::as_str), key, PATIENCE).await;
        let when = self.ledger.now();
        let answer = match sent {
            Ok(answer) => answer,
            Err(broken) if broken.sent => return Attempt::Unknown,
            Err(_) => return Attempt::Refused,
        };
        *self.ledger.history().answers.entry(answer.status).or_default() += 1;
        match answer.status {
            204 => match (answer.lsn(), answer.header("x-skein-ack").and_then(Level::from_word)) {
                (Some(at), Some(level)) => Attempt::Acked(Ack { at, level, when }),
                _ => {
                    self.ledger.odd(format!("n{} acknowledged without position or level", node + 1));
                    Attempt::Unknown
                }
            },
            // The contract: nothing was written.
            429 | 503 | 507 => Attempt::Refused,
            504 => Attempt::Unknown,
            _ => {
                self.ledger.odd(format!("n{} answered {line:?} with {}", node + 1, answer.text()));
                Attempt::Unknown
            }
        }
    }

    async fn read(&mut self) {
        let newest = bucket(self.ledger.last());
        let recent = newest.saturating_sub(self.rng.random_range(0..=RECENT));
        let node = self.home.unwrap_or_else(|| self.anywhere());
        let (bucket, mode) = match (self.rng.random_range(0..5), self.weak) {
            (0, _) => (recent, Mode::Local),
            (1, _) => (recent, Mode::MinLsn(self.session)),
            (2, _) => {
                let age = AGES.get(self.rng.random_range(0..AGES.len())).copied().unwrap_or_default();
                (recent, Mode::MaxStaleness(Duration::from_millis(age)))
            }
            (3, Some((n, at))) => (bucket(n), Mode::MinLsn(at)),
            _ => (recent, Mode::Linearizable),
        };
        let more: Vec<(&str, String)> = match mode {
            Mode::Local => Vec::new(),
            Mode::MinLsn(least) => vec![("min_lsn", least.to_string())],
            Mode::MaxStaleness(age) => vec![("max_staleness", format!("{}ms", age.as_millis()))],
            Mode::Linearizable => vec![("consistency", "linearizable".to_owned())],
        };
        let invoked = self.ledger.now();
        let sql = format!("SELECT n FROM feed WHERE b = 'b{bucket}'");
        let answer = self.connections.query(node, &sql, &more, READ_PATIENCE).await;
        let returned = self.ledger.now();
        let Some((applied, rows)) = answer.ok().and_then(|answer| self.rows(node, mode, &answer)) else {
            self.ledger.failed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.session = further(self.session, applied);
        let read = Read { client: self.client, node, bucket, mode, invoked, returned, applied, rows };
        self.ledger.history().reads.push(read);
    }

    /// Applied position and rows of an answer; `None` if the read was refused.
    fn rows(&self, node: usize, mode: Mode, answer: &Answer) -> Option<(Lsn, Vec<u64>)> {
        match (answer.status, mode) {
            (200, _) => match (answer.lsn(), answer.column("n")) {
                (Some(applied), Some(rows)) => Some((applied, rows)),
                _ => {
                    self.ledger.odd(format!("n{} answered a read with {}", node + 1, answer.text()));
                    None
                }
            },
            // A node that has applied nothing knows no table.
            (404, _) => Some((Lsn::ZERO, Vec::new())),
            (408 | 429 | 503, _) => None,
            // The checker knows which positions may be lost.
            (410, Mode::MinLsn(least)) => {
                self.ledger.history().cut.insert(least);
                None
            }
            _ => {
                self.ledger.odd(format!("n{} answered a read {mode:?} with {}", node + 1, answer.text()));
                None
            }
        }
    }
}

/// The further one of two positions in the committed history.
fn further(a: Lsn, b: Lsn) -> Lsn {
    if b.seq > a.seq { b } else { a }
}
