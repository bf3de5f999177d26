//! The dialer: every member without a link is dialled until it has one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    close::CloseCode,
    link::{DialError, Link, LinkInfo},
    mesh::Inner,
};
use crate::types::{Addresses, ClusterView, NodeId};

/// Between attempts: from, doubling, up to (members) and up to (candidates).
const FIRST: Duration = Duration::from_millis(100);
const MEMBER_CAP: Duration = Duration::from_secs(2);
const CANDIDATE_CAP: Duration = Duration::from_secs(5);
/// The larger node id waits so long first, so that mostly only one of two dials.
const AFTER_YOU: Duration = Duration::from_millis(50);
/// Attempts that run at once.
const AT_ONCE: usize = 32;
/// Addresses of one node tried in one attempt, and the delay between their starts.
const ADDRESSES: usize = 8;
const STAGGER: Duration = Duration::from_millis(250);

/// What is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// A member, wherever it is.
    Node(NodeId),
    /// An address from discovery, whoever is there.
    Address(SocketAddr),
}

#[derive(Debug)]
struct Attempts {
    failed: u32,
    due: Instant,
    running: bool,
}

/// What, when it changes, makes it worth trying at once: not the whole view, which changes with
/// every raft entry.
type Hints = (BTreeMap<NodeId, Addresses>, Vec<SocketAddr>);

/// Dials until dropped.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut dialer = Dialer {
        rng: SmallRng::seed_from_u64(inner.boot.0),
        view: inner.view.clone(),
        links: inner.links.subscribe(),
        candidates: inner.candidates.subscribe(),
        targets: BTreeMap::new(),
        met: BTreeMap::new(),
        last_seen: BTreeMap::new(),
        hints: Hints::default(),
        tasks: JoinSet::new(),
        inner,
    };
    loop {
        dialer.plan();
        dialer.start();
        dialer.wait().await;
    }
}

/// Who was dialled, how it went, and who answered.
type Dialed = (Target, Result<Arc<Link>, DialError>, Option<NodeId>);

struct Dialer {
    inner: Arc<Inner>,
    rng: SmallRng,
    view: watch::Receiver<Arc<ClusterView>>,
    links: watch::Receiver<Arc<BTreeMap<NodeId, LinkInfo>>>,
    candidates: watch::Receiver<Vec<SocketAddr>>,
    targets: BTreeMap<Target, Attempts>,
    /// Who answered at a candidate address when it was last dialled.
    met: BTreeMap<SocketAddr, NodeId>,
    /// Where a member was linked from, and where it then said it could be reached.
    last_seen: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    hints: Hints,
    tasks: JoinSet<Dialed>,
}

impl Dialer {
    /// Brings the targets in line with view, links and candidates.
    fn plan(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let links = self.links.borrow_and_update().clone();
        let candidates = self.candidates.borrow_and_update().clone();
        for (peer, link) in links.iter() {
            self.last_seen.insert(*peer, link.reached_at().into_iter().collect());
        }
        self.last_seen.retain(|peer, _| view.members.contains_key(peer));
        self.met.retain(|address, _| candidates.contains(address));

        let addresses = view.members.values().map(|m| (m.id, m.addresses.clone())).collect();
        let hints = (addresses, candidates);
        if hints != self.hints {
            self.hints = hints;
            self.met.clear();
            for attempts in self.targets.values_mut().filter(|a| !a.running) {
                attempts.failed = 0;
                attempts.due = attempts.due.min(Instant::now() + FIRST);
            }
        }
        let wanted = self.wanted(&view, &links);
        self.targets.retain(|target, attempts| attempts.running || wanted.contains(target));
        for target in wanted {
            if !self.targets.contains_key(&target) {
                let polite = matches!(target, Target::Node(peer) if peer < self.inner.identity.node());
                let delay = if polite { AFTER_YOU + self.jitter(AFTER_YOU) } else { Duration::ZERO };
                let due = Instant::now() + delay;
                self.targets.insert(target, Attempts { failed: 0, due, running: false });
            }
        }
    }

    fn wanted(&self, view: &ClusterView, links: &BTreeMap<NodeId, LinkInfo>) -> BTreeSet<Target> {
        let own = self.inner.identity.node();
        let missing = view.members.keys().filter(|peer| **peer != own && !links.contains_key(peer));
        let mut wanted: BTreeSet<Target> = missing.map(|peer| Target::Node(*peer)).collect();
        if !wanted.is_empty() {
            let at_a_link = |address: &SocketAddr| {
                self.met.get(address).is_some_and(|node| *node == own || links.contains_key(node))
                    || links.values().any(|l| l.remote == *address || l.addresses.mesh.contains(address))
            };
            let open = self.hints.1.iter().filter(|address| !at_a_link(address));
            wanted.extend(open.map(|address| Target::Address(*address)));
        }
        wanted
    }

