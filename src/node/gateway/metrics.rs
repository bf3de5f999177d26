//! What a gateway counts of itself, for `/metrics`. Read when asked.

use super::Gateway;
use crate::{node::metrics::show_mesh, telemetry::Registry};

impl Gateway {
    /// Registers this gateway's gauges.
    pub fn register_metrics(&self, registry: &Registry) {
        let gauge = |name: &'static str, help: &'static str, read: fn(&Gateway) -> f64| {
            let gateway = self.clone();
            registry.read_gauge(name, help, &[], move || read(&gateway));
        };
        gauge(
            "skein_gateway_view_age_seconds",
            "How long ago this gateway heard the node whose view it follows; -1 if it never has.",
            |gateway| gateway.heard().map_or(-1.0, |(_, age)| age.as_secs_f64()),
        );
        gauge(
            "skein_gateway_requests_passed_on",
            "Requests of clients that other nodes are answering now.",
            |gateway| gateway.inner.asker.choice.running() as f64,
        );
        gauge("skein_links", "Peers this node has a link to.", |gateway| {
            gateway.inner.this.mesh.links().borrow().len() as f64
        });
        gauge("skein_certificate_days_left", "Days until this node's certificate expires.", |gateway| {
            gateway.inner.this.status().cert_days_left as f64
        });
        gauge("skein_ready", "1 when /readyz says yes.", |gateway| {
            f64::from(u8::from(gateway.readiness().ready))
        });
        show_mesh(&self.inner.this.mesh, &self.inner.submitter, registry);
        registry.show_counter(
            "skein_gateway_passed_over_total",
            "How often another node was asked because one did not answer, or not now.",
            &[],
            &self.inner.asker.passed_over,
        );
    }
}
