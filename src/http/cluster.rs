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

/// `POST /api/v1/nodes/{id}/demote`: a voter becomes a reader.
pub(super) async fn demote(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    edge.app.node.demote_node(node_id(&id)?).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}

/// `POST /api/v1/nodes/{id}/promote`: a reader becomes a voter when it is level with them.
pub(super) async fn promote(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    edge.app.node.promote_node(node_id(&id)?).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}

/// `POST /api/v1/nodes/{id}/transfer`: office and leadership move away from it.
pub(super) async fn transfer(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    edge.app.node.transfer_from(node_id(&id)?).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}

/// `DELETE /api/v1/nodes/{id}`: takes a member out for ever.
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    edge.app.node.remove_node(node_id(&id)?).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}

fn node_id(text: &str) -> Result<NodeId, ApiError> {
    text.parse().map_err(|e| ApiError::invalid(format!("{e}")))
}
