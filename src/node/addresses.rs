//! Which addresses this node tells its peers. Hints only.

use std::net::{IpAddr, SocketAddr};

use crate::{
    discovery::interfaces::{self, Rules},
    transport::Socket,
    types::Addresses,
};

use super::{NodeConfig, NodeError};

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
}
