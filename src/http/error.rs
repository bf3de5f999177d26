//! What can go wrong with a request, and the one place that knows status codes.
//!
//! The body is JSON that the clients of InfluxDB 1, 2, 3 and Arc all understand:
//! `{"code", "message", "error"}`, with `lines` for a write of which some lines were bad.

use std::io::Write;

use axum::{
    Json,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::node::{AckLevel, ControlFailure, Progress, ReadError, SubmitError};

/// A request that is not answered as asked.
#[derive(Debug)]
pub(super) struct ApiError {
    fault: Fault,
    message: String,
    /// Lines of a write that were not taken, with their physical numbers from 1.
    lines: Vec<(u64, String)>,
    /// Headers of what was done nevertheless.
    headers: Box<HeaderMap>,
}

/// What an answer says is wrong; kept beside it for who says it in other words.
#[cfg(feature = "sql")]
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) fault: Fault,
    pub(super) message: String,
}

/// Who is at fault, and whether a retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The request is malformed.
    Invalid,
    /// No or unknown credentials.
    Unauthorized,
    /// Not with these credentials, from there, or under that name.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path knows other methods.
    Method,
    /// The client sent too slowly.
    Slow,
    /// Against what is already there.
    Conflict,
    /// What was asked for is no longer there and never will be.
    Gone,
    /// Over a limit on size.
    TooLarge,
    /// Well-formed, but it asks for more than a limit allows.
    #[cfg(feature = "sql")]
    Limit,
    /// Too much at once on this node: later, or elsewhere.
    Busy,
    /// Not now: later.
    Unavailable,
    /// It may or may not have happened.
    Unknown,
    /// No space.
    Full,
    /// The node is at fault.
    Internal,
}

impl Fault {
    const fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Gone => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            #[cfg(feature = "sql")]
            Self::Limit => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::GATEWAY_TIMEOUT,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word in the field `code`, InfluxDB 2's where it has one.
    const fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not found",
            Self::Method => "method not allowed",
            Self::Slow => "request timeout",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::TooLarge => "request too large",
            #[cfg(feature = "sql")]
            Self::Limit => "unprocessable entity",
            Self::Busy => "too many requests",
            Self::Unavailable => "unavailable",
            Self::Unknown => "outcome unknown",
            Self::Full => "insufficient storage",
            Self::Internal => "internal error",
        }
    }

    /// Seconds after which a retry makes sense.
    const fn retry_after(self) -> Option<u64> {
        match self {
            Self::Busy | Self::Unavailable => Some(1),
            Self::Full => Some(30),
            _ => None,
        }
    }
}

