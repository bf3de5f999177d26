//! Every route of the table against every kind of caller, and the gate in front of all.

use axum::{
    body::Body,
    http::{Request, header},
    routing::MethodRouter,
};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::*;
use crate::node::ApiToken;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    Nobody,
    Wrong,
    Token,
    Admin,
    Local,
}

const CALLERS: [Caller; 5] = [Caller::Nobody, Caller::Wrong, Caller::Token, Caller::Admin, Caller::Local];

/// The real table with handlers that only answer: what is under test stands before them.
fn table() -> Vec<Route<MethodRouter<()>>> {
    routes()
        .into_iter()
        .map(|route| {
            let filter = MethodFilter::try_from(route.method.clone()).unwrap();
            let handler = on(filter, || async { "through" });
            Route { method: route.method, path: route.path, access: route.access, handler }
        })
        .collect()
}

fn edge(listen: &str, open: bool) -> Router {
    let config = config::Http { listen: listen.parse().unwrap(), open, ..config::Http::default() };
    let gate = Gate::new(&config, |secret| {
        let known = |admin| ApiToken { name: secret.into(), hash: vec![], admin, created_ms: 0 };
        match secret {
            "admin" => Some(known(true)),
            "token" => Some(known(false)),
            _ => None,
        }
    });
    mount(table(), gate, &Registry::new())
}

async fn ask(router: &Router, method: &Method, path: &str, caller: Caller) -> u16 {
    let path = path.replace("{id}", "x");
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:8086");
    request = match caller {
        Caller::Wrong => request.header("authorization", "Bearer wrong"),
        Caller::Token => request.header("authorization", "Token token"),
        Caller::Admin => request.header("authorization", "Bearer admin"),
        Caller::Nobody | Caller::Local => request,
    };
    if caller == Caller::Local {
        request = request.extension(Peer::Local);
    }
    send(router, request.body(Body::empty()).unwrap()).await
}

async fn send(router: &Router, request: Request<Body>) -> u16 {
    let service = TowerToHyperService::new(router.clone());
    service.call(request).await.unwrap().status().as_u16()
}

/// What section 8 promises, written down a second time.
fn expected(path: &str, method: &Method, open: bool, caller: Caller) -> u16 {
    let public = ["/", "/ui/{file}", "/ping", "/health", "/livez", "/readyz", "/startupz"].contains(&path);
    let admin =
        path.starts_with("/api/v1/tokens") || (path.starts_with("/api/v1/nodes/") && method != Method::GET);
    match caller {
        _ if public => 200,
        Caller::Local | Caller::Admin => 200,
        _ if open && !admin => 200,
        Caller::Token if admin => 403,
        Caller::Token => 200,
        Caller::Nobody | Caller::Wrong => 401,
    }
}

#[tokio::test]
async fn every_route_against_every_caller_on_every_bind() {
    for (listen, told, open) in
        [("127.0.0.1:8086", false, true), ("0.0.0.0:8086", false, false), ("[::]:8086", true, true)]
    {
        let router = edge(listen, told);
        for route in routes() {
            for caller in CALLERS {
                let got = ask(&router, &route.method, route.path, caller).await;
                let want = expected(route.path, &route.method, open, caller);
                assert_eq!(
                    got, want,
                    "{} {} by {caller:?} on {listen}, told {told}",
                    route.method, route.path
                );
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_in_the_table_is_not_there() {
    let router = edge("127.0.0.1:8086", false);
    for caller in CALLERS {
        assert_eq!(ask(&router, &Method::GET, "/api/v1/secrets", caller).await, 404);
        assert_eq!(ask(&router, &Method::GET, "/write", caller).await, 405);
    }
    assert_eq!(ask(&router, &Method::HEAD, "/ping", Caller::Nobody).await, 200);
}

#[tokio::test]
async fn table_has_no_route_twice() {
    let mut seen: Vec<_> = routes().iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    seen.sort();
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[tokio::test]
async fn foreign_host_and_origin_stop_before_every_route() {
    let router = edge("127.0.0.1:8086", false);
    for route in routes() {
        let path = route.path.replace("{id}", "x");
        let request = |host: &str, origin: Option<&str>| {
            let mut request = Request::builder()
                .method(&route.method)
                .uri(&path)
                .header("host", host)
                .header("authorization", "Bearer admin");
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            request.body(Body::empty()).unwrap()
        };
        assert_eq!(send(&router, request("evil.example:8086", None)).await, 403, "{path}");
        if route.method != Method::GET {
            let foreign = request("localhost:8086", Some("http://evil.example"));
            assert_eq!(send(&router, foreign).await, 403, "{path}");
        }
        let own = request("localhost:8086", Some("http://localhost:8086"));
        assert_eq!(send(&router, own).await, 200, "{path}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_and_class() {
    let metrics = Registry::new();
    let config = config::Http { listen: "0.0.0.0:1".parse().unwrap(), ..config::Http::default() };
    let router: Router = mount(table(), Gate::new(&config, |_| None), &metrics);
    ask(&router, &Method::GET, "/ping", Caller::Nobody).await;
    ask(&router, &Method::POST, "/write", Caller::Nobody).await;
    let text = metrics.render();
    assert!(
        text.contains("skein_http_requests_total{method=\"GET\",path=\"/ping\",status=\"2xx\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("skein_http_requests_total{method=\"POST\",path=\"/write\",status=\"4xx\"} 1"),
        "{text}"
    );
}
