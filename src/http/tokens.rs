//! Join tokens.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Request, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Edge, body, error, error::ApiError};
use crate::{
    config::parse_duration,
    discovery::Seed,
    identity::MAX_TOKEN_SEEDS,
    types::{Role, TokenId},
};

/// Body of `POST /api/v1/tokens`; every field may be left out.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CreateToken {
    /// What the joining node may be.
    role: Role,
    /// How long the token is good, such as `1h`; `never` for no end.
    ttl: String,
    /// How many nodes may join with it; null for any number.
    uses: Option<u32>,
    /// Where a joiner finds the cluster, each as `host:port`; carried in the token.
    seeds: Vec<String>,
}

impl Default for CreateToken {
    fn default() -> Self {
        Self { role: Role::Voter, ttl: "1h".to_owned(), uses: Some(1), seeds: Vec::new() }
    }
}

impl CreateToken {
    fn parse(text: &[u8]) -> Result<(Self, Option<Duration>), ApiError> {
        let wanted: Self = if text.iter().all(u8::is_ascii_whitespace) {
            Self::default()
        } else {
            serde_json::from_slice(text).map_err(|e| {
                ApiError::invalid(format!("want {{\"role\", \"ttl\", \"uses\", \"seeds\"}}: {e}"))
            })?
        };
        let ttl = match wanted.ttl.as_str() {
            "never" => None,
            text => Some(parse_duration(text).map_err(|e| ApiError::invalid(format!("ttl: {e}")))?),
        };
        if ttl.is_some_and(|ttl| ttl.is_zero()) || wanted.uses == Some(0) {
            return Err(ApiError::invalid("a token of no time or no use cannot let anybody join"));
        }
        if wanted.seeds.len() > MAX_TOKEN_SEEDS {
            return Err(ApiError::invalid(format!("a token carries {MAX_TOKEN_SEEDS} seeds at most")));
        }
        for seed in &wanted.seeds {
            seed.parse::<Seed>().map_err(|e| ApiError::invalid(format!("seeds: {e}")))?;
            if !seed.contains(':') {
                return Err(ApiError::invalid(format!("seeds: want HOST:PORT, not {seed:?}")));
            }
        }
        Ok((wanted, ttl))
    }
}

/// `POST /api/v1/tokens`: the only moment at which the token is shown.
pub(super) async fn create(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let taken = body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let (wanted, ttl) = CreateToken::parse(&taken.bytes)?;
    let token = edge.app.node.create_token(wanted.role, ttl, wanted.uses, wanted.seeds.clone()).await?;
    Ok(error::created(json!({
        "token": token, "role": wanted.role, "ttl": wanted.ttl, "uses": wanted.uses, "seeds": wanted.seeds,
    })))
}

/// `GET /api/v1/tokens`: everything but the tokens themselves.
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let tokens: Vec<Value> = edge
        .app
        .node
        .tokens()
        .iter()
        .map(|token| {
            json!({
                "id": token.id.to_string(),
                "role": token.role,
                "created_ms": token.created_ms,
                "expires_ms": token.expires_ms,
                "uses_left": token.uses_left,
                "revoked": token.revoked,
            })
        })
        .collect();
    Json(json!({ "tokens": tokens }))
}

/// `DELETE /api/v1/tokens/{id}`.
pub(super) async fn revoke(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: TokenId = id.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    edge.app.node.revoke_token(id).await?;
    Ok(error::no_content(HeaderMap::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_request_means() {
        let (plain, ttl) = CreateToken::parse(b" \n").unwrap();
        assert_eq!((plain.role, ttl, plain.uses), (Role::Voter, Some(Duration::from_secs(3600)), Some(1)));
        let (open, ttl) = CreateToken::parse(br#"{"role":"reader","ttl":"never","uses":null}"#).unwrap();
        assert_eq!((open.role, ttl, open.uses), (Role::Reader, None, None));
        let (far, _) =
            CreateToken::parse(br#"{"seeds":["db-1.example.org:7400","[fd00::2]:7400"]}"#).unwrap();
        assert_eq!(far.seeds, ["db-1.example.org:7400", "[fd00::2]:7400"]);
        for wrong in [
            &br#"{"role":"king"}"#[..],
            br#"{"ttl":"soon"}"#,
            br#"{"ttl":"0s"}"#,
            br#"{"uses":0}"#,
            br#"{"seeds":["a"]}"#,
            br#"{"seeds":"a:1"}"#,
            br#"{"seeds":["_skein._udp.example.org"]}"#,
            br#"{"secret":"x"}"#,
            b"[",
        ] {
            assert!(CreateToken::parse(wrong).is_err());
        }
    }
}
