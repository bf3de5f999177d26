//! Who may do what: one gate in front of every route, and of every protocol on this port.
//!
//! Unknown is refused: a route has an access class or it is not in the table. Nothing here looks at
//! what a header claims about routing or origin of trust; only the listener says how a client came.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::http::{Extensions, HeaderMap, Method, Uri};
use futures::future::BoxFuture;

use super::{
    accounts::{Accounts, network},
    error::{ApiError, Fault},
    params::{self, Params},
};
use crate::{
    config,
    identity::SERVER_NAME,
    node::{ApiToken, ApiTokenError},
    telemetry::{Counter, Registry},
    types::{Databases, Scope},
};

/// What a route asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: probes.
    Public,
    /// A token for queries, unless the edge is open (loopback, or told to be).
    Read,
    /// A token for writes, unless the edge is open.
    Write,
    /// One of the two, unless the edge is open; the statement in the request decides which.
    Data,
    /// The unix socket or an admin token, everywhere: members, tokens, data policy.
    Admin,
}

/// How a client is connected. Put into the request by the listener, never by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Over TCP, from this address.
    Tcp(IpAddr),
    /// Over the unix socket in the data directory; its file permissions were the authentication.
    Local,
    /// Through a gateway, over the mesh.
    Gateway {
        /// Where that gateway is.
        at: IpAddr,
        /// Its own edge is open: data and status need no credentials there.
        vouched: bool,
    },
}

impl Peer {
    /// How the client of a request came. What no listener marked came over TCP, from nowhere.
    pub(super) fn of(extensions: &Extensions) -> Self {
        let nowhere = Self::Tcp(IpAddr::from([0, 0, 0, 0]));
        extensions.get::<Self>().copied().unwrap_or(nowhere)
    }
}

/// Who asks, once that is known: what says everything about what a request may do.
#[derive(Debug, Clone)]
pub(super) enum Principal {
    /// The owner of the node's files, over the unix socket: everything.
    Owner,
    /// Anybody: probes, and data and status where the edge is open.
    Anyone,
    /// Whoever holds this token.
    Token(Arc<ApiToken>),
}

impl Principal {
    /// Who was let in with a request.
    ///
    /// # Errors
    /// Nobody was: the request came past the gate, which is a fault of this program.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, ApiError> {
        let nobody = || ApiError::new(Fault::Internal, "this request has not passed the gate");
        extensions.get::<Self>().cloned().ok_or_else(nobody)
    }

    /// Whether it may do that, there; whether there is such a database makes no difference.
    pub(super) fn check(&self, scope: Scope, database: Option<&str>) -> Result<(), ApiError> {
        let token = match self {
            Self::Owner => return Ok(()),
            Self::Anyone if scope != Scope::Admin => return Ok(()),
            Self::Anyone => return Err(unauthorized(Access::Admin)),
            Self::Token(token) => token,
        };
        if !token.has(scope) {
            let has = token.scopes().iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" and ");
            return Err(ApiError::forbidden(format!(
                "this needs an API token to {scope}; the one sent is for {has}"
            )));
        }
        match database {
            Some(name) if !token.databases().contains(name) => Err(ApiError::forbidden(format!(
                "the API token sent is not for database {}",
                params::shown(name)
            ))),
            _ => Ok(()),
        }
    }

    /// The databases it may see at all.
    pub(super) fn databases(&self) -> Databases {
        match self {
            Self::Owner | Self::Anyone => Databases::Every,
            Self::Token(token) => token.databases(),
        }
    }
}

/// What a lookup comes to: the token that a text is, or that it is none.
pub(super) type Looked = Result<ApiToken, ApiTokenError>;