impl ApiError {
    pub(super) fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), lines: Vec::new(), headers: Box::default() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Fault::Invalid, message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(Fault::Forbidden, message)
    }

    /// A write of which `rejected` points were not taken; `lines` are the first of them (physical
    /// numbers from 1) and `headers` say what was done with the others. Telegraf looks for the words "partial write" and then does not send
    /// the batch again.
    pub(super) fn partial(
        written: usize,
        rejected: usize,
        lines: Vec<(u64, String)>,
        headers: HeaderMap,
    ) -> Self {
        let first = lines.first().map(|(line, error)| format!("; line {line}: {error}")).unwrap_or_default();
        let message = format!("partial write: {written} points written, {rejected} rejected{first}");
        Self { fault: Fault::Invalid, message, lines, headers: Box::new(headers) }
    }

    /// A write that is in the log, but not at the level it asked for.
    fn unreached(Progress { at, asked, reached }: Progress) -> Self {
        let becomes = match reached {
            // Committed: only the level is missing.
            AckLevel::Quorum | AckLevel::All => "it is written, but not every voter has it yet",
            AckLevel::Memory | AckLevel::Local => "it may still be written, or lost",
        };
        let message = format!(
            "outcome unknown: record {at} did not reach ack={asked} in time, only {reached}; {becomes}; sending it \
             again with the same Idempotency-Key does no harm"
        );
        let mut headers = HeaderMap::new();
        set(&mut headers, "x-skein-lsn", at);
        set(&mut headers, "x-skein-ack", reached);
        set(&mut headers, "x-skein-ack-asked", asked);
        Self { headers: Box::new(headers), ..Self::new(Fault::Unknown, message) }
    }

    #[cfg(test)]
    pub(super) fn fault(&self) -> Fault {
        self.fault
    }

    #[cfg(feature = "sql")]
    pub(super) fn told(self) -> Told {
        Told { fault: self.fault, message: self.message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({
            "code": self.fault.code(), "message": self.message, "error": self.message,
        });
        if !self.lines.is_empty() {
            body["lines"] =
                self.lines.iter().map(|(line, error)| json!({ "line": line, "error": error })).collect();
        }
        let mut response = (self.fault.status(), *self.headers, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.fault.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.fault == Fault::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"skein\""));
        }
        #[cfg(feature = "sql")]
        response.extensions_mut().insert(Told { fault: self.fault, message: self.message });
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            // The caller parses again before it comes to this.
            SubmitError::SchemaChanged(_) => Self::new(
                Fault::Unavailable,
                "the schema of the table keeps changing under this write; nothing was written, send it again",
            ),
            SubmitError::Invalid(reason) => Self::invalid(reason),
            SubmitError::NoWriter { waited } => Self::new(
                Fault::Unavailable,
                format!(
                    "no writer for {} ms; nothing was written, send it again (skein status says why)",
                    waited.as_millis()
                ),
            ),
            SubmitError::Busy => Self::new(
                Fault::Busy,
                "too many writes wait on this node; nothing was written, send it again later or to another node",
            ),
            SubmitError::Full => {
                Self::new(Fault::Full, "the writer's disk is full; nothing was written, make space")
            }
            SubmitError::WriterBusy => Self::new(
                Fault::Unavailable,
                "the writer waits for commits and takes nothing more in; nothing was written, send it again \
                 (skein status says which nodes lag)",
            ),
            SubmitError::Unknown(None) => Self::new(
                Fault::Unknown,
                "outcome unknown: the write was not acknowledged in time but may still be in the log; \
                 sending it again does no harm",
            ),
            SubmitError::Unknown(Some(progress)) => Self::unreached(progress),
            SubmitError::KeyReused => Self::new(
                Fault::Conflict,
                "this Idempotency-Key was used with another body; nothing was written",
            ),
            SubmitError::Stopping => {
                Self::new(Fault::Unavailable, "this node is stopping; nothing was written, use another node")
            }
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match &error {
            ReadError::LostPosition { .. } => Self::new(Fault::Gone, format!("lost position: {error}")),
            ReadError::NotReached { .. } => Self::new(Fault::Unavailable, error.to_string()),
            ReadError::NoWriter => Self::new(
                Fault::Unavailable,
                "no writer to confirm the read point; ask again, or with consistency=local",
            ),
            ReadError::Stopping => Self::new(Fault::Unavailable, "this node is stopping; use another node"),
        }
    }
}

impl From<ControlFailure> for ApiError {
    fn from(error: ControlFailure) -> Self {
        let fault = match &error {
            ControlFailure::NoLeader | ControlFailure::NotVoter | ControlFailure::Stopping => {
                Fault::Unavailable
            }
            ControlFailure::NotFound(_) => Fault::NotFound,
            ControlFailure::Rejected(_) => Fault::Conflict,
            ControlFailure::Full => Fault::Full,
            ControlFailure::Unknown => Fault::Unknown,
        };
        Self::new(fault, error.to_string())
    }
}

/// 204: done, nothing to say but these headers.
pub(super) fn no_content(headers: HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    *response.headers_mut() = headers;
    response
}

/// 201: made.
pub(super) fn created(body: serde_json::Value) -> Response {
    (StatusCode::CREATED, Json(body)).into_response()
}

