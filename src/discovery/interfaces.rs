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

/// Why discovery leaves an address alone; `Display` is for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unused {
    /// The mesh endpoint does not answer on it.
    #[error("the mesh is not bound to it (mesh.listen)")]
    NotBound,
    /// Its interface is of a kind that is left alone.
    #[error("interfaces of this name are skipped, unless discovery.allow_interfaces names it")]
    Skipped,
    /// Others are allowed by name.
    #[error("discovery.allow_interfaces names others")]
    NotAllowed,
    /// It is denied by name.
    #[error("discovery.deny_interfaces names it")]
    Denied,
    /// It reaches this machine only, and there are others.
    #[error("loopback is used only where there is nothing else")]
    Loopback,
}

/// The addresses to use, of those that are there.
///
/// Loopback counts only when nothing else is left, when it is allowed by name, or when the mesh
/// endpoint is bound to it: then it is all there is.
pub fn choose(there: &[Nic], rules: &Rules) -> BTreeSet<Nic> {
    let judged = judge(there, rules).into_iter();
    judged.filter(|(_, unused)| unused.is_none()).map(|(nic, _)| nic.clone()).collect()
}

/// Each address with the reason why it is not used, if it is not.
pub fn judge<'a>(there: &'a [Nic], rules: &Rules) -> Vec<(&'a Nic, Option<Unused>)> {
    let answers = |nic: &Nic| match rules.bind {
        bind if !bind.is_unspecified() => nic.address == bind,
        // An endpoint on [::] takes IPv4 too.
        bind => bind.is_ipv6() || nic.address.is_ipv4(),
    };
    let by_itself = |nic: &Nic| {
        let named = |list: &[String]| list.iter().any(|pattern| matches(pattern, &nic.name));
        let skipped = rules.bind.is_unspecified() && SKIPPED.iter().any(|p| matches(p, &nic.name));
        match rules.allow.is_empty() {
            _ if !answers(nic) => Some(Unused::NotBound),
            _ if named(&rules.deny) => Some(Unused::Denied),
            true if skipped => Some(Unused::Skipped),
            false if !named(&rules.allow) => Some(Unused::NotAllowed),
            _ => None,
        }
    };
    let mut judged = there.iter().map(|nic| (nic, by_itself(nic))).collect::<Vec<_>>();
    let others = judged.iter().any(|(nic, unused)| unused.is_none() && !nic.address.is_loopback());
    if others && rules.allow.is_empty() {
        for (_, unused) in
            judged.iter_mut().filter(|(nic, unused)| nic.address.is_loopback() && unused.is_none())
        {
            *unused = Some(Unused::Loopback);
        }
    }
    judged
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
    fn it_is_told_why_an_address_is_not_used() {
        let all = nics();
        let why = |bind: &str, allow: &[&str], deny: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
            let rules = Rules { bind: bind.parse().unwrap(), allow: list(allow), deny: list(deny) };
            judge(&all, &rules).into_iter().map(|(_, unused)| unused).collect::<Vec<_>>()
        };
        use Unused::{Denied, Loopback, NotAllowed, NotBound, Skipped};
        let (skip, none) = (Some(Skipped), None);
        assert_eq!(why("::", &[], &[])[..6], [Some(Loopback), Some(Loopback), none, none, skip, skip]);
        assert_eq!(why("0.0.0.0", &[], &["eth0"])[..4], [none, Some(NotBound), Some(Denied), Some(NotBound)]);
        assert_eq!(why("::", &["eth*"], &[])[2..5], [none, none, Some(NotAllowed)]);
    }

    #[test]
    fn this_machine_has_interfaces() {
        assert!(of_this_machine().unwrap().iter().any(|nic| nic.address.is_loopback()));
    }
}
