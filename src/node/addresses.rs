//! Which addresses this node tells its peers. Hints only.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    discovery::interfaces::{self, Rules},
    transport::Socket,
    types::Addresses,
};

use super::{NodeConfig, NodeError};

/// Between two looks at whether this machine has other addresses by now.
const LOOK: Duration = Duration::from_secs(2);

/// What the node listens on and may say of it.
#[derive(Debug, Clone)]
pub(super) struct Listen {
    pub(super) rules: Rules,
    advertise: Vec<SocketAddr>,
    http: Option<SocketAddr>,
}

impl Listen {
    pub(super) fn new(config: &NodeConfig) -> Self {
        let bind = match &config.socket {
            Socket::Bind(address) => address.ip(),
            Socket::Abstract { socket, .. } => {
                socket.local_addr().map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
            }
        };
        let named = config.mdns.clone().unwrap_or_default();
        Self {
            rules: Rules { bind, allow: named.allow, deny: named.deny },
            advertise: config.advertise.clone(),
            http: config.http,
        }
    }

    /// The addresses at this moment, given the port the mesh is bound to.
    pub(super) fn addresses(&self, port: u16) -> Result<Addresses, NodeError> {
        let mesh = if !self.advertise.is_empty() {
            self.advertise.clone()
        } else if !self.rules.bind.is_unspecified() {
            vec![SocketAddr::new(self.rules.bind, port)]
        } else {
            let there = interfaces::of_this_machine()
                .map_err(|e| NodeError::Task(format!("cannot list network interfaces: {e}")))?;
            interfaces::choose(&there, &self.rules)
                .into_iter()
                .map(|nic| nic.address)
                // A link-local address means nothing without the interface it belongs to.
                .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
                .map(|ip| SocketAddr::new(ip, port))
                .collect()
        };
        Ok(Addresses { mesh, http: self.http })
    }

    /// Whether the addresses are those of the machine, which may get others at any time.
    fn follows_the_machine(&self) -> bool {
        self.advertise.is_empty() && self.rules.bind.is_unspecified()
    }
}

/// Keeps `out` true while the machine gets other addresses under the running node: whoever reads it tells
/// the cluster. Links need no such help, they are found by mDNS and by what peers see of each other.
pub(super) async fn follow(
    listen: Listen,
    port: u16,
    out: watch::Sender<Addresses>,
) -> Result<(), NodeError> {
    while listen.follows_the_machine() {
        tokio::time::sleep(LOOK).await;
        match listen.addresses(port) {
            Ok(now) => note(&out, now),
            Err(error) => tracing::debug!(%error, "own addresses are not known at the moment"),
        }
    }
    // Whoever watches must not find the sender gone.
    out.closed().await;
    std::future::pending().await
}

/// A machine that has no address for a moment is between two of them: nobody could reach it at none, or at
/// its loopback, so the last ones stay until there are others.
fn note(out: &watch::Sender<Addresses>, now: Addresses) {
    let reachable = |all: &Addresses| all.mesh.iter().any(|address| !address.ip().is_loopback());
    let changed = out.send_if_modified(|told| {
        let better = *told != now && (reachable(&now) || !reachable(told));
        if better {
            *told = now;
        }
        better
    });
    if changed {
        tracing::info!(mesh = ?out.borrow().mesh, "this node has other addresses now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_addresses_are_told_and_none_is_no_address() {
        let at = |text: &str| Addresses { mesh: vec![text.parse().unwrap()], http: None };
        let (out, mut told) = watch::channel(at("192.0.2.1:7400"));
        for (now, is_told) in [
            (at("192.0.2.1:7400"), false),
            (Addresses::default(), false),
            (at("127.0.0.1:7400"), false),
            (at("192.0.2.2:7400"), true),
        ] {
            note(&out, now.clone());
            assert_eq!(told.has_changed().unwrap(), is_told, "{now:?}");
            assert_eq!(*told.borrow_and_update() == now, is_told || now == at("192.0.2.1:7400"));
        }
        // Started without a network: anything is better.
        let (out, told) = watch::channel(Addresses::default());
        note(&out, at("127.0.0.1:7400"));
        assert_eq!(*told.borrow(), at("127.0.0.1:7400"));
    }
}
