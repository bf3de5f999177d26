//! Every route of the table, with its real handler over a real node, against every kind of caller
//! on every bind; and what stands in front of all routes.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};

use super::{auth::Peer, *};
use crate::{
    engine::columnar::ColumnarConfig,
    identity::DataDir,
    node::{NewApiToken, NodeConfig, Surroundings},
    transport::Socket,
    types::{Scope, TokenId},
};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// No credentials.
    Nobody,
    /// A token that never was.
    Unknown,
    Revoked,
    Expired,
    /// May read `home`.
    Reader,
    /// May write `home`.
    Writer,
    /// May read every database.
    EveryReader,
    /// May read and write every database.
    Both,
    /// May read and write another database than the one asked for.
    Elsewhere,
    Admin,
    /// Over the unix socket.
    Local,
}

const ROLES: [Role; 11] = [
    Role::Nobody,
    Role::Unknown,
    Role::Revoked,
    Role::Expired,
    Role::Reader,
    Role::Writer,
    Role::EveryReader,
    Role::Both,
    Role::Elsewhere,
    Role::Admin,
    Role::Local,
];

/// What docs/http-api.md says a request asks of the caller, written down a second time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Asks {
    Nothing,
    /// Any token that is for data.
    Token,
    /// To read, no matter where.
    Status,
    /// To read `home`.
    Read,
    /// To write `home`.
    Write,
    Admin,
}

/// A request that a route is tried with.
struct Try {
    /// Method and path as the table has them.
    route: &'static str,
    /// Path and query string.
    uri: &'static str,
    body: &'static str,
    asks: Asks,
    /// The answer to whoever is let through.
    through: u16,
}

