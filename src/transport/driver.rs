//! The driver: accepts, dials, serves links, and cuts off whoever is no longer a member.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::info;

use super::{
    contact::Contact,
    dialer, gate,
    gate::Doorkeeper,
    handshakes::{Handshake, Verdict},
    link::Link,
    mesh::Inner,
    refresh,
};

/// For a handshake of an incoming connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
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
                        let proven = incoming.remote_address_validated();
                        match inner.handshakes.judge(incoming.remote_address().ip(), proven) {
                            Verdict::Begin(handshake) => {
                                tasks.spawn(accept(inner.clone(), door.clone(), incoming, handshake));
                            }
                            // Fails only for a source that has proved its address, and this one has not.
                            Verdict::Prove => drop(incoming.retry()),
                            Verdict::Refuse => incoming.refuse(),
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
    let Some(contact) = Contact::new(conn, shown, &inner.traffic.sent) else { return };
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
