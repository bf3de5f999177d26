//! Section `discovery`: how peers are found.

use super::section::section;

section! {
    /// How peers are found.
    Discovery in "discovery" {
        /// Announce and look for peers on the LAN.
        mdns: bool = true,
        /// `host:port` of peers, or names of SRV records such as `_skein._udp.example.org`; names are
        /// resolved again on each attempt.
        seeds: Vec<String> = Vec::new(),
        /// If not empty, mDNS uses only interfaces that match one of these (`*` at the end matches
        /// any rest).
        allow_interfaces: Vec<String> = Vec::new(),
        /// Interfaces that mDNS leaves alone, besides those of containers and tunnels.
        deny_interfaces: Vec<String> = Vec::new(),
    }
}

impl Discovery {
    pub(super) fn check(&self) -> Result<(), String> {
        let good = |seed: &&String| {
            (seed.starts_with('_') && seed.contains("._udp."))
                || seed
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
        };
        match self.seeds.iter().find(|seed| !good(seed)) {
            Some(seed) => Err(format!(
                "discovery.seeds (--seed): {seed:?} is neither HOST:PORT nor the name of SRV records"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_have_a_port() {
        let with = |seed: &str| Discovery { seeds: vec![seed.into()], ..Discovery::default() };
        for good in ["a.example:7400", "192.0.2.1:1", "[2001:db8::1]:7400", "_skein._udp.a.example"] {
            assert!(with(good).check().is_ok(), "{good}");
        }
        for wrong in ["a.example", ":7400", "a:0", "a:70000", ""] {
            assert!(with(wrong).check().is_err(), "{wrong}");
        }
    }
}
