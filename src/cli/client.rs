//! A small HTTP/1 client of a node's edge, over TCP or its unix socket.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use super::{target::Target, trust};

/// Why there is no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The target cannot be what was meant.
    #[error("{0}")]
    Target(String),
    /// Nobody answers there.
    #[error("no node answers at {target}: {error}; {advice}")]
    Unreachable {
        /// The target.
        target: String,
        /// Why.
        error: String,
        /// What to do.
        advice: &'static str,
    },
    /// What answers there is not who it should be, or does not speak TLS.
    #[error("no TLS with {target}, trusting {ca}: {error}")]
    Untrusted {
        /// The target.
        target: String,
        /// Why.
        error: String,
        /// Whose word counts.
        ca: String,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the node at {target} broke off: {error}")]
    Broken {
        /// The target.
        target: String,
        /// How.
        error: String,
    },
    /// The node answered with an error.
    #[error("{message}{}", hint(*.status))]
    Refused {
        /// Status code.
        status: u16,
        /// What the node says.
        message: String,
        /// Bad lines of a write: number and reason.
        lines: Vec<(u64, String)>,
        /// Headers of the answer.
        headers: Box<HeaderMap>,
    },
}

/// What the user of a command can do about a status.
fn hint(status: u16) -> &'static str {
    match status {
        401 => " (put an API token into SKEIN_API_TOKEN, or run the command where the node runs)",
        403 => " (run the command where the node runs, or put another API token into SKEIN_API_TOKEN)",
        _ => "",
    }
}

/// Speaks to one node. Each request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    target: Target,
    token: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("target", &self.target).finish_non_exhaustive()
    }
}

/// An answer with a status of success.
#[derive(Debug)]
pub struct Answer {
    /// Headers.
    pub headers: HeaderMap,
    target: String,
    body: Incoming,
}

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest answer that is taken whole, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;

impl Client {
    /// A client of that node; `token` goes into `Authorization`.
    pub fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token }
    }

    /// A client of that node with the token in `SKEIN_API_TOKEN`, if any.
    pub fn from_env(target: Target) -> Self {
        Self::new(target, std::env::var("SKEIN_API_TOKEN").ok().filter(|token| !token.is_empty()))
    }

    /// Sends a request and waits for the head of the answer. `path` holds the query string too.
    ///
    /// # Errors
    /// Nobody answers, or not with a status of success.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, ClientError> {
        let body: Bytes = body.into();
        let wrong = |e: hyper::http::Error| ClientError::Target(format!("cannot ask for {path}: {e}"));
        let host = match &self.target {
            Target::Socket(_) => "localhost",
            Target::Tcp { authority } | Target::Tls { authority, .. } => authority,
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.first() == Some(&b'{') {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(wrong)?;
        let connect = async {
            match &self.target {
                Target::Socket(path) => UnixStream::connect(path).await.map(Either::Unix),
                Target::Tcp { authority } | Target::Tls { authority, .. } => {
                    TcpStream::connect(authority).await.map(Either::Tcp)
                }
            }
        };
        let stream = match tokio::time::timeout(CONNECT, connect).await {
            Ok(connected) => connected.map_err(|e| self.unreachable(e.to_string()))?,
            Err(_) => return Err(self.unreachable("no connection within 5 s".to_owned())),
        };
        let response = match (stream, &self.target) {
            (Either::Unix(stream), _) => self.exchange(stream, request).await?,
            (Either::Tcp(stream), Target::Tls { authority, ca }) => {
                let stream = self.encrypt(stream, authority, ca.as_deref()).await?;
                self.exchange(stream, request).await?
            }
            (Either::Tcp(stream), _) => self.exchange(stream, request).await?,
        };
        let (head, body) = response.into_parts();
        let answer = Answer { headers: head.headers, target: self.target.to_string(), body };
        if head.status.is_success() { Ok(answer) } else { Err(refusal(head.status, answer).await?) }
    }

    /// `GET` and the JSON of the answer.
    ///
    /// # Errors
    /// As [`Client::send`], or the answer is not that JSON.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Bytes::new()).await?.json().await
    }

    /// TLS with a node that a trusted root has signed.
    async fn encrypt(
        &self,
        stream: TcpStream,
        authority: &str,
        ca: Option<&Path>,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let Some(ca) = ca else {
            return Err(ClientError::Target(format!(
                "no roots to trust for https://{authority}: name a file with --ca or SKEIN_CA (a node keeps its \
                 cluster's in ca.pem, in its data directory)"
            )));
        };
        let connector = trust::connector(ca).map_err(|why| ClientError::Target(format!("--ca: {why}")))?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host).map_err(|e| ClientError::Target(format!("{authority}: {e}")))?;
        match tokio::time::timeout(CONNECT, connector.connect(name, stream)).await {
            Ok(connected) => connected.map_err(|e| ClientError::Untrusted {
                target: self.target.to_string(),
                error: e.to_string(),
                ca: ca.display().to_string(),
            }),
            Err(_) => Err(self.unreachable("no TLS within 5 s".to_owned())),
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, ClientError> {
        let broken = |e: hyper::Error| self.broken(&e);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the answer's body; what goes wrong shows where the body is read.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broken)
    }

    fn unreachable(&self, error: String) -> ClientError {
        ClientError::Unreachable {
            target: self.target.to_string(),
            error,
            advice: "is it running? (skein start; --url or --data-dir name another node)",
        }
    }

    fn broken(&self, error: &hyper::Error) -> ClientError {
        ClientError::Broken { target: self.target.to_string(), error: error.to_string() }
    }
}

