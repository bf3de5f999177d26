//! Requests that two parsers may see differently: what stands in front of this edge may be one.
//!
//! Each is refused, or read as RFC 9112 says and as a whole, so that no part of a body is ever taken
//! for the next request. Nothing is sent on as HTTP: writes go through the mesh in frames.

use super::*;

/// What hides in a body, or behind the end that one of the parsers sees.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// What must become of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Want {
    /// An error, and the connection is closed behind it.
    Refused,
    /// A body of exactly this many bytes.
    Body(usize),
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n{body}")
}

#[rustfmt::skip]
fn corpus() -> Vec<(String, Want)> {
    use Want::{Body, Refused};
    let hidden = HIDDEN.len();
    let chunked = format!("{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let chunked_and = format!("0\r\n\r\n{HIDDEN}");
    let te = "transfer-encoding: chunked\r\n";
    vec![
        // Both lengths: the chunks count, and the connection is closed (RFC 9112, 6.1).
        (post(&format!("content-length: 6\r\n{te}"), &chunked_and), Body(0)),
        (post(&format!("{te}content-length: 6\r\n"), &chunked_and), Body(0)),
        (post(&format!("content-length: {}\r\n{te}", chunked.len()), &chunked), Body(hidden)),
        (post(&format!("content-length: 0\r\n{te}"), &chunked), Body(hidden)),
        // Two lengths.
        (post(&format!("content-length: 0\r\ncontent-length: {hidden}\r\n"), HIDDEN), Refused),
        (post(&format!("content-length: {hidden}\r\ncontent-length: 0\r\n"), HIDDEN), Refused),
        (post(&format!("content-length: 0, {hidden}\r\n"), HIDDEN), Refused),
        (post(&format!("content-length: {hidden}, {hidden}\r\n"), HIDDEN), Refused),
        // Lengths that are no numbers.
        (post(&format!("content-length: +{hidden}\r\n"), HIDDEN), Refused),
        (post(&format!("content-length: 0x{hidden:x}\r\n"), HIDDEN), Refused),
        (post("content-length: -1\r\n", HIDDEN), Refused),
        (post("content-length: 18446744073709551616\r\n", HIDDEN), Refused),
        (post("content-length: 1e1\r\n", HIDDEN), Refused),
        (post("content-length:\r\n", HIDDEN), Refused),
        (post(&format!("content-length: {hidden} 0\r\n"), HIDDEN), Refused),
        (post(&format!("content-length: \u{b}{hidden}\r\n"), HIDDEN), Refused),
        // Codings.
        (post("transfer-encoding: identity\r\n", HIDDEN), Refused),
        (post("transfer-encoding: chunked, identity\r\n", &chunked), Refused),
        (post("transfer-encoding: xchunked\r\n", &chunked), Refused),
        (post("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", &chunked), Refused),
        (post("transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", &chunked), Body(hidden)),
        (post("transfer-encoding: \u{b}chunked\r\n", &chunked), Refused),
        (post("transfer-encoding: \"chunked\"\r\n", &chunked), Refused),
        (post("Transfer-Encoding: CHUNKED\r\n", &chunked), Body(hidden)),
        (post("transfer-encoding:\tchunked\r\n", &chunked), Body(hidden)),
        (post("transfer_encoding: chunked\r\ncontent-length: 0\r\n", ""), Body(0)),
        // Names and lines.
        (post(&format!("content-length : {hidden}\r\n"), HIDDEN), Refused),
        (post("transfer-encoding : chunked\r\n", &chunked), Refused),
        (post(&format!(" content-length: {hidden}\r\n"), HIDDEN), Refused),
        (post("x-folded: a\r\n transfer-encoding: chunked\r\n", &chunked), Refused),
        (post(&format!("x: y\rcontent-length: {hidden}\r\n"), HIDDEN), Refused),
        (post(&format!("x: y\0\r\ncontent-length: {hidden}\r\n"), HIDDEN), Refused),
        ("POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\rGET /smuggled HTTP/1.1\r\n\r\n".to_owned(), Refused),
        // Chunks.
        (post(te, &format!("{hidden:x};{HIDDEN}")), Refused),
        (post(te, &format!("0x{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n")), Refused),
        (post(te, &format!("+{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n")), Refused),
        (post(te, &format!("{hidden:x}\n{HIDDEN}\n0\n\n")), Refused),
        (post(te, &format!("ffffffffffffffff1\r\n{HIDDEN}\r\n0\r\n\r\n")), Refused),
        (post(te, &format!("{hidden:x}\r\n{HIDDEN}xx0\r\n\r\n")), Refused),
        (post(te, &format!("\r\n{HIDDEN}")), Refused),
        (post(te, &format!("{hidden:x};ext=\"a\"\r\n{HIDDEN}\r\n0\r\n\r\n")), Body(hidden)),
        (post(te, &format!("{hidden:X} \r\n{HIDDEN}\r\n0\r\nx-trailer: y\r\n\r\n")), Body(hidden)),
        (post(te, &format!("000{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n")), Body(hidden)),
        // Versions and request lines.
        (format!("POST /echo HTTP/1.0\r\nhost: localhost\r\n{te}\r\n{chunked}"), Refused),
        (format!("POST /echo HTTP/1.2\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        (format!("POST /echo HTTP/2.0\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        (format!("POST  /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        (format!("POST /echo\tHTTP/1.1\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        (format!("PO ST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        (format!("POST /echo HTTP/1.1 GET /smuggled HTTP/1.1\r\nhost: localhost\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"), Refused),
        // A body where none is usual, and one that is what it says.
        (post(&format!("content-length: {hidden}\r\n"), HIDDEN), Body(hidden)),
        (post(te, &chunked), Body(hidden)),
        (post(&format!("content-length: 000{hidden}\r\n"), HIDDEN), Body(hidden)),
    ]
}

#[tokio::test]
async fn no_body_becomes_a_request() {
    let edge =
        running(config::Http { header_timeout: Duration::from_secs(1), ..config::Http::default() }).await;
    let mut wrong = Vec::new();
    for (request, want) in corpus() {
        let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The client has said all: a parser that waits for more sees the end instead.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset behind an early answer is as good as a close.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let answers = answer.matches("HTTP/1.1 ").count();
        let took = answer.starts_with("HTTP/1.1 200");
        let right = match want {
            Want::Refused => !took && answers <= 1,
            Want::Body(len) => {
                let body = answer.split("\r\n\r\n[").nth(1).and_then(|rest| rest.rsplit_once(']'));
                took && answers == 1 && body.is_some_and(|(body, _)| body.len() == len)
            }
        };
        if !right || answer.contains("SMUGGLED") {
            wrong.push(format!("{request:?}\n    wanted {want:?}, got {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), corpus().len(), wrong.join("\n"));
}
