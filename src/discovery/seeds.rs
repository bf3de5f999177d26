//! Seeds: `host:port` texts from flags, configuration and tokens, resolved anew on each attempt.

use std::{fmt, io, net::SocketAddr, str::FromStr, time::Duration};

/// Most addresses that one name is tried under.
const MAX_PER_NAME: usize = super::MAX_ADDRESSES;
/// Longest wait for a name server.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A place to try: a DNS name or IP literal, and a UDP port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    host: String,
    port: u16,
}

/// A text that is not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a seed: {0:?}; want HOST:PORT, for example db1.example.org:7400 or [fd00::1]:7400")]
pub struct SeedError(String);

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let wrong = || SeedError(text.chars().take(64).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 || address.ip().is_unspecified() {
                return Err(wrong());
            }
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(name) {
            return Err(wrong());
        }
        match port.parse() {
            Ok(port)
                if port != 0 && text.bytes().rev().take_while(|b| *b != b':').all(|b| b.is_ascii_digit()) =>
            {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Seed {
    /// The addresses behind it right now, in the resolver's order, at most 16. Asks the system's
    /// resolver each time, so a name that moves is followed. Cancel-safe.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, lookup)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name server did not answer"))??;
        let mut addresses = Vec::new();
        for address in found {
            if !addresses.contains(&address) && addresses.len() < MAX_PER_NAME {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        for text in ["db1.example.org:7400", "10.0.0.1:1", "[fd00::1]:65535", "localhost:7400"] {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), text);
        }
        for text in
            ["", "host", "host:", "host:0", "host:+1", ":7400", "fd00::1:7400", "a b:1", "0.0.0.0:7400"]
        {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn literals_and_localhost_resolve() {
        let resolve = async |text: &str| text.parse::<Seed>().unwrap().resolve().await;
        assert_eq!(resolve("127.0.0.1:7400").await.unwrap(), ["127.0.0.1:7400".parse().unwrap()]);
        assert_eq!(resolve("[::1]:7400").await.unwrap(), ["[::1]:7400".parse().unwrap()]);
        assert!(resolve("localhost:7400").await.unwrap().iter().all(|a| a.ip().is_loopback()));
        assert!(resolve("no-such-host.invalid:7400").await.is_err());
    }
}