/// Finds the API token that a text is.
pub(super) enum Lookup {
    /// Among those that this node has applied.
    Here(Box<dyn Fn(&str) -> Looked + Send + Sync>),
    /// A gateway knows none: it asks. An error means that nobody could say.
    Elsewhere(Box<dyn Fn(String) -> BoxFuture<'static, Result<Looked, ApiError>> + Send + Sync>),
}

impl Lookup {
    /// Compares in constant time.
    pub(super) fn here(find: impl Fn(&str) -> Looked + Send + Sync + 'static) -> Self {
        Self::Here(Box::new(find))
    }
}

/// Wrong credentials in a row that an address may show, and when one more is let pass.
const GUESSES: (u32, Duration) = (20, Duration::from_secs(1));

/// Where whoever shows a token is told what it may do.
const OWN_TOKEN: &str = "/api/v1/auth/self";

/// Who is told apart where requests are counted.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Caller {
    /// By the hash of its token.
    Token(Vec<u8>),
    /// Without one.
    At(IpAddr),
}

/// Judges requests before a handler sees them.
pub(super) struct Gate {
    open: bool,
    hosts: Vec<String>,
    lookup: Lookup,
    guesses: Accounts<IpAddr>,
    /// `None`: as many as they like.
    requests: Option<Accounts<Caller>>,
    failed: [(ApiTokenError, Counter); 2],
}

