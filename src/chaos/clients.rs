//! All clients of a run, and the last look at every node.

use std::{sync::Arc, time::Duration};

use skeinmesh::types::Lsn;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    claims::{self, Claims},
    feed::Feed,
    history::{Final, Held, History},
    http::Connections,
    ledger::Ledger,
    network,
    registers::{self, Registers},
};

/// Clients of each kind, the first besides one per node, and their pause between two operations.
/// More would leave a machine with two cores nothing for the nodes.
const FEEDS: usize = 2;
const REGISTERS: usize = 3;
const CLAIMS: usize = 2;
const PAUSE: Duration = Duration::from_millis(25);
/// Patience with one question in the end.
const LAST: Duration = Duration::from_secs(50);
/// Positions of lost rows that are asked for in the end, at most.
const POSITIONS: usize = 2_000;

/// Starts them. They end when the ledger says stop. `admin` is an API token that may make others.
pub fn start(nodes: usize, admin: &Arc<str>, ledger: &Arc<Ledger>, seed: u64) -> JoinSet<()> {
    let mut clients = feeds(nodes + FEEDS, nodes, PAUSE, ledger, seed);
    for client in 0..REGISTERS {
        let seed = seed.wrapping_add(1_000 + client as u64);
        clients.spawn(Registers::new(nodes, PAUSE, Arc::clone(ledger), seed).run());
    }
    for client in 0..CLAIMS {
        let seed = seed.wrapping_add(2_000 + client as u64);
        clients.spawn(Claims::new(nodes, PAUSE, admin, Arc::clone(ledger), seed).run());
    }
    clients
}

/// Only those that add rows.
pub fn feeds(count: usize, nodes: usize, pause: Duration, ledger: &Arc<Ledger>, seed: u64) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for client in 0..count {
        let seed = seed.wrapping_add(client as u64);
        clients.spawn(Feed::new(client, nodes, pause, Arc::clone(ledger), seed).run());
    }
    clients
}

/// Reads everything at every node, and asks for the positions of what is missing. An answer that
/// does not come is an oddity.
pub async fn look_at_the_end(nodes: usize, ledger: &Ledger) {
    let mut connections = Connections::default();
    for node in 0..nodes {
        match all_rows(&mut connections, node).await {
            Ok((applied, rows)) => ledger.history().finals.push(Final { node, applied, rows }),
            Err(why) => {
                ledger.odd(format!("{} does not show its rows in the end: {why}", network::name(node)))
            }
        }
    }
    let newest = ledger.history().sets.iter().map(|set| set.key).max();
    for key in newest.map_or(0, |newest| newest.saturating_sub(20))..=newest.unwrap_or(0) {
        for node in 0..nodes {
            if !registers::get(ledger, &mut connections, node, key, LAST).await {
                ledger.odd(format!("{} does not show register {key} in the end", network::name(node)));
            }
        }
    }
    let missing = missing(&ledger.history());
    for at in missing {
        let more = [("min_lsn", at.to_string())];
        let sql = "SELECT v FROM probe LIMIT 1";
        let answer = connections.query(0, sql, &more, LAST).await;
        if answer.is_ok_and(|answer| answer.status == 410) {
            ledger.history().cut.insert(at);
        }
    }
}

/// Asks every node which names are held. An answer that does not come is an oddity.
pub async fn look_at_the_names(nodes: usize, admin: &str, ledger: &Ledger) {
    match held(&mut Connections::default(), nodes, admin).await {
        Ok(held) => ledger.history().held = held,
        Err(node) => ledger.odd(format!("{} does not show its API tokens in the end", network::name(node))),
    }
}

/// The names that each node lists, as soon as all list the same: a node may apply what was agreed upon a
/// moment after others. After a while, whatever they list; or a node that does not answer.
async fn held(connections: &mut Connections, nodes: usize, admin: &str) -> Result<Vec<Held>, usize> {
    let deadline = Instant::now() + LAST;
    loop {
        let mut all = Vec::new();
        let mut silent = None;
        for node in 0..nodes {
            match claims::held(connections, node, admin).await {
                Some(names) => all.push(Held { node, names }),
                None => silent = Some(node),
            }
        }
        let level = all.windows(2).all(|pair| matches!(pair, [a, b] if a.names == b.names));
        if Instant::now() > deadline || (silent.is_none() && level) {
            return silent.map_or(Ok(all), Err);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn all_rows(connections: &mut Connections, node: usize) -> Result<(Lsn, Vec<u64>), String> {
    let more = [("consistency", "linearizable".to_owned())];
    let deadline = Instant::now() + LAST;
    loop {
        let why = match connections.query(node, "SELECT n FROM feed", &more, LAST).await {
            Ok(answer) if answer.status == 200 => match answer.column("n") {
                Some(rows) => return Ok((answer.lsn().unwrap_or_default(), rows)),
                None => "an answer that is not whole".to_owned(),
            },
            // Nothing was ever written.
            Ok(answer) if answer.status == 404 => return Ok((Lsn::ZERO, Vec::new())),
            Ok(answer) => answer.text(),
            Err(broken) => format!("{broken:?}"),
        };
        if Instant::now() > deadline {
            return Err(why);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Acknowledged positions of rows that the first node lacks, of which nothing was said yet.
fn missing(history: &History) -> Vec<Lsn> {
    let Some(last) = history.finals.first() else { return Vec::new() };
    let rows: std::collections::BTreeSet<u64> = last.rows.iter().copied().collect();
    let absent = history.writes.iter().filter(|write| !rows.contains(&write.n));
    let positions = absent.flat_map(|write| &write.acks).map(|ack| ack.at);
    positions.filter(|at| !history.cut.contains(at)).take(POSITIONS).collect()
}
