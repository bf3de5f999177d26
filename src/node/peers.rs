//! Candidate addresses from everywhere: saved peers, seeds, mDNS. They are handed to the dialer,
//! which finds out by certificate who is there.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::sync::watch;

use crate::{
    discovery::{Candidates, Seed},
    identity::ClusterRecord,
    protocol::{
        StreamKind,
        status::{NodeStatus, StatusRequest},
    },
    transport::Mesh,
    types::{ClusterId, ClusterView, NodeId},
};

use super::{NodeConfig, addresses::Listen, tasks::Tasks};

/// Seeds are resolved again this often.
const RESOLVE: Duration = Duration::from_secs(2);
/// Longest wait for what a peer knows of others.
const ASK: Duration = Duration::from_millis(500);

/// What discovery finds.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    /// Who announces itself on the LAN; `None` when mDNS is off or does not work.
    pub(super) sightings: Option<watch::Receiver<Candidates>>,
    /// Interfaces mDNS uses, for messages.
    pub(super) interfaces: Vec<String>,
}

impl Peers {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn start(
        config: &NodeConfig,
        me: NodeId,
        listen: &Listen,
        port: u16,
        mesh: &Mesh,
        view: &watch::Receiver<Arc<ClusterView>>,
        record: Option<&ClusterRecord>,
        tasks: &Tasks,
    ) -> Self {
        let (cluster_out, cluster) = watch::channel(record.map(|record| record.cluster));
        let sightings = start_mdns(config, me, listen, port, cluster, tasks);
        let mut seeds: Vec<Seed> = config.seeds.iter().filter_map(|text| text.parse().ok()).collect();
        if let Some(token) = &config.join {
            seeds.extend(token.seeds().iter().filter_map(|text| text.parse::<Seed>().ok()));
        }
        let saved = record.map(|record| record.peers.clone()).unwrap_or_default();
        let (mesh, heard, mut view) = (mesh.clone(), sightings.clone(), view.clone());
        tasks.spawn("discovery", async move {
            loop {
                // What mDNS announces follows the cluster this node is in.
                let known = Some(view.borrow_and_update().cluster).filter(|id| *id != ClusterId::default());
                cluster_out
                    .send_if_modified(|said| known.is_some() && std::mem::replace(said, known) != known);
                let mut found = collect(&saved, &seeds, heard.as_ref(), known).await;
                let members = view.borrow().clone();
                found.extend(hearsay(&mesh, me, &members).await);
                mesh.set_candidates(found);
                let again = tokio::time::sleep(RESOLVE);
                match heard.clone() {
                    Some(mut heard) => {
                        heard.mark_unchanged();
                        tokio::select! {
                            () = again => {}
                            // A closed channel never wakes this loop again; the timer does.
                            Ok(()) = heard.changed() => {}
                            Ok(()) = view.changed() => {}
                        }
                    }
                    None => again.await,
                }
            }
        });
        let interfaces = crate::discovery::interfaces::of_this_machine()
            .map(|there| crate::discovery::interfaces::choose(&there, &listen.rules))
            .unwrap_or_default()
            .into_iter()
            .map(|nic| nic.name)
            .collect::<BTreeSet<_>>();
        Self { sightings, interfaces: interfaces.into_iter().collect() }
    }
}

async fn collect(
    saved: &[SocketAddr],
    seeds: &[Seed],
    heard: Option<&watch::Receiver<Candidates>>,
    cluster: Option<ClusterId>,
) -> Vec<SocketAddr> {
    let mut found: BTreeSet<SocketAddr> = saved.iter().copied().collect();
    for seed in seeds {
        match seed.resolve().await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => tracing::debug!(%seed, %error, "seed does not resolve"),
        }
    }
    if let Some(heard) = heard {
        let heard = heard.borrow();
        let ours = |other: Option<ClusterId>| cluster.is_none() || other.is_none() || other == cluster;
        found.extend(heard.values().filter(|c| ours(c.cluster)).flat_map(|c| c.addresses.iter().copied()));
    }
    found.into_iter().collect()
}

/// Where linked peers see the members that this node has no link to. When all addresses have changed
/// at once, two nodes may know a third and not each other; without a link to the leader, neither's
/// new address would come into the member records.
async fn hearsay(mesh: &Mesh, me: NodeId, view: &ClusterView) -> Vec<SocketAddr> {
    let links = mesh.links().borrow().clone();
    let lost = |id: &NodeId| *id != me && view.members.contains_key(id) && !links.contains_key(id);
    if !view.members.keys().any(lost) {
        return Vec::new();
    }
    let asked = links.keys().map(|peer| async move {
        mesh.request::<_, NodeStatus>(*peer, StreamKind::Status, &StatusRequest::default(), ASK).await.ok()
    });
    let heard = join_all(asked).await.into_iter().flatten().flat_map(|status| status.linked_at);
    heard.filter(|(id, _)| lost(id)).flat_map(|(_, addresses)| addresses).collect()
}

#[cfg(feature = "mdns")]
fn start_mdns(
    config: &NodeConfig,
    me: NodeId,
    listen: &Listen,
    port: u16,
    cluster: watch::Receiver<Option<ClusterId>>,
    tasks: &Tasks,
) -> Option<watch::Receiver<Candidates>> {
    use crate::discovery::mdns::{Announcement, Mdns};
    config.mdns.as_ref()?;
    let announcement = Announcement {
        node: me,
        cluster: *cluster.borrow(),
        port,
        version: super::local::VERSION.to_owned(),
    };
    match Mdns::start(announcement, listen.rules.clone()) {
        Ok(mdns) => {
            let candidates = mdns.candidates();
            tasks.spawn("mdns", async move {
                mdns.run(cluster).await;
                // It ends when multicast stops working; seeds go on.
                tracing::warn!("mDNS has stopped; peers are found by seeds and saved addresses only");
                std::future::pending().await
            });
            Some(candidates)
        }
        Err(error) => {
            tracing::warn!(%error, "mDNS does not work here; use --seed HOST:PORT");
            None
        }
    }
}

#[cfg(not(feature = "mdns"))]
fn start_mdns(
    _: &NodeConfig,
    _: NodeId,
    _: &Listen,
    _: u16,
    _: watch::Receiver<Option<ClusterId>>,
    _: &Tasks,
) -> Option<watch::Receiver<Candidates>> {
    None
}
