//! A network namespace per node, each with one cable to this one. What a node sends to another's
//! mesh port ends here, at the relay's sockets, so nothing passes that the relay does not pass on.

use std::net::{Ipv4Addr, SocketAddrV4};

use skeinmesh::cli::Failure;

use crate::commands::run;

/// The UDP port of every node's mesh.
pub const MESH: u16 = 7400;
/// The TCP port of every node's HTTP edge.
pub const HTTP: u16 = 8086;
/// A routing table of our own: everything in it is for this machine.
const TABLE: &str = "77";

/// The address of node `n`, counted from 0.
pub fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, node_byte(n), 1)
}

pub fn mesh(n: usize) -> SocketAddrV4 {
    SocketAddrV4::new(address(n), MESH)
}

pub fn http(n: usize) -> SocketAddrV4 {
    SocketAddrV4::new(address(n), HTTP)
}

/// The node with that address.
pub fn node_at(address: Ipv4Addr) -> Option<usize> {
    match address.octets() {
        [10, 213, n, 1] => usize::from(n).checked_sub(1),
        _ => None,
    }
}

fn node_byte(n: usize) -> u8 {
    u8::try_from(n + 1).unwrap_or(u8::MAX)
}

/// The name of a node, of its network and of its files.
pub fn name(n: usize) -> String {
    format!("n{}", n + 1)
}

/// Makes the networks of so many nodes.
pub fn make(nodes: usize) -> Result<(), Failure> {
    run("ip", &["route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", TABLE])?;
    for n in 0..nodes {
        let (inside, port) = (name(n), format!("port{}", n + 1));
        let here = format!("10.213.{}.254", node_byte(n));
        let (own, hub) = (format!("{}/24", address(n)), format!("{here}/24"));
        run("ip", &["netns", "add", &inside])?;
        run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &inside])?;
        run("ip", &["addr", "add", &hub, "dev", &port])?;
        run("ip", &["link", "set", &port, "up"])?;
        run("ip", &["-n", &inside, "addr", "add", &own, "dev", "eth0"])?;
        run("ip", &["-n", &inside, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &inside, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &inside, "route", "add", "default", "via", &here])?;
        let mesh = MESH.to_string();
        run("ip", &["rule", "add", "iif", &port, "ipproto", "udp", "dport", &mesh, "lookup", TABLE])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_their_nodes() {
        for n in 0..5 {
            assert_eq!(node_at(address(n)), Some(n));
        }
        assert_eq!(node_at(Ipv4Addr::new(10, 213, 1, 254)), None);
        assert_eq!(node_at(Ipv4Addr::LOCALHOST), None);
    }
}
