//! Seeds: `host:port` texts from flags, configuration and tokens, and names of SRV records, resolved anew
//! on each attempt.

use std::{fmt, io, net::SocketAddr, str::FromStr, time::Duration};

use futures::future::join_all;

use super::srv;

/// Most addresses that one name is tried under.
const MAX_PER_NAME: usize = super::MAX_ADDRESSES;
/// Longest wait for a name server.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A place to try: a DNS name or IP literal and a UDP port, or a name whose SRV records hold such pairs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    host: String,
    /// None for the name of a service.
    port: Option<u16>,
}

/// A text that is not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a seed: {0:?}; want HOST:PORT, for example db1.example.org:7400 or [fd00::1]:7400, or the name of SRV records, \
     for example _skein._udp.example.org"
)]
pub struct SeedError(String);

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let wrong = || SeedError(text.chars().take(64).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 || address.ip().is_unspecified() {
                return Err(wrong());
            }
            let scope = match address {
                SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("%{}", v6.scope_id()),
                SocketAddr::V4(_) | SocketAddr::V6(_) => String::new(),
            };
            return Ok(Self { host: format!("{}{scope}", address.ip()), port: Some(address.port()) });
        }
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if text.starts_with('_') && text.len() <= 253 && text.contains("._udp.") && text.bytes().all(name) {
            return Ok(Self { host: text.to_owned(), port: None });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || host.len() > 253 || !host.bytes().all(name) {
            return Err(wrong());
        }
        match port.parse() {
            Ok(port)
                if port != 0 && text.bytes().rev().take_while(|b| *b != b':').all(|b| b.is_ascii_digit()) =>
            {
                Ok(Self { host: host.to_owned(), port: Some(port) })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl Seed {
    /// The addresses behind it right now, in the resolver's order, at most 16; those of a service by
    /// the priority of its records. Asked each time, so a name that moves is followed. Cancel-safe.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let Some(port) = self.port else { return self.resolve_service(&srv::servers_here().await).await };
        let mut addresses = Vec::new();
        keep(&mut addresses, look_up(&self.host, port).await?);
        Ok(addresses)
    }

    async fn resolve_service(&self, servers: &[SocketAddr]) -> io::Result<Vec<SocketAddr>> {
        let places = srv::places(servers, &self.host).await?;
        let found = join_all(places.iter().take(MAX_PER_NAME).map(|place| look_up(&place.host, place.port)));
        let (mut addresses, mut failed) = (Vec::new(), None);
        for found in found.await {
            match found {
                Ok(found) => keep(&mut addresses, found),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }
}

async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the name server did not answer");
    Ok(found.map_err(late)??.collect())
}

fn keep(addresses: &mut Vec<SocketAddr>, found: Vec<SocketAddr>) {
    for address in found {
        if !addresses.contains(&address) && addresses.len() < MAX_PER_NAME {
            addresses.push(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        for text in [
            "db1.example.org:7400",
            "10.0.0.1:1",
            "[fd00::1]:65535",
            "[fe80::1%3]:7400",
            "localhost:7400",
            "_skein._udp.example.org",
            "_odd:7400",
        ] {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:+1",
            ":7400",
            "fd00::1:7400",
            "a b:1",
            "0.0.0.0:7400",
            "_skein._tcp.example.org",
            "skein._udp.example.org",
            "_skein._udp.exa mple.org",
        ] {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn literals_and_localhost_resolve() {
        let resolve = async |text: &str| text.parse::<Seed>().unwrap().resolve().await;
        assert_eq!(resolve("127.0.0.1:7400").await.unwrap(), ["127.0.0.1:7400".parse().unwrap()]);
        assert_eq!(resolve("[::1]:7400").await.unwrap(), ["[::1]:7400".parse().unwrap()]);
        let scoped = "[fe80::1%1]:7400";
        assert_eq!(resolve(scoped).await.unwrap(), [scoped.parse().unwrap()], "its interface is part of it");
        assert!(resolve("localhost:7400").await.unwrap().iter().all(|a| a.ip().is_loopback()));
        assert!(resolve("no-such-host.invalid:7400").await.is_err());
    }

    #[tokio::test]
    async fn a_service_is_where_its_records_say_now_by_their_priority() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [server.local_addr().unwrap()];
        let seed: Seed = "_skein._udp.example.org".parse().unwrap();
        for records in [
            // Names that the system's resolver takes as they are.
            &[(20, 7402, "127.0.0.2"), (10, 7401, "127.0.0.1"), (30, 7402, "127.0.0.2")][..],
            &[(10, 7500, "127.0.0.3")],
        ] {
            let asked = seed.resolve_service(&servers);
            let answered = async {
                let mut question = [0; 512];
                let (len, from) = server.recv_from(&mut question).await.unwrap();
                let answer = srv::tests::places_as_answered(&question[..len], records);
                server.send_to(&answer, from).await.unwrap();
            };
            let (found, ()) = tokio::join!(asked, answered);
            let mut wanted: Vec<_> = records.to_vec();
            wanted.sort_unstable();
            wanted.dedup_by_key(|(_, port, host)| (*port, *host));
            let wanted: Vec<SocketAddr> =
                wanted.iter().map(|(_, port, host)| SocketAddr::new(host.parse().unwrap(), *port)).collect();
            assert_eq!(found.unwrap(), wanted);
        }
    }
}
