//! The cluster as this node sees it, and its members.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use serde_json::{Value, json};

use super::{Edge, error, error::ApiError};
use crate::{node::ClusterStatus, types::NodeId};

/// `GET /api/v1/cluster`.
pub(super) async fn status(State(edge): State<Arc<Edge>>) -> Json<ClusterStatus> {
    Json(edge.app.node.status().await)
}

/// `GET /api/v1/nodes`.
pub(super) async fn nodes(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let status = edge.app.node.status().await;
    Json(json!({ "total": status.nodes.len(), "nodes": status.nodes }))
}

/// `DELETE /api/v1/nodes/{id}`: takes a member out for ever.
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: NodeId = id.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    edge.app.node.remove_node(id).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}
