//! A look around for the operator: everyone who announces itself by mDNS, on every interface, and why
//! this node would not use what it hears.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent};
use tokio::time::{Instant, timeout_at};

use super::{
    MAX_CANDIDATES,
    interfaces::{self, Nic, Rules, Unused},
    mdns::{MAX_VERSION, MdnsError, SERVICE, address, node_of},
};
use crate::types::{ClusterId, NodeId};

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// This machine's addresses, and why one is not used.
    pub interfaces: Vec<(Nic, Option<Unused>)>,
    /// What is announced, one entry for each address.
    pub heard: Vec<Heard>,
}

/// An address that somebody announces. Nothing in it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who; `None` if the name is no node id.
    pub node: Option<NodeId>,
    /// The name it announces.
    pub instance: String,
    /// The cluster it says it is of.
    pub cluster: Option<ClusterId>,
    /// Software version it says it runs.
    pub version: String,
    /// The address, as text.
    pub address: String,
    /// Interfaces of this machine that it was heard on.
    pub interfaces: Vec<String>,
    /// Where to dial, or why nobody would.
    pub dial: Result<SocketAddr, String>,
}

/// Listens for `time` on every interface. Announces nothing.
pub async fn survey(rules: &Rules, time: Duration) -> Result<Survey, MdnsError> {
    let there = interfaces::of_this_machine()?;
    let judged: Vec<(Nic, Option<Unused>)> =
        interfaces::judge(&there, rules).into_iter().map(|(nic, unused)| (nic.clone(), unused)).collect();
    let daemon = ServiceDaemon::new()?;
    let events = match daemon.browse(SERVICE) {
        Ok(events) => events,
        Err(error) => {
            let _ = daemon.shutdown();
            return Err(error.into());
        }
    };
    let until = Instant::now() + time;
    let mut announced = BTreeMap::new();
    while let Ok(Ok(event)) = timeout_at(until, events.recv_async()).await {
        match event {
            ServiceEvent::ServiceResolved(service)
                if announced.len() < MAX_CANDIDATES || announced.contains_key(&service.fullname) =>
            {
                announced.insert(service.fullname.clone(), service);
            }
            ServiceEvent::ServiceRemoved(_, name) => drop(announced.remove(&name)),
            _ => {}
        }
    }
    let _ = daemon.shutdown();
    let heard = announced.values().flat_map(|service| heard(service, &judged)).collect();
    Ok(Survey { interfaces: judged, heard })
}

/// Each address of one announcement.
fn heard(service: &ResolvedService, judged: &[(Nic, Option<Unused>)]) -> Vec<Heard> {
    let node = node_of(&service.fullname);
    let text = |key: &str| {
        let said = service.get_property_val_str(key).unwrap_or_default();
        said.chars().filter(char::is_ascii_graphic).take(MAX_VERSION).collect::<String>()
    };
    let cluster = text("cluster");
    let known = cluster.parse().ok();
    let instance = service.fullname.trim_end_matches(SERVICE).trim_end_matches('.');
    let mut all: Vec<Heard> = service
        .addresses
        .iter()
        .map(|ip| {
            let interfaces = heard_on(ip);
            let dial = match node {
                None => Err("its name is no node id".to_owned()),
                Some(_) if !cluster.is_empty() && known.is_none() => {
                    Err("its cluster is no cluster id".to_owned())
                }
                Some(_) => usable(ip, service.port, &interfaces, judged),
            };
            Heard {
                node,
                instance: instance.chars().filter(char::is_ascii_graphic).take(64).collect(),
                cluster: known,
                version: text("version"),
                address: SocketAddr::new(ip.to_ip_addr(), service.port).to_string(),
                interfaces,
                dial,
            }
        })
        .collect();
    all.sort_by(|a, b| a.address.cmp(&b.address));
    all
}

fn heard_on(ip: &ScopedIp) -> Vec<String> {
    let names: BTreeSet<String> = match ip {
        ScopedIp::V4(v4) => v4.interface_ids().iter().map(|id| id.name.clone()).collect(),
        ScopedIp::V6(v6) => [v6.scope_id().name.clone()].into(),
        _ => BTreeSet::new(),
    };
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

fn usable(
    ip: &ScopedIp,
    port: u16,
    heard_on: &[String],
    judged: &[(Nic, Option<Unused>)],
) -> Result<SocketAddr, String> {
    let used = |nic: &&(Nic, Option<Unused>)| nic.1.is_none();
    let loopback = judged.iter().filter(used).any(|(nic, _)| nic.address.is_loopback());
    let there = judged.iter().filter(|(nic, _)| heard_on.contains(&nic.name));
    let unused: Vec<Option<Unused>> = there.map(|(_, unused)| *unused).collect();
    if port == 0 {
        return Err("it names no port".to_owned());
    }
    if !heard_on.is_empty() && !unused.contains(&None) {
        let why = unused.into_iter().flatten().next();
        let why = why.map_or_else(|| "it is down".to_owned(), |why| why.to_string());
        return Err(format!("heard only where this node does not listen: {why}"));
    }
    address(ip, port, loopback).ok_or_else(|| {
        let reason = if ip.is_loopback() {
            "loopback, and this node uses other interfaces"
        } else {
            "no address that can be dialled from here"
        };
        reason.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::discovery::mdns::{Announcement, Mdns};

    #[test]
    fn an_address_is_used_where_this_node_listens() {
        let nic = |name: &str, address: &str, unused| {
            (Nic { name: name.into(), address: address.parse().unwrap() }, unused)
        };
        let judged = [nic("eth0", "192.0.2.2", None), nic("docker0", "172.17.0.1", Some(Unused::Skipped))];
        let ip = |text: &str| ScopedIp::from(text.parse::<IpAddr>().unwrap());
        let on = |name: &str| vec![name.to_owned()];
        assert!(usable(&ip("192.0.2.9"), 7400, &on("eth0"), &judged).is_ok());
        let skipped = usable(&ip("172.17.0.9"), 7400, &on("docker0"), &judged).unwrap_err();
        assert!(skipped.contains("skipped"), "{skipped}");
        assert!(usable(&ip("127.0.0.1"), 7400, &on("eth0"), &judged).unwrap_err().contains("loopback"));
        assert!(usable(&ip("192.0.2.9"), 0, &on("eth0"), &judged).is_err());
    }

    #[tokio::test]
    async fn an_announcement_on_loopback_is_heard() {
        let (node, cluster) = (NodeId([51; 16]), ClusterId([9; 16]));
        let me = Announcement { node, cluster: Some(cluster), port: 7451, version: "0.1.0".into() };
        let rules = Rules { bind: [127, 0, 0, 1].into(), allow: vec![], deny: vec![] };
        let mdns = Mdns::start(me, rules.clone()).unwrap();
        let announcing = tokio::spawn(mdns.run(
            tokio::sync::watch::channel(Some(cluster)).1,
            tokio::sync::watch::channel(std::sync::Arc::default()).1,
        ));
        let mut found = None;
        for _ in 0..5 {
            let seen = survey(&rules, Duration::from_secs(2)).await.unwrap();
            assert!(
                seen.interfaces.iter().any(|(nic, unused)| nic.address.is_loopback() && unused.is_none())
            );
            found = seen.heard.into_iter().find(|heard| heard.node == Some(node));
            if found.is_some() {
                break;
            }
        }
        announcing.abort();
        let found = found.expect("it announces itself");
        assert_eq!((found.cluster, found.version.as_str()), (Some(cluster), "0.1.0"));
        assert_eq!(found.dial, Ok("127.0.0.1:7451".parse().unwrap()));
    }
}