impl Gate {
    /// A gate for an edge so configured.
    pub(super) fn new(config: &config::Http, metrics: &Registry, lookup: Lookup) -> Self {
        let counter = |why: &'static str| {
            let help = "Requests with an API token that does not count.";
            metrics.counter("skein_http_auth_failures_total", help, &[("why", why)])
        };
        let failed =
            [(ApiTokenError::Unknown, counter("unknown")), (ApiTokenError::Expired, counter("expired"))];
        let (open, mut hosts) = (config.is_open(), config.hosts.clone());
        if config.tls == config::Tls::Node {
            // What the certificate says, for clients that want the name in it.
            hosts.push(SERVER_NAME.to_owned());
        }
        let requests = (config.max_rate > 0)
            .then(|| Accounts::new(config.max_rate, Duration::from_secs(1) / config.max_rate));
        Self { open, hosts, lookup, guesses: Accounts::new(GUESSES.0, GUESSES.1), requests, failed }
    }

    /// Whether a request may come under that name and from that page. A browser that a foreign page
    /// has pointed here names that page's host, or its origin.
    pub(super) fn check_source(
        &self,
        peer: Peer,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        // What came through a gateway has passed this there.
        if matches!(peer, Peer::Local | Peer::Gateway { .. }) {
            return Ok(());
        }
        let host = params::authority(uri, headers)?;
        if let Some(host) = &host
            && !params::is_own_host(host, &self.hosts)
        {
            return Err(ApiError::forbidden(format!(
                "the name {} is not one of this node's: use its address, or list the name under http.hosts",
                params::shown(host.host())
            )));
        }
        // A page elsewhere may not make this node work, not even by a GET whose answer it cannot read. A
        // link there that somebody follows only shows the page, which does nothing by itself.
        let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        let followed = headers.get("sec-fetch-dest").is_some_and(|dest| dest == "document");
        if cross_site && !(followed && method == Method::GET && uri.path() == "/") {
            return Err(ApiError::forbidden("a page of another site may not ask this node"));
        }
        let changing = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        if !changing {
            return Ok(());
        }
        for origin in headers.get_all("origin") {
            let origin = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
            let origin = origin.as_ref().and_then(Uri::authority);
            if origin.is_none() || origin != host.as_ref() {
                return Err(ApiError::forbidden("a page of another origin may not change anything here"));
            }
        }
        Ok(())
    }

    /// Who the caller is, if it may use what asks for that access, on `database` if one is named
    /// already. What names it only later asks [`Principal::check`] again, and for what it answers
    /// [`Principal::databases`].
    ///
    /// # Errors
    /// No, unknown or expired credentials (unauthorized; too many requests once an address has
    /// shown too many wrong ones), or good ones that are not for this (forbidden).
    pub(super) async fn authorize(
        &self,
        peer: Peer,
        uri: &Uri,
        headers: &HeaderMap,
        access: Access,
        database: Option<&str>,
    ) -> Result<Principal, ApiError> {
        let address = match (access, peer) {
            (_, Peer::Local) => return Ok(Principal::Owner),
            (Access::Public, _) => return Ok(Principal::Anyone),
            (Access::Read | Access::Write | Access::Data, Peer::Tcp(_)) if self.open => {
                return Ok(Principal::Anyone);
            }
            // This node's own edge may be open where that of the gateway is not.
            (Access::Read | Access::Write | Access::Data, Peer::Gateway { vouched: true, .. }) => {
                return Ok(Principal::Anyone);
            }
            (_, Peer::Tcp(address) | Peer::Gateway { at: address, .. }) => address,
        };
        let Some(secret) = params::credentials(headers, &Params::of(uri)) else {
            return Err(unauthorized(access));
        };
        let looked = match &self.lookup {
            Lookup::Here(find) => find(&secret),
            Lookup::Elsewhere(ask) => ask(secret).await?,
        };
        let token = looked.map_err(|why| self.refused(address, why))?;
        let principal = Principal::Token(Arc::new(token));
        match access {
            Access::Public => {}
            Access::Read => principal.check(Scope::Read, database)?,
            Access::Write => principal.check(Scope::Write, database)?,
            Access::Data => {
                let reads = principal.check(Scope::Read, database);
                reads.or_else(|_| principal.check(Scope::Write, database))?;
            }
            Access::Admin => principal.check(Scope::Admin, database)?,
        }
        Ok(principal)
    }

    /// Counts a request of whoever was let in.
    ///
    /// # Errors
    /// There were more in the last second than one client may send (too many requests).
    pub(super) fn not_too_often(
        &self,
        peer: Peer,
        uri: &Uri,
        access: Access,
        who: &Principal,
    ) -> Result<(), ApiError> {
        let (Some(requests), false) = (&self.requests, access == Access::Public) else { return Ok(()) };
        // A gateway asks this for itself, to know whom it lets in.
        if matches!(peer, Peer::Gateway { .. }) && uri.path() == OWN_TOKEN {
            return Ok(());
        }
        let caller = match (who, peer) {
            (Principal::Owner, _) | (Principal::Anyone, Peer::Local) => return Ok(()),
            (Principal::Token(token), _) => Caller::Token(token.hash.clone()),
            // The gateway has counted who is behind it.
            (Principal::Anyone, Peer::Gateway { .. }) => return Ok(()),
            (Principal::Anyone, Peer::Tcp(address)) => Caller::At(network(address)),
        };
        requests.note(caller).map_err(|full| {
            if full.first && let Peer::Tcp(address) | Peer::Gateway { at: address, .. } = peer {
                tracing::warn!(%address, "a client sends more requests than one may (http.max_rate)");
            }
            ApiError::new(
                Fault::Busy,
                "more requests than one client may send to this node (http.max_rate): slower, or more in each",
            )
        })
    }

    /// Counts a wrong token. A good one passes from the same address all the same: one bad client
    /// behind a proxy must not lock the others out, and 32 random bytes are not found by guessing.
    fn refused(&self, address: IpAddr, why: ApiTokenError) -> ApiError {
        if let Some((_, counter)) = self.failed.iter().find(|(of, _)| *of == why) {
            counter.add(1);
        }
        // It may be a good one, and is to be sent again.
        if why == ApiTokenError::NotUpToDate {
            return ApiError::new(Fault::Unavailable, why.to_string());
        }
        let Err(full) = self.guesses.note(network(address)) else {
            return ApiError::new(Fault::Unauthorized, why.to_string());
        };
        if full.first {
            tracing::warn!(%address, "too many requests with wrong API tokens from this address");
        }
        let stop = format!("{why}, and too many wrong ones came from this address: stop sending it");
        ApiError::new(Fault::Busy, stop)
    }
}

