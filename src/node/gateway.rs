//! A member without data: [`Gateway`]. It is in the list of members and not in raft, has no log and no
//! engine, and follows the view of any node with data. Writes it forwards to the writer as any edge does;
//! what else clients ask it passes on.

mod ask;
mod choice;
mod feed;
mod metrics;
#[cfg(test)]
mod tests;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use rand::RngCore;
use tokio::{sync::watch, time::timeout};

pub(super) use self::ask::Asker;
pub use self::{
    ask::{Answer, AskError, Piece},
    choice::Errand,
};
use self::{feed::Feed, feed::Heard};
use super::{
    NodeConfig, NodeError,
    assembly::clear_unfinished,
    become_member::{self, Newcomer, Place, Settled},
    footing::Footing,
    late::LateHandlers,
    local::{VERSION, features},
    readiness::Readiness,
    surroundings::Surroundings,
    tasks::Tasks,
    traffic::Traffic,
    upkeep,
};
use crate::{
    identity::{DataDir, Identity, JoinToken, Store},
    join::Renewal,
    protocol::{
        StreamKind,
        frame::MAX_MESSAGE,
        http::HttpRequest,
        status::{Following, NodeStatus, StatusRequest},
    },
    raft::{Command, forward_command},
    transport::{Handler, Mesh, Peer, Stream},
    types::{Addresses, Balance, BootId, ClusterView, Lsn, MembershipId, NodeId, Role},
    write_path::{Receipt, SubmitError, Submitter, Write},
};

/// What a gateway serves to other members.
const KINDS: [StreamKind; 1] = [StreamKind::Status];
/// Between two looks at whether the cluster knows this gateway's addresses.
const TELL: Duration = Duration::from_secs(1);
/// Bound of telling it.
const AGREE: Duration = Duration::from_secs(5);
/// How long the closing of connections may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// A running gateway; clones are the same gateway.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    dir: DataDir,
    this: Arc<ThisGateway>,
    submitter: Arc<Submitter>,
    asker: Asker,
    tasks: Tasks,
    stopping: watch::Sender<bool>,
    _late: LateHandlers,
}

/// This gateway, for itself.
struct ThisGateway {
    identity: Arc<Identity>,
    boot: BootId,
    mesh: Mesh,
    view: watch::Receiver<Arc<ClusterView>>,
    heard: watch::Receiver<Option<Heard>>,
    addresses: watch::Receiver<Addresses>,
    surroundings: Surroundings,
    traffic: Traffic,
}

