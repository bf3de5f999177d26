//! The description of the edge in OpenAPI 3.1. It is written by hand in `openapi.json`; a test holds it
//! to the route table, and `tests/openapi/run.sh` what it says to what a node answers.

use std::sync::{Arc, OnceLock};

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};
use bytes::Bytes;
use serde_json::Value;

use super::{
    Edge,
    error::{self, ApiError, Fault},
    routes,
};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /api/v1/openapi.json`: what of the document this build serves.
pub(super) async fn document(State(_): State<Arc<Edge>>) -> Result<Response, ApiError> {
    static SERVED: OnceLock<Option<Bytes>> = OnceLock::new();
    match SERVED.get_or_init(|| Some(served()?.to_string().into())) {
        Some(document) => Ok(error::ok("application/json", HeaderMap::new(), Body::from(document.clone()))),
        None => Err(ApiError::new(Fault::Internal, "the description of the API cannot be read")),
    }
}

/// The document without the routes that this build was made without.
fn served() -> Option<Value> {
    let mut document: Value = serde_json::from_str(DOCUMENT).ok()?;
    let table = routes();
    let offered = |path: &str, method: &str| {
        table.iter().any(|route| route.path == path && route.method.as_str().eq_ignore_ascii_case(method))
    };
    let paths = document.get_mut("paths")?.as_object_mut()?;
    for (path, methods) in paths.iter_mut() {
        methods.as_object_mut()?.retain(|method, _| offered(path, method));
    }
    paths.retain(|_, methods| methods.as_object().is_some_and(|methods| !methods.is_empty()));
    Some(document)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is no part of it: the page, which is for people, and gRPC, which describes itself.
    fn is_for_others(path: &str) -> bool {
        path == "/" || path.starts_with("/ui/") || path.starts_with("/arrow.flight.")
    }

    fn described(document: &Value) -> BTreeSet<String> {
        let paths = document["paths"].as_object().unwrap();
        let of = |(path, methods): (&String, &Value)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
        };
        paths.iter().flat_map(of).collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let table = routes();
        let routes: BTreeSet<String> = table
            .iter()
            .filter(|route| !is_for_others(route.path))
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(described(&served().unwrap()), routes);
        let whole: Value = serde_json::from_str(DOCUMENT).unwrap();
        #[cfg(feature = "sql")]
        assert_eq!(described(&whole), routes, "only what a build may lack is left out");
        #[cfg(not(feature = "sql"))]
        assert!(described(&whole).is_superset(&routes));
    }

    /// What everybody may ask says so; what asks for a token can be refused.
    #[test]
    fn what_needs_a_token_says_how_it_is_refused() {
        let document = served().unwrap();
        for route in routes().iter().filter(|route| !is_for_others(route.path)) {
            let method = route.method.as_str().to_lowercase();
            let described = &document["paths"][route.path][&method];
            let public = matches!(route.access, super::super::Access::Public);
            assert_eq!(described["security"].is_array(), public, "{} {}", route.method, route.path);
            assert_eq!(described["responses"]["401"].is_object(), !public, "{} {}", route.method, route.path);
        }
    }

    /// A path's parameters are those in its braces, and every `$ref` leads somewhere.
    #[test]
    fn the_document_holds_together() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut references = Vec::new();
        collect(&document, &mut references);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (path, methods) in document["paths"].as_object().unwrap() {
            let braces: BTreeSet<&str> = path
                .split('{')
                .skip(1)
                .filter_map(|rest| rest.split_once('}'))
                .map(|(name, _)| name)
                .collect();
            for (method, described) in methods.as_object().unwrap() {
                let parameters = described["parameters"].as_array().into_iter().flatten();
                let named: BTreeSet<&str> = parameters
                    .filter(|one| one["in"] == "path")
                    .filter_map(|one| one["name"].as_str())
                    .collect();
                assert_eq!(named, braces, "{method} {path}");
            }
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| collect(member, references));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }
}
