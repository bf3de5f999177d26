//! A blocking HTTP/1 client of the tests: one connection per request, over TCP or the unix socket.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Whom to ask.
#[derive(Debug, Clone)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The body as it came.
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The numbers of the bad lines of a write.
    pub fn bad_lines(&self) -> Vec<u64> {
        let lines = self.json()["lines"].as_array().cloned().unwrap_or_default();
        lines.iter().map(|line| line["line"].as_u64().unwrap()).collect()
    }

    /// The position in `x-skein-lsn`.
    pub fn lsn(&self) -> (u64, u64) {
        let text = self.header("x-skein-lsn").unwrap_or_else(|| panic!("no position: {self:?}"));
        lsn(text)
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// `epoch.seq`.
pub fn lsn(text: &str) -> (u64, u64) {
    let (epoch, seq) = text.split_once('.').unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

/// Sends one request and reads the whole answer, within `patience`.
pub fn send(
    target: &Target,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    patience: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + patience;
    let mut stream: Box<dyn Stream> = match target {
        Target::Tcp(address) => Box::new(TcpStream::connect_timeout(address, patience)?),
        Target::Unix(path) => Box::new(UnixStream::connect(path)?),
    };
    let host = match target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.limit(patience)?;
    // A server that refuses early may close before it has read all: its answer counts.
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut all = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")));
        }
        stream.limit(left)?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    sent?;
    parse(&all).ok_or_else(|| {
        let start = String::from_utf8_lossy(&all[..all.len().min(200)]).into_owned();
        io::Error::new(io::ErrorKind::InvalidData, format!("broken off after {start:?}"))
    })
}

trait Stream: Read + Write {
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Stream for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// `None` for an answer that is not whole.
fn parse(all: &[u8]) -> Option<Answer> {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&all[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let rest = &all[end + 4..];
    let body = if find("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        unchunk(rest)?
    } else {
        match find("content-length") {
            Some(len) if len.parse() != Ok(rest.len()) => return None,
            _ => rest.to_vec(),
        }
    };
    Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned(), bytes: body, headers })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if len == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..len)?);
        rest = rest.get(len + 2..)?;
    }
}

#[test]
fn an_answer_that_broke_off_is_none() {
    let whole =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = parse(whole).unwrap();
    assert_eq!((answer.status, answer.body.as_str(), answer.header("x-a")), (200, "abcde", Some("b")));
    assert!(parse(&whole[..whole.len() - 6]).is_none());
    assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab").is_none());
    assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().status, 204);
}
