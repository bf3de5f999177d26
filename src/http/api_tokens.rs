//! API tokens: who may ask this cluster, and for what.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Request, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge,
    auth::Principal,
    body, error,
    error::{ApiError, Fault},
};
use crate::{
    config::parse_duration,
    engine::columnar::schema::check_database_name,
    node::{ApiToken, NewApiToken},
    types::{Scope, TokenId},
};

/// Body of `POST /api/v1/auth/tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateToken {
    /// For people; left out, it is made of scopes and id.
    name: Option<String>,
    /// At least one of `read`, `write`, `admin`.
    scopes: BTreeSet<Scope>,
    /// Left out or null: every database.
    databases: Option<BTreeSet<String>>,
    /// How long the token is good, such as `90d`; left out or `never`: no end.
    ttl: Option<String>,
}

impl CreateToken {
    fn parse(text: &[u8]) -> Result<NewApiToken, ApiError> {
        let wanted: Self = serde_json::from_slice(text).map_err(|e| {
            ApiError::invalid(format!("want {{\"scopes\": [..], \"name\", \"databases\", \"ttl\"}}: {e}"))
        })?;
        for name in wanted.databases.iter().flatten() {
            check_database_name(name).map_err(|e| ApiError::invalid(e.to_string()))?;
        }
        let ttl: Option<Duration> = match wanted.ttl.as_deref() {
            None | Some("never") => None,
            Some(text) => Some(parse_duration(text).map_err(|e| ApiError::invalid(format!("ttl: {e}")))?),
        };
        Ok(NewApiToken { name: wanted.name, scopes: wanted.scopes, databases: wanted.databases, ttl })
    }
}

/// `POST /api/v1/auth/tokens`: the only moment at which the secret is shown.
pub(super) async fn create(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let taken = body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let wanted = CreateToken::parse(&taken.bytes)?;
    let (secret, token) = edge.app.node.create_api_token(wanted).await?;
    let mut shown = describe(&token);
    shown["token"] = secret.as_str().into();
    Ok(error::created(shown))
}

/// `GET /api/v1/auth/tokens`: everything but the secrets, which nobody has.
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let tokens: Vec<Value> = edge.app.node.api_tokens().iter().map(describe).collect();
    Json(json!({ "tokens": tokens }))
}

/// `DELETE /api/v1/auth/tokens/{id}`.
pub(super) async fn revoke(
    State(edge): State<Arc<Edge>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: TokenId = id.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    edge.app.node.revoke_api_token(id).await?;
    Ok(error::no_content(HeaderMap::new()))
}

/// `GET /api/v1/auth/self`: what the caller may do. `state` is the index of the cluster state by which
/// that was judged: it holds until a later one says otherwise.
pub(super) async fn own(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<Value>, ApiError> {
    // Read before the second look at the tokens, so that what is found there is no older.
    let state = edge.app.node.view().borrow().applied_index;
    let mut shown = match Principal::of(request.extensions())? {
        Principal::Owner => json!({ "scopes": [Scope::Admin], "databases": null }),
        Principal::Anyone => json!({ "scopes": [Scope::Read, Scope::Write], "databases": null }),
        Principal::Token(token) if edge.app.node.api_tokens().contains(&token) => describe(&token),
        Principal::Token(_) => {
            return Err(ApiError::new(Fault::Unauthorized, "the API token has just been taken back"));
        }
    };
    shown["state"] = state.into();
    Ok(Json(shown))
}

fn describe(token: &ApiToken) -> Value {
    json!({
        "id": token.id().to_string(),
        "name": token.name,
        "scopes": token.scopes(),
        "databases": token.databases,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_request_means() {
        let plain = CreateToken::parse(br#"{"scopes":["read"]}"#).unwrap();
        let read = NewApiToken { scopes: [Scope::Read].into(), ..NewApiToken::default() };
        assert_eq!(plain, read);
        let all = br#"{"name":"t","scopes":["write","read"],"databases":["a","b"],"ttl":"90d"}"#;
        let all = CreateToken::parse(all).unwrap();
        assert_eq!((all.name.as_deref(), all.scopes.len()), (Some("t"), 2));
        assert_eq!(all.databases.map(|names| names.len()), Some(2));
        assert_eq!(all.ttl, Some(Duration::from_secs(90 * 86_400)));
        for wrong in [
            &b""[..],
            br"{}",
            br#"{"scopes":["king"]}"#,
            br#"{"scopes":"read"}"#,
            br#"{"scopes":["read"],"ttl":"soon"}"#,
            br#"{"scopes":["read"],"databases":["a b"]}"#,
            br#"{"scopes":["read"],"secret":"x"}"#,
        ] {
            assert!(CreateToken::parse(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn no_list_shows_a_hash() {
        let token = ApiToken { hash: vec![0xab; 32], read: true, ..ApiToken::default() };
        let shown = describe(&token).to_string();
        assert!(shown.contains("abababababababab") && !shown.contains(&"ab".repeat(9)), "{shown}");
    }
}
