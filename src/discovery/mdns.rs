//! mDNS: finding peers on a LAN without an address (`_skein._udp.local.`).
//!
//! Instance and host name are the node id, so two nodes on one host do not clash; the TXT record
//! says cluster and version. It is unauthenticated: whoever answers is only a candidate.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use mdns_sd::{
    IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};
use socket2::{Domain, Socket, Type};
use tokio::{sync::watch, time::Instant};

use super::{
    Candidate, Candidates, MAX_ADDRESSES, MAX_CANDIDATES,
    interfaces::{self, Nic, Rules},
};
use crate::types::{ClusterId, ClusterView, NodeId};

pub(super) const SERVICE: &str = "_skein._udp.local.";
/// UDP port of mDNS.
const PORT: u16 = mdns_sd::MDNS_PORT;
pub(super) const MAX_VERSION: usize = 64;
/// How often interfaces that come and go are looked at, and how much is remembered.
const LOOK: Duration = Duration::from_secs(5);
/// After so many events (an announcement is two), how much is remembered is looked at before that.
const LOOK_AFTER: u32 = 256;
/// Records that the daemon may remember; a node has about six. It has no limit of its own, whoever announces
/// says for how long, and with each packet it goes through all of them: with ten thousand nodes it never
/// comes to the end of what is in its socket, and so neither to a question nor to a member.
const MAX_RECORDS: i64 = 8 * MAX_CANDIDATES as i64;
/// Between two warnings of the same.
const QUIET: Duration = Duration::from_secs(60);
/// Before the daemon is begun anew that has ended, or has stopped to tell; and for its answer to a question.
const AGAIN: Duration = Duration::from_secs(1);

/// What this node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Its id: instance and host name.
    pub node: NodeId,
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// UDP port of the mesh endpoint.
    pub port: u16,
    /// Software version.
    pub version: String,
}

