//! Section `http`: where the edge listens, whom it lets in and how much it takes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{ByteSize, FromText, duration_text, section::section};
use crate::types::Balance;

section! {
    /// The HTTP edge.
    Http in "http" {
        /// TCP address; loopback needs no credentials for write, query, status and metrics.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8086)),
        /// Let everybody who reaches the port write and query, on any address.
        open: bool = false,
        /// TLS on the TCP address: `off`, or `node` with the certificate that the cluster has given
        /// this node. `cert` and `key` switch it on too.
        tls: Tls = Tls::Off,
        /// Certificate chain of your own (PEM) to show instead; read again when it changes.
        cert: Option<PathBuf> = None,
        /// Its private key (PEM); read again when it changes.
        key: Option<PathBuf> = None,
        /// Host names besides `localhost` under which requests may come.
        hosts: Vec<String> = Vec::new(),
        /// Longest request body as it arrives.
        max_body: ByteSize = ByteSize::mib(25),
        /// Longest request body after decompression.
        max_inflated: ByteSize = ByteSize::mib(64),
        /// All request bodies in memory together; beyond it requests are answered 429.
        max_bodies: ByteSize = ByteSize::mib(512),
        /// Connections at once; further ones wait to be accepted.
        max_connections: usize = 4096,
        /// Writes and queries at once; further ones are answered 429.
        max_requests: usize = 512,
        /// Requests per second of one client, told by its API token or else its address; further ones are
        /// answered 429. 0 for as many as it likes.
        max_rate: u32 = 0,
        /// How long a client may take to send the head of a request. Counts from the end of the one
        /// before, so it also closes idle connections: keep it above the interval of your clients.
        #[serde(with = "duration_text")]
        header_timeout: Duration = Duration::from_secs(75),
        /// How long a client may take to send the body of a request.
        #[serde(with = "duration_text")]
        body_timeout: Duration = Duration::from_secs(30),
        /// How long a client may take nothing of an answer, before its connection is cut.
        #[serde(with = "duration_text")]
        answer_timeout: Duration = Duration::from_secs(60),
        /// How long a write waits to be acknowledged unless the request says otherwise.
        #[serde(with = "duration_text")]
        write_timeout: Duration = Duration::from_secs(4),
        /// How long a query may wait and run unless the request says less.
        #[serde(with = "duration_text")]
        query_timeout: Duration = Duration::from_secs(60),
        /// Queries that run at once; further ones wait within their time.
        max_queries: usize = 16,
        /// Memory that one query may take to sort, join and group.
        query_memory: ByteSize = ByteSize::mib(256),
        /// Memory that all queries at once may take for that.
        queries_memory: ByteSize = ByteSize::mib(1024),
        /// Rows of one answer.
        query_rows: usize = 10_000_000,
        /// Bytes of one answer.
        query_bytes: ByteSize = ByteSize::mib(1024),
        /// How a gateway spreads queries over readers, else voters: `round-robin`, or
        /// `least-connections` to the one that answers the fewest of its queries.
        balance: Balance = Balance::RoundRobin,
    }
}

impl Http {
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = [
            ("max_body", self.max_body.0 > 0),
            ("max_inflated", self.max_inflated >= self.max_body),
            // A buffer that grows is there twice for a moment, beside what it is unpacked from.
            ("max_bodies", self.max_bodies.0 / 3 >= self.max_inflated.0),
            ("max_connections", self.max_connections > 0),
            ("max_requests", self.max_requests > 0),
            ("header_timeout", !self.header_timeout.is_zero()),
            ("body_timeout", !self.body_timeout.is_zero()),
            ("answer_timeout", !self.answer_timeout.is_zero()),
            ("write_timeout", !self.write_timeout.is_zero()),
            ("query_timeout", !self.query_timeout.is_zero()),
            ("max_queries", self.max_queries > 0),
            ("query_memory", self.query_memory.0 > 0),
            ("queries_memory", self.queries_memory >= self.query_memory),
            ("query_rows", self.query_rows > 0),
            ("query_bytes", self.query_bytes.0 > 0),
        ];
        // Above it the time between two requests would be too short to be counted.
        if self.max_rate > 1_000_000 {
            return Err(format!("http.max_rate: 0 for no limit, or up to 1000000, not {}", self.max_rate));
        }
        if let Some((key, _)) = positive.iter().find(|(_, good)| !good) {
            return Err(format!(
                "http.{key} is too small: none may be 0, and max_body <= max_inflated <= a third of max_bodies, query_memory <= queries_memory"
            ));
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("http.cert (--http-cert) and http.key (--http-key) go together: give both".to_owned());
        }
        if self.cert.is_some() && self.tls == Tls::Node {
            return Err(
                "http.tls=node shows the node's certificate, http.cert another one: give one".to_owned()
            );
        }
        let strange = |h: &&String| h.is_empty() || h.contains(['/', ':', '*', ' ']);
        match self.hosts.iter().find(strange) {
            Some(host) => Err(format!("http.hosts: {host:?} is no host name (no scheme, port or pattern)")),
            None => Ok(()),
        }
    }

    /// True when the TCP address speaks HTTPS.
    pub fn is_encrypted(&self) -> bool {
        self.tls == Tls::Node || self.cert.is_some()
    }

    /// True when writes, queries, status and metrics need no credentials.
    pub fn is_open(&self) -> bool {
        self.open || self.listen.ip().to_canonical().is_loopback()
    }
}

/// Whether the edge encrypts, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// It does not, unless it has a certificate of its own.
    Off,
    /// As the node, with the certificate of the mesh.
    Node,
}

impl FromText for Balance {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            _ => Err(format!("{text:?} is neither round-robin nor least-connections")),
        }
    }
}

impl FromText for Tls {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "node" => Ok(Self::Node),
            _ => Err(format!(
                "{text:?} is neither off nor node (for your own certificate: --http-cert, --http-key)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_open_and_the_rest_only_if_told() {
        let on = |a: &str| Http { listen: a.parse().unwrap(), ..Http::default() };
        for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(on(address).is_open(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(!on(address).is_open(), "{address}");
            assert!(Http { open: true, ..on(address) }.is_open());
        }
    }

    #[test]
    fn a_gateway_spreads_queries_in_one_of_two_ways() {
        assert_eq!(Balance::from_text("round-robin"), Ok(Http::default().balance));
        assert_eq!(Balance::from_text("least-connections"), Ok(Balance::LeastConnections));
        assert!(Balance::from_text("fastest").is_err());
    }

    #[test]
    fn limits_go_together() {
        assert!(Http::default().check().is_ok());
        assert!(Http { max_inflated: ByteSize::mib(1), ..Http::default() }.check().is_err());
        assert!(Http { max_requests: 0, ..Http::default() }.check().is_err());
        assert!(Http { max_rate: 1_000_001, ..Http::default() }.check().is_err());
        let own = Http { cert: Some("c".into()), key: Some("k".into()), ..Http::default() };
        assert!(own.check().is_ok() && own.is_encrypted() && !Http::default().is_encrypted());
        assert!(Http { tls: Tls::Node, ..own.clone() }.check().is_err());
        assert!(Http { key: None, ..own.clone() }.check().is_err());
        assert!(Http { cert: None, ..own }.check().is_err());
        let node = Http { tls: Tls::Node, ..Http::default() };
        assert!(node.check().is_ok() && node.is_encrypted() && Tls::from_text("on").is_err());
        assert!(Http { hosts: vec!["http://x".into()], ..Http::default() }.check().is_err());
        assert!(Http { hosts: vec!["db.example".into()], ..Http::default() }.check().is_ok());
    }
}
