//! What there is to ask about: databases and their tables, which Arc calls measurements; and what is
//! done to a database as a whole.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Request, State},
    http::request::Parts,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Edge,
    auth::Principal,
    body,
    error::{self, ApiError, Fault},
    params::{self, Params, shown},
    write::receipt_headers,
};
use crate::{
    config::{parse_duration, show_duration},
    engine::columnar::{DatabaseSurvey, schema::MAX_DATABASES},
    node::{Consistency, Receipt},
    types::Scope,
};

/// How long a change may take, unless the request says otherwise, and at most.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// `GET /api/v1/databases` of Arc, and what each keeps and holds on this node; with
/// `consistency=linearizable` once this node has come to everything that is acknowledged.
pub(super) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<Value>, ApiError> {
    let visible = Principal::of(request.extensions())?.databases();
    match Params::of(request.uri()).get("consistency") {
        None | Some("local") => {}
        Some("linearizable") => {
            edge.app.node.read_point(Consistency::Linearizable, TIMEOUT.0).await?;
        }
        Some(_) => return Err(ApiError::invalid("consistency is local or linearizable")),
    }
    let databases = edge.app.engine.survey_databases();
    let databases: Vec<Value> =
        databases.iter().filter(|database| visible.contains(&database.name)).map(shown_database).collect();
    Ok(Json(json!({ "count": databases.len(), "databases": databases })))
}

fn shown_database(database: &DatabaseSurvey) -> Value {
    let horizon = database
        .horizon_ns
        .and_then(|ns| OffsetDateTime::from_unix_timestamp_nanos(ns.into()).ok()?.format(&Rfc3339).ok());
    json!({
        "name": database.name,
        "measurement_count": database.tables,
        "keep": database.keep.map(show_duration),
        "horizon": horizon,
        "files": database.files,
        "bytes": database.bytes,
    })
}

/// `DELETE /api/v1/databases/{name}`.
pub(super) async fn drop(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let timeout = timeout(&request.into_parts().0)?;
    // A name that nobody has written is more likely a slip than a wish. Judged by what is
    // acknowledged anywhere, not by what has come to this node.
    edge.app.node.read_point(Consistency::Linearizable, timeout).await?;
    if !edge.app.engine.survey_databases().iter().any(|database| database.name == name) {
        return Err(ApiError::new(Fault::NotFound, format!("there is no database {}", shown(&name))));
    }
    let receipt = edge.app.node.drop_database(&name, timeout).await?;
    Ok(done(&edge, &receipt, timeout).await)
}

/// Body of `PUT /api/v1/databases/{name}/retention`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keep {
    /// Age from which on points are gone, such as `30d`; `none` or null for ever.
    keep: Option<String>,
}

impl Keep {
    fn parse(text: &[u8]) -> Result<Option<Duration>, ApiError> {
        let wanted: Self = serde_json::from_slice(text).map_err(|e| {
            ApiError::invalid(format!("want {{\"keep\": \"30d\"}} or {{\"keep\": \"none\"}}: {e}"))
        })?;
        match wanted.keep.as_deref() {
            None | Some("none") => Ok(None),
            Some(text) => {
                parse_duration(text).map(Some).map_err(|e| ApiError::invalid(format!("keep: {e}, or none")))
            }
        }
    }
}

/// `PUT /api/v1/databases/{name}/retention`. The database need not be there yet.
pub(super) async fn retention(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let timeout = timeout(&head)?;
    edge.app.engine.schemas().check_database(&name).map_err(|e| ApiError::invalid(e.to_string()))?;
    let databases = edge.app.engine.survey_databases();
    if databases.len() >= MAX_DATABASES && !databases.iter().any(|database| database.name == name) {
        return Err(ApiError::invalid(format!("there are {MAX_DATABASES} databases: drop one first")));
    }
    let taken = body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let keep = Keep::parse(&taken.bytes)?;
    let receipt = edge.app.node.set_retention(&name, keep, timeout).await?;
    Ok(done(&edge, &receipt, timeout).await)
}

fn timeout(head: &Parts) -> Result<Duration, ApiError> {
    params::timeout(&Params::of(&head.uri), &head.headers, TIMEOUT.0, TIMEOUT.1)
}

/// 204, and when this node has done it too if that is soon, so that whoever asks next here sees it.
async fn done(edge: &Edge, receipt: &Receipt, timeout: Duration) -> Response {
    if let Err(error) = edge.app.node.read_point(Consistency::MinLsn(receipt.at), timeout).await {
        tracing::debug!(%error, "this node has not come to a change of databases yet");
    }
    error::no_content(receipt_headers(receipt))
}

/// `GET /api/v1/measurements` of Arc: of every database, or of the one that `database` names.
pub(super) async fn measurements(
    State(edge): State<Arc<Edge>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let engine = &edge.app.engine;
    let params = Params::of(request.uri());
    let caller = Principal::of(request.extensions())?;
    caller.check(Scope::Read, params.get("database"))?;
    let visible = caller.databases();
    let databases = match params.get("database") {
        Some(name) => vec![name.to_owned()],
        None => engine.databases().into_iter().filter(|name| visible.contains(name)).collect(),
    };
    let mut found = Vec::new();
    for database in databases {
        match engine.tables(&database) {
            Some(tables) => found.extend(
                tables.into_iter().map(|table| json!({ "database": database, "measurement": table })),
            ),
            // One that was dropped since it was listed is no error.
            None if params.get("database").is_none() => {}
            None => {
                let why = format!("there is no database {}", shown(&database));
                return Err(ApiError::new(Fault::NotFound, why));
            }
        }
    }
    Ok(Json(json!({ "success": true, "count": found.len(), "measurements": found })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_retention_means() {
        assert_eq!(Keep::parse(br#"{"keep":"30d"}"#).unwrap(), Some(Duration::from_secs(30 * 86_400)));
        assert_eq!(Keep::parse(br#"{"keep":"none"}"#).unwrap(), None);
        assert_eq!(Keep::parse(br#"{"keep":null}"#).unwrap(), None);
        for wrong in [&b""[..], b"30d", br#"{"keep":30}"#, br#"{"keep":"long"}"#, br#"{"kept":"30d"}"#] {
            assert!(Keep::parse(wrong).is_err());
        }
    }
}