/// At least one for each route: one that has none fails the test.
#[rustfmt::skip]
fn tries() -> Vec<Try> {
    let line = |route, uri, body, asks, through| Try { route, uri, body, asks, through };
    let probe = |route: &'static str| {
        let (_, path) = route.split_once(' ').unwrap();
        line(route, path, "", Asks::Nothing, if path == "/ping" { 204 } else { 200 })
    };
    let table = vec![
        line("POST /write", "/write?db=home", "cpu v=1 1", Asks::Write, 204),
        line("POST /api/v2/write", "/api/v2/write?bucket=home", "cpu v=1 1", Asks::Write, 204),
        line("POST /api/v3/write_lp", "/api/v3/write_lp?db=home", "cpu v=1 1", Asks::Write, 204),
        line("POST /api/v1/write/line-protocol", "/api/v1/write/line-protocol", "cpu v=1 1", Asks::Write, 204),
        line("POST /api/v1/write/msgpack", "/api/v1/write/msgpack", "\u{0}", Asks::Write, 400),
        line("GET /query", "/query?q=CREATE+DATABASE+home", "", Asks::Write, 200),
        line("GET /query", "/query?q=SHOW+DATABASES", "", Asks::Status, 200),
        line("POST /query", "/query", "q=CREATE+DATABASE+home", Asks::Write, 200),
        line("POST /query", "/query", "q=SHOW+DATABASES", Asks::Status, 200),
        line("GET /api/v1/databases", "/api/v1/databases", "", Asks::Status, 200),
        line("GET /api/v1/measurements", "/api/v1/measurements", "", Asks::Status, 200),
        line("GET /api/v1/measurements", "/api/v1/measurements?database=home", "", Asks::Read, 200),
        line("DELETE /api/v1/databases/{name}", "/api/v1/databases/nowhere", "", Asks::Admin, 404),
        line("PUT /api/v1/databases/{name}/retention", "/api/v1/databases/home/retention", r#"{"keep":"none"}"#, Asks::Admin, 204),
        line("POST /api/v1/databases/{name}/rows", "/api/v1/databases/home/rows", "cpu v=1 1", Asks::Admin, 400),
        line("GET /api/v1/backup", "/api/v1/backup", "", Asks::Admin, 200),
        line("GET /metrics", "/metrics", "", Asks::Status, 200),
        line("GET /api/v1/cluster", "/api/v1/cluster", "", Asks::Status, 200),
        line("GET /api/v1/cluster/events", "/api/v1/cluster/events", "", Asks::Status, 200),
        line("POST /api/v1/cluster/finalise", "/api/v1/cluster/finalise", "", Asks::Admin, 200),
        line("GET /api/v1/nodes", "/api/v1/nodes", "", Asks::Status, 200),
        line("POST /api/v1/nodes/{id}/demote", "/api/v1/nodes/x/demote", "", Asks::Admin, 400),
        line("POST /api/v1/nodes/{id}/promote", "/api/v1/nodes/x/promote", "", Asks::Admin, 400),
        line("POST /api/v1/nodes/{id}/transfer", "/api/v1/nodes/x/transfer", "", Asks::Admin, 400),
        line("POST /api/v1/nodes/{id}/drain", "/api/v1/nodes/x/drain", "", Asks::Admin, 400),
        line("DELETE /api/v1/nodes/{id}/drain", "/api/v1/nodes/x/drain", "", Asks::Admin, 400),
        line("GET /api/v1/nodes/{id}", "/api/v1/nodes/x", "", Asks::Status, 400),
        line("DELETE /api/v1/nodes/{id}", "/api/v1/nodes/x", "", Asks::Admin, 400),
        line("POST /api/v1/ca/rotate", "/api/v1/ca/rotate", "{\"drop\":[\"x\"]}", Asks::Admin, 400),
        line("GET /api/v1/tokens", "/api/v1/tokens", "", Asks::Admin, 200),
        line("POST /api/v1/tokens", "/api/v1/tokens", "", Asks::Admin, 201),
        line("DELETE /api/v1/tokens/{id}", "/api/v1/tokens/ffffffffffffffff", "", Asks::Admin, 404),
        line("GET /api/v1/auth/self", "/api/v1/auth/self", "", Asks::Token, 200),
        line("GET /api/v1/auth/tokens", "/api/v1/auth/tokens", "", Asks::Admin, 200),
        line("POST /api/v1/auth/tokens", "/api/v1/auth/tokens", r#"{"scopes":["read"]}"#, Asks::Admin, 201),
        line("DELETE /api/v1/auth/tokens/{id}", "/api/v1/auth/tokens/ffffffffffffffff", "", Asks::Admin, 404),
        line("GET /ui/{file}", "/ui/app.js", "", Asks::Nothing, 200),
        probe("GET /"), probe("GET /ping"), probe("GET /health"), probe("GET /ready"), probe("GET /livez"), probe("GET /readyz"), probe("GET /startupz"),
        probe("GET /api/v1/openapi.json"),
    ];
    #[cfg(feature = "sql")]
    let table = {
        let mut table = table;
        table.extend([
            line("GET /api/v3/query_sql", "/api/v3/query_sql?db=home&q=select+1", "", Asks::Read, 200),
            line("GET /api/v3/query_sql", "/api/v3/query_sql?q=select+*+from+home.cpu", "", Asks::Read, 200),
            line("POST /api/v3/query_sql", "/api/v3/query_sql", r#"{"db":"home","q":"select * from cpu"}"#, Asks::Read, 200),
            line("POST /api/v1/query", "/api/v1/query", r#"{"sql":"select * from cpu"}"#, Asks::Read, 200),
            line("POST /api/v1/query/msgpack", "/api/v1/query/msgpack", r#"{"sql":"select * from cpu"}"#, Asks::Read, 200),
            line("POST /api/v1/query/estimate", "/api/v1/query/estimate", r#"{"sql":"select * from cpu"}"#, Asks::Read, 200),
            // gRPC needs HTTP/2, which is said only to whoever may ask.
            line("POST /arrow.flight.protocol.FlightService/{call}", "/arrow.flight.protocol.FlightService/DoGet", "", Asks::Status, 400),
            line("POST /api/v1/query/arrow", "/api/v1/query/arrow", r#"{"sql":"show tables"}"#, Asks::Read, 200),
        ]);
        table
    };
    table
}

fn expected(one: &Try, open: bool, role: Role) -> u16 {
    use Role::{
        Admin, Both, Elsewhere, EveryReader, Expired, Local, Nobody, Reader, Revoked, Unknown, Writer,
    };
    match (one.asks, role) {
        (Asks::Nothing, _) | (_, Admin | Local) => one.through,
        (Asks::Token | Asks::Read | Asks::Write | Asks::Status, _) if open => one.through,
        (_, Nobody | Unknown | Revoked | Expired) => 401,
        (Asks::Token, Reader | Writer | EveryReader | Both | Elsewhere) => one.through,
        (Asks::Status, Reader | EveryReader | Both | Elsewhere) => one.through,
        (Asks::Read, Reader | EveryReader | Both) => one.through,
        (Asks::Write, Writer | Both) => one.through,
        _ => 403,
    }
}

/// A node of its own cluster, and a token for each role that has one.
struct World {
    node: Node,
    engine: Arc<ColumnarEngine>,
    secrets: Vec<(Role, String)>,
    _home: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let surroundings = Surroundings::real();
        let engine = ColumnarEngine::open(
            surroundings.disk.clone(),
            home.path().join("engine"),
            ColumnarConfig {
                flush_bytes: 1 << 20,
                flush_age: Duration::from_secs(60),
                compaction_memory: 0,
                max_series: 0,
            },
        );
        let engine = engine.await.unwrap();
        let config = NodeConfig {
            new_cluster: true,
            socket: Socket::Bind("127.0.0.1:0".parse().unwrap()),
            mdns: None,
            ..NodeConfig::new(DataDir::open(&home.path().join("data")).unwrap())
        };
        let node = Node::start(config, surroundings, engine.clone()).await.unwrap();
        let mut world = Self { node, engine, secrets: Vec::new(), _home: home };
        let admin = std::fs::read_to_string(world.node.data_dir().join("admin.token")).unwrap();
        world.secrets.push((Role::Admin, admin.trim().to_owned()));
        world.secrets.push((Role::Unknown, format!("skein_{}", "a".repeat(52))));
        let (read, write) = ([Scope::Read], [Scope::Write]);
        let both = [Scope::Read, Scope::Write];
        world.make(Role::Reader, &read, Some("home"), None).await;
        world.make(Role::Writer, &write, Some("home"), None).await;
        world.make(Role::EveryReader, &read, None, None).await;
        world.make(Role::Both, &both, None, None).await;
        world.make(Role::Elsewhere, &both, Some("elsewhere"), None).await;
        world.make(Role::Expired, &both, None, Some(Duration::from_millis(1))).await;
        let revoked = world.make(Role::Revoked, &both, None, None).await;
        world.node.revoke_api_token(revoked).await.unwrap();
        // What the queries are about has to be there, and the node ready.
        let site = world.site("127.0.0.1:8086", false);
        let first = Request::post("/write?db=home").extension(Peer::Local).body(Body::from("cpu v=1 1"));
        assert_eq!(send(&site, first.unwrap()).await, 204);
        while world.engine.tables("home").is_none() || !world.node.readiness().ready {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world
    }

    async fn make(
        &mut self,
        role: Role,
        scopes: &[Scope],
        database: Option<&str>,
        ttl: Option<Duration>,
    ) -> TokenId {
        let wanted = NewApiToken {
            name: Some(format!("{role:?}")),
            scopes: scopes.iter().copied().collect(),
            databases: database.map(|name| BTreeSet::from([name.to_owned()])),
            ttl,
        };
        let (secret, token) = self.node.create_api_token(wanted).await.unwrap();
        self.secrets.push((role, secret.to_string()));
        token.id()
    }

    fn site(&self, listen: &str, open: bool) -> Answering {
        let config = config::Http { listen: listen.parse().unwrap(), open, ..config::Http::default() };
        site(AppState {
            node: self.node.clone(),
            engine: self.engine.clone(),
            metrics: Registry::new(),
            config: Arc::new(config),
            now_ns: || 1,
        })
    }

    /// A request as that role would send it, each from an address of its own.
    fn request(&self, one: &Try, role: Role) -> Request<Body> {
        static ADDRESS: AtomicU32 = AtomicU32::new(0x0a00_0000);
        let method = one.route.split(' ').next().unwrap();
        let address = IpAddr::from(ADDRESS.fetch_add(1, Relaxed).to_be_bytes());
        let peer = if role == Role::Local { Peer::Local } else { Peer::Tcp(address) };
        let mut request = Request::builder().method(method).uri(one.uri).header("host", "127.0.0.1:8086");
        if one.route.contains(" /api/v1/write/") || one.route.contains(" /api/v1/query") {
            request = request.header("x-arc-database", "home");
        }
        if let Some((_, secret)) = self.secrets.iter().find(|(of, _)| *of == role) {
            request = request.header("authorization", format!("Bearer {secret}"));
        }
        request.extension(peer).body(Body::from(one.body)).unwrap()
    }
}

async fn send(site: &Answering, request: Request<Body>) -> u16 {
    let response = site(request).await;
    let status = response.status().as_u16();
    assert!(status != 204 || !response.headers().contains_key("content-length"), "nothing has no length");
    status
}

#[test]
fn every_route_is_tried_and_none_is_there_twice() {
    let named = |route: &Route<Arc<Edge>>| format!("{} {}", route.method, route.path);
    let table: Vec<String> = routes().iter().map(named).collect();
    let once: BTreeSet<&str> = table.iter().map(String::as_str).collect();
    assert_eq!(once.len(), table.len(), "a route twice");
    let tried: BTreeSet<&str> = tries().iter().map(|one| one.route).collect();
    let untried: Vec<_> = once.difference(&tried).collect();
    assert!(untried.is_empty(), "write down who may use {untried:?}: add it to tries()");
    let gone: Vec<_> = tried.difference(&once).collect();
    assert!(gone.is_empty(), "no such routes: {gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_against_every_role_on_every_bind() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    for (listen, told, open) in
        [("0.0.0.0:8086", false, false), ("127.0.0.1:8086", false, true), ("[::]:8086", true, true)]
    {
        let site = world.site(listen, told);
        for one in tries() {
            for role in ROLES {
                let got = send(&site, world.request(&one, role)).await;
                let want = expected(&one, open, role);
                if got != want {
                    let uri = one.uri;
                    wrong.push(format!("{role:?} on {listen}: {} as {uri}: {got}, not {want}", one.route));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_before_every_route() {
    let world = World::new().await;
    let site = world.site("127.0.0.1:8086", false);
    for one in tries() {
        let request = |host: &str, origin: Option<&str>, site: Option<&str>| {
            let mut request = world.request(&one, Role::Admin);
            let headers = request.headers_mut();
            headers.insert("host", host.parse().unwrap());
            let more = [("origin", origin), ("sec-fetch-site", site)];
            for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                headers.insert(name, value.parse().unwrap());
            }
            request
        };
        let path = one.route;
        assert_eq!(send(&site, request("evil.example:8086", None, None)).await, 403, "{path}");
        assert_eq!(send(&site, request("localhost:8086", None, Some("cross-site"))).await, 403, "{path}");
        if !path.starts_with("GET ") {
            let foreign = request("localhost:8086", Some("http://evil.example"), None);
            assert_eq!(send(&site, foreign).await, 403, "{path}");
        }
        let own = request("localhost:8086", Some("http://localhost:8086"), Some("same-origin"));
        assert_eq!(send(&site, own).await, one.through, "{path}");
    }
    // Over HTTP/2 a body behind an answer to HEAD breaks its stream.
    let peer = Peer::Tcp(IpAddr::from([127, 0, 0, 1]));
    let refused = Request::head("/ping").header("host", "evil.example:8086").extension(peer);
    let refused = site(refused.body(Body::empty()).unwrap()).await;
    assert_eq!(refused.status().as_u16(), 403);
    assert!(to_bytes(refused.into_body(), 100).await.unwrap().is_empty());
    // What is not in the table is not there, for nobody.
    for role in ROLES {
        let ask = |route, uri| Try { route, uri, body: "", asks: Asks::Nothing, through: 0 };
        let secret = ask("GET /api/v1/secrets", "/api/v1/secrets");
        assert_eq!(send(&site, world.request(&secret, role)).await, 404);
        assert_eq!(send(&site, world.request(&ask("GET /write", "/write"), role)).await, 405);
        assert_eq!(send(&site, world.request(&ask("HEAD /ping", "/ping"), role)).await, 204);
    }
    world.node.shutdown().await;
}

#[tokio::test]
async fn requests_are_counted_by_route_and_class() {
    let metrics = Registry::new();
    let config = config::Http { listen: "0.0.0.0:1".parse().unwrap(), ..config::Http::default() };
    let gate = Gate::new(&config, &metrics, Lookup::here(|_| Err(crate::node::ApiTokenError::Unknown)));
    let table = [("/ping", Access::Public), ("/write", Access::Write)]
        .map(|(path, access)| {
            let (method, filter) = (Method::GET, MethodFilter::GET);
            Route { method, filter, path, access, handler: handler(|| async { "through" }) }
        })
        .into();
    let site = front::mount(table, gate, &metrics, &());
    let ask = |uri: &str| Request::get(uri).body(Body::empty()).unwrap();
    assert_eq!(send(&site, ask("/ping")).await, 200);
    assert_eq!(send(&site, ask("/write")).await, 401);
    assert_eq!(send(&site, ask("/write?u=me&p=not-a-token")).await, 401);
    let text = metrics.render();
    for line in [
        "skein_http_requests_total{method=\"GET\",path=\"/ping\",status=\"2xx\"} 1",
        "skein_http_requests_total{method=\"GET\",path=\"/write\",status=\"4xx\"} 2",
        "skein_http_auth_failures_total{why=\"unknown\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("not-a-token"), "{text}");
}
