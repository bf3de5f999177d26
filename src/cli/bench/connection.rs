//! One keep-alive connection that writes, one request at a time, at little cost to the machine it
//! shares with the nodes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{cli::client::query_string, types::Lsn};

use super::{bodies::Format, cluster::Edge};

/// Longer than any node holds a write.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer to a write that is read, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// See the module.
pub(super) struct Connection {
    edge: Edge,
    path: String,
    /// Another program's server: it says no more than that it took a write.
    foreign: bool,
    open: Option<http1::SendRequest<Full<Bytes>>>,
}

/// An acknowledged write.
#[derive(Debug)]
pub(super) struct Acked {
    /// Its position.
    pub(super) at: Lsn,
    /// The level the node says was reached.
    pub(super) level: String,
    /// True when another node wrote it.
    pub(super) forwarded: bool,
}

impl Connection {
    /// Opened by the first write, and again after a failure.
    pub(super) fn new(edge: Edge, format: Format, database: &str, ack: &str) -> Self {
        let (route, precision) = match format {
            Format::LineProtocol => ("/api/v3/write_lp", Some("nanosecond")),
            Format::Msgpack => ("/api/v1/write/msgpack", None),
        };
        let pairs = [("db", Some(database)), ("precision", precision), ("ack", Some(ack))];
        Self { edge, path: format!("{route}{}", query_string(&pairs)), foreign: false, open: None }
    }

    /// To another program's server, which takes writes at that path.
    pub(super) fn foreign(edge: Edge, path: &str) -> Self {
        Self { edge, path: path.to_owned(), foreign: true, open: None }
    }

    /// Writes a body. The error is what went wrong in few words, for counting.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Acked, String> {
        let answer = match timeout(PATIENCE, self.exchange(body)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer within 15 s".to_owned()),
        };
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Acked, String> {
        let mut sender = match self.open.take().filter(|open| !open.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await.map_err(|e| format!("connect: {e}"))?,
        };
        let broken = |e: hyper::Error| format!("connection broke: {e}");
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(header::HOST, &self.edge.authority);
        if let Some(token) = &self.edge.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| format!("request: {e}"))?;
        sender.ready().await.map_err(broken)?;
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let text = match Limited::new(body, ANSWER_LIMIT).collect().await {
            Ok(text) => text.to_bytes(),
            Err(error) => return Err(format!("connection broke: {error}")),
        };
        if !head.status.is_success() {
            let said: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            return Err(format!("{} {}", head.status.as_u16(), said["code"].as_str().unwrap_or_default()));
        }
        self.open = Some(sender);
        if self.foreign {
            return Ok(Acked { at: Lsn::default(), level: "its own".into(), forwarded: false });
        }
        acked(&head.headers).ok_or_else(|| "an answer without position and level".to_owned())
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(&self.edge.authority).await.map_err(|e| e.kind().to_string())?;
        // Head and body go out as they come, or a small write would wait for an acknowledgement of TCP.
        stream.set_nodelay(true).map_err(|e| e.kind().to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // Ends when the sender is dropped; what goes wrong shows at the request.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn acked(headers: &HeaderMap) -> Option<Acked> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Some(Acked {
        at: text("x-skein-lsn")?.parse().ok()?,
        level: text("x-skein-ack")?.to_owned(),
        forwarded: text("x-skein-forwarded") == Some("true"),
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn one_connection_for_many_writes_and_a_new_one_after_a_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let good = "HTTP/1.1 204 No Content\r\nx-skein-lsn: 3.42\r\nx-skein-ack: quorum\r\nx-skein-forwarded: true\r\n\r\n";
        let body = r#"{"code":"unavailable"}"#;
        let bad = format!("HTTP/1.1 503 Busy\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let served = tokio::spawn(async move {
            let mut heads = Vec::new();
            for answers in [vec![good, good, bad.as_str()], vec![good]] {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in answers {
                    let mut got = vec![0; 4096];
                    let n = stream.read(&mut got).await.unwrap();
                    heads.push(String::from_utf8_lossy(&got[..n]).into_owned());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            heads
        });
        let edge = Edge { name: "a".into(), authority, token: Some("t".into()) };
        let mut connection = Connection::new(edge, Format::LineProtocol, "b", "quorum");
        for _ in 0..2 {
            let acked = connection.post("x v=1 1".into()).await.unwrap();
            assert_eq!((acked.at, acked.level.as_str(), acked.forwarded), (Lsn::new(3, 42), "quorum", true));
        }
        assert_eq!(connection.post("x v=1 1".into()).await.unwrap_err(), "503 unavailable");
        connection.post("x v=1 1".into()).await.unwrap();
        let heads = served.await.unwrap();
        let want = "POST /api/v3/write_lp?db=b&precision=nanosecond&ack=quorum HTTP/1.1\r\n";
        assert!(heads.iter().all(|head| head.starts_with(want) && head.ends_with("x v=1 1")), "{heads:?}");
        assert!(heads[0].contains("authorization: Bearer t\r\n"), "{heads:?}");
    }

    #[test]
    fn an_answer_that_names_no_level_is_no_acknowledgement() {
        let mut headers = HeaderMap::new();
        headers.insert("x-skein-lsn", "3.42".parse().unwrap());
        assert!(acked(&headers).is_none());
    }
}
