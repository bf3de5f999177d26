//! Writes: a body becomes points here, at the edge, and one record in the log.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, request},
    response::Response,
};
use bytes::Bytes;
use ring::digest;

use super::{
    auth::Principal,
    body::{self, Taken},
    error::{self, ApiError, Fault},
    intake::Intake,
    params::{self, Params},
};
use crate::{
    engine::columnar::{
        SeriesGate, batch,
        ingest::{BodyError, Encoded, Options, Precision, line_protocol, msgpack},
        schema::Schemas,
    },
    node::{AckLevel, ClientKey, Receipt, SubmitError, Write},
    protocol::{frame::MAX_PAYLOAD, request_id::RequestId},
    types::Scope,
};

/// How often a body is parsed again because the schema has changed under it.
const PARSE_AGAIN: usize = 3;
/// Longest `Idempotency-Key`, in bytes.
const KEY_LIMIT: usize = 256;
/// Longest wait that a request may ask for.
const TIMEOUT_LIMIT: Duration = Duration::from_secs(600);

/// `POST /write` of InfluxDB 1.
pub(super) async fn influx1(intake: State<Intake>, request: Request) -> Result<Response, ApiError> {
    write(intake, request, Dialect::Influx1).await
}

/// `POST /api/v2/write` of InfluxDB 2.
pub(super) async fn influx2(intake: State<Intake>, request: Request) -> Result<Response, ApiError> {
    write(intake, request, Dialect::Influx2).await
}

/// `POST /api/v3/write_lp` of InfluxDB 3.
pub(super) async fn influx3(intake: State<Intake>, request: Request) -> Result<Response, ApiError> {
    write(intake, request, Dialect::Influx3).await
}

/// `POST /api/v1/write/line-protocol` of Arc.
pub(super) async fn arc(intake: State<Intake>, request: Request) -> Result<Response, ApiError> {
    write(intake, request, Dialect::Arc).await
}

/// `POST /api/v1/write/msgpack` of Arc.
pub(super) async fn arc_msgpack(intake: State<Intake>, request: Request) -> Result<Response, ApiError> {
    write(intake, request, Dialect::ArcMsgpack).await
}

