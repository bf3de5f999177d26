//! What clients of the nodes send: HTTP over one connection per client and node, kept open.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request,
    client::conn::http1,
    header::{self, HeaderName},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skeinmesh::types::Lsn;
use tokio::{net::TcpStream, time::timeout};

use crate::network;

/// The database of everything written.
pub const DATABASE: &str = "chaos";
/// Until a connection stands. Short: the network between clients and nodes is whole.
const CONNECT: Duration = Duration::from_secs(1);
/// Longest answer, in bytes.
const LIMIT: usize = 64 << 20;

/// A client's connections.
#[derive(Debug, Default)]
pub struct Connections {
    open: BTreeMap<usize, http1::SendRequest<Full<Bytes>>>,
}

/// What a node answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: HeaderMap,
    pub body: Bytes,
}

/// There was no answer.
#[derive(Debug, Clone)]
pub struct Broken {
    /// False if not a byte of the request can have reached the node.
    pub sent: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The position it states.
    pub fn lsn(&self) -> Option<Lsn> {
        self.header("x-skein-lsn")?.parse().ok()
    }

    /// What it says, in short.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        format!("{} {}", self.status, text.chars().take(300).collect::<String>())
    }

    /// That field of every row of an answer in JSON lines; `None` if it is no such answer.
    pub fn column(&self, field: &str) -> Option<Vec<u64>> {
        let lines = self.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        lines.map(|line| number(&serde_json::from_slice::<Value>(line).ok()?[field])).collect()
    }
}

impl Connections {
    /// Writes line protocol at a node. `key` is an `Idempotency-Key`.
    pub async fn write(
        &mut self,
        node: usize,
        lines: &str,
        ack: Option<&str>,
        key: Option<&str>,
        patience: Duration,
    ) -> Result<Answer, Broken> {
        let mut path = format!("/api/v3/write_lp?db={DATABASE}&precision=nanosecond");
        if let Some(level) = ack {
            path = format!("{path}&ack={level}");
        }
        self.post(node, &path, lines.to_owned(), key, patience).await
    }

    /// Asks in SQL; `more` are parameters such as `("consistency", "linearizable")`.
    pub async fn query(
        &mut self,
        node: usize,
        sql: &str,
        more: &[(&str, String)],
        patience: Duration,
    ) -> Result<Answer, Broken> {
        let mut asked = serde_json::json!({
            "db": DATABASE, "q": sql, "format": "jsonl", "timeout": format!("{}ms", patience.as_millis()),
        });
        for (name, value) in more {
            asked[name] = value.as_str().into();
        }
        // The node is to say that it took too long, not this client.
        let patience = patience + Duration::from_secs(2);
        self.post(node, "/api/v3/query_sql", asked.to_string(), None, patience).await
    }

    async fn post(
        &mut self,
        node: usize,
        path: &str,
        body: String,
        key: Option<&str>,
        patience: Duration,
    ) -> Result<Answer, Broken> {
        let key = key.map(|key| (HeaderName::from_static("idempotency-key"), key));
        self.send(node, Method::POST, path, body, key.as_slice(), patience).await
    }

    /// Sends any request to a node.
    pub async fn send(
        &mut self,
        node: usize,
        method: Method,
        path: &str,
        body: String,
        headers: &[(HeaderName, &str)],
        patience: Duration,
    ) -> Result<Answer, Broken> {
        let mut kept = self.open.remove(&node);
        if let Some(open) = &mut kept
            && open.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(open) => open,
            None => connect(node).await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, network::http(node).to_string())
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body.into())).map_err(|_| Broken { sent: false })?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            let body = Limited::new(body, LIMIT).collect().await.ok()?.to_bytes();
            Some(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        let answer = timeout(patience, exchange).await.ok().flatten().ok_or(Broken { sent: true })?;
        self.open.insert(node, sender);
        Ok(answer)
    }
}

async fn connect(node: usize) -> Result<http1::SendRequest<Full<Bytes>>, Broken> {
    let opened = async {
        let stream = TcpStream::connect(network::http(node)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the sender; what goes wrong shows at the request.
        tokio::spawn(connection);
        Some(sender)
    };
    timeout(CONNECT, opened).await.ok().flatten().ok_or(Broken { sent: false })
}
