//! `skein start`: assembles a node with the columnar engine and the HTTP edge, and runs it until it
//! is told to stop or cannot go on.

mod gateway;
mod notify;

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::server::ResolvesServerCert;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use self::notify::Notifier;
use super::{Failure, StartArgs, install_logs, output, target::CA_FILE};
use crate::{
    config::{Config, Tls},
    engine::columnar::{ColumnarConfig, ColumnarEngine},
    http::{self, AppState, CertificateFiles, EdgeTls, Listeners},
    identity::{CaFiles, DataDir, JoinToken},
    node::{
        ADMIN_TOKEN_FILE, Gateway, MdnsConfig, Node, NodeConfig, NodeError, ScrubConfig, Surroundings,
        come_back,
    },
    telemetry::{Logging, Registry},
    transport::Socket,
    types::{ClusterView, NodeId},
};

/// Runs a node until SIGTERM or SIGINT (a second one does not wait), or until it cannot go on.
pub async fn run(args: StartArgs) -> Result<(), Failure> {
    let config = args.load()?;
    if args.check {
        return output::print(&config.to_toml());
    }
    let terminal = io::stderr().is_terminal();
    install_logs(&Logging::of(&config.log, terminal), terminal)?;
    let notifier = Notifier::from_env();
    notifier.iter().for_each(Notifier::starting);
    let token = join_token(&config)?;
    let dir = DataDir::open(&config.data.dir).map_err(|e| Failure::disk(e.to_string()))?;
    // Taken before anything is promised to anybody: a port in use is a mistake of the command line.
    let tcp = TcpListener::bind(config.http.listen).await.map_err(|e| {
        Failure::new(format!("cannot listen on http {}: {e}; choose another with --http", config.http.listen))
    })?;
    let http_addr = tcp.local_addr()?;
    let files = certificate_files(&config)?;
    let unix =
        http::bind_socket(&config.data.socket()).map_err(|e| tracing::warn!("no unix socket: {e}")).ok();
    let surroundings = Surroundings::real();
    come_back(&dir, &surroundings).await.map_err(failure)?;
    let mut stop = Stop::listen()?;
    if Gateway::is_meant(&dir, &surroundings, token.as_ref()).await.map_err(failure)? {
        let node_config = node_config(&config, dir, token, http_addr);
        let doors = gateway::Doors { tcp, unix, files, notifier };
        return gateway::run(&config, node_config, surroundings, doors, stop).await;
    }
    let engine_config = ColumnarConfig {
        flush_bytes: config.storage.flush_bytes.as_usize(),
        flush_age: config.storage.flush_age,
        compaction_memory: config.storage.compaction_memory.as_usize(),
        max_series: config.storage.max_series,
    };
    let engine_dir = config.data.dir.join("engine");
    let engine = ColumnarEngine::open(surroundings.disk.clone(), engine_dir, engine_config)
        .await
        .map_err(|e| Failure::disk(e.to_string()))?;

    let node = tokio::select! {
        started = Node::start(node_config(&config, dir, token, http_addr), surroundings, engine.clone()) => {
            started.map_err(failure)?
        }
        () = stop.asked() => return Ok(()),
    };
    let tls = edge_tls(&config, files, node.certificate())?;
    // Whoever started this node may have closed the pipe: that is no reason to stop.
    if let Err(error) = output::print(&ready(&node, &config, http_addr)) {
        tracing::debug!(%error, "standard output is closed");
    }
    let status = ready_line(node.id(), &node.view().borrow(), &config, http_addr);
    warn_if_open(&config, node.data_dir(), http_addr);
    keep_roots(node.data_dir(), node.view());

    let metrics = Registry::new();
    node.register_metrics(&metrics);
    let state = AppState {
        node: node.clone(),
        engine,
        metrics,
        config: Arc::new(config.http.clone()),
        now_ns: unix_nanos,
    };
    let (closing, mut closed) = watch::channel(false);
    let edge = tokio::spawn(http::serve(Listeners { tcp, unix, tls }, state, async move {
        // An error means that this function is gone, and the edge with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }));
    notifier.iter().for_each(|notifier| notifier.ready(&status));
    // A node that hangs does not come back from the second.
    let well = || node.live() && node.own_status().node == node.id();
    let end = tokio::select! {
        error = node.run() => Err(failure(error)),
        () = stop.asked() => Ok(()),
        () = tell_watchdog(notifier.as_ref(), well) => Ok(()),
    };
    notifier.iter().for_each(Notifier::stopping);
    if end.is_ok() {
        tracing::info!("stopping: handing over, then finishing what is under way");
        tokio::select! {
            () = async {
                node.hand_over().await;
                closing.send_replace(true);
                if let Err(error) = edge.await {
                    tracing::warn!(%error, "the HTTP edge did not end cleanly");
                }
                node.shutdown().await;
            } => {}
            () = stop.asked() => tracing::warn!("asked twice: stopping at once"),
        }
    }
    end
}

/// Never returns.
async fn tell_watchdog(notifier: Option<&Notifier>, well: impl Fn() -> bool) {
    match notifier {
        Some(notifier) => notifier.watch(well).await,
        None => std::future::pending().await,
    }
}

fn join_token(config: &Config) -> Result<Option<JoinToken>, Failure> {
    let Some(source) = &config.node.join else { return Ok(None) };
    let text = source.read(io::stdin()).map_err(|e| Failure::usage(e.to_string()))?;
    let token = text.parse::<JoinToken>().map_err(|e| Failure::usage(format!("--join: {e}")))?;
    Ok(Some(token))
}

fn node_config(config: &Config, dir: DataDir, join: Option<JoinToken>, http: SocketAddr) -> NodeConfig {
    NodeConfig {
        dir,
        name: config.node.name.clone(),
        role: config.node.role,
        join,
        ca: config
            .node
            .ca_cert
            .clone()
            .zip(config.node.ca_key.clone())
            .map(|(certificate, key)| CaFiles { certificate, key }),
        new_cluster: config.node.new_cluster,
        bootstrap_expect: config.node.bootstrap_expect,
        profile: config.node.profile,
        socket: Socket::Bind(config.mesh.listen),
        advertise: config.mesh.advertise.clone(),
        http: Some(http),
        seeds: config.discovery.seeds.clone(),
        mdns: config.discovery.mdns.then(|| MdnsConfig {
            allow: config.discovery.allow_interfaces.clone(),
            deny: config.discovery.deny_interfaces.clone(),
        }),
        segment_bytes: config.storage.wal_segment.0,
        keep_bytes: config.storage.wal_keep_bytes.0,
        scrub: ScrubConfig { interval: config.storage.scrub_interval, max_rate: config.storage.scrub_rate.0 },
    }
}

/// One line for programs; for a person who just founded a cluster, the line for the next node too.
fn ready(node: &Node, config: &Config, http: SocketAddr) -> String {
    let line = ready_line(node.id(), &node.view().borrow(), config, http);
    let Some(founded) = node.founded() else { return line };
    if !io::stdout().is_terminal() {
        return format!("{line}to add nodes, run: skein token create\n");
    }
    let minutes = founded.ttl.as_secs() / 60;
    let text = founded.token.reveal();
    format!(
        "{line}\nA new cluster. On the next machines (up to {}, within {minutes} minutes):\n\n  skein start --join {}\n\n\
         Across networks add --seed HOST:{}.\n",
        founded.uses,
        text.as_str(),
        node.mesh_addr().map_or(7400, |at| at.port()),
    )
}

fn ready_line(id: NodeId, view: &ClusterView, config: &Config, http: SocketAddr) -> String {
    let cluster = if view.name.is_empty() { "(learning)" } else { &view.name };
    let scheme = if config.http.is_encrypted() { "https" } else { "http" };
    format!("ready http={scheme}://{http} node={id} cluster={cluster}\n")
}

/// The certificate of one's own, if there is one: read before anything is promised to anybody.
fn certificate_files(config: &Config) -> Result<Option<Arc<CertificateFiles>>, Failure> {
    let (Some(cert), Some(key)) = (&config.http.cert, &config.http.key) else { return Ok(None) };
    let files = CertificateFiles::open(cert, key);
    files.map(Some).map_err(|e| Failure::usage(format!("--http-cert, --http-key: {e}")))
}

fn edge_tls(
    config: &Config,
    files: Option<Arc<CertificateFiles>>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<Option<EdgeTls>, Failure> {
    let tls = match (files, config.http.tls) {
        (Some(files), _) => EdgeTls::of_files(files).map(Some),
        (None, Tls::Node) => EdgeTls::of_node(certificate).map(Some),
        (None, Tls::Off) => Ok(None),
    };
    tls.map_err(|e| Failure::new(e.to_string()))
}

/// Leaves the cluster's roots in the data directory, for clients that are to trust its nodes, and again
/// whenever they change.
fn keep_roots(dir: &Path, view: watch::Receiver<Arc<ClusterView>>) {
    let left = leave_roots(dir, &view.borrow());
    // It ends with the process.
    drop(tokio::spawn(follow_roots(dir.to_owned(), view, left)));
}

/// What was left.
fn leave_roots(dir: &Path, view: &ClusterView) -> Vec<serde_bytes::ByteBuf> {
    let roots = view.roots.clone();
    if roots.is_empty() {
        // A member that has not heard yet keeps what it left at its last start.
        return roots;
    }
    let text = roots.iter().map(|root| pem(root)).collect::<String>();
    let (new, file) = (dir.join("ca.pem.new"), dir.join(CA_FILE));
    if let Err(error) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)) {
        tracing::warn!(%error, file = %file.display(), "the cluster's CA certificate is not left for clients");
    }
    roots
}

async fn follow_roots(
    dir: PathBuf,
    mut view: watch::Receiver<Arc<ClusterView>>,
    mut left: Vec<serde_bytes::ByteBuf>,
) {
    loop {
        match view.wait_for(|view| view.roots != left).await {
            Ok(view) => left = leave_roots(&dir, &view),
            Err(_) => return,
        }
    }
}

/// A certificate as text (RFC 7468).
fn pem(der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}

fn warn_if_open(config: &Config, dir: &Path, http: SocketAddr) {
    if http.ip().is_loopback() {
        return;
    }
    if !config.http.is_encrypted() {
        tracing::warn!(
            %http,
            "API tokens and data travel in the clear on this address: --http-tls node, or --http-cert and --http-key, \
             or a proxy that speaks TLS"
        );
    }
    if config.http.open {
        tracing::warn!(%http, "--http-open: everybody who reaches this address may write and query");
    } else {
        let file = dir.join(ADMIN_TOKEN_FILE);
        tracing::info!(
            %http,
            "requests from other machines need an API token; the first lies in {} on the node that made the cluster",
            file.display()
        );
    }
}

pub(super) fn failure(error: NodeError) -> Failure {
    if error.is_usage() {
        Failure::usage(error.to_string())
    } else if error.is_disk() {
        Failure::disk(error.to_string())
    } else {
        Failure::new(error.to_string())
    }
}

fn unix_nanos() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Stop {
    pub(super) fn listen() -> Result<Self, Failure> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