/// The whole of a write on one screen.
async fn write(
    State(intake): State<Intake>,
    request: Request,
    dialect: Dialect,
) -> Result<Response, ApiError> {
    let _permit = intake.permit()?;
    let (head, body) = request.into_parts();
    let mut asked = Asked::of(&head, dialect, intake.config.write_timeout, intake.now_ns)?;
    let gate = intake.series_gate(&asked.options.database);
    asked.options.series = if asked.key.is_some() { gate.map(SeriesGate::all_or_nothing) } else { gate };
    Principal::of(&head.extensions)?.check(Scope::Write, Some(&asked.options.database))?;
    let mut taken = body::take(body, &head.headers, &intake.config, &intake.bodies).await?;
    let key = asked.client_key(&taken.bytes).await?;
    let mut tries = 0;
    loop {
        let (points, back) = asked.parse(taken, intake.schemas()).await?;
        taken = back;
        let Some(payload) = points.payload.clone() else {
            intake.lines_rejected.add(points.rejected_total as u64);
            return Err(rejection(points, HeaderMap::new()));
        };
        let write = Write {
            encoding: batch::ENCODING,
            payload,
            ack: asked.ack,
            timeout: asked.timeout,
            key,
            request: head.extensions.get::<RequestId>().cloned(),
        };
        match intake.submit(write).await {
            Ok(receipt) => {
                intake.rows_written.add(points.rows as u64);
                intake.lines_rejected.add(points.rejected_total as u64);
                let headers = receipt_headers(&receipt);
                return if points.rejected_total == 0 {
                    Ok(error::no_content(headers))
                } else {
                    Err(rejection(points, headers))
                };
            }
            Err(SubmitError::SchemaChanged(schema)) if tries < PARSE_AGAIN => {
                tries += 1;
                intake.absorb_schema(&schema).map_err(|e| {
                    ApiError::new(Fault::Internal, format!("the writer's schema cannot be read: {e}"))
                })?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Which API a write came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Influx1,
    Influx2,
    Influx3,
    Arc,
    ArcMsgpack,
}

impl Dialect {
    /// The parameter that names the database.
    const fn database(self) -> &'static str {
        match self {
            Self::Influx2 => "bucket",
            Self::Influx1 | Self::Influx3 | Self::Arc | Self::ArcMsgpack => "db",
        }
    }

    /// The words this API has for precisions.
    const fn precisions(self) -> &'static [&'static str] {
        match self {
            Self::Influx1 => &["n", "ns", "u", "us", "µ", "ms", "s", "m", "h"],
            Self::Influx2 | Self::Arc | Self::ArcMsgpack => &["ns", "us", "ms", "s"],
            Self::Influx3 => &[
                "auto",
                "nanosecond",
                "microsecond",
                "millisecond",
                "second",
                "n",
                "ns",
                "u",
                "us",
                "ms",
                "s",
            ],
        }
    }

    fn precision(self, params: &Params) -> Result<Precision, ApiError> {
        if self == Self::ArcMsgpack {
            // Each item says by its magnitude what its times count.
            return Ok(Precision::Nanosecond);
        }
        let Some(word) = params.get("precision") else {
            return Ok(match self {
                Self::Influx3 => Precision::Auto,
                Self::Influx1 | Self::Influx2 | Self::Arc | Self::ArcMsgpack => Precision::Nanosecond,
            });
        };
        let known = self.precisions();
        let wrong = || {
            ApiError::invalid(format!("precision={} is not one of {}", params::shown(word), known.join(", ")))
        };
        if known.contains(&word) { word.parse().map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

/// What a write asks for besides its points.
struct Asked {
    dialect: Dialect,
    options: Options,
    ack: Option<AckLevel>,
    timeout: Duration,
    key: Option<String>,
}

impl Asked {
    fn of(
        head: &request::Parts,
        dialect: Dialect,
        timeout: Duration,
        now_ns: fn() -> i64,
    ) -> Result<Self, ApiError> {
        let (params, headers) = (Params::of(&head.uri), &head.headers);
        let header = params::text_header(headers, "x-arc-database")?;
        let named = header.or(params.get(dialect.database()));
        let database = match (named, dialect) {
            (Some(name), _) => name,
            (None, Dialect::Arc | Dialect::ArcMsgpack) => "default",
            (None, _) => {
                return Err(ApiError::invalid(format!(
                    "a database is required: {}=NAME",
                    dialect.database()
                )));
            }
        };
        let ack = params::ack(&params, headers)?;
        let ack = if dialect == Dialect::Influx1 { params::raised(ack, &params)? } else { ack };
        let key = params::text_header(headers, "idempotency-key")?;
        if key.is_some_and(|key| key.is_empty() || key.len() > KEY_LIMIT) {
            return Err(ApiError::invalid(format!("Idempotency-Key has 1 to {KEY_LIMIT} bytes")));
        }
        let accept_partial = params.get("accept_partial").is_none_or(|word| word != "false");
        Ok(Self {
            dialect,
            options: Options {
                database: database.to_owned(),
                precision: dialect.precision(&params)?,
                now_ns: now_ns(),
                accept_partial,
                series: None,
            },
            ack,
            timeout: params::timeout(&params, headers, timeout, TIMEOUT_LIMIT)?,
            key: key.map(str::to_owned),
        })
    }

    /// What makes a repetition of this request known: the client's key, and what it stood for.
    async fn client_key(&self, body: &Bytes) -> Result<Option<ClientKey>, ApiError> {
        let Some(key) = self.key.clone() else { return Ok(None) };
        let (body, database) = (body.clone(), self.options.database.clone());
        let (len, precision) = (body.len(), self.options.precision);
        let work = move || ClientKey {
            // A key is its client's choice, and whoever may write to one database must not be able to use
            // up the keys of another. No name of a database holds a zero byte.
            key: fingerprint(&[database.as_bytes(), b"\0", key.as_bytes()]),
            former: Some(fingerprint(&[key.as_bytes()])),
            body: fingerprint(&[database.as_bytes(), format!("\0{precision:?}\0").as_bytes(), &body]),
        };
        body::off_thread(len, work).await.map(Some)
    }

    /// The points of a body, judged by these schemas. They count as memory of the body from before
    /// they are there; afterwards their record does.
    async fn parse(&self, taken: Taken, schemas: Schemas) -> Result<(Encoded, Taken), ApiError> {
        let (len, options) = (taken.bytes.len(), self.options.clone());
        let encode = match self.dialect {
            Dialect::ArcMsgpack => msgpack::encode,
            Dialect::Influx1 | Dialect::Influx2 | Dialect::Influx3 | Dialect::Arc => line_protocol::encode,
        };
        let work = move || {
            let Taken { bytes, mut share } = taken;
            // What an earlier try has left is its record, which is gone.
            share.shrink(share.bytes().saturating_sub(bytes.len()));
            let mut room = |more: usize| share.grow(more).is_ok();
            let points = encode(&bytes, &options, &schemas, &mut room).map_err(|e| match e {
                BodyError::NoRoom => ApiError::new(
                    Fault::Busy,
                    format!(
                        "{e} (http.max_bodies); send it again later, in smaller parts or to another node"
                    ),
                ),
                e => ApiError::invalid(e.to_string()),
            })?;
            if points.payload.as_ref().is_some_and(|payload| payload.len() > MAX_PAYLOAD) {
                let limit = MAX_PAYLOAD >> 20;
                return Err(ApiError::new(
                    Fault::TooLarge,
                    format!(
                        "these points make a record of more than {limit} MiB: send them in smaller bodies"
                    ),
                ));
            }
            let needed = bytes.len() + points.payload.as_ref().map_or(0, Bytes::len);
            share.shrink(share.bytes().saturating_sub(needed));
            Ok((points, Taken { bytes, share }))
        };
        body::off_thread(len, work).await?
    }
}

/// What to say of the bad lines; `headers` tell of the good ones, if they were written.
fn rejection(points: Encoded, headers: HeaderMap) -> ApiError {
    if points.rejected_total == 0 {
        return ApiError::invalid("there is no point in the body");
    }
    let written = if headers.is_empty() { 0 } else { points.rows };
    let lines = points.rejected.into_iter().map(|bad| (bad.line as u64, bad.error)).collect();
    ApiError::partial(written, points.rejected_total, lines, headers)
}

/// The first half of the SHA-256 of the parts.
fn fingerprint(parts: &[&[u8]]) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    half
}

pub(super) fn receipt_headers(receipt: &Receipt) -> HeaderMap {
    // These, and the request's name.
    let mut headers = HeaderMap::with_capacity(6);
    error::set(&mut headers, "x-skein-lsn", receipt.at);
    error::set(&mut headers, "x-skein-ack", receipt.ack.as_str());
    error::set(&mut headers, "x-skein-node", receipt.writer);
    if let Some(writer) = headers.get("x-skein-node").cloned() {
        headers.insert(HeaderName::from_static("x-skein-writer"), writer);
    }
    headers.insert(
        HeaderName::from_static("x-skein-forwarded"),
        HeaderValue::from_static(if receipt.forwarded { "true" } else { "false" }),
    );
    headers
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{
        body::Body,
        http::{Method, Uri},
    };

    use super::*;
    use crate::http::body::Budget;

    fn asked(dialect: Dialect, uri: &str, headers: &[(&'static str, &str)]) -> Result<Asked, ApiError> {
        let mut request = hyper::Request::builder().method(Method::POST).uri(uri.parse::<Uri>().unwrap());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, _) = request.body(Body::empty()).unwrap().into_parts();
        Asked::of(&head, dialect, Duration::from_secs(10), || 42)
    }

    #[test]
    fn each_api_names_database_and_precision_its_own_way() {
        let v1 = asked(Dialect::Influx1, "/write?db=home&precision=m&rp=x", &[]).unwrap();
        assert_eq!((v1.options.database.as_str(), v1.options.precision), ("home", Precision::Minute));
        assert_eq!((v1.options.now_ns, v1.options.accept_partial, v1.ack), (42, true, None));
        let v2 = asked(Dialect::Influx2, "/w?bucket=home&org=x&precision=ms", &[]).unwrap();
        assert_eq!((v2.options.database.as_str(), v2.options.precision), ("home", Precision::Millisecond));
        let v3 = asked(Dialect::Influx3, "/w?db=home&accept_partial=false", &[]).unwrap();
        assert_eq!((v3.options.precision, v3.options.accept_partial), (Precision::Auto, false));
        let v3 = asked(Dialect::Influx3, "/w?db=home&precision=second", &[]).unwrap();
        assert_eq!(v3.options.precision, Precision::Second);
        let arc = asked(Dialect::Arc, "/w", &[]).unwrap();
        assert_eq!(
            (arc.options.database.as_str(), arc.options.precision),
            ("default", Precision::Nanosecond)
        );
        let arc = asked(Dialect::Arc, "/w", &[("x-arc-database", "home")]).unwrap();
        assert_eq!(arc.options.database, "home");
        for (dialect, uri) in [
            (Dialect::Influx1, "/write"),
            (Dialect::Influx2, "/w?db=home"),
            (Dialect::Influx3, "/w"),
            (Dialect::Influx1, "/w?db=home&precision=auto"),
            (Dialect::Influx2, "/w?bucket=home&precision=h"),
            (Dialect::Influx3, "/w?db=home&precision=m"),
            (Dialect::Influx1, "/w?db=home&ack=most"),
            (Dialect::Influx1, "/w?db=home&timeout=soon"),
        ] {
            assert_eq!(asked(dialect, uri, &[]).err().unwrap().fault(), Fault::Invalid, "{uri}");
        }
    }

    #[test]
    fn consistency_raises_only_in_influxdb_1() {
        let v1 = asked(Dialect::Influx1, "/w?db=a&ack=local&consistency=quorum", &[]).unwrap();
        assert_eq!(v1.ack, Some(AckLevel::Quorum));
        let v1 = asked(Dialect::Influx1, "/w?db=a&consistency=all", &[]).unwrap();
        assert_eq!(v1.ack, Some(AckLevel::All));
        let v2 = asked(Dialect::Influx2, "/w?bucket=a&ack=memory&consistency=all", &[]).unwrap();
        assert_eq!(v2.ack, Some(AckLevel::Memory));
        let v3 = asked(Dialect::Influx3, "/w?db=a", &[("x-skein-ack", "local")]).unwrap();
        assert_eq!(v3.ack, Some(AckLevel::Local));
    }

    #[tokio::test]
    async fn a_client_key_stands_for_body_and_place() {
        let key = |uri: &str, key: &str, body: &'static str| {
            let asked = asked(Dialect::Influx1, uri, &[("idempotency-key", key)]).unwrap();
            async move { asked.client_key(&Bytes::from_static(body.as_bytes())).await.unwrap().unwrap() }
        };
        let first = key("/w?db=a", "k", "cpu v=1").await;
        assert_eq!(key("/w?db=a", "k", "cpu v=1").await, first);
        let other = key("/w?db=a", "k", "cpu v=2").await;
        assert!(other.key == first.key && other.body != first.body);
        let elsewhere = key("/w?db=b", "k", "cpu v=1").await;
        assert!(elsewhere.body != first.body && elsewhere.key != first.key);
        assert_eq!(elsewhere.former, first.former, "what older versions make of it");
        assert_ne!(key("/w?db=a&precision=s", "k", "cpu v=1").await.body, first.body);
        assert_ne!(key("/w?db=a", "l", "cpu v=1").await.key, first.key);
        let long = "k".repeat(257);
        assert!(asked(Dialect::Influx1, "/w?db=a", &[("idempotency-key", &long)]).is_err());
        let none = asked(Dialect::Influx1, "/w?db=a", &[]).unwrap();
        assert_eq!(none.client_key(&Bytes::new()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn bad_lines_are_told_by_number() {
        let asked = asked(Dialect::Influx1, "/w?db=a", &[]).unwrap();
        let body = "cpu v=1 1\ncpu v= 2\ncpu v=\"x\" 3\n";
        let budget = Budget::new(1 << 20);
        let points = parsed(&asked, body.as_bytes(), &budget).await.unwrap();
        assert_eq!((points.rows, points.rejected_total), (1, 2));
        let lines: Vec<_> = points.rejected.iter().map(|bad| bad.line).collect();
        assert_eq!(lines, [2, 3]);
        assert!(points.payload.is_some());
        let none = parsed(&asked, b"\n# only this\n", &budget).await.unwrap();
        assert!(none.payload.is_none());
        assert_eq!(rejection(none, HeaderMap::new()).fault(), Fault::Invalid);
        assert_eq!(budget.used(), 0);
    }

    async fn parsed(asked: &Asked, body: &[u8], budget: &Arc<Budget>) -> Result<Encoded, ApiError> {
        let limits = crate::config::Http::default();
        let taken = body::take(Body::from(body.to_vec()), &HeaderMap::new(), &limits, budget).await?;
        let (points, taken) = asked.parse(taken, Schemas::default()).await?;
        // Body and record, and no more of what was in between.
        assert_eq!(budget.used(), body.len() + points.payload.as_ref().map_or(0, Bytes::len));
        drop(taken);
        Ok(points)
    }

    #[tokio::test]
    async fn a_small_body_of_many_values_needs_room_for_them() {
        let asked = asked(Dialect::Influx1, "/w?db=a", &[]).unwrap();
        // Each row brings a column that all others do not have: a million values.
        let body: String = (0..999).map(|n| format!("m,t={n} c{n}=1 1\n")).collect();
        assert!(body.len() < 20_000);
        let budget = Budget::new(1 << 20);
        assert_eq!(parsed(&asked, body.as_bytes(), &budget).await.err().unwrap().fault(), Fault::Busy);
        assert_eq!(budget.used(), 0);
        let budget = Budget::new(64 << 20);
        assert_eq!(parsed(&asked, body.as_bytes(), &budget).await.unwrap().rows, 999);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn message_pack_goes_the_same_way() {
        let arc = asked(Dialect::ArcMsgpack, "/w?precision=what", &[("x-arc-database", "home")]).unwrap();
        assert_eq!(arc.options.database, "home");
        let item = serde_json::json!({ "m": "cpu", "columns": { "time": [1, 2], "host": ["a", "b"], "v": [1.5, null] } });
        let body = rmp_serde::to_vec(&serde_json::json!([item, { "m": "cpu" }])).unwrap();
        let budget = Budget::new(1 << 20);
        let points = parsed(&arc, &body, &budget).await.unwrap();
        assert_eq!((points.rows, points.rejected_total, points.rejected[0].line), (2, 1, 2));
        for wrong in [&b""[..], b"cpu v=1", &body[..body.len() - 1]] {
            assert_eq!(parsed(&arc, wrong, &budget).await.err().unwrap().fault(), Fault::Invalid);
        }
        let none = asked(Dialect::ArcMsgpack, "/w", &[]).unwrap();
        assert_eq!(none.options.database, "default");
    }
}
