//! Which node a command talks to.

use std::path::PathBuf;

use clap::Args;

use super::client::ClientError;
use crate::config;

/// Flags that say which node to ask.
#[derive(Debug, Clone, Default, Args)]
pub struct TargetArgs {
    /// Ask the node at this address [default: the one on this machine]
    #[arg(long, value_name = "URL", help_heading = "Which node")]
    pub url: Option<String>,
    /// Ask the node that runs on this data directory, over its unix socket
    #[arg(long, value_name = "DIR", help_heading = "Which node")]
    pub data_dir: Option<PathBuf>,
    /// Trust these roots (PEM) with https [default: $SKEIN_CA, else ca.pem in the data directory]
    #[arg(long, value_name = "FILE", help_heading = "Which node")]
    pub ca: Option<PathBuf>,
}

/// The cluster's roots, which a node leaves in its data directory.
pub(super) const CA_FILE: &str = "ca.pem";

/// Where a node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The unix socket in a data directory.
    Socket(PathBuf),
    /// `host:port` over TCP.
    Tcp {
        /// As it goes into `Host`, and to be resolved.
        authority: String,
    },
    /// `host:port` over TLS.
    Tls {
        /// As it goes into `Host`, and to be resolved.
        authority: String,
        /// Roots (PEM) that may have signed the node's certificate.
        ca: Option<PathBuf>,
    },
}

const DEFAULT_URL: &str = "http://127.0.0.1:8086";

impl TargetArgs {
    /// The target of this process.
    pub fn resolve(&self) -> Result<Target, ClientError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.resolve_with(env, rustix::process::geteuid().is_root())
    }

    /// `--url`, else the socket in `--data-dir` or `SKEIN_DATA_DIR`, else `SKEIN_URL`, else the
    /// socket in the default data directory if it is there, else port 8086 of this machine.
    fn resolve_with(&self, env: impl Fn(&str) -> Option<String>, root: bool) -> Result<Target, ClientError> {
        let named = self.data_dir.clone().or_else(|| env("SKEIN_DATA_DIR").map(PathBuf::from));
        let default = config::default_data_dir(root, &env);
        let ca = self.ca.clone().or_else(|| env("SKEIN_CA").map(PathBuf::from)).or_else(|| {
            let dir = named.clone().or_else(|| default.clone())?;
            Some(dir.join(CA_FILE)).filter(|file| file.exists())
        });
        let at = |url: &str| match Target::parse(url)? {
            Target::Tls { authority, .. } => Ok(Target::Tls { authority, ca: ca.clone() }),
            other => Ok(other),
        };
        if let Some(url) = &self.url {
            return at(url);
        }
        if let Some(dir) = named {
            let socket = config::Data { dir }.socket();
            return if socket.exists() { Ok(Target::Socket(socket)) } else { Err(no_node(&socket)) };
        }
        if let Some(url) = env("SKEIN_URL") {
            return at(&url);
        }
        let default = default.map(|dir| config::Data { dir }.socket());
        match default.filter(|socket| socket.exists()) {
            Some(socket) => Ok(Target::Socket(socket)),
            None => Target::parse(DEFAULT_URL),
        }
    }
}

fn no_node(socket: &std::path::Path) -> ClientError {
    ClientError::Unreachable {
        target: socket.display().to_string(),
        error: "there is no such socket".to_owned(),
        advice: "start a node on that directory (skein start --data-dir ...), or name one with --url",
    }
}

impl Target {
    /// From `http://host:port` or `https://host:port`; the port is 8086 if none is named.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let wrong = |why: &str| {
            ClientError::Target(format!("{url:?} {why}: want http://HOST:PORT or https://HOST:PORT"))
        };
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong("is no URL")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: hyper::http::uri::Authority = rest.parse().map_err(|_| wrong("is no URL"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong("is not a host and a port (a token goes into SKEIN_API_TOKEN)"));
        }
        let port = authority.port_u16().unwrap_or(8086);
        let authority = format!("{}:{port}", authority.host());
        Ok(if tls { Self::Tls { authority, ca: None } } else { Self::Tcp { authority } })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority } => write!(f, "http://{authority}"),
            Self::Tls { authority, .. } => write!(f, "https://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(authority: &str) -> Target {
        Target::Tcp { authority: authority.into() }
    }

    #[test]
    fn urls() {
        assert_eq!(Target::parse("http://a.example:1").unwrap(), tcp("a.example:1"));
        assert_eq!(Target::parse("http://[::1]:2/").unwrap(), tcp("[::1]:2"));
        assert_eq!(Target::parse("http://a").unwrap(), tcp("a:8086"));
        let tls = Target::Tls { authority: "a:1".into(), ca: None };
        assert_eq!(Target::parse("https://a:1").unwrap(), tls);
        for wrong in
            ["a:1", "https://", "https://u:p@a:1", "http://", "http://a/b", "http://u:p@a:1", "ftp://a"]
        {
            assert!(matches!(Target::parse(wrong), Err(ClientError::Target(_))), "{wrong}");
        }
    }

    #[test]
    fn the_first_that_is_named_wins() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("skein");
        std::fs::create_dir(&home).unwrap();
        let env = |set: Vec<(&'static str, String)>| {
            move |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
        };
        let xdg = || ("XDG_DATA_HOME", dir.path().display().to_string());
        let none = TargetArgs::default();
        assert_eq!(none.resolve_with(env(vec![xdg()]), false).unwrap(), tcp("127.0.0.1:8086"));
        std::fs::write(home.join("skein.sock"), "").unwrap();
        let socket = Target::Socket(home.join("skein.sock"));
        assert_eq!(none.resolve_with(env(vec![xdg()]), false).unwrap(), socket);
        let url = ("SKEIN_URL", "http://e:1".to_owned());
        assert_eq!(none.resolve_with(env(vec![xdg(), url.clone()]), false).unwrap(), tcp("e:1"));
        let data = ("SKEIN_DATA_DIR", home.display().to_string());
        assert_eq!(none.resolve_with(env(vec![url.clone(), data]), false).unwrap(), socket);
        let nowhere = TargetArgs { data_dir: Some("/nowhere".into()), ..TargetArgs::default() };
        let error = nowhere.resolve_with(env(vec![url.clone()]), false).unwrap_err().to_string();
        assert!(error.contains("/nowhere/skein.sock") && error.contains("skein start"), "{error}");
        let flag = TargetArgs { url: Some("http://f:2".into()), data_dir: Some(home.clone()), ca: None };
        assert_eq!(flag.resolve_with(env(vec![url]), false).unwrap(), tcp("f:2"));

        let tls = |ca: Option<PathBuf>| Target::Tls { authority: "f:2".into(), ca };
        let flag = TargetArgs { url: Some("https://f:2".into()), ..TargetArgs::default() };
        assert_eq!(flag.resolve_with(env(vec![xdg()]), false).unwrap(), tls(None));
        std::fs::write(home.join(CA_FILE), "").unwrap();
        assert_eq!(flag.resolve_with(env(vec![xdg()]), false).unwrap(), tls(Some(home.join(CA_FILE))));
        let named = ("SKEIN_CA", "/ca".to_owned());
        assert_eq!(
            flag.resolve_with(env(vec![xdg(), named.clone()]), false).unwrap(),
            tls(Some("/ca".into()))
        );
        let own = TargetArgs { ca: Some("/own".into()), ..flag };
        assert_eq!(own.resolve_with(env(vec![xdg(), named]), false).unwrap(), tls(Some("/own".into())));
    }
}
