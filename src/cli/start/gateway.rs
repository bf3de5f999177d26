//! `skein start` of a gateway: no engine, no log; an HTTP edge whose data is elsewhere.

use std::sync::Arc;

use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::{
    Failure, Notifier, Stop, edge_tls, failure, keep_roots, output, ready_line, tell_watchdog, unix_nanos,
    warn_if_open,
};
use crate::{
    config::Config,
    http::{self, CertificateFiles, GatewayState, Listeners},
    node::{Gateway, NodeConfig, Surroundings},
    telemetry::Registry,
};

/// What was opened before anything was promised to anybody.
pub(super) struct Doors {
    pub(super) tcp: TcpListener,
    pub(super) unix: Option<UnixListener>,
    pub(super) files: Option<Arc<CertificateFiles>>,
    pub(super) notifier: Option<Notifier>,
}

/// Runs a gateway until SIGTERM or SIGINT, or until it cannot go on.
pub(super) async fn run(
    config: &Config,
    node: NodeConfig,
    surroundings: Surroundings,
    doors: Doors,
    mut stop: Stop,
) -> Result<(), Failure> {
    let Doors { tcp, unix, files, notifier } = doors;
    let http_addr = tcp.local_addr()?;
    let gateway = tokio::select! {
        started = Gateway::start(node, surroundings, config.http.balance) => started.map_err(failure)?,
        () = stop.asked() => return Ok(()),
    };
    let tls = edge_tls(config, files, gateway.certificate())?;
    let view = gateway.view().borrow().clone();
    let status = ready_line(gateway.id(), &view, config, http_addr);
    if let Err(error) = output::print(&status) {
        tracing::debug!(%error, "standard output is closed");
    }
    warn_if_open(config, gateway.data_dir(), http_addr);
    keep_roots(gateway.data_dir(), gateway.view());

    let metrics = Registry::new();
    gateway.register_metrics(&metrics);
    let state = GatewayState {
        gateway: gateway.clone(),
        metrics,
        config: Arc::new(config.http.clone()),
        now_ns: unix_nanos,
    };
    let (closing, mut closed) = watch::channel(false);
    let edge = tokio::spawn(http::serve_gateway(Listeners { tcp, unix, tls }, state, async move {
        // An error means that this function is gone, and the edge with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }));
    notifier.iter().for_each(|notifier| notifier.ready(&status));
    tokio::select! {
        error = gateway.run() => return Err(failure(error)),
        () = stop.asked() => {}
        // Nothing here can hang but the runtime, and then this does too.
        () = tell_watchdog(notifier.as_ref(), || true) => {}
    }
    notifier.iter().for_each(Notifier::stopping);
    tracing::info!("stopping: finishing what is under way");
    tokio::select! {
        () = async {
            closing.send_replace(true);
            if let Err(error) = edge.await {
                tracing::warn!(%error, "the HTTP edge did not end cleanly");
            }
            gateway.shutdown().await;
        } => {}
        () = stop.asked() => tracing::warn!("asked twice: stopping at once"),
    }
    Ok(())
}