/// mDNS does not work here. Never fatal: seeds and tokens work without it.
#[derive(Debug, thiserror::Error)]
pub enum MdnsError {
    /// The daemon refused.
    #[error("mDNS is not available ({0}); peers are found by --seed only")]
    Daemon(#[from] mdns_sd::Error),
    /// The interfaces of this machine cannot be listed.
    #[error("cannot list network interfaces ({0}); peers are found by --seed only")]
    Interfaces(#[from] std::io::Error),
}

/// Announces this node and watches for others. [`Mdns::run`] does the watching; dropping it says
/// goodbye.
pub struct Mdns {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    rules: Rules,
    me: Announcement,
    allowed: Arc<RwLock<BTreeSet<Nic>>>,
    candidates: watch::Sender<Candidates>,
    names: watch::Sender<Vec<String>>,
    /// Events since it was looked at how much is remembered.
    noted: u32,
    /// When it was last said that more is announced than is remembered.
    warned: Option<Instant>,
}

impl std::fmt::Debug for Mdns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mdns").field("me", &self.me).field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Mdns {
    /// Starts to announce and to look around, on the interfaces that `rules` leave.
    pub fn start(me: Announcement, rules: Rules) -> Result<Self, MdnsError> {
        let chosen = interfaces::choose(&interfaces::of_this_machine()?, &rules);
        for (family, reason) in kept_out(&chosen) {
            tracing::warn!(
                reason,
                "mDNS does not work over {family} here: a program keeps UDP port {PORT} to itself; use --seed HOST:PORT"
            );
        }
        let names = watch::Sender::new(names_of(&chosen));
        let allowed = Arc::new(RwLock::new(chosen));
        let (daemon, events) = begin(&me, &allowed)?;
        let candidates = watch::Sender::new(Candidates::new());
        Ok(Self { daemon, events, rules, me, allowed, candidates, names, noted: 0, warned: None })
    }

    /// Everyone in sight; changes as nodes come and go.
    pub fn candidates(&self) -> watch::Receiver<Candidates> {
        self.candidates.subscribe()
    }

    /// Names of the interfaces in use, to say where nobody was found.
    pub fn interfaces(&self) -> watch::Receiver<Vec<String>> {
        self.names.subscribe()
    }

    /// Watches until mDNS does not work any more, and announces the cluster as soon as `cluster` names one.
    /// Members of `view` are remembered however many others there are. Cancel-safe: dropped, it says
    /// goodbye to the network.
    pub async fn run(
        mut self,
        mut cluster: watch::Receiver<Option<ClusterId>>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut cluster_ends = false;
        loop {
            let now = *cluster.borrow_and_update();
            if now != self.me.cluster {
                self.me.cluster = now;
                self.announce_again();
            }
            let (mut look_now, mut begin_anew) = (false, false);
            tokio::select! {
                event = self.events.recv_async() => match event {
                    Ok(event) => {
                        self.note(event, &view.borrow().clone());
                        look_now = self.noted >= LOOK_AFTER;
                    }
                    // It stops to tell whoever is a thousand events behind.
                    Err(_) => begin_anew = true,
                },
                _ = look.tick() => {
                    self.look_at_interfaces();
                    look_now = true;
                }
                changed = cluster.changed(), if !cluster_ends => cluster_ends = changed.is_err(),
            }
            if begin_anew {
                tokio::time::sleep(AGAIN).await;
            } else if look_now {
                let noted = std::mem::take(&mut self.noted);
                let members = view.borrow().clone();
                begin_anew = match self.remembered().await {
                    Some(count) if count <= MAX_RECORDS => false,
                    Some(_) => !self.ask_again(&members).await,
                    // Of few events it is not the reason that the daemon has no time.
                    None => noted >= LOOK_AFTER,
                };
            }
            if begin_anew && let Err(error) = self.forget(&view.borrow().clone()) {
                tracing::warn!(%error, "mDNS has stopped; peers are found by --seed only");
                return;
            }
        }
    }

    fn announce_again(&self) {
        if let Err(error) = service(&self.me).and_then(|service| self.daemon.register(service)) {
            tracing::warn!(%error, "cannot announce this node by mDNS");
        }
    }

    fn look_at_interfaces(&self) {
        let chosen = match interfaces::of_this_machine() {
            Ok(there) => interfaces::choose(&there, &self.rules),
            Err(error) => return tracing::debug!(%error, "cannot list network interfaces"),
        };
        {
            let mut allowed = self.allowed.write().unwrap_or_else(PoisonError::into_inner);
            if *allowed == chosen {
                return;
            }
            *allowed = chosen.clone();
        }
        self.names.send_replace(names_of(&chosen));
        tracing::info!(interfaces = ?*self.names.borrow(), "mDNS follows a change of network interfaces");
        // No further rule, but all of them are judged again.
        if let Err(error) = self.daemon.enable_interface(Vec::<IfKind>::new()) {
            tracing::warn!(%error, "mDNS cannot follow a change of network interfaces");
        }
    }

    /// How many records the daemon remembers, if it says so soon.
    async fn remembered(&self) -> Option<i64> {
        let told = self.daemon.get_metrics().ok()?;
        let metrics = tokio::time::timeout(AGAIN, told.recv_async()).await.ok()?.ok()?;
        Some(metrics.iter().filter(|(name, _)| name.starts_with("cached-")).map(|(_, count)| *count).sum())
    }

    /// Lets the daemon forget whoever announced himself, and asks again: those that are there answer. What
    /// it announces goes on meanwhile. False if that is not enough: it has no time for it, or it remembers
    /// what belongs to no node.
    async fn ask_again(&mut self, view: &ClusterView) -> bool {
        let stopped = self.daemon.stop_browse(SERVICE).is_ok();
        if !stopped || self.remembered().await.is_none_or(|left| left > MAX_RECORDS / 2) {
            return false;
        }
        let Ok(events) = self.daemon.browse(SERVICE) else { return false };
        self.events = events;
        self.forget_others(view);
        true
    }

    /// Another daemon in place of this one. Nobody listens to the old one any more, so it remembers nothing
    /// more either, and has time to hear that it is to end.
    fn forget(&mut self, view: &ClusterView) -> Result<(), MdnsError> {
        let (daemon, events) = begin(&self.me, &self.allowed)?;
        let _ = std::mem::replace(&mut self.daemon, daemon).shutdown();
        (self.events, self.noted) = (events, 0);
        self.forget_others(view);
        Ok(())
    }

    /// All but members, whatever they announced.
    fn forget_others(&mut self, view: &ClusterView) {
        if self.warned.is_none_or(|at| at.elapsed() >= QUIET) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                limit = MAX_RECORDS,
                "more is announced by mDNS than can be remembered, or than can be kept up with: forgetting it, \
                 and asking again; is somebody forging announcements?"
            );
        }
        self.candidates.send_if_modified(|all| {
            let before = all.len();
            all.retain(|id, _| view.members.contains_key(id));
            all.len() != before
        });
    }

    fn note(&mut self, event: ServiceEvent, view: &ClusterView) {
        self.noted += 1;
        match event {
            ServiceEvent::ServiceResolved(service) => {
                let loopback = {
                    let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
                    allowed.iter().any(|nic| nic.address.is_loopback())
                };
                let Some((id, candidate)) = candidate(&service, loopback) else { return };
                if id != self.me.node {
                    let is_member = |id: &NodeId| view.members.contains_key(id);
                    self.candidates.send_if_modified(|all| insert(all, id, candidate, is_member));
                }
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                if let Some(id) = node_of(&name) {
                    self.candidates.send_if_modified(|all| all.remove(&id).is_some());
                }
            }
            _ => {}
        }
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        let _ = self.daemon.shutdown();
    }
}

