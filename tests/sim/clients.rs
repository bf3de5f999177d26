//! What is asked of a node: writes, reads, tokens and removals.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use skeinmesh::{
    engine::MemoryEngine,
    node::{Consistency, Node, Write},
    types::{NodeId, Role},
};

use crate::{host::Host, invariants::i9::Read, machine};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(crate) enum Order {
    /// Sends the write of that number, as the attempt of that number.
    Write(usize, usize),
    /// Reads; with `true` what is asked for cannot be lost.
    Read(Consistency, bool),
    /// Makes a token for a new node.
    Token(Role),
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
            let answer = node.submit(Write { encoding: 9, payload, ack, timeout: PATIENCE, key }).await;
            host.common.ledger.lock().unwrap().end(number, attempt, answer);
        }
        Order::Read(consistency, lasting) => {
            let read = Read { consistency, began: machine::now(), lasting };
            let answer = node.read_point(consistency, PATIENCE).await;
            host.common.ledger.lock().unwrap().end_read(host.name, &read, answer, &engine);
        }
        Order::Token(role) => match node.create_token(role, None, Some(1)).await {
            Ok(token) => host.now.lock().unwrap().made_token = token.parse().ok(),
            Err(error) => tracing::info!(host = host.name, %error, "no token"),
        },
        Order::Remove(id) => {
            let answer = node.remove_node(id).await;
            tracing::info!(host = host.name, ?answer, "removal");
        }
        // The host does it itself, between two looks.
        Order::Stop => {}
    }
}
