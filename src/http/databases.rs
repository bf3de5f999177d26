//! What there is to ask about: databases and their tables, which Arc calls measurements.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde_json::{Value, json};

use super::{
    Edge,
    error::{ApiError, Fault},
    params::{Params, shown},
};

/// `GET /api/v1/databases` of Arc.
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let engine = &edge.app.engine;
    let one = |name: String| {
        let tables = engine.tables(&name).map_or(0, |tables| tables.len());
        json!({ "name": name, "measurement_count": tables })
    };
    let databases: Vec<Value> = engine.databases().into_iter().map(one).collect();
    Json(json!({ "count": databases.len(), "databases": databases }))
}

/// `GET /api/v1/measurements` of Arc: of every database, or of the one that `database` names.
pub(super) async fn measurements(
    State(edge): State<Arc<Edge>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let engine = &edge.app.engine;
    let params = Params::of(request.uri());
    let databases = match params.get("database") {
        Some(name) => vec![name.to_owned()],
        None => engine.databases(),
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
