//! Candidate addresses from everywhere: saved peers, seeds, mDNS. They are handed to the dialer,
//! which finds out by certificate who is there.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::sync::watch;

use crate::{
    discovery::{Candidates, Seed, turn},
    identity::ClusterRecord,
    protocol::{
        StreamKind,
        status::{NodeStatus, StatusRequest},
    },
    transport::{MAX_CANDIDATES, Mesh},
    types::{ClusterId, ClusterView, NodeId},
};

use super::{NodeConfig, addresses::Listen, tasks::Tasks};

/// Places kept for what is announced on the LAN, however much is known otherwise.
const ANNOUNCED: usize = 16;
/// Seeds are resolved again this often.
const RESOLVE: Duration = Duration::from_secs(2);
/// Least time between two looks at what is announced: whoever announces without end does not decide how
/// often this node dials.
const LEAST: Duration = Duration::from_millis(500);
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
        let sightings = start_mdns(config, me, listen, port, cluster, view.clone(), tasks);
        let mut seeds: Vec<Seed> = config.seeds.iter().filter_map(|text| text.parse().ok()).collect();
        if let Some(token) = &config.join {
            seeds.extend(token.seeds().iter().filter_map(|text| text.parse::<Seed>().ok()));
        }
        let saved = record.map(|record| record.peers.clone()).unwrap_or_default();
        let (mesh, heard, mut view) = (mesh.clone(), sightings.clone(), view.clone());
        tasks.spawn("discovery", async move {
            let mut round = 0;
            loop {
                // What mDNS announces follows the cluster this node is in.
                let known = Some(view.borrow_and_update().cluster).filter(|id| *id != ClusterId::default());
                cluster_out
                    .send_if_modified(|said| known.is_some() && std::mem::replace(said, known) != known);
                let mut trusted = collect(&saved, &seeds).await;
                let members = view.borrow().clone();
                trusted.extend(hearsay(&mesh, me, &members).await);
                let (named, others) = announced(heard.as_ref(), known, &members);
                mesh.set_candidates(in_turn(trusted, named, others, round));
                round += 1;
                let again = tokio::time::sleep(RESOLVE);
                match heard.clone() {
                    Some(mut heard) => {
                        heard.mark_unchanged();
                        tokio::select! {
                            () = again => {}
                            // A closed channel never wakes this loop again; the timer does.
                            Ok(()) = heard.changed() => tokio::time::sleep(LEAST).await,
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

/// What this node was told by its operator, or knows itself.
async fn collect(saved: &[SocketAddr], seeds: &[Seed]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for seed in seeds {
        match seed.resolve().await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => tracing::debug!(%seed, %error, "seed does not resolve"),
        }
    }
    found.extend(saved);
    found
}

/// What anybody on the LAN says: addresses in the name of a member, and all others.
fn announced(
    heard: Option<&watch::Receiver<Candidates>>,
    cluster: Option<ClusterId>,
    view: &ClusterView,
) -> (BTreeSet<SocketAddr>, BTreeSet<SocketAddr>) {
    let Some(heard) = heard else { return Default::default() };
    let ours = |other: Option<ClusterId>| cluster.is_none() || other.is_none() || other == cluster;
    let (mut named, mut others) = (BTreeSet::new(), BTreeSet::new());
    for (id, candidate) in heard.borrow().iter().filter(|(_, candidate)| ours(candidate.cluster)) {
        let whose = if view.members.contains_key(id) { &mut named } else { &mut others };
        whose.extend(&candidate.addresses);
    }
    others.retain(|address| !named.contains(address));
    (named, others)
}

/// As many as are dialled at once: whoever announces any number of addresses takes no place from those
/// that this node was told or knows, and his own are tried in turn with everybody's. Half of the places
/// for what is announced are for addresses in a member's name: there are only so many members.
fn in_turn(
    mut trusted: Vec<SocketAddr>,
    named: BTreeSet<SocketAddr>,
    others: BTreeSet<SocketAddr>,
    round: usize,
) -> Vec<SocketAddr> {
    if !(named.is_empty() && others.is_empty()) {
        trusted.truncate(MAX_CANDIDATES - ANNOUNCED);
    }
    let room = MAX_CANDIDATES.saturating_sub(trusted.len());
    let for_named = if others.is_empty() { room } else { (room / 2).max(room.saturating_sub(others.len())) };
    let named = turn(named, for_named, round);
    let others = turn(others, room - named.len(), round);
    trusted.into_iter().chain(named).chain(others).collect()
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
    view: watch::Receiver<Arc<ClusterView>>,
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
                mdns.run(cluster, view).await;
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
    _: watch::Receiver<Arc<ClusterView>>,
    _: &Tasks,
) -> Option<watch::Receiver<Candidates>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32) -> SocketAddr {
        SocketAddr::from((n.to_be_bytes(), 7400))
    }

    #[test]
    fn ten_thousand_forged_announcements_take_no_place_from_what_is_known() {
        // Lower than every honest address, so that no order of addresses helps.
        let forged = 0x0100_0000..0x0100_0000 + 10_000;
        let honest = at(0xc000_0201);
        let others: BTreeSet<_> = forged.map(at).chain([honest]).collect();
        let trusted: Vec<_> = (0..20).map(|n| at(0xc000_0210 + n)).collect();
        let mut tried = BTreeSet::new();
        for round in 0..others.len().div_ceil(MAX_CANDIDATES - trusted.len()) {
            let all = in_turn(trusted.clone(), BTreeSet::new(), others.clone(), round);
            assert_eq!((&all[..20], all.len()), (&trusted[..], MAX_CANDIDATES));
            tried.extend(all);
        }
        assert!(tried.contains(&honest), "everybody has a turn");
        assert_eq!(tried.len(), others.len() + trusted.len());
        // However much is known, something that is announced is tried too; and few are tried always.
        let many: Vec<_> = (0..1_000).map(at).collect();
        let all = in_turn(many.clone(), BTreeSet::new(), others.clone(), 0);
        assert_eq!(
            (all.len(), &all[..MAX_CANDIDATES - ANNOUNCED]),
            (MAX_CANDIDATES, &many[..MAX_CANDIDATES - ANNOUNCED])
        );
        let few = |ns: &[u32]| ns.iter().copied().map(at).collect::<BTreeSet<_>>();
        assert_eq!(in_turn(vec![at(1)], few(&[4]), few(&[2, 3]), 7), [at(1), at(4), at(2), at(3)]);
        assert_eq!(in_turn(many.clone(), BTreeSet::new(), BTreeSet::new(), 3), many);
        // In a member's name it is tried in every round, unless that is done in masses too.
        for round in 0..50 {
            assert!(in_turn(many.clone(), few(&[7_000]), others.clone(), round).contains(&at(7_000)));
            let all = in_turn(many.clone(), others.clone(), few(&[7_000, 7_001]), round);
            assert_eq!((all.len(), all.contains(&at(7_001))), (MAX_CANDIDATES, true), "{round}");
        }
    }
}
