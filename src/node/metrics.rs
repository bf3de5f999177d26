//! What a node counts of itself, for `/metrics`. Read when asked, so that nothing has to be kept
//! in step.

use std::sync::atomic::Ordering;

use crate::{
    protocol::{Lane, StreamKind},
    raft::failover::Local,
    replication::snapshot_meter::SnapshotMeter,
    telemetry::{Counter, Registry},
    transport::Mesh,
    write_path::Submitter,
};

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
            "skein_ca_days_left",
            "Days until the root that signs certificates expires.",
            Box::new(|node| node.ca().roots.last().map_or(0.0, |root| root.days_left as f64)),
        );
        gauge(
            "skein_ca_roots",
            "Roots that are trusted: 2 while the CA is rotated.",
            Box::new(|node| node.ca().roots.len() as f64),
        );
        gauge(
            "skein_ca_rotation_waits_for",
            "Members that have to renew before the old root is retired; 0 while no rotation is under way.",
            Box::new(|node| node.ca().rotation.map_or(0.0, |rotation| rotation.waits_for.len() as f64)),
        );
        gauge(
            "skein_disk_full",
            "1 while the log's disk has no space for batches.",
            Box::new(|node| f64::from(u8::from(node.own_status().disk_troubled))),
        );
        gauge(
            "skein_apply_waits_for_room",
            "1 while records are not applied until a checkpoint has made room in memory.",
            Box::new(|node| f64::from(u8::from(node.this().apply.waits_for_room()))),
        );
        gauge(
            "skein_repairing",
            "1 while this node fetches records that were damaged here, and answers no seal.",
            Box::new(|node| f64::from(u8::from(node.own_status().repairing.is_some()))),
        );
        gauge(
            "skein_log_damaged",
            "1 while a record of this node's log is known to be damaged and not mended yet.",
            Box::new(|node| f64::from(u8::from(node.own_status().damaged.is_some()))),
        );
        gauge(
            "skein_log_damage_found",
            "Damaged records that were met in this node's log since the start.",
            Box::new(|node| node.this().findings.records.load(Ordering::Acquire) as f64),
        );
        gauge(
            "skein_damage_replaced",
            "How often since the start damaged data files were replaced from another node.",
            Box::new(|node| node.this().findings.replaced.load(Ordering::Acquire) as f64),
        );
        gauge(
            "skein_scrubbed_bytes",
            "Bytes of log and data files that were read again and verified since the start.",
            Box::new(|node| node.this().findings.scrub.bytes.load(Ordering::Acquire) as f64),
        );
        gauge(
            "skein_scrub_passes",
            "How often since the start everything that is stored was read again.",
            Box::new(|node| node.this().findings.scrub.passes.load(Ordering::Acquire) as f64),
        );
        gauge(
            "skein_scrub_findings",
            "Data files and sections of the log that a scrub found damaged or unreadable since the start.",
            Box::new(|node| node.this().findings.scrub.findings.load(Ordering::Acquire) as f64),
        );
        gauge(
            "skein_scrub_finished_timestamp_seconds",
            "When the last scrub came to its end, in seconds since 1970; 0 if none has since the start.",
            Box::new(|node| node.own_status().scrubbed.unwrap_or(0) as f64),
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
        registry.show_histogram(
            "skein_wal_group_seconds",
            "Time to write and sync a group of records of the log.",
            &[],
            self.this().replica.wal.group_seconds(),
        );
        registry.show_histogram(
            "skein_raft_group_seconds",
            "Time to write and sync a group of entries of raft's log.",
            &[],
            self.this().control.log_seconds(),
        );
        for (level, waits) in self.this().writer.waits().by_level() {
            registry.show_histogram(
                "skein_commit_seconds",
                "Time from letting a batch in to acknowledging it at this writer, by the level asked for.",
                &[("ack", level.as_str())],
                waits,
            );
        }
        show_mesh(&self.this().mesh, &self.inner.submitter, registry);
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
        let replica = self.this().replica.clone();
        registry.read_counter(
            "skein_replication_left_out_bytes_total",
            "Bytes of batches that this node had forwarded and did not need to be sent back in the log.",
            &[],
            move || replica.forwarded.left_out(),
        );
        gauge(
            "skein_ready",
            "1 when /readyz says yes.",
            Box::new(|node| f64::from(u8::from(node.readiness().ready))),
        );
    }
}

/// What nodes with data and gateways have alike.
pub(super) fn show_mesh(mesh: &Mesh, submitter: &Submitter, registry: &Registry) {
    registry.show_histogram(
        "skein_forward_seconds",
        "Time from sending a write to the writer to its answer.",
        &[],
        submitter.answers(),
    );
    for lane in Lane::ALL {
        let traffic = mesh.traffic().clone();
        registry.read_counter(
            "skein_mesh_sent_bytes_total",
            "Bytes of frames that were written to other nodes, by lane.",
            &[("lane", lane.as_str())],
            move || traffic.sent.get(lane),
        );
    }
    let streams = |by: &'static str, kind: StreamKind, count: &Counter| {
        registry.show_counter(
            "skein_mesh_streams_total",
            "Streams with other nodes, by kind and by who opened them.",
            &[("kind", kind.as_str()), ("opened", by)],
            count,
        );
    };
    mesh.traffic().opened().for_each(|(kind, count)| streams("here", kind, count));
    mesh.traffic().accepted().for_each(|(kind, count)| streams("there", kind, count));
}
