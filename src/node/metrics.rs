//! What a node counts of itself, for `/metrics`. Read when asked, so that nothing has to be kept
//! in step.

use crate::{raft::failover::Local, replication::snapshot_meter::SnapshotMeter, telemetry::Registry};

use super::Node;

impl Node {
    /// Registers this node's gauges.
    pub fn register_metrics(&self, registry: &Registry) {
        let gauge =
            |name: &'static str, help: &'static str, read: Box<dyn Fn(&Node) -> f64 + Send + Sync>| {
                let node = self.clone();
                registry.read_gauge(name, help, &[], move || read(&node));
            };
        gauge(
            "skein_wal_durable_seq",
            "Seq of the last record on this node's disk.",
            Box::new(|node| node.own_status().durable.seq as f64),
        );
        gauge(
            "skein_commit_seq",
            "Seq of the last record this node knows to be committed.",
            Box::new(|node| node.own_status().commit.seq as f64),
        );
        gauge(
            "skein_applied_seq",
            "Seq of the last record in this node's engine.",
            Box::new(|node| node.own_status().applied.seq as f64),
        );
        gauge(
            "skein_flushed_seq",
            "Seq of the last record in this node's checkpoint.",
            Box::new(|node| node.own_status().flushed.seq as f64),
        );
        gauge(
            "skein_promised_epoch",
            "Highest epoch this node has promised.",
            Box::new(|node| node.own_status().promise as f64),
        );
        gauge(
            "skein_is_writer",
            "1 while this process holds office as writer.",
            Box::new(|node| f64::from(u8::from(node.own_status().office.is_some()))),
        );
        gauge(
            "skein_is_leader",
            "1 while this node is the raft leader.",
            Box::new(|node| f64::from(u8::from(node.this().control.is_leader()))),
        );
        gauge(
            "skein_links",
            "Peers this node has a link to.",
            Box::new(|node| node.this().status().linked.len() as f64),
        );
        gauge(
            "skein_certificate_days_left",
            "Days until this node's certificate expires.",
            Box::new(|node| node.own_status().cert_days_left as f64),
        );
        gauge(
            "skein_disk_full",
            "1 while the log's disk has no space for batches.",
            Box::new(|node| f64::from(u8::from(node.own_status().disk_troubled))),
        );
        gauge(
            "skein_repairing",
            "1 while this node fetches records that were damaged here, and answers no seal.",
            Box::new(|node| f64::from(u8::from(node.own_status().repairing.is_some()))),
        );
        gauge(
            "skein_quarantined_bytes",
            "Bytes of this node's log that were damaged, or lay behind damage, and were set aside.",
            Box::new(|node| node.own_status().quarantined as f64),
        );
        gauge(
            "skein_snapshot_done_bytes",
            "Bytes that are here of the engine snapshot this node fetches, 0 if it fetches none.",
            Box::new(|node| node.own_status().fetching.map_or(0.0, |progress| progress.done as f64)),
        );
        gauge(
            "skein_snapshot_wanted_bytes",
            "Bytes of the engine snapshot this node fetches, 0 if it fetches none.",
            Box::new(|node| node.own_status().fetching.map_or(0.0, |progress| progress.total as f64)),
        );
        let counter = |name: &'static str, help: &'static str, read: fn(&SnapshotMeter) -> u64| {
            let replica = self.this().replica.clone();
            registry.read_counter(name, help, &[], move || read(&replica.meter));
        };
        counter(
            "skein_snapshot_sent_bytes_total",
            "Bytes of engine snapshots sent to other nodes.",
            SnapshotMeter::sent,
        );
        counter(
            "skein_snapshot_received_bytes_total",
            "Bytes of engine snapshots received.",
            SnapshotMeter::received,
        );
        gauge(
            "skein_ready",
            "1 when /readyz says yes.",
            Box::new(|node| f64::from(u8::from(node.readiness().ready))),
        );
    }
}
