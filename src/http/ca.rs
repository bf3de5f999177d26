//! The cluster's certificate authority.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    extract::{Request, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;

use super::{Edge, body, error, error::ApiError};
use crate::types::NodeId;

/// Body of `POST /api/v1/ca/rotate`; may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rotate {
    /// Ids of members that a rotation under way shall not wait for.
    drop: Vec<String>,
}

impl Rotate {
    fn parse(text: &[u8]) -> Result<BTreeSet<NodeId>, ApiError> {
        let wanted: Self = if text.iter().all(u8::is_ascii_whitespace) {
            Self::default()
        } else {
            serde_json::from_slice(text)
                .map_err(|e| ApiError::invalid(format!("want {{\"drop\": [ids]}}: {e}")))?
        };
        let id = |text: &String| text.parse().map_err(|e| ApiError::invalid(format!("drop: {e}")));
        wanted.drop.iter().map(id).collect()
    }
}

/// `POST /api/v1/ca/rotate`: starts a rotation, or, with `drop`, lets the one under way end without these
/// members. How far it is stands in `GET /api/v1/cluster`.
pub(super) async fn rotate(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let taken = body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let dropped = Rotate::parse(&taken.bytes)?;
    if dropped.is_empty() {
        edge.app.node.rotate_ca().await?;
    } else {
        edge.app.node.drop_from_rotation(dropped).await?;
    }
    Ok(error::no_content(HeaderMap::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rotation_request_means() {
        assert!(Rotate::parse(b"").unwrap().is_empty() && Rotate::parse(b"{}").unwrap().is_empty());
        let id = NodeId([7; 16]);
        let text = format!("{{\"drop\":[\"{id}\"]}}");
        assert_eq!(Rotate::parse(text.as_bytes()).unwrap(), BTreeSet::from([id]));
        for wrong in [&b"3"[..], br#"{"drop":["x"]}"#, br#"{"drip":[]}"#, b"{"] {
            assert!(Rotate::parse(wrong).is_err());
        }
    }
}