fn unauthorized(access: Access) -> ApiError {
    let what = match access {
        Access::Admin => "this needs an admin API token, or the unix socket skein.sock of the node",
        Access::Public | Access::Read | Access::Write | Access::Data => {
            "this needs an API token (Authorization: Bearer ...)"
        }
    };
    ApiError::new(Fault::Unauthorized, what)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn gate(listen: &str) -> Gate {
        let config = config::Http {
            listen: listen.parse().unwrap(),
            hosts: vec!["db.example".into()],
            ..config::Http::default()
        };
        let known = |secret: &str| match secret {
            "reader" => {
                Ok(ApiToken { read: true, databases: Some(["a".into()].into()), ..ApiToken::default() })
            }
            _ => Err(ApiTokenError::Unknown),
        };
        Gate::new(&config, &Registry::new(), Lookup::here(known))
    }

    const TCP: Peer = Peer::Tcp(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    fn source(method: Method, host: Option<&str>, origin: Option<&str>, peer: Peer) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert("host", host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        gate("127.0.0.1:1").check_source(peer, &method, &Uri::from_static("/write"), &headers).is_ok()
    }

    #[test]
    fn foreign_names_and_origins() {
        assert!(source(Method::POST, Some("127.0.0.1:1"), None, TCP));
        assert!(source(Method::POST, None, None, TCP));
        assert!(!source(Method::GET, Some("evil.example"), None, TCP));
        assert!(source(Method::GET, Some("db.example"), None, TCP));
        assert!(source(Method::POST, Some("localhost:1"), Some("http://localhost:1"), TCP));
        assert!(!source(Method::POST, Some("localhost:1"), Some("http://localhost:2"), TCP));
        assert!(!source(Method::POST, Some("localhost:1"), Some("https://evil.example"), TCP));
        assert!(!source(Method::DELETE, Some("localhost:1"), Some("null"), TCP));
        assert!(!source(Method::POST, None, Some("http://localhost"), TCP));
        assert!(source(Method::GET, Some("localhost:1"), Some("https://evil.example"), TCP));
        assert!(source(Method::POST, Some("anything"), Some("https://evil.example"), Peer::Local));
    }

    /// What came of asking a gate on all addresses.
    fn asked(gate: &Gate, secret: &str, access: Access, database: Option<&str>) -> Result<(), Fault> {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {secret}").parse().unwrap());
        let uri = Uri::from_static("/x");
        let done = gate.authorize(TCP, &uri, &headers, access, database);
        let done = done.now_or_never().expect("it knows by itself");
        done.map(drop).map_err(|error| error.fault())
    }

    #[test]
    fn a_token_is_for_its_scope_and_its_databases() {
        let gate = gate("0.0.0.0:1");
        assert_eq!(asked(&gate, "reader", Access::Read, None), Ok(()));
        assert_eq!(asked(&gate, "reader", Access::Read, Some("a")), Ok(()));
        assert_eq!(asked(&gate, "reader", Access::Data, Some("a")), Ok(()));
        for (access, database) in [
            (Access::Read, Some("b")),
            (Access::Data, Some("b")),
            (Access::Write, Some("a")),
            (Access::Admin, None),
        ] {
            assert_eq!(asked(&gate, "reader", access, database), Err(Fault::Forbidden), "{access:?}");
        }
        assert_eq!(asked(&gate, "guess", Access::Public, None), Ok(()));
        assert!(Principal::of(&Extensions::new()).is_err(), "past the gate is nobody");
        assert!(Principal::Anyone.check(Scope::Admin, None).is_err());
    }

    #[test]
    fn a_gateway_vouches_for_data_and_never_for_an_admin() {
        let open = gate("127.0.0.1:1");
        let ask = |vouched, access, secret: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(secret) = secret {
                headers.insert("authorization", format!("Bearer {secret}").parse().unwrap());
            }
            let peer = Peer::Gateway { at: [192, 0, 2, 9].into(), vouched };
            let uri = Uri::from_static("/x");
            let done = open.authorize(peer, &uri, &headers, access, None);
            done.now_or_never().expect("it knows by itself").map(drop).map_err(|error| error.fault())
        };
        for access in [Access::Read, Access::Write, Access::Data] {
            assert_eq!(ask(true, access, None), Ok(()));
            // That this node's own edge is open is of no use to a client of that one.
            assert_eq!(ask(false, access, None), Err(Fault::Unauthorized));
            assert_eq!(ask(false, access, Some("guess")), Err(Fault::Unauthorized));
        }
        assert_eq!(ask(false, Access::Read, Some("reader")), Ok(()));
        for vouched in [true, false] {
            assert_eq!(ask(vouched, Access::Admin, None), Err(Fault::Unauthorized));
            assert_eq!(ask(vouched, Access::Admin, Some("reader")), Err(Fault::Forbidden));
            assert_eq!(ask(vouched, Access::Public, None), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_become_too_many_and_a_good_one_still_passes() {
        let gate = gate("0.0.0.0:1");
        let mut answers = Vec::new();
        for _ in 0..100 {
            answers.push(asked(&gate, "guess", Access::Read, None).unwrap_err());
        }
        assert_eq!((answers[0], answers[99]), (Fault::Unauthorized, Fault::Busy));
        assert_eq!(asked(&gate, "reader", Access::Read, None), Ok(()));
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        assert_eq!(asked(&gate, "guess", Access::Read, None), Err(Fault::Unauthorized));
    }

    #[test]
    fn a_page_elsewhere_may_link_here_and_nothing_else() {
        let asked = |method: Method, path: &'static str, dest: &str| {
            let headers = [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-dest", dest)];
            let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let headers = HeaderMap::from_iter(headers);
            gate("127.0.0.1:1").check_source(TCP, &method, &Uri::from_static(path), &headers).is_ok()
        };
        assert!(asked(Method::GET, "/", "document"));
        for (method, path, dest) in [
            (Method::GET, "/", "iframe"),
            (Method::GET, "/", "empty"),
            (Method::POST, "/", "document"),
            (Method::GET, "/query?q=x", "document"),
            (Method::GET, "/ui/app.js", "script"),
            (Method::GET, "/api/v1/cluster/events", "empty"),
        ] {
            assert!(!asked(method, path, dest), "{path} {dest}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_client_has_its_own_rate() {
        let config = config::Http { max_rate: 5, ..config::Http::default() };
        let gate = Gate::new(&config, &Registry::new(), Lookup::here(|_| Err(ApiTokenError::Unknown)));
        let token = |n: u8| Principal::Token(Arc::new(ApiToken { hash: vec![n], ..ApiToken::default() }));
        let at = |path: &'static str, peer, access, who: &Principal| {
            let uri = Uri::from_static(path);
            (0..100).filter(|_| gate.not_too_often(peer, &uri, access, who).is_ok()).count()
        };
        let passed = |peer, access, who: &Principal| at("/write", peer, access, who);
        let through = Peer::Gateway { at: IpAddr::from([192, 0, 2, 9]), vouched: true };
        assert_eq!(passed(TCP, Access::Read, &token(1)), 5);
        assert_eq!(passed(through, Access::Write, &token(1)), 0, "the same token, however it comes");
        assert_eq!(at(OWN_TOKEN, through, Access::Data, &token(1)), 100, "what the gateway asks for itself");
        assert_eq!(passed(TCP, Access::Read, &token(2)), 5);
        assert_eq!(passed(TCP, Access::Data, &Principal::Anyone), 5, "by address");
        assert_eq!(passed(through, Access::Data, &Principal::Anyone), 100, "the gateway counts its own");
        assert_eq!(passed(TCP, Access::Public, &Principal::Anyone), 100);
        assert_eq!(passed(Peer::Local, Access::Admin, &Principal::Owner), 100);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(passed(TCP, Access::Read, &token(1)), 2);
        let free = Gate::new(
            &config::Http::default(),
            &Registry::new(),
            Lookup::here(|_| Err(ApiTokenError::Unknown)),
        );
        assert!(
            (0..100).all(|_| free
                .not_too_often(TCP, &Uri::from_static("/write"), Access::Read, &token(1))
                .is_ok())
        );
    }
}