impl Gateway {
    /// Whether a data directory is a gateway's, or becomes one's by this join token.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn is_meant(
        dir: &DataDir,
        surroundings: &Surroundings,
        join: Option<&JoinToken>,
    ) -> Result<bool, NodeError> {
        let record = Store::new(surroundings.disk.clone(), dir.path()).cluster().await?;
        Ok(match record {
            Some(record) => record.gateway,
            None => join.is_some_and(|token| token.role() == Role::Gateway),
        })
    }

    /// Starts a gateway: rejoins, or joins by a token for gateways. Returns when it is a member and its
    /// parts run; one that nobody lets in waits here, and says what for in the log. What a
    /// [`NodeConfig`] says of logs and engines is not used.
    ///
    /// # Errors
    /// The data directory, or the token, is of a node with data; or as [`super::Node::start`].
    pub async fn start(
        config: NodeConfig,
        surroundings: Surroundings,
        balance: Balance,
    ) -> Result<Self, NodeError> {
        let footing = Footing::lay(&config, &surroundings, &KINDS).await?;
        let place = become_member::decide(&config, footing.record.clone(), &footing.peers).await?;
        match &place {
            Place::Carrier(..) => {
                let says = "the first nodes of a cluster are voters: a gateway joins with --join alone";
                return Err(NodeError::Usage(says.to_owned()));
            }
            place if !place.is_gateway() => {
                let says = "a gateway needs a join token for gateways, and a data directory of its own: make one \
                            with `skein token create --role gateway`";
                return Err(NodeError::Usage(says.to_owned()));
            }
            Place::Joiner(_) => clear_unfinished(&surroundings, config.dir.path()).await?,
            Place::Member(_) | Place::Founder => {}
        }
        let newcomer = Newcomer {
            config: &config,
            store: &footing.store,
            identity: &footing.identity,
            seal_key: &footing.seal_key,
            surroundings: &surroundings,
            addresses: &footing.addresses,
            mesh: &footing.mesh,
            peers: &footing.peers,
            view: &footing.view_out,
        };
        let (Settled::Member(record) | Settled::Joined(record)) =
            newcomer.settle(place, &footing.late).await?
        else {
            return Err(NodeError::Task("a gateway cannot make a cluster".to_owned()));
        };
        tracing::info!(cluster = record.name, "a gateway: no log, no data; requests go to other nodes");
        Ok(Self::assemble(config, surroundings, footing, balance))
    }

    fn assemble(config: NodeConfig, surroundings: Surroundings, footing: Footing, balance: Balance) -> Self {
        let Footing { store, seal_key, boot, identity, tasks, late, view_out, addresses, mesh, .. } = footing;
        let (view, me) = (view_out.subscribe(), identity.node());
        let (heard_out, heard) = watch::channel(None);
        let feed =
            Feed { me, mesh: mesh.clone(), store: store.clone(), view: view_out.clone(), heard: heard_out };
        tasks.spawn("view", async move {
            feed.run().await;
            Ok(())
        });
        let this = Arc::new(ThisGateway {
            identity: identity.clone(),
            boot,
            mesh: mesh.clone(),
            view: view.clone(),
            heard,
            addresses,
            surroundings: surroundings.clone(),
            traffic: Traffic::default(),
        });
        late.fill(StreamKind::Status, Arc::new(StatusOfGateway(this.clone())));
        let renewal = Renewal {
            signer: upkeep::signer(identity, Arc::new(seal_key), &surroundings),
            control: None,
            view: view_out,
            mesh: mesh.clone(),
            store: store.clone(),
            jitter: f64::from(surroundings.rng().next_u32()) / f64::from(u32::MAX),
        };
        tasks.spawn("renewal", async move {
            renewal.run().await;
            Ok(())
        });
        tasks.spawn("addresses", tell_addresses(this.clone()));
        tasks.spawn("version", upkeep::knows_the_cluster(view.clone()));
        tasks.spawn("removal", upkeep::notice_removal(me, mesh.clone(), view.clone(), store.clone()));
        tasks.spawn("recovery", upkeep::notice_recovery(mesh.clone(), store));

        let (stopping_out, stopping) = watch::channel(false);
        let submitter = Submitter::forwarding((me, boot), view.clone(), mesh.clone(), stopping);
        let asker = Asker::new(mesh, view, balance);
        let dir = config.dir;
        Self {
            inner: Arc::new(Inner {
                dir,
                this,
                submitter,
                asker,
                tasks,
                stopping: stopping_out,
                _late: late,
            }),
        }
    }

    /// This gateway.
    pub fn id(&self) -> NodeId {
        self.inner.this.identity.node()
    }

    /// Where its keys and its certificate lie.
    pub fn data_dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// Its mesh address, as bound.
    pub fn mesh_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.inner.this.mesh.local_addr()
    }

    /// The cluster as the node that is followed last showed it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.inner.this.view.clone()
    }

    /// How long ago the view was heard of, and from whom; none since the start.
    pub fn heard(&self) -> Option<(NodeId, Duration)> {
        let heard = *self.inner.this.heard.borrow();
        heard.map(|heard| (heard.from, heard.at.elapsed()))
    }

    /// True while the view is not older than three election times: what it does not show has not been
    /// agreed upon long before.
    pub fn is_current(&self) -> bool {
        let silence = self.inner.this.view.borrow().profile.timing().view_silence();
        self.heard().is_some_and(|(_, age)| age <= silence)
    }

    /// Brings a write to the writer. See [`Submitter::submit`].
    ///
    /// # Errors
    /// As [`super::Node::submit`].
    pub async fn submit(&self, write: Write) -> Result<Receipt, SubmitError> {
        self.inner.submitter.submit(write).await
    }

    /// Passes a request on to a node with data, and to the next one if that does not answer. Dropping the
    /// future, or the answer, ends the work on it.
    ///
    /// # Errors
    /// Nobody answered.
    pub async fn ask(&self, errand: Errand, request: &HttpRequest, body: &Bytes) -> Result<Answer, AskError> {
        self.inner.asker.ask(errand, request, body).await
    }

    /// Whether this gateway should get requests: a member, and its view heard within three election
    /// times, from a node that is ready itself.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if *self.inner.stopping.borrow() {
            reasons.push("stopping".to_owned());
        }
        if !self.inner.this.view.borrow().members.contains_key(&self.id()) {
            reasons.push("the cluster state has not arrived yet".to_owned());
        }
        let heard = *self.inner.this.heard.borrow();
        match heard {
            None => reasons.push("no node with data has shown its view of the cluster yet".to_owned()),
            Some(heard) if !self.is_current() => {
                let ms = heard.at.elapsed().as_millis();
                reasons.push(format!(
                    "no node with data has been heard for {ms} ms; the last was {}",
                    heard.from
                ));
            }
            Some(heard) if !heard.ready => {
                reasons.push(format!("{}, whose view this gateway follows, is not ready", heard.from));
            }
            Some(_) => {}
        }
        Readiness::of(reasons)
    }

    /// Milliseconds since 1970, by the clock of its surroundings.
    pub fn unix_ms(&self) -> u64 {
        self.inner.this.surroundings.unix_ms()
    }

    /// Where the edge counts what clients do; the counts are told with the status.
    pub fn traffic(&self) -> &Traffic {
        &self.inner.this.traffic
    }

    /// What shows the certificate that the cluster has given this gateway, the newest at each handshake.
    pub fn certificate(&self) -> Arc<dyn rustls::server::ResolvesServerCert> {
        self.inner.this.identity.clone()
    }

    /// Runs until the gateway cannot go on, and says why. Cancel-safe: stop it with [`Self::shutdown`].
    pub async fn run(&self) -> NodeError {
        self.inner.tasks.first_end().await
    }

    /// Stops: takes no more writes and closes the mesh. There is nothing to hand over and nothing to save.
    pub async fn shutdown(&self) {
        self.inner.stopping.send_replace(true);
        self.inner.this.mesh.close("stopping");
        // What is closed is closed; peers that miss it find out by their own timeout.
        let _ = timeout(FAREWELL, self.inner.this.mesh.closed()).await;
        self.inner.tasks.abort_all();
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl ThisGateway {
    /// What it says of itself: it has no positions.
    fn status(&self) -> NodeStatus {
        let links = self.mesh.links().borrow().clone();
        let now = i64::try_from(self.surroundings.unix_seconds()).unwrap_or(i64::MAX);
        let not_after = i64::try_from(self.identity.certificate().not_after).unwrap_or(i64::MAX);
        let heard = *self.heard.borrow();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let age = heard.map(|heard| u64::try_from(heard.at.elapsed().as_millis()).unwrap_or(u64::MAX));
        NodeStatus {
            node: self.identity.node(),
            boot: self.boot,
            promise: 0,
            office: None,
            durable: Lsn::ZERO,
            commit: Lsn::ZERO,
            applied: Lsn::ZERO,
            flushed: Lsn::ZERO,
            disk_troubled: false,
            marked: MembershipId::default(),
            linked: links.keys().copied().collect(),
            linked_at: links.iter().map(|(peer, link)| (*peer, link.reached_at())).collect(),
            addresses: self.addresses.borrow().clone(),
            version: VERSION.to_owned(),
            cert_days_left: (not_after - now).div_euclid(86_400),
            draining: false,
            repairing: None,
            quarantined: 0,
            rtt_us: links.iter().map(|(peer, link)| (*peer, micros(link.rtt()))).collect(),
            sent: links.iter().map(|(peer, link)| (*peer, link.sent().all())).collect(),
            stale_ms: None,
            unix_ms: self.surroundings.unix_ms(),
            points: self.traffic.points.get(),
            queries: self.traffic.queries.get(),
            fetching: None,
            damaged: None,
            damaged_files: 0,
            scrubbed: None,
            successor: None,
            follows: Some(Following { node: heard.map(|heard| heard.from), age_ms: age }),
        }
    }
}

/// Handles `Status` streams.
struct StatusOfGateway(Arc<ThisGateway>);

impl Handler for StatusOfGateway {
    fn handle(&self, _: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let this = self.0.clone();
        Box::pin(async move {
            let asked = stream.recv.read_message::<StatusRequest>(MAX_MESSAGE).await;
            if asked.is_ok() && stream.send.write_message(&this.status()).await.is_ok() {
                let _ = stream.send.finish();
            }
        })
    }
}

/// Keeps the member record true: addresses, version, features.
async fn tell_addresses(this: Arc<ThisGateway>) -> Result<(), NodeError> {
    loop {
        let view = this.view.borrow().clone();
        let own = this.addresses.borrow().clone();
        let known = view.members.get(&this.identity.node());
        let differs = known.is_some_and(|member| {
            member.addresses != own || member.version != VERSION || member.features != features()
        });
        if let (true, Some(leader)) = (differs, view.leader) {
            let update = Command::Update {
                node: this.identity.node(),
                addresses: own,
                certificate: None,
                version: VERSION.to_owned(),
                features: features(),
            };
            if let Err(error) = forward_command(&this.mesh, leader, update, AGREE).await {
                tracing::debug!(%error, "the cluster has not been told this gateway's addresses yet");
            }
        }
        tokio::time::sleep(TELL).await;
    }
}
