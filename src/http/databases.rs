//! What there is to ask about: databases and their tables, which Arc calls measurements.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde_json::{Value, json};

use super::{
    Edge,
    auth::Principal,
    error::{ApiError, Fault},
    params::{Params, shown},
};
use crate::types::Scope;

/// `GET /api/v1/databases` of Arc.
pub(super) async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<Value>, ApiError> {
    let visible = Principal::of(request.extensions())?.databases();
    let engine = &edge.app.engine;
    let one = |name: String| {
        let tables = engine.tables(&name).map_or(0, |tables| tables.len());
        json!({ "name": name, "measurement_count": tables })
    };
    let databases: Vec<Value> =
        engine.databases().into_iter().filter(|name| visible.contains(name)).map(one).collect();
    Ok(Json(json!({ "count": databases.len(), "databases": databases })))
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
