//! What is asked of a node: writes and reads, drawn here, and tokens and removals.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rand::Rng;
use skeinmesh::{
    engine::MemoryEngine,
    node::{AckLevel, Consistency, NewApiToken, Node, Write},
    telemetry::Registry,
    types::{NodeId, Role, Scope},
};

use crate::{host::Host, invariants::i9::Read, ledger::Outcome, machine, world::World};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(4);

/// Bytes of a long write.
const LONG: usize = 5_000;

#[derive(Debug)]
pub(crate) enum Order {
    /// Sends the write of that number, as the attempt of that number.
    Write(usize, usize),
    /// Reads; with `true` what is asked for cannot be lost.
    Read(Consistency, bool),
    /// Makes a token for a new node.
    Token(Role),
    /// Makes an API token of that name; with `true` takes it back again.
    Claim(String, bool),
    /// Removes a member.
    Remove(NodeId),
    /// Stops gracefully.
    Stop,
}

/// Does what was ordered, and notes what comes of it. Dies with the host.
pub(crate) async fn serve(host: Arc<Host>, node: Node, engine: Arc<MemoryEngine>, order: Order) {
    match order {
        Order::Write(number, attempt) => {
            let (payload, ack, key): (Bytes, _, _) = {
                let ledger = host.common.ledger.lock().unwrap();
                let write = &ledger.writes[number];
                (write.payload.clone(), write.ack, write.key)
            };
            let is_long = payload.len() >= LONG;
            let answer =
                node.submit(Write { encoding: 9, payload, ack, timeout: PATIENCE, key, request: None }).await;
            let spared = u64::from(is_long && left_out(&node) > 0);
            let mut ledger = host.common.ledger.lock().unwrap();
            ledger.end(number, attempt, answer);
            ledger.spared += spared;
        }
        Order::Read(consistency, lasting) => {
            let read = Read { consistency, began: machine::now(), lasting };
            let answer = node.read_point(consistency, PATIENCE).await;
            host.common.ledger.lock().unwrap().end_read(host.name, &read, answer, &engine);
        }
        Order::Token(role) => match node.create_token(role, None, Some(1), vec![]).await {
            Ok(token) => host.now.lock().unwrap().made_token = token.parse().ok(),
            Err(error) => tracing::info!(host = host.name, %error, "no token"),
        },
        Order::Claim(name, gives_up) => {
            let scopes = [Scope::Read].into();
            let wanted = NewApiToken { name: Some(name), scopes, databases: None, ttl: None };
            let Ok((_, token)) = node.create_api_token(wanted).await else { return };
            host.common.ledger.lock().unwrap().claimed += 1;
            if gives_up {
                // Taken back or not: whatever it is, all nodes see the same.
                let _ = node.revoke_api_token(token.id()).await;
            }
        }
        Order::Remove(id) => {
            let answer = node.remove_node(id).await;
            tracing::info!(host = host.name, ?answer, "removal");
        }
        // The host does it itself, between two looks.
        Order::Stop => {}
    }
}

/// Bytes that the node had forwarded and was not sent again.
fn left_out(node: &Node) -> u64 {
    let registry = Registry::new();
    node.register_metrics(&registry);
    let rendered = registry.render();
    let mut values = rendered
        .lines()
        .filter_map(|line| line.strip_prefix("skein_replication_left_out_bytes_total ")?.parse().ok());
    values.next().unwrap_or_else(|| panic!("no such metric in {rendered}"))
}

impl World {
    pub(crate) fn write(&mut self) {
        let place = self.random.random_range(0..self.stations.len());
        // The long ones are shared with their records, and do not come back to where they were forwarded.
        let padding = if self.random.random_bool(0.1) { LONG } else { 30 };
        let ack = match self.random.random_range(0..20) {
            0..3 => Some(AckLevel::Local),
            3..5 => Some(AckLevel::Memory),
            5..7 => Some(AckLevel::All),
            7 => Some(AckLevel::Quorum),
            _ => None,
        };
        let (keyed, again) = (self.random.random_bool(0.4), self.random.random_bool(0.2));
        let mut ledger = self.common.ledger.lock().unwrap();
        let pick = ledger.writes.len().checked_sub(1 + self.random.random_range(0..20));
        // A client that does not know, or does not believe, sends again, to whomever.
        let old = pick.filter(|it| again && ledger.writes[*it].key.is_some());
        let write = old.unwrap_or_else(|| ledger.write(ack, keyed, padding));
        drop(ledger);
        self.send(write, place);
    }

    pub(crate) fn send(&mut self, write: usize, place: usize) {
        let host = &self.stations[place].host;
        let mut life = host.now.lock().unwrap();
        if life.engine.is_some() {
            let attempt = self.common.ledger.lock().unwrap().attempt(write, host.name);
            life.orders.push_back(Order::Write(write, attempt));
        }
    }

    /// Without it hardly anything would be on its way into raft's log when a fault comes.
    pub(crate) fn claim(&mut self) {
        let place = self.random.random_range(0..self.stations.len());
        let gives_up = self.random.random_bool(0.5);
        let mut life = self.stations[place].host.now.lock().unwrap();
        if life.engine.is_some() {
            self.claims += 1;
            life.orders.push_back(Order::Claim(format!("claim-{}", self.claims), gives_up));
        }
    }

    pub(crate) fn read(&mut self) {
        let place = self.random.random_range(0..self.stations.len());
        let kind = self.random.random_range(0..10);
        let age = Duration::from_millis(self.random.random_range(20..800));
        let ledger = self.common.ledger.lock().unwrap();
        let weak =
            ledger.writes.iter().rev().flat_map(|write| &write.attempts).find_map(|it| match it.outcome {
                Outcome::Acked(at, level) if level < AckLevel::Quorum => Some(at),
                _ => None,
            });
        let (consistency, lasting) = match kind {
            0 => (Consistency::Local, true),
            1..3 => (Consistency::MaxStaleness(age), true),
            3..5 => (Consistency::MinLsn(ledger.reads.session), true),
            5..7 if weak.is_some() => (Consistency::MinLsn(weak.unwrap_or_default()), false),
            _ => (Consistency::Linearizable, true),
        };
        drop(ledger);
        let mut life = self.stations[place].host.now.lock().unwrap();
        if life.engine.is_some() {
            life.orders.push_back(Order::Read(consistency, lasting));
        }
    }
}
