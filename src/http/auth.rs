//! Who may do what: one gate in front of every route.
//!
//! Unknown is refused: a route has an access class or it is not in the table. Nothing here looks at
//! what a header claims about routing or origin of trust; only the listener says how a client came.

use axum::http::{HeaderMap, Method, Uri};

use super::{
    error::{ApiError, Fault},
    params::{self, Params},
};
use crate::{config, node::ApiToken};

/// What a route asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: probes.
    Public,
    /// An API token, unless the edge is open (loopback, or told to be).
    Data,
    /// The unix socket or an admin token, everywhere: members, tokens, data policy.
    Admin,
}

/// How a client is connected. Put into the request by the listener, never by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Over TCP.
    Tcp,
    /// Over the unix socket in the data directory; its file permissions were the authentication.
    Local,
}

/// Finds the API token that a text is.
type Lookup = Box<dyn Fn(&str) -> Option<ApiToken> + Send + Sync>;

/// Judges requests before a handler sees them.
pub(super) struct Gate {
    open: bool,
    hosts: Vec<String>,
    lookup: Lookup,
}

impl Gate {
    /// A gate for an edge so configured; `lookup` compares in constant time.
    pub(super) fn new(
        config: &config::Http,
        lookup: impl Fn(&str) -> Option<ApiToken> + Send + Sync + 'static,
    ) -> Self {
        Self { open: config.is_open(), hosts: config.hosts.clone(), lookup: Box::new(lookup) }
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
        if peer == Peer::Local {
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

    /// Whether the caller may use a route of that class.
    pub(super) fn check_access(
        &self,
        access: Access,
        peer: Peer,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        match (access, peer) {
            (Access::Public, _) | (_, Peer::Local) => return Ok(()),
            (Access::Data, Peer::Tcp) if self.open => return Ok(()),
            (Access::Data | Access::Admin, Peer::Tcp) => {}
        }
        let Some(secret) = params::credentials(headers, &Params::of(uri)) else {
            return Err(ApiError::new(
                Fault::Unauthorized,
                match access {
                    Access::Admin => {
                        "this needs an admin API token, or the unix socket skein.sock of the node"
                    }
                    Access::Public | Access::Data => "this needs an API token (Authorization: Bearer ...)",
                },
            ));
        };
        match (self.lookup)(&secret) {
            None => Err(ApiError::new(Fault::Unauthorized, "the API token is not known to this cluster")),
            Some(token) if access == Access::Admin && !token.admin => {
                Err(ApiError::forbidden("this needs an admin API token; the one sent is not"))
            }
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(listen: &str) -> Gate {
        let config = config::Http {
            listen: listen.parse().unwrap(),
            hosts: vec!["db.example".into()],
            ..config::Http::default()
        };
        Gate::new(&config, |_| None)
    }

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
        let tcp = Peer::Tcp;
        assert!(source(Method::POST, Some("127.0.0.1:1"), None, tcp));
        assert!(source(Method::POST, None, None, tcp));
        assert!(!source(Method::GET, Some("evil.example"), None, tcp));
        assert!(source(Method::GET, Some("db.example"), None, tcp));
        assert!(source(Method::POST, Some("localhost:1"), Some("http://localhost:1"), tcp));
        assert!(!source(Method::POST, Some("localhost:1"), Some("http://localhost:2"), tcp));
        assert!(!source(Method::POST, Some("localhost:1"), Some("https://evil.example"), tcp));
        assert!(!source(Method::DELETE, Some("localhost:1"), Some("null"), tcp));
        assert!(!source(Method::POST, None, Some("http://localhost"), tcp));
        assert!(source(Method::GET, Some("localhost:1"), Some("https://evil.example"), tcp));
        assert!(source(Method::POST, Some("anything"), Some("https://evil.example"), Peer::Local));
    }

    #[test]
    fn a_page_elsewhere_may_link_here_and_nothing_else() {
        let asked = |method: Method, path: &'static str, dest: &str| {
            let headers = [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-dest", dest)];
            let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let headers = HeaderMap::from_iter(headers);
            gate("127.0.0.1:1").check_source(Peer::Tcp, &method, &Uri::from_static(path), &headers).is_ok()
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
}
