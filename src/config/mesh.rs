//! Section `mesh`: the one UDP port.

use std::net::{Ipv6Addr, SocketAddr};

use super::section::section;

section! {
    /// The QUIC mesh.
    Mesh in "mesh" {
        /// UDP address the mesh listens on; port 0 takes any free one.
        listen: SocketAddr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7400)),
        /// Addresses told to peers instead of those of the interfaces (NAT, containers).
        advertise: Vec<SocketAddr> = Vec::new(),
    }
}

impl Mesh {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.advertise.iter().find(|a| a.ip().is_unspecified() || a.port() == 0) {
            Some(wrong) => Err(format!("mesh.advertise: {wrong} is no address that a peer could dial")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_addresses_can_be_dialed() {
        let with = |a: &str| Mesh { advertise: vec![a.parse().unwrap()], ..Mesh::default() };
        assert!(with("192.0.2.1:7400").check().is_ok());
        assert!(with("0.0.0.0:7400").check().is_err());
        assert!(with("192.0.2.1:0").check().is_err());
    }
}