    /// Starts what is due.
    fn start(&mut self) {
        let now = Instant::now();
        let is_due = |attempts: &Attempts| !attempts.running && attempts.due <= now;
        let mut due: Vec<_> = self.targets.iter_mut().filter(|(_, attempts)| is_due(attempts)).collect();
        let room = AT_ONCE.saturating_sub(self.tasks.len());
        if due.len() > room {
            // Who has waited longest comes first: new addresses without end must not keep one waiting.
            due.sort_by_key(|(_, attempts)| attempts.due);
        }
        for (target, attempts) in due.into_iter().take(room) {
            attempts.running = true;
            let (inner, target) = (self.inner.clone(), *target);
            match target {
                Target::Node(peer) => {
                    let known = self.hints.0.get(&peer).into_iter().flat_map(|a| a.mesh.iter());
                    let seen = self.last_seen.get(&peer).into_iter().flatten();
                    let mut addresses: Vec<SocketAddr> = Vec::new();
                    for address in known.chain(seen) {
                        if !addresses.contains(address) && addresses.len() < ADDRESSES {
                            addresses.push(*address);
                        }
                    }
                    self.tasks.spawn(async move {
                        (target, dial_member(&inner, peer, addresses).await, Some(peer))
                    });
                }
                Target::Address(address) => {
                    self.tasks.spawn(async move {
                        let (result, met) = dial_candidate(&inner, address).await;
                        (target, result, met)
                    });
                }
            }
        }
    }

    /// Waits until something is to be done.
    async fn wait(&mut self) {
        let next = self.targets.values().filter(|a| !a.running).map(|a| a.due).min();
        let full = self.tasks.len() >= AT_ONCE;
        tokio::select! {
            Some(done) = self.tasks.join_next() => {
                if let Ok((target, result, met)) = done {
                    self.finished(target, result, met);
                }
            }
            Ok(()) = self.view.changed() => {}
            Ok(()) = self.links.changed() => {}
            Ok(()) = self.candidates.changed() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && !full => {}
            else => std::future::pending().await,
        }
    }

    fn finished(&mut self, target: Target, result: Result<Arc<Link>, DialError>, met: Option<NodeId>) {
        if let (Target::Address(address), Some(node)) = (target, met) {
            self.met.insert(address, node);
        }
        let cap = match target {
            Target::Node(_) => MEMBER_CAP,
            Target::Address(_) => CANDIDATE_CAP,
        };
        match result {
            Ok(link) => {
                self.targets.remove(&target);
                // The driver holds the other end for as long as it runs this dialer.
                let _ = self.inner.adopt.send(link);
            }
            Err(error) => {
                debug!(?target, %error, "not linked");
                let failed = self.targets.get(&target).map_or(0, |attempts| attempts.failed);
                let delay = FIRST.saturating_mul(1 << failed.min(10)).min(cap);
                let due = Instant::now() + delay / 2 + self.jitter(delay / 2);
                self.targets.insert(target, Attempts { failed: failed + 1, due, running: false });
            }
        }
    }

    fn jitter(&mut self, up_to: Duration) -> Duration {
        up_to.mul_f64(self.rng.random::<f64>())
    }
}

/// Dials one member at all its addresses, a little apart; the first that answers counts.
async fn dial_member(
    inner: &Arc<Inner>,
    peer: NodeId,
    addresses: Vec<SocketAddr>,
) -> Result<Arc<Link>, DialError> {
    let mut dials: FuturesUnordered<_> = (0_u32..)
        .zip(addresses)
        .map(|(n, address)| async move {
            sleep(STAGGER * n).await;
            let contact = inner.dial(address).await?;
            if contact.node() != peer {
                contact.close(CloseCode::Done);
                return Err(DialError::OtherNode(contact.node()));
            }
            Ok(contact)
        })
        .collect();
    let mut failed = DialError::Hello("no address is known".to_owned());
    while let Some(dialled) = dials.next().await {
        match dialled {
            Ok(contact) => {
                drop(dials);
                return inner.say_hello(contact).await;
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Dials an address; links if a member without a link answers.
async fn dial_candidate(
    inner: &Arc<Inner>,
    address: SocketAddr,
) -> (Result<Arc<Link>, DialError>, Option<NodeId>) {
    let contact = match inner.dial(address).await {
        Ok(contact) => contact,
        Err(error) => return (Err(error), None),
    };
    let node = contact.node();
    let class = contact.class(&inner.view(), (inner.clock)());
    if !class.is_member() {
        inner.note_lapse_by(&contact);
        contact.turn_away(class, &inner.view());
        return (Err(DialError::NotMember(class)), None);
    }
    (inner.say_hello(contact).await, Some(node))
}
