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
}

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
        if let Some(url) = &self.url {
            return Target::parse(url);
        }
        let named = self.data_dir.clone().or_else(|| env("SKEIN_DATA_DIR").map(PathBuf::from));
        if let Some(dir) = named {
            let socket = config::Data { dir }.socket();
            return if socket.exists() { Ok(Target::Socket(socket)) } else { Err(no_node(&socket)) };
        }
        if let Some(url) = env("SKEIN_URL") {
            return Target::parse(&url);
        }
        let default = config::default_data_dir(root, env).map(|dir| config::Data { dir }.socket());
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
    /// From `http://host:port`; the port is 8086 if none is named.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let wrong = |why: &str| ClientError::Target(format!("{url:?} {why}: want http://HOST:PORT"));
        let Some(rest) = url.strip_prefix("http://") else {
            return Err(wrong(if url.starts_with("https://") {
                "is https, which this command does not speak"
            } else {
                "is no URL"
            }));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: hyper::http::uri::Authority = rest.parse().map_err(|_| wrong("is no URL"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong("is not a host and a port (a token goes into SKEIN_API_TOKEN)"));
        }
        let port = authority.port_u16().unwrap_or(8086);
        Ok(Self::Tcp { authority: format!("{}:{port}", authority.host()) })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp { authority } => write!(f, "http://{authority}"),
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
        for wrong in ["a:1", "https://a:1", "http://", "http://a/b", "http://u:p@a:1", "ftp://a"] {
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
        let nowhere = TargetArgs { data_dir: Some("/nowhere".into()), url: None };
        let error = nowhere.resolve_with(env(vec![url.clone()]), false).unwrap_err().to_string();
        assert!(error.contains("/nowhere/skein.sock") && error.contains("skein start"), "{error}");
        let flag = TargetArgs { url: Some("http://f:2".into()), data_dir: Some(home) };
        assert_eq!(flag.resolve_with(env(vec![url]), false).unwrap(), tcp("f:2"));
    }
}
