//! What only a voter may propose, asked of a node with data that is none: a voter is asked, as gateways do.
//!
//! The request goes with the API token that it brings, and is judged by that alone: a member's key gives
//! no say over members, tokens and the CA.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::Method,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use tokio::time::Instant;

use super::{
    Edge, Handler, Route,
    auth::Peer,
    body::{self, Taken},
    error::ApiError,
    gateway::{MARGIN, as_asked, respond, unanswered},
    params::{self, Params},
};
use crate::node::Errand;

/// Below these paths everything that changes something is a voter's to propose.
const OF_VOTERS: [&str; 5] =
    ["/api/v1/cluster/", "/api/v1/nodes/", "/api/v1/tokens", "/api/v1/auth/tokens", "/api/v1/ca/"];

/// The same route, with [`hand_over`] in front of its handler if it changes what voters propose.
pub(super) fn handed_over(route: Route<Arc<Edge>>) -> Route<Arc<Edge>> {
    if !is_for_voters(&route.method, route.path) {
        return route;
    }
    let own = route.handler;
    let handler: Handler<Arc<Edge>> =
        Arc::new(move |request, edge| hand_over(edge, request, Arc::clone(&own)).boxed());
    Route { handler, ..route }
}

fn is_for_voters(method: &Method, path: &str) -> bool {
    method != Method::GET && OF_VOTERS.iter().any(|of| path.starts_with(of))
}

/// Lets a request through on a voter, and hands it to one elsewhere. One that was handed over goes no
/// farther: whoever is no voter any more says that it is none.
async fn hand_over(edge: Arc<Edge>, request: Request, own: Handler<Arc<Edge>>) -> Response {
    let handed_over = matches!(Peer::of(request.extensions()), Peer::Gateway { .. });
    if handed_over || edge.app.node.is_voter() {
        return own(request, edge).await;
    }
    ask_a_voter(&edge, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn ask_a_voter(edge: &Edge, request: Request) -> Result<Response, ApiError> {
    let _permit = edge.intake.permit()?;
    let (head, body) = request.into_parts();
    if params::credentials(&head.headers, &Params::of(&head.uri)).is_none() {
        return Err(ApiError::forbidden(
            "this node is no voter, and has no say over members, tokens and the CA: ask a voter, or send an admin \
             API token (SKEIN_API_TOKEN), which is then handed to one",
        ));
    }
    let Taken { bytes, share } = body::arrive(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let asked = as_asked(&head, false);
    let answer = edge.app.node.ask_a_voter(&asked, &bytes).await;
    drop(share);
    respond(
        answer.map_err(|error| unanswered(error, Errand::Change))?,
        Instant::now() + edge.app.config.query_timeout + MARGIN,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{auth::Access, routes};

    #[test]
    fn what_is_proposed_is_handed_over_and_nothing_else() {
        let all = routes();
        let (handed, kept): (Vec<_>, Vec<_>) =
            all.iter().partition(|route| is_for_voters(&route.method, route.path));
        assert!(handed.iter().all(|route| route.access == Access::Admin) && handed.len() == 12);
        // Data and its policy go to the writer, from every node.
        let changes =
            kept.iter().filter(|route| route.access == Access::Admin && route.method != Method::GET);
        assert!(changes.into_iter().all(|route| route.path.starts_with("/api/v1/databases/")));
    }
}