/// The families of addresses in use for which the port cannot be had, and why. Programs that speak mDNS
/// share it; of one that does not the library says nothing.
fn kept_out(chosen: &BTreeSet<Nic>) -> Vec<(&'static str, String)> {
    let bind = |domain: Domain, any: IpAddr| -> std::io::Result<()> {
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        socket.set_reuse_address(true)?;
        #[cfg(unix)]
        socket.set_reuse_port(true)?;
        if any.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(any, PORT).into())
    };
    let families: [(_, Domain, IpAddr); 2] = [
        ("IPv4", Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        ("IPv6", Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    ];
    let used = families
        .into_iter()
        .filter(|(_, _, any)| chosen.iter().any(|nic| nic.address.is_ipv4() == any.is_ipv4()));
    used.filter_map(|(name, domain, any)| Some((name, bind(domain, any).err()?.to_string()))).collect()
}

/// A daemon that announces and browses.
fn begin(
    me: &Announcement,
    allowed: &Arc<RwLock<BTreeSet<Nic>>>,
) -> Result<(ServiceDaemon, Receiver<ServiceEvent>), MdnsError> {
    let daemon = ServiceDaemon::new()?;
    let started = (|| {
        daemon.disable_interface(IfKind::All)?;
        let seen = allowed.clone();
        let predicate = move |nic: &if_addrs::Interface| {
            let nic = Nic { address: nic.ip(), name: nic.name.clone() };
            seen.read().unwrap_or_else(PoisonError::into_inner).contains(&nic)
        };
        daemon.enable_interface(IfKind::Predicate(IfPredicate::new(predicate)))?;
        daemon.register(service(me)?)?;
        daemon.browse(SERVICE)
    })();
    match started {
        Ok(events) => Ok((daemon, events)),
        Err(error) => {
            let _ = daemon.shutdown();
            Err(error.into())
        }
    }
}

/// Remembers a candidate; false if nothing changed, or if there are too many to remember another. A
/// member takes the place of one that is none.
fn insert(
    all: &mut Candidates,
    id: NodeId,
    candidate: Candidate,
    is_member: impl Fn(&NodeId) -> bool,
) -> bool {
    if all.get(&id) == Some(&candidate) {
        return false;
    }
    if all.len() >= MAX_CANDIDATES && !all.contains_key(&id) {
        let other = all.keys().copied().find(|other| !is_member(other));
        let Some(other) = other.filter(|_| is_member(&id)) else { return false };
        all.remove(&other);
    }
    all.insert(id, candidate);
    true
}

fn service(me: &Announcement) -> Result<ServiceInfo, mdns_sd::Error> {
    let instance = me.node.to_string();
    let mut properties = vec![("version", me.version.chars().take(MAX_VERSION).collect::<String>())];
    if let Some(cluster) = me.cluster {
        properties.push(("cluster", cluster.to_string()));
    }
    let host = format!("{instance}.local.");
    Ok(ServiceInfo::new(SERVICE, &instance, &host, (), me.port, &properties[..])?.enable_addr_auto())
}

/// What a resolved service says, as far as it can be of use: addresses that can be dialled, link-local
/// ones with the interface they were heard on, loopback ones only if this node uses loopback.
fn candidate(service: &ResolvedService, loopback: bool) -> Option<(NodeId, Candidate)> {
    let id = node_of(&service.fullname)?;
    let text = |key: &str| service.get_property_val_str(key).unwrap_or_default();
    let cluster = match text("cluster") {
        "" => None,
        text => Some(text.parse().ok()?),
    };
    let version = text("version").chars().filter(|c| c.is_ascii_graphic()).take(MAX_VERSION).collect();
    let addresses = service.addresses.iter().filter_map(|ip| address(ip, service.port, loopback));
    // IPv4 before IPv6, and always in one order.
    let addresses = addresses.collect::<BTreeSet<_>>().into_iter().take(MAX_ADDRESSES).collect::<Vec<_>>();
    (service.port != 0 && !addresses.is_empty()).then_some((id, Candidate { addresses, cluster, version }))
}

pub(super) fn address(ip: &ScopedIp, port: u16, loopback: bool) -> Option<SocketAddr> {
    let plain = ip.to_ip_addr();
    if plain.is_unspecified() || plain.is_multicast() || (plain.is_loopback() && !loopback) {
        return None;
    }
    match (ip, plain) {
        (ScopedIp::V6(scoped), IpAddr::V6(v6)) if v6.is_unicast_link_local() => {
            let scope = scoped.scope_id().index;
            (scope != 0).then(|| SocketAddrV6::new(v6, port, 0, scope).into())
        }
        _ => Some(SocketAddr::new(plain, port)),
    }
}

pub(super) fn node_of(fullname: &str) -> Option<NodeId> {
    let instance = fullname.strip_suffix(SERVICE)?.strip_suffix('.')?;
    instance.parse().ok()
}

fn names_of(nics: &BTreeSet<Nic>) -> Vec<String> {
    nics.iter().map(|nic| nic.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another one in each process: everybody on this network hears what a test says.
    fn id(n: u8) -> NodeId {
        let mut id = [n; 16];
        id[..4].copy_from_slice(&std::process::id().to_be_bytes());
        NodeId(id)
    }

    fn start(n: u8, bind: &str, cluster: Option<ClusterId>) -> Mdns {
        let me = Announcement { node: id(n), cluster, port: 7400 + u16::from(n), version: "0.1.0".into() };
        Mdns::start(me, Rules { bind: bind.parse().unwrap(), allow: vec![], deny: vec![] }).unwrap()
    }

    fn no_view() -> watch::Receiver<Arc<ClusterView>> {
        watch::channel(Arc::default()).1
    }

    /// Waits until `watch` satisfies `wanted`; fails after ten seconds.
    async fn until(
        watch: &mut watch::Receiver<Candidates>,
        wanted: impl FnMut(&Candidates) -> bool,
    ) -> Candidates {
        let found = tokio::time::timeout(Duration::from_secs(10), watch.wait_for(wanted)).await;
        found.expect("nobody found in time").unwrap().clone()
    }

    #[tokio::test]
    async fn three_nodes_of_one_machine_find_each_other_and_part() {
        let cluster = ClusterId([8; 16]);
        let (a, b, c) = (
            start(31, "127.0.0.1", Some(cluster)),
            start(32, "127.0.0.1", None),
            start(33, "127.0.0.1", None),
        );
        assert_eq!(*a.interfaces().borrow(), ["lo"]);
        let (mut by_a, mut by_b, mut by_c) = (a.candidates(), b.candidates(), c.candidates());
        let founded = watch::Sender::new(None);
        let tasks = [
            tokio::spawn(a.run(watch::channel(Some(cluster)).1, no_view())),
            tokio::spawn(b.run(founded.subscribe(), no_view())),
            tokio::spawn(c.run(watch::channel(None).1, no_view())),
        ];
        let seen = until(&mut by_b, |all| all.contains_key(&id(31)) && all.contains_key(&id(33))).await;
        assert_eq!(seen[&id(31)].addresses, ["127.0.0.1:7431".parse().unwrap()]);
        assert_eq!((seen[&id(31)].cluster, seen[&id(31)].version.as_str()), (Some(cluster), "0.1.0"));
        assert!(!seen.contains_key(&id(32)), "a node does not find itself");
        until(&mut by_c, |all| all.contains_key(&id(31)) && all.contains_key(&id(32))).await;
        until(&mut by_a, |all| all.get(&id(32)).is_some_and(|b| b.cluster.is_none())).await;
        // It is told when a node becomes a member, and when it goes.
        founded.send_replace(Some(cluster));
        until(&mut by_a, |all| all.get(&id(32)).is_some_and(|b| b.cluster == Some(cluster))).await;
        tasks[1].abort();
        until(&mut by_a, |all| !all.contains_key(&id(32))).await;
        tasks.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn nodes_on_all_interfaces_find_each_other_too() {
        let (a, b) = (start(41, "0.0.0.0", None), start(42, "0.0.0.0", None));
        let mut by_b = b.candidates();
        let none = || watch::channel(None).1;
        let tasks = [tokio::spawn(a.run(none(), no_view())), tokio::spawn(b.run(none(), no_view()))];
        let seen = until(&mut by_b, |all| all.contains_key(&id(41))).await;
        assert!(seen[&id(41)].addresses.iter().all(|a| a.port() == 7441 && a.is_ipv4()), "{seen:?}");
        tasks.iter().for_each(|task| task.abort());
    }

    #[test]
    fn names_that_are_no_node_ids_are_ignored() {
        assert_eq!(node_of(&format!("{}.{SERVICE}", id(1))), Some(id(1)));
        for wrong in ["printer._skein._udp.local.", "._skein._udp.local.", "x", ""] {
            assert_eq!(node_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_dialled_are_dropped() {
        let plain = |text: &str| ScopedIp::from(text.parse::<IpAddr>().unwrap());
        assert!(address(&plain("192.0.2.1"), 1, false).is_some());
        assert!(address(&plain("127.0.0.1"), 1, false).is_none());
        assert!(address(&plain("127.0.0.1"), 1, true).is_some());
        for wrong in ["0.0.0.0", "::", "224.0.0.251", "fe80::1"] {
            assert!(address(&plain(wrong), 1, true).is_none(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_bounded_and_members_have_a_place_in_it() {
        let mut all = Candidates::new();
        let nobody = |_: &NodeId| false;
        for n in 0..10_000_u128 {
            insert(&mut all, NodeId(n.to_be_bytes()), Candidate::default(), nobody);
        }
        assert_eq!(all.len(), MAX_CANDIDATES);
        let newer = Candidate { version: "2".into(), ..Candidate::default() };
        let known = NodeId([0; 16]);
        assert!(insert(&mut all, known, newer.clone(), nobody), "known ones are still kept up to date");
        assert!(!insert(&mut all, known, newer.clone(), nobody));
        // However late a member comes, and never instead of another one.
        let members: BTreeSet<NodeId> = [known, id(200), id(201)].into();
        let is_member = |id: &NodeId| members.contains(id);
        assert!(insert(&mut all, id(200), newer.clone(), is_member));
        assert!(!insert(&mut all, id(202), newer.clone(), is_member));
        assert!(insert(&mut all, id(201), newer, is_member));
        assert!(members.iter().all(|member| all.contains_key(member)));
        assert_eq!(all.len(), MAX_CANDIDATES);
    }
}
