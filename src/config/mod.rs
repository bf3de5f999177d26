//! Configuration: one file per section (fields, defaults and validation together), and the order
//! in which sources win: flag over environment over file over default.

mod data;
mod discovery;
#[cfg(feature = "server")]
mod file;
mod http;
mod log;
mod mesh;
mod node;
mod section;
mod storage;
mod value;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::{
    data::Data,
    discovery::Discovery,
    http::{Http, Tls},
    log::{Log, LogFormat},
    mesh::Mesh,
    node::{JoinSource, Node},
    storage::Storage,
    value::{ByteSize, FromText, duration_text, parse_duration, show_duration},
};

/// Everything a node can be told, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps what must survive.
    pub data: Data,
    /// What the node is called and wants to be, and how it becomes a member.
    pub node: Node,
    /// The QUIC mesh.
    pub mesh: Mesh,
    /// The HTTP edge.
    pub http: Http,
    /// WAL and columnar engine.
    pub storage: Storage,
    /// How peers are found.
    pub discovery: Discovery,
    /// Logging.
    pub log: Log,
}

/// Why there is no configuration. The caller exits with 2 (usage).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong kind.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Where and what, with the line shown.
        error: String,
    },
    /// An environment variable or a flag has a value that does not fit.
    #[error("{source_name}: {error}")]
    Value {
        /// The variable or flag.
        source_name: String,
        /// What is wrong and what would be right.
        error: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Invalid(String),
}

/// A value given on the command line.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// The key it sets: `section.key`.
    pub key: &'static str,
    /// The flag as the user typed it, for error messages.
    pub flag: &'static str,
    /// Its value as text; lists are separated by commas.
    pub value: String,
}

impl Config {
    /// Every key there is, as `section.key`. `SKEIN_SECTION_KEY` is the variable of each.
    pub fn keys() -> Vec<&'static str> {
        [Data::KEYS, Node::KEYS, Mesh::KEYS, Http::KEYS, Storage::KEYS, Discovery::KEYS, Log::KEYS].concat()
    }

    /// Sets one key from text. `None` if there is no such key.
    fn set(&mut self, key: &str, text: &str) -> Option<Result<(), String>> {
        let (section, name) = key.split_once('.')?;
        match section {
            "data" => self.data.set(name, text),
            "node" => self.node.set(name, text),
            "mesh" => self.mesh.set(name, text),
            "http" => self.http.set(name, text),
            "storage" => self.storage.set(name, text),
            "discovery" => self.discovery.set(name, text),
            "log" => self.log.set(name, text),
            _ => None,
        }
    }

    /// Lays environment and flags over what is there, fills what depends on the environment
    /// (data directory, node name) and checks the whole. `env` looks a variable up.
    pub fn overlay(
        mut self,
        env: impl Fn(&str) -> Option<String>,
        flags: &[Flag],
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let wrong =
            |source: &str, error: String| ConfigError::Value { source_name: source.to_owned(), error };
        for key in Self::keys() {
            let variable = variable(key);
            if let Some(text) = env(&variable)
                && let Some(Err(error)) = self.set(key, &text)
            {
                return Err(wrong(&variable, error));
            }
        }
        for flag in flags {
            match self.set(flag.key, &flag.value) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(wrong(flag.flag, error)),
                None => return Err(wrong(flag.flag, format!("sets {}, which is no key", flag.key))),
            }
        }
        if self.data.dir.as_os_str().is_empty() {
            self.data.dir = data::default_dir(host.root, &env)
                .ok_or_else(|| ConfigError::Invalid(data::NO_DEFAULT_DIR.to_owned()))?;
        }
        if self.node.name.is_empty() {
            self.node.name.clone_from(&host.name);
        }
        self.check().map_err(ConfigError::Invalid)?;
        Ok(self)
    }

    /// Checks every section, and what must hold between sections.
    fn check(&self) -> Result<(), String> {
        self.node.check()?;
        self.mesh.check()?;
        self.http.check()?;
        self.storage.check()?;
        self.discovery.check()?;
        self.log.check()
    }
}

/// What defaults depend on: facts of the machine and the process, looked up by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// True when the process runs as root.
    pub root: bool,
    /// Host name, the default of `node.name`.
    pub name: String,
}

/// The data directory a program uses when nobody names one: `/var/lib/skein` as root, else
/// `$XDG_DATA_HOME/skein`, else `$HOME/.local/share/skein`; `None` without any of them.
pub fn default_data_dir(root: bool, env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    data::default_dir(root, &env)
}

/// The environment variable of a key: `http.listen` is `SKEIN_HTTP_LISTEN`.
pub fn variable(key: &str) -> String {
    format!("SKEIN_{}", key.replace('.', "_").to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_set_and_says_its_variable() {
        let mut config = Config::default();
        for key in Config::keys() {
            assert!(config.set(key, "definitely-not-a-value").is_some(), "{key}");
            assert!(!variable(key).contains('.'));
        }
        assert_eq!(variable("data.dir"), "SKEIN_DATA_DIR");
        assert!(config.set("http.nonsense", "1").is_none());
        assert!(config.set("nonsense.dir", "1").is_none());
    }
}
