//! A client that sets and gets registers, shared by all clients of this kind: the same point
//! written again and again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::sleep;

use crate::{
    history::{Get, Set},
    http::Connections,
    ledger::Ledger,
};

/// Registers in use at a time.
const AT_A_TIME: u64 = 2;
/// How long a register is used, in nanoseconds.
const USED: u64 = 8_000_000_000;
/// Attempts of a write with a key. Without one there is a single attempt: the first may come into
/// effect after the second, and after what others wrote then.
const ATTEMPTS: u32 = 3;
/// Share of acknowledged writes with a key that are sent again after the next operation.
const AGAIN: f64 = 0.2;
/// Patience with one write and one read.
const PATIENCE: Duration = Duration::from_secs(6);
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Registers {
    nodes: usize,
    pause: Duration,
    ledger: Arc<Ledger>,
    connections: Connections,
    rng: StdRng,
    /// Acknowledged, to be sent again: it must have no effect.
    echo: Option<(String, String)>,
}

impl Registers {
    pub fn new(nodes: usize, pause: Duration, ledger: Arc<Ledger>, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { nodes, pause, ledger, connections: Connections::default(), rng, echo: None }
    }

    /// Until the ledger says stop.
    pub async fn run(mut self) {
        while !self.ledger.stopped() {
            let key = self.ledger.now() / USED * AT_A_TIME + self.rng.random_range(0..AT_A_TIME);
            let echo = self.echo.take();
            if self.rng.random_bool(0.5) {
                self.get(key).await;
            } else {
                self.set(key).await;
            }
            if let Some((line, key)) = echo {
                let node = self.rng.random_range(0..self.nodes);
                // Whatever the answer: it stands for the write that is in the history.
                let _ = self.connections.write(node, &line, Some("quorum"), Some(&key), PATIENCE).await;
            }
            let pause = self.pause.mul_f64(self.rng.random::<f64>() * 2.0);
            sleep(pause).await;
        }
    }

    async fn set(&mut self, key: u64) {
        let value = self.ledger.next();
        let keyed = self.rng.random_bool(0.6).then(|| format!("key-{value}"));
        let line = format!("reg,k=k{key} v={value}i 1\n");
        let mut set = Set { key, value, invoked: self.ledger.now(), acked: None, refused: false };
        let at = {
            let mut history = self.ledger.history();
            history.sets.push(set.clone());
            history.sets.len() - 1
        };
        let mut taken = false;
        for _ in 0..if keyed.is_some() { ATTEMPTS } else { 1 } {
            let node = self.rng.random_range(0..self.nodes);
            let sent = self.connections.write(node, &line, Some("quorum"), keyed.as_deref(), PATIENCE).await;
            let when = self.ledger.now();
            match sent {
                Ok(answer) if answer.status == 204 => {
                    taken = true;
                    set.acked = Some(when);
                    break;
                }
                Ok(answer) if matches!(answer.status, 429 | 503 | 507) => {
                    sleep(Duration::from_millis(50)).await;
                }
                Ok(answer) if answer.status == 504 => taken = true,
                Ok(answer) => {
                    self.ledger.odd(format!("n{} answered {line:?} with {}", node + 1, answer.text()));
                    taken = true;
                }
                Err(broken) => taken |= broken.sent,
            }
            self.ledger.failed.fetch_add(1, Ordering::Relaxed);
        }
        set.refused = !taken;
        if let Some(key) = keyed.filter(|_| set.acked.is_some() && self.rng.random_bool(AGAIN)) {
            self.echo = Some((line, key));
        }
        if let Some(place) = self.ledger.history().sets.get_mut(at) {
            *place = set;
        }
    }

    async fn get(&mut self, key: u64) {
        let node = self.rng.random_range(0..self.nodes);
        if !get(&self.ledger, &mut self.connections, node, key, READ_PATIENCE).await {
            self.ledger.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A linearizable read of a register at a node; false if it was not answered.
pub async fn get(
    ledger: &Ledger,
    connections: &mut Connections,
    node: usize,
    key: u64,
    patience: Duration,
) -> bool {
    let invoked = ledger.now();
    let sql = format!("SELECT v FROM reg WHERE k = 'k{key}'");
    let more = [("consistency", "linearizable".to_owned())];
    let Ok(answer) = connections.query(node, &sql, &more, patience).await else { return false };
    let returned = ledger.now();
    let values = match answer.status {
        200 => answer.column("v"),
        404 => Some(Vec::new()),
        408 | 429 | 503 => return false,
        _ => None,
    };
    match values.as_deref() {
        Some([]) => ledger.history().gets.push(Get { key, node, value: None, invoked, returned }),
        Some([value]) => {
            ledger.history().gets.push(Get { key, node, value: Some(*value), invoked, returned })
        }
        _ => ledger.odd(format!("n{} answered for register {key} with {}", node + 1, answer.text())),
    }
    true
}
