//! Dialling mesh addresses as a node of no cluster: who is there, without joining anything. For
//! `skein discover` and `skein doctor`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::{sync::watch, time::Instant};

use super::Failure;
use crate::{
    identity::{Identity, NodeKey},
    node::{Surroundings, VERSION},
    transport::{Mesh, MeshConfig, Router, Socket},
    types::{Addresses, BootId, ClusterView, NodeId, TimingProfile},
};

/// Who answers at a mesh address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) node: NodeId,
    /// It shows the certificate of a cluster.
    pub(super) member: bool,
    pub(super) took: Duration,
}

/// Dials all at once, from a UDP port of its own; each with why nobody answers there.
pub(super) async fn dial_all(addresses: &[SocketAddr]) -> Result<Vec<Result<Answers, String>>, Failure> {
    let surroundings = Surroundings::real();
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("cannot dial: {error}"));
    let key = NodeKey::from_seed(&surroundings.random()).map_err(|e| failed(&e))?;
    let identity = Identity::stranger(key, surroundings.unix_seconds()).map_err(|e| failed(&e))?;
    let clock = surroundings.clone();
    let config = MeshConfig {
        socket: Socket::Bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into()),
        timing: TimingProfile::Lan.timing(),
        addresses: watch::channel(Addresses::default()).1,
        version: VERSION.to_owned(),
        features: 0,
        boot: BootId(0),
        clock: Arc::new(move || clock.unix_seconds()),
    };
    let view = watch::channel(Arc::new(ClusterView::default())).1;
    let (mesh, driver) =
        Mesh::bind(config, Arc::new(identity), view, Router::new()).map_err(|e| failed(&e))?;
    let driver = tokio::spawn(driver.run());
    let answers = join_all(addresses.iter().map(|address| dial(&mesh, *address))).await;
    driver.abort();
    Ok(answers)
}

async fn dial(mesh: &Mesh, address: SocketAddr) -> Result<Answers, String> {
    let since = Instant::now();
    let link = mesh.dial_stranger(address).await.map_err(|error| error.to_string())?;
    // A member shows the certificate of its cluster as well.
    let member = link.peer_certificates().len() > 1;
    Ok(Answers { node: link.node(), member, took: since.elapsed() })
}
