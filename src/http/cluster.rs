//! The cluster as this node sees it, and its members.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, Uri},
    response::Response,
};
use serde_json::{Value, json};

use super::{
    Edge, error,
    error::{ApiError, Fault},
    params::{self, Params},
};
use crate::{
    node::{ClusterStatus, DrainReport, NodeReport, UpgradeReport},
    types::NodeId,
};

/// How long a drain is waited for, unless the request says otherwise, and at most.
const DRAIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));

/// `GET /api/v1/cluster`.
pub(super) async fn status(State(edge): State<Arc<Edge>>) -> Json<ClusterStatus> {
    Json(edge.app.node.status().await)
}

/// `POST /api/v1/cluster/finalise`: an upgrade is complete, and no member goes back to a version before.
pub(super) async fn finalise(State(edge): State<Arc<Edge>>) -> Result<Json<UpgradeReport>, ApiError> {
    Ok(Json(edge.app.node.finalise_upgrade().await?))
}

/// `GET /api/v1/nodes`.
pub(super) async fn nodes(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let status = edge.app.node.status().await;
    Json(json!({ "total": status.nodes.len(), "nodes": status.nodes }))
}

/// `GET /api/v1/nodes/{id}`: one of them.
pub(super) async fn node(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Json<NodeReport>, ApiError> {
    let id = node_id(&id)?;
    let found = edge.app.node.status().await.nodes.into_iter().find(|node| node.id == id);
    found.map(Json).ok_or_else(|| ApiError::new(Fault::NotFound, format!("{id} is no member")))
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

/// `POST /api/v1/nodes/{id}/transfer`: office and leadership move away from it, to `to` if that is given.
pub(super) async fn transfer(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let to = Params::of(&uri).get("to").map(node_id).transpose()?;
    edge.app.node.transfer_from(node_id(&id)?, to).await?;
    Ok(error::no_content(axum::http::HeaderMap::new()))
}

/// `POST /api/v1/nodes/{id}/drain`: it gives office and leadership up and gets none again. Answers when
/// nothing depends on it, or after `timeout`, saying what does.
pub(super) async fn drain(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<DrainReport>, ApiError> {
    let patience = params::timeout(&Params::of(&uri), &headers, DRAIN.0, DRAIN.1)?;
    Ok(Json(edge.app.node.drain_node(node_id(&id)?, patience).await?))
}

/// `DELETE /api/v1/nodes/{id}/drain`: it may hold office and lead again.
pub(super) async fn undrain(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    edge.app.node.undrain_node(node_id(&id)?).await?;
    Ok(error::no_content(HeaderMap::new()))
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