enum Either {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|e| self.broken(&e))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body.
    pub async fn bytes(self) -> Result<Bytes, ClientError> {
        let target = self.target;
        match Limited::new(self.body, ANSWER_LIMIT).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) => Err(ClientError::Broken { target, error: error.to_string() }),
        }
    }

    /// The whole body as JSON.
    pub async fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, ClientError> {
        let target = self.target.clone();
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| ClientError::Broken { target, error: format!("not the JSON expected: {e}") })
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn broken(&self, error: &hyper::Error) -> ClientError {
        ClientError::Broken { target: self.target.clone(), error: error.to_string() }
    }
}

/// The error that an answer is.
async fn refusal(status: StatusCode, answer: Answer) -> Result<ClientError, ClientError> {
    let headers = Box::new(answer.headers.clone());
    let bytes = answer.bytes().await?;
    let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = match body["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the node answered {status}"),
    };
    let line = |line: &serde_json::Value| {
        Some((line["line"].as_u64()?, line["error"].as_str().unwrap_or_default().to_owned()))
    };
    let lines = body["lines"].as_array().map(|all| all.iter().filter_map(line).collect()).unwrap_or_default();
    Ok(ClientError::Refused { status: status.as_u16(), message, lines, headers })
}

/// A query string from names and values; those without value are left out.
pub(super) fn query_string(pairs: &[(&str, Option<&str>)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if let Some(value) = value {
            out.push(if out.is_empty() { '?' } else { '&' });
            out.push_str(name);
            out.push('=');
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte.into()),
                    _ => out.push_str(&format!("%{byte:02X}")),
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A server of one canned answer; gives back the request it got.
    async fn canned(answer: &'static str) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = vec![0; 4096];
            let n = stream.read(&mut got).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&got[..n]).into_owned()
        });
        (Client::new(target, Some("secret".into())), served)
    }

    #[tokio::test]
    async fn answers_and_what_was_sent() {
        let (client, served) = canned("HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 2\r\n\r\n{}").await;
        assert!(!format!("{client:?}").contains("secret"));
        let answer = client.send(Method::POST, "/x?q=1", "{}").await.unwrap();
        assert_eq!(answer.header("x-a"), Some("b"));
        assert!(answer.json::<serde_json::Value>().await.unwrap().is_object());
        let sent = served.await.unwrap().to_ascii_lowercase();
        assert!(sent.starts_with("post /x?q=1 http/1.1\r\n"), "{sent}");
        assert!(
            sent.contains("authorization: bearer secret\r\n") && sent.contains("host: 127.0.0.1:"),
            "{sent}"
        );
    }

    #[tokio::test]
    async fn refusals_carry_message_lines_and_hint() {
        let body = r#"{"message":"partial write","lines":[{"line":3,"error":"bad"}]}"#;
        let text = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (client, _served) = canned(text.leak()).await;
        match client.send(Method::POST, "/write", "x").await.unwrap_err() {
            ClientError::Refused { status, message, lines, .. } => {
                assert_eq!((status, message.as_str()), (400, "partial write"));
                assert_eq!(lines, [(3, "bad".to_owned())]);
            }
            other => panic!("{other}"),
        }
        let (client, _served) = canned("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
        let error = client.send(Method::GET, "/", "").await.unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("SKEIN_API_TOKEN"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_says_what_to_do() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let client = Client::new(Target::Tcp { authority: free.to_string() }, None);
        let error = client.send(Method::GET, "/", "").await.unwrap_err().to_string();
        assert!(error.contains("skein start"), "{error}");
        let (client, _served) = canned("not http at all").await;
        let error = client.send(Method::GET, "/", "").await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    }

    #[test]
    fn query_strings_are_escaped() {
        let pairs = [("db", Some("a b&c")), ("none", None), ("q", Some("é=1"))];
        assert_eq!(query_string(&pairs), "?db=a%20b%26c&q=%C3%A9%3D1");
        assert_eq!(query_string(&[]), "");
    }
}
