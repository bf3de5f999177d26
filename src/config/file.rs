//! The configuration file, and the whole way to a [`Config`].

use std::path::Path;

use super::{Config, ConfigError, Flag, Host};

/// Longest configuration file, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

impl Config {
    /// Reads `file` (if any), lays the environment over it, then the flags, and checks the whole.
    /// `env` looks a variable up; `host` gives what defaults depend on.
    pub fn load(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &[Flag],
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let base = match file {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        base.overlay(env, flags, host)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Read { path: path.to_owned(), error };
        let len = std::fs::metadata(path).map_err(unreadable)?.len();
        if len > FILE_LIMIT {
            let error = format!("{len} bytes long, more than the {FILE_LIMIT} allowed");
            return Err(ConfigError::File { path: path.to_owned(), error });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|e| ConfigError::File { path: path.to_owned(), error: e.to_string() })
    }

    /// The configuration in force as a TOML file, without secrets: what `--check` prints.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be shown: {e}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ByteSize, types::Role};

    fn load(file: &str, env: &[(&str, &str)], flags: &[Flag]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skein.toml");
        std::fs::write(&path, file).unwrap();
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let host = Host { root: true, name: "box".into() };
        Config::load(Some(&path), env, flags, &host)
    }

    fn flag(key: &'static str, flag: &'static str, value: &str) -> Flag {
        Flag { key, flag, value: value.into() }
    }

    #[test]
    fn flag_over_environment_over_file_over_default() {
        let file = "[http]\nlisten = '127.0.0.1:1'\nmax_body = '1MiB'\nquery_timeout = '5s'\n\
                    [node]\nrole = 'reader'\n[discovery]\nseeds = ['a:1']\nmdns = false\n";
        let env = [
            ("SKEIN_HTTP_LISTEN", "127.0.0.1:2"),
            ("SKEIN_HTTP_MAX_BODY", "2MiB"),
            ("SKEIN_DATA_DIR", "/from/env"),
            ("SKEIN_DISCOVERY_SEEDS", "b:1,c:2"),
        ];
        let config = load(file, &env, &[flag("http.listen", "--http", "127.0.0.1:3")]).unwrap();
        assert_eq!(config.http.listen, "127.0.0.1:3".parse().unwrap());
        assert_eq!(config.http.max_body, ByteSize::mib(2));
        assert_eq!(config.http.query_timeout.as_secs(), 5);
        assert_eq!(config.http.max_inflated, ByteSize::mib(64));
        assert_eq!(config.node.role, Role::Reader);
        assert_eq!(config.data.dir, Path::new("/from/env"));
        assert_eq!(config.discovery.seeds, ["b:1", "c:2"]);
        assert!(!config.discovery.mdns);
        assert_eq!(config.node.name, "box");
    }

    #[test]
    fn defaults_without_anything() {
        let config = load("", &[], &[]).unwrap();
        assert_eq!(config.data.dir, Path::new("/var/lib/skein"));
        assert_eq!(config.mesh.listen.port(), 7400);
        assert_eq!(config.http.listen, "127.0.0.1:8086".parse().unwrap());
        let none = Config::load(None, |_| None, &[], &Host::default()).unwrap_err();
        assert!(none.to_string().contains("--data-dir"), "{none}");
    }

    #[test]
    fn unknown_keys_and_wrong_values_name_themselves() {
        for (file, word) in [
            ("[http]\nlisten_on = 'x'\n", "listen_on"),
            ("[htp]\nlisten = 'x'\n", "htp"),
            ("[http]\nlisten = 'nowhere'\n", "listen"),
            ("[http]\nmax_body = -1\n", "negative"),
            ("[http\n", "1"),
            ("[node]\nrole = 'king'\n", "king"),
        ] {
            let error = load(file, &[], &[]).unwrap_err();
            assert!(matches!(error, ConfigError::File { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.to_string().contains("skein.toml"), "{error}");
        }
        let error = load("", &[("SKEIN_HTTP_LISTEN", "8086")], &[]).unwrap_err().to_string();
        assert!(error.contains("SKEIN_HTTP_LISTEN") && error.contains("ADDRESS:PORT"), "{error}");
        let error = load("", &[], &[flag("mesh.listen", "--mesh", "x")]).unwrap_err().to_string();
        assert!(error.contains("--mesh"), "{error}");
        let error = load("", &[], &[flag("discovery.seeds", "--seed", "x")]).unwrap_err().to_string();
        assert!(error.contains("--seed"), "{error}");
        let host = Host::default();
        let error = Config::load(Some(Path::new("/nowhere.toml")), |_| None, &[], &host).unwrap_err();
        assert!(error.to_string().contains("/nowhere.toml"), "{error}");
    }

    #[test]
    fn what_check_prints_loads_again_and_holds_no_secret() {
        let file = "[node]\njoin = 'skein1-voter-verysecret'\n[log]\nformat = 'json'\n";
        let shown = load(file, &[], &[]).unwrap().to_toml();
        assert!(!shown.contains("verysecret"), "{shown}");
        let again = load(&shown.replace("(a token)", "skein1-voter-verysecret"), &[], &[]).unwrap();
        assert_eq!(again, load(file, &[], &[]).unwrap());
    }
}
