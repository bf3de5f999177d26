//! The node's certificate, for another door that shows it: the HTTP edge.

use std::sync::Arc;

use rustls::server::ResolvesServerCert;

use super::handle::Node;

impl Node {
    /// What shows the certificate that the cluster has given this node, the newest at each
    /// handshake. It hands out neither the key nor its signature on anything else.
    pub fn certificate(&self) -> Arc<dyn ResolvesServerCert> {
        self.this().identity.clone()
    }
}
