//! A client's request on its way from a gateway to a node with data, and the answer as it comes.
//!
//! The gateway sends a [`HttpRequest`] and the body as the client sent it, and ends its direction. A body
//! that fits comes in one frame, also an empty one; a longer one in several, which only nodes with
//! [`LONG_BODIES`] read. Before its end the other end sends [`Part`]s: beats while it works, then one head,
//! then data and perhaps trailers, then the end. A stream that ends without [`Part::End`] broke off.
//! [`Part::Data`] is followed by a frame of raw bytes.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Longest head of a request or an answer: the edge takes 64 KiB of text.
pub const MAX_HEAD: usize = 128 * 1024;
/// Longest frame of a request's body.
pub const MAX_BODY_FRAME: usize = 1024 * 1024;
/// Pieces that a body is cut into if it is longer than one frame may be: each must be taken in time.
pub const BODY_PIECE: usize = 64 * 1024;
/// Feature bit of a node with data: it reads a body to the end of the stream. Others take the first frame
/// for all of it, so nothing longer is sent to them.
pub const LONG_BODIES: u64 = 4;
/// Longest piece of an answer's body.
pub const MAX_PIECE: usize = 256 * 1024;

/// Names and values of headers, in order.
pub type Headers = Vec<(String, ByteBuf)>;

/// The head of a request. Its headers may hold an API token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// Such as `GET`.
    pub method: String,
    /// Path and query string.
    pub target: String,
    /// True for HTTP/2, which gRPC asks for.
    pub http2: bool,
    /// Without those that are about one connection.
    pub headers: Headers,
    /// True when the gateway's own edge is open: data and status need no API token then. Everything
    /// else, and every request without it, is judged by the API token that it brings.
    pub vouched: bool,
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query string may hold an API token too.
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "HttpRequest({} {path})", self.method)
    }
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpResponse {
    /// HTTP's number.
    pub status: u16,
    /// Without those that are about one connection.
    pub headers: Headers,
}

/// What an answer is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Still at work.
    Beat,
    /// Comes once, before data.
    Head(HttpResponse),
    /// The next frame is a piece of the body.
    Data,
    /// Behind the body: gRPC's status.
    Trailers(Headers),
    /// The answer is whole.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{decode, encode};

    #[test]
    fn heads_and_parts_come_whole_and_no_token_is_shown() {
        let request = HttpRequest {
            method: "POST".into(),
            target: "/query?p=skein_secret".into(),
            http2: true,
            headers: vec![("authorization".into(), ByteBuf::from(b"Bearer skein_secret".to_vec()))],
            vouched: false,
        };
        assert_eq!(format!("{request:?}"), "HttpRequest(POST /query)");
        assert_eq!(decode::<HttpRequest>(&encode(&request), MAX_HEAD), Ok(request));
        let head = HttpResponse { status: 200, headers: vec![("x-a".into(), ByteBuf::from(vec![0xff]))] };
        for part in [Part::Beat, Part::Head(head), Part::Data, Part::Trailers(vec![]), Part::End] {
            assert_eq!(decode::<Part>(&encode(&part), MAX_HEAD), Ok(part));
        }
        assert_eq!(&encode(&Part::Beat)[..], b"\xa4Beat");
    }
}
