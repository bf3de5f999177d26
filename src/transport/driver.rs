//! The driver: accepts, dials, serves links, and cuts off whoever is no longer a member.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::info;

use super::{contact::Contact, dialer, gate, gate::Doorkeeper, link::Link, mesh::Inner, refresh};

/// For a handshake of an incoming connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once from which on a source must prove its address, and the most there may be.
const RETRY_FROM: usize = 32;
const MAX_HANDSHAKES: usize = 256;
/// How often certificates of live links are looked at for expiry.
const SWEEP: Duration = Duration::from_secs(1);

/// The running part of the mesh; `node/` spawns [`MeshDriver::run`].
pub struct MeshDriver {
    inner: Arc<Inner>,
    adopted: mpsc::UnboundedReceiver<Arc<Link>>,
}

impl std::fmt::Debug for MeshDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MeshDriver({})", self.inner.identity.node())
    }
}

impl MeshDriver {
    pub(super) fn new(inner: Arc<Inner>, adopted: mpsc::UnboundedReceiver<Arc<Link>>) -> Self {
        Self { inner, adopted }
    }

    /// Runs until [`super::Mesh::close`]. Dropped, it drops everything it serves, handlers
    /// included.
    pub async fn run(mut self) {
        let inner = self.inner;
        let door = Arc::new(Doorkeeper::default());
        let handshakes = Arc::new(AtomicUsize::new(0));
        let mut view = inner.view.clone();
        let mut sweep_at = interval(SWEEP);
        sweep_at.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tasks = JoinSet::new();
        tasks.spawn(dialer::run(inner.clone()));
        tasks.spawn(refresh::run(inner.clone()));
        loop {
            tokio::select! {
                incoming = inner.endpoint.accept() => match incoming {
                    Some(incoming) => {
                        let busy = handshakes.load(Ordering::Relaxed);
                        if busy >= MAX_HANDSHAKES {
                            incoming.refuse();
                        } else if busy >= RETRY_FROM && incoming.may_retry() {
                            // Fails only where a retry is not possible, which was just asked.
                            let _ = incoming.retry();
                        } else {
                            let (inner, door) = (inner.clone(), door.clone());
                            let handshake = Handshake::new(&handshakes);
                            tasks.spawn(accept(inner, door, incoming, handshake));
                        }
                    }
                    None => break,
                },
                Some(link) = self.adopted.recv() => {
                    let inner = inner.clone();
                    tasks.spawn(async move { gate::serve(&inner, link).await });
                }
                Ok(()) = view.changed() => {
                    sweep(&inner);
                }
                _ = sweep_at.tick() => sweep(&inner),
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

async fn accept(inner: Arc<Inner>, door: Arc<Doorkeeper>, incoming: quinn::Incoming, handshake: Handshake) {
    let shown = inner.identity.certificate();
    let Ok(connecting) = incoming.accept() else { return };
    let Ok(Ok(conn)) = timeout(HANDSHAKE_TIMEOUT, connecting).await else { return };
    drop(handshake);
    let Some(contact) = Contact::new(conn, shown) else { return };
    if let Some(link) = gate::receive(&inner, &door, Arc::new(contact)).await {
        gate::serve(&inner, link).await;
    }
}

/// Closes the links of whoever is no member now.
fn sweep(inner: &Inner) {
    let (view, now) = (inner.view(), (inner.clock)());
    let links: Vec<Arc<Link>> = inner.pool().iter().map(|(_, link)| link.clone()).collect();
    for link in links {
        let class = link.contact.live_class(&view, now);
        if !class.is_member() {
            info!(?class, "no longer a member, closing its link");
            link.contact.turn_away(class, &view);
        }
    }
}

/// Counts a handshake while it runs.
struct Handshake(Arc<AtomicUsize>);

impl Handshake {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
