//! Which network interfaces, and which of their addresses, discovery speaks on.

use std::{collections::BTreeSet, io, net::IpAddr};

/// Interfaces of containers, virtual machines and tunnels: what is announced there reaches nobody,
/// or the wrong ones. By name, because nothing else tells them apart.
const SKIPPED: [&str; 11] =
    ["docker*", "br-*", "veth*", "virbr*", "cni*", "flannel*", "tun*", "tap*", "wg*", "tailscale*", "zt*"];

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nic {
    /// Name of the interface.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

/// What the operator wants of interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where the mesh endpoint is bound: only addresses it answers on are of use.
    pub bind: IpAddr,
    /// Only these, even if they would be skipped by name; empty for the built-in choice. A `*` at
    /// the end stands for anything.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
}

/// The addresses to use, of those that are there.
///
/// Loopback counts only when nothing else is left, when it is allowed by name, or when the mesh
/// endpoint is bound to it: then it is all there is.
pub fn choose(there: &[Nic], rules: &Rules) -> BTreeSet<Nic> {
    let answers = |nic: &&Nic| match rules.bind {
        bind if !bind.is_unspecified() => nic.address == bind,
        // An endpoint on [::] takes IPv4 too.
        bind => bind.is_ipv6() || nic.address.is_ipv4(),
    };
    let wanted = |nic: &&Nic| {
        let named = |list: &[String]| list.iter().any(|pattern| matches(pattern, &nic.name));
        let skipped = rules.bind.is_unspecified() && SKIPPED.iter().any(|p| matches(p, &nic.name));
        !named(&rules.deny) && if rules.allow.is_empty() { !skipped } else { named(&rules.allow) }
    };
    let chosen = there.iter().filter(answers).filter(wanted);
    let (loopback, others): (BTreeSet<Nic>, BTreeSet<Nic>) =
        chosen.cloned().partition(|nic| nic.address.is_loopback());
    if others.is_empty() {
        loopback
    } else if rules.allow.is_empty() {
        others
    } else {
        others.into_iter().chain(loopback).collect()
    }
}

/// The interfaces of this machine that are up, with their addresses.
pub fn of_this_machine() -> io::Result<Vec<Nic>> {
    use if_addrs::IfOperStatus::{Down, LowerLayerDown, NotPresent};
    let up = |nic: &if_addrs::Interface| !matches!(nic.oper_status, Down | LowerLayerDown | NotPresent);
    let mut nics = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(up)
        .map(|nic| Nic { address: nic.ip(), name: nic.name })
        .collect::<Vec<_>>();
    nics.sort();
    Ok(nics)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nics() -> Vec<Nic> {
        [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "192.0.2.2"),
            ("eth0", "fd00::2"),
            ("docker0", "172.17.0.1"),
            ("br-77ab", "172.18.0.1"),
            ("veth12", "10.1.1.1"),
            ("tailscale0", "100.64.0.1"),
        ]
        .map(|(name, address)| Nic { name: name.into(), address: address.parse().unwrap() })
        .to_vec()
    }

    fn chosen(there: &[Nic], bind: &str, allow: &[&str], deny: &[&str]) -> Vec<String> {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let rules = Rules { bind: bind.parse().unwrap(), allow: list(allow), deny: list(deny) };
        choose(there, &rules).iter().map(|nic| nic.address.to_string()).collect()
    }

    #[test]
    fn skips_what_reaches_nobody() {
        let all = nics();
        assert_eq!(chosen(&all, "::", &[], &[]), ["192.0.2.2", "fd00::2"]);
        assert_eq!(chosen(&all, "0.0.0.0", &[], &[]), ["192.0.2.2"]);
        assert_eq!(chosen(&all, "0.0.0.0", &["veth*"], &[]), ["10.1.1.1"]);
        assert_eq!(chosen(&all, "0.0.0.0", &["lo", "eth0"], &[]), ["192.0.2.2", "127.0.0.1"]);
        assert_eq!(chosen(&all, "0.0.0.0", &["docker0", "eth0"], &["eth*"]), ["172.17.0.1"]);
    }

    #[test]
    fn loopback_when_nothing_else_is_left() {
        let all = nics();
        assert_eq!(chosen(&all, "0.0.0.0", &[], &["eth0"]), ["127.0.0.1"]);
        assert_eq!(chosen(&all[..2], "::", &[], &[]), ["127.0.0.1", "::1"]);
        assert!(chosen(&all[..2], "::", &[], &["lo"]).is_empty());
    }

    #[test]
    fn a_bound_address_is_the_only_one() {
        let all = nics();
        assert_eq!(chosen(&all, "127.0.0.1", &[], &[]), ["127.0.0.1"]);
        assert_eq!(chosen(&all, "10.1.1.1", &[], &[]), ["10.1.1.1"], "bound to it by hand: not skipped");
        assert!(chosen(&all, "10.9.9.9", &[], &[]).is_empty());
    }

    #[test]
    fn this_machine_has_interfaces() {
        assert!(of_this_machine().unwrap().iter().any(|nic| nic.address.is_loopback()));
    }
}