/// InfluxDB's `/health`: its body either way, and 503 unless it passes.
pub(super) fn health(pass: bool, body: serde_json::Value) -> Response {
    let status = if pass { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

/// HTTP's number of a status, for logs.
pub(super) fn number(response: &Response) -> u16 {
    response.status().as_u16()
}

/// True for the answer to whoever may not ask, or not now.
pub(super) fn is_refusal(response: &Response) -> bool {
    matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
    )
}

/// Class of a status (`2xx`) for metrics. gRPC has a status of its own, and HTTP's is then 200.
pub(super) fn class(response: &Response) -> &'static str {
    if let Some(status) = response.headers().get("grpc-status") {
        return match status.as_bytes() {
            b"0" => "2xx",
            // Unknown, internal, unavailable, lost.
            b"2" | b"13" | b"14" | b"15" => "5xx",
            _ => "4xx",
        };
    }
    match response.status().as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// 200 with a body of that type.
pub(super) fn ok(content_type: &'static str, mut headers: HeaderMap, body: Body) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    (StatusCode::OK, headers, body).into_response()
}

/// What another node has answered; `None` if its status is none.
pub(super) fn as_answered(status: u16, headers: HeaderMap, body: Body) -> Option<Response> {
    let status = StatusCode::from_u16(status).ok()?;
    Some((status, headers, body).into_response())
}

/// The router says that an answer without content has 0 bytes of it, which must not be said (RFC 9110, 8.6).
pub(super) fn without_length_of_nothing(mut response: Response) -> Response {
    if response.status() == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Most values of our own headers are no longer, and are written without a text being made of them.
const SHORT: usize = 64;

/// A header whose value is made of ids, numbers and words of our own; left out should it not fit.
pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: impl std::fmt::Display) {
    let mut text = [0; SHORT];
    let mut rest = text.as_mut_slice();
    let value = match write!(rest, "{value}") {
        Ok(()) => {
            let len = SHORT - rest.len();
            HeaderValue::from_bytes(text.get(..len).unwrap_or_default())
        }
        Err(_) => HeaderValue::from_str(&value.to_string()),
    };
    if let Ok(value) = value {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::types::Lsn;

    const PROGRESS: Progress =
        Progress { at: Lsn::new(1, 9), asked: AckLevel::All, reached: AckLevel::Quorum };

    #[test]
    fn a_header_has_all_of_its_value_however_long() {
        let mut headers = HeaderMap::new();
        for len in [0, 1, SHORT - 1, SHORT, SHORT + 1, 3 * SHORT] {
            let value = "v".repeat(len);
            set(&mut headers, "x-skein-node", &value);
            assert_eq!(headers.get("x-skein-node").unwrap(), value.as_str());
        }
        set(&mut headers, "x-skein-ack", "no\nheader");
        assert!(headers.get("x-skein-ack").is_none());
    }

    async fn seen(error: ApiError) -> (u16, HeaderMap, serde_json::Value) {
        let response = error.into_response();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 65_536).await.unwrap();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn submit_errors_have_their_status() {
        let cases: Vec<(SubmitError, u16, bool)> = vec![
            (SubmitError::SchemaChanged(Bytes::new()), 503, true),
            (SubmitError::Invalid("x".into()), 400, false),
            (SubmitError::NoWriter { waited: Duration::from_secs(4) }, 503, true),
            (SubmitError::Busy, 429, true),
            (SubmitError::Full, 507, true),
            (SubmitError::WriterBusy, 503, true),
            (SubmitError::Unknown(None), 504, false),
            (SubmitError::Unknown(Some(PROGRESS)), 504, false),
            (SubmitError::KeyReused, 409, false),
            (SubmitError::Stopping, 503, true),
        ];
        for (error, status, retry) in cases {
            let name = format!("{error:?}");
            let (got, headers, body) = seen(error.into()).await;
            assert_eq!(got, status, "{name}");
            assert_eq!(headers.contains_key("retry-after"), retry, "{name}");
            assert_eq!(body["message"], body["error"], "{name}");
            assert!(body["code"].is_string(), "{name}");
        }
    }

    #[tokio::test]
    async fn unknown_says_so_and_unauthorized_asks() {
        let (_, _, body) = seen(SubmitError::Unknown(None).into()).await;
        assert!(body["message"].as_str().unwrap().starts_with("outcome unknown"));
        let (_, headers, body) = seen(SubmitError::Unknown(Some(PROGRESS)).into()).await;
        assert!(body["message"].as_str().unwrap().starts_with("outcome unknown: record 1.9"), "{body}");
        let told =
            ["x-skein-lsn", "x-skein-ack", "x-skein-ack-asked"].map(|name| headers[name].to_str().unwrap());
        assert_eq!(told, ["1.9", "quorum", "all"]);
        let (status, headers, _) = seen(ApiError::new(Fault::Unauthorized, "who?")).await;
        assert_eq!((status, headers.contains_key("www-authenticate")), (401, true));
    }

    #[tokio::test]
    async fn partial_writes_name_their_lines_and_what_was_done() {
        let mut headers = HeaderMap::new();
        set(&mut headers, "x-skein-lsn", Lsn::new(1, 2));
        let lines = vec![(3, "bad".to_owned()), (9, "worse".to_owned())];
        let (status, headers, body) = seen(ApiError::partial(7, 2, lines, headers)).await;
        assert_eq!(status, 400);
        assert_eq!(headers["x-skein-lsn"], "1.2");
        assert_eq!(body["lines"][1]["line"], 9);
        assert_eq!(body["lines"][0]["error"], "bad");
        assert!(body["error"].as_str().unwrap().contains("partial write"), "{body}");
    }
}
