//! A client of the control plane: it claims a name, by making an API token of it, and gives it up again,
//! by taking the token back, each at any node. No two tokens have one name, so a name is a lock that
//! the cluster keeps.

use std::{sync::Arc, time::Duration};

use hyper::{Method, header};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    history::{Claim, Claimed, Release},
    http::{Answer, Broken, Connections},
    ledger::Ledger,
    network,
};

/// Names in use at a time.
const AT_A_TIME: u64 = 2;
/// How long a name is used, in nanoseconds: what is lost without an answer holds it for ever.
const USED: u64 = 2_000_000_000;
/// How long a name is held at most.
const HELD: Duration = Duration::from_millis(150);
/// Attempts to give a name up.
const ATTEMPTS: u32 = 5;
/// Patience with one request: longer than the node's own.
const PATIENCE: Duration = Duration::from_secs(12);
const TOKENS: &str = "/api/v1/auth/tokens";

/// See the module.
pub struct Claims {
    nodes: usize,
    pause: Duration,
    admin: Arc<str>,
    ledger: Arc<Ledger>,
    connections: Connections,
    rng: StdRng,
}

impl Claims {
    /// `admin` is an API token that may make others.
    pub fn new(nodes: usize, pause: Duration, admin: &Arc<str>, ledger: Arc<Ledger>, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { nodes, pause, admin: admin.clone(), ledger, connections: Connections::default(), rng }
    }

    /// Until the ledger says stop.
    pub async fn run(mut self) {
        while !self.ledger.stopped() {
            let name = self.ledger.now() / USED * AT_A_TIME + self.rng.random_range(0..AT_A_TIME);
            self.claim(name).await;
            let pause = self.pause.mul_f64(self.rng.random::<f64>() * 4.0);
            sleep(pause).await;
        }
    }

    async fn claim(&mut self, name: u64) {
        let mut claim = Claim { name, invoked: self.ledger.now(), ..Claim::default() };
        let at = {
            let mut history = self.ledger.history();
            history.claims.push(claim.clone());
            history.claims.len() - 1
        };
        let node = self.node();
        let asked = serde_json::json!({ "name": text(name), "scopes": ["read"] }).to_string();
        let answer = self.send(node, Method::POST, TOKENS, asked).await;
        claim.returned = Some(self.ledger.now());
        let mut id = None;
        claim.outcome = match answer {
            Ok(answer) if answer.status == 201 => {
                id = serde_json::from_slice::<Value>(&answer.body)
                    .ok()
                    .and_then(|made| made["id"].as_str().map(str::to_owned));
                Claimed::Held
            }
            // There are other reasons for a 409, of which none is to come up here.
            Ok(answer)
                if answer.status == 409 && answer.text().contains("another API token of this name") =>
            {
                Claimed::Taken
            }
            Ok(answer) if matches!(answer.status, 429 | 503 | 507) => Claimed::Refused,
            Ok(answer) if answer.status == 504 => Claimed::Unknown,
            Ok(answer) => {
                let who = network::name(node);
                self.ledger.odd(format!("{who} answered a claim of {} with {}", text(name), answer.text()));
                Claimed::Unknown
            }
            Err(broken) if broken.sent => Claimed::Unknown,
            Err(_) => Claimed::Refused,
        };
        if matches!(claim.outcome, Claimed::Unknown | Claimed::Refused) {
            self.ledger.count_failed();
        }
        if let Some(id) = id {
            self.note(at, &claim);
            let held = HELD.mul_f64(self.rng.random());
            sleep(held).await;
            claim.release = Some(Release { invoked: self.ledger.now(), acked: None });
            self.note(at, &claim);
            let acked = self.release(name, &id).await;
            claim.release = claim.release.map(|release| Release { acked, ..release });
        }
        self.note(at, &claim);
    }

    /// When it was acknowledged.
    async fn release(&mut self, name: u64, id: &str) -> Option<u64> {
        let path = format!("{TOKENS}/{id}");
        // An attempt that was not answered may have done it.
        let mut perhaps = false;
        for _ in 0..ATTEMPTS {
            let node = self.node();
            match self.send(node, Method::DELETE, &path, String::new()).await {
                Ok(answer) if answer.status == 204 => return Some(self.ledger.now()),
                Ok(answer) if answer.status == 404 && perhaps => return Some(self.ledger.now()),
                Ok(answer) if matches!(answer.status, 429 | 503 | 507) => {
                    sleep(Duration::from_millis(50)).await;
                }
                Ok(answer) if answer.status == 504 => perhaps = true,
                // Also 404: the token was made, and nobody else takes it back.
                Ok(answer) => {
                    let (who, name) = (network::name(node), text(name));
                    self.ledger.odd(format!("{who} answered who gave up {name} with {}", answer.text()));
                    perhaps = true;
                }
                Err(broken) => perhaps |= broken.sent,
            }
            self.ledger.count_failed();
        }
        None
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..self.nodes)
    }

    fn note(&self, at: usize, claim: &Claim) {
        if let Some(place) = self.ledger.history().claims.get_mut(at) {
            place.clone_from(claim);
        }
    }

    async fn send(
        &mut self,
        node: usize,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Answer, Broken> {
        let bearer = format!("Bearer {}", self.admin);
        let headers = [(header::AUTHORIZATION, bearer.as_str())];
        self.connections.send(node, method, path, body, &headers, PATIENCE).await
    }
}

/// A name as tokens have it.
pub fn text(name: u64) -> String {
    format!("claim-{name}")
}

/// The names that a node says are held, by its own state; `None` if it does not answer.
pub async fn held(connections: &mut Connections, node: usize, admin: &str) -> Option<Vec<u64>> {
    let bearer = format!("Bearer {admin}");
    let headers = [(header::AUTHORIZATION, bearer.as_str())];
    let sent = connections.send(node, Method::GET, TOKENS, String::new(), &headers, PATIENCE).await;
    let answer = sent.ok().filter(|answer| answer.status == 200)?;
    let listed: Value = serde_json::from_slice(&answer.body).ok()?;
    let names = listed["tokens"].as_array()?.iter().filter_map(|token| token["name"].as_str());
    Some(names.filter_map(|name| name.strip_prefix("claim-")?.parse().ok()).collect())
}
