//! The flags of `skein start` and `skein demo`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::config::{Config, Flag, Host};

/// Flags of `skein start`. Each stands over the environment (`SKEIN_SECTION_KEY`), that over the
/// file, that over the default.
#[derive(Debug, Clone, Default, Args)]
pub struct StartArgs {
    /// Where the node keeps its data [default: /var/lib/skein as root, else $XDG_DATA_HOME/skein]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// A label for people [default: host name]
    #[arg(long)]
    pub name: Option<String>,
    /// UDP address of the mesh [default: port 7400 on every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub mesh: Option<String>,
    /// TCP address of the HTTP edge [default: 127.0.0.1:8086]
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<String>,
    /// Join a cluster with this token, with the one in a file, or with the one on standard input
    #[arg(long, value_name = "TOKEN|@FILE|-", allow_hyphen_values = true)]
    pub join: Option<JoinText>,
    /// Address of a node to find the cluster by; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    pub seed: Vec<String>,
    /// What the node is to be: voter, reader or gateway [default: voter]
    #[arg(long)]
    pub role: Option<String>,
    /// Neither announce nor look for peers on the LAN
    #[arg(long)]
    pub no_mdns: bool,
    /// Make a new cluster although there is one on the LAN
    #[arg(long)]
    pub new_cluster: bool,
    /// How many nodes start together with this flag and one token chosen up front
    #[arg(long, value_name = "N")]
    pub bootstrap_expect: Option<String>,
    /// Certificate (PEM) of the CA that a new cluster is to have [default: one of its own]
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<String>,
    /// Private key (PEM) of --ca-cert; only the first start reads it
    #[arg(long, value_name = "FILE")]
    pub ca_key: Option<String>,
    /// Timeouts of a new cluster: lan, fast or wan [default: lan]
    #[arg(long)]
    pub profile: Option<String>,
    /// TLS of the HTTP edge: off, or node for the node's certificate [default: off]
    #[arg(long, value_name = "node|off")]
    pub http_tls: Option<String>,
    /// Certificate chain (PEM) for the HTTP edge; switches TLS on
    #[arg(long, value_name = "FILE")]
    pub http_cert: Option<String>,
    /// Private key (PEM) of --http-cert
    #[arg(long, value_name = "FILE")]
    pub http_key: Option<String>,
    /// Ask nobody for an API token, on any address
    #[arg(long)]
    pub http_open: bool,
    /// Form of log lines: pretty or json [default: pretty on a terminal, json otherwise]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "SKEIN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print it and exit
    #[arg(long)]
    pub check: bool,
}

/// What stood behind `--join`: perhaps a token, so not shown.
#[derive(Clone)]
pub struct JoinText(String);

impl From<String> for JoinText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for JoinText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

impl StartArgs {
    /// The configuration in force: flags over this process's environment over the file.
    pub fn load(&self) -> Result<Config, Failure> {
        let env = |name: &str| std::env::var(name).ok();
        Ok(Config::load(self.config.as_deref(), env, &self.flags(), &this_host())?)
    }

    /// The flags that were given, by the keys they set.
    pub fn flags(&self) -> Vec<Flag> {
        let join = self.join.as_ref().map(|join| join.0.clone());
        let seeds = (!self.seed.is_empty()).then(|| self.seed.join(","));
        let when = |given: bool, value: &str| given.then(|| value.to_owned());
        [
            ("data.dir", "--data-dir", self.data_dir.clone()),
            ("node.name", "--name", self.name.clone()),
            ("node.role", "--role", self.role.clone()),
            ("node.join", "--join", join),
            ("node.new_cluster", "--new-cluster", when(self.new_cluster, "true")),
            ("node.bootstrap_expect", "--bootstrap-expect", self.bootstrap_expect.clone()),
            ("node.ca_cert", "--ca-cert", self.ca_cert.clone()),
            ("node.ca_key", "--ca-key", self.ca_key.clone()),
            ("node.profile", "--profile", self.profile.clone()),
            ("mesh.listen", "--mesh", self.mesh.clone()),
            ("http.listen", "--http", self.http.clone()),
            ("http.tls", "--http-tls", self.http_tls.clone()),
            ("http.cert", "--http-cert", self.http_cert.clone()),
            ("http.key", "--http-key", self.http_key.clone()),
            ("http.open", "--http-open", when(self.http_open, "true")),
            ("discovery.seeds", "--seed", seeds),
            ("discovery.mdns", "--no-mdns", when(self.no_mdns, "false")),
            ("log.format", "--log-format", self.log_format.clone()),
        ]
        .into_iter()
        .filter_map(|(key, flag, value)| value.map(|value| Flag { key, flag, value }))
        .collect()
    }
}

/// The facts of this machine that defaults depend on.
pub(super) fn this_host() -> Host {
    Host {
        root: rustix::process::geteuid().is_root(),
        name: sysinfo::System::host_name().unwrap_or_else(|_| "skein".to_owned()),
    }
}

/// Flags of `skein demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// End by itself after so many seconds
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Kill nobody
    #[arg(long)]
    pub no_failover: bool,
    /// Print one line of JSON at the end, and nothing else on standard output
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Role;

    #[test]
    fn every_flag_sets_its_key() {
        let all = StartArgs {
            data_dir: Some("/d".into()),
            name: Some("a".into()),
            mesh: Some("[::1]:1".into()),
            http: Some("127.0.0.1:2".into()),
            join: Some(JoinText("skein1-reader-secret".into())),
            seed: vec!["a:1".into(), "b:2".into()],
            role: Some("reader".into()),
            no_mdns: true,
            new_cluster: false,
            bootstrap_expect: Some("3".into()),
            ca_cert: Some("/ca".into()),
            ca_key: Some("/cakey".into()),
            profile: Some("wan".into()),
            http_tls: Some("off".into()),
            http_cert: Some("/c".into()),
            http_key: Some("/k".into()),
            http_open: true,
            log_format: Some("json".into()),
            config: None,
            check: false,
        };
        let keys = Config::keys();
        assert!(all.flags().iter().all(|flag| keys.contains(&flag.key)));
        assert_eq!(all.flags().len(), 17);
        let config = Config::load(None, |_| None, &all.flags(), &Host::default()).unwrap();
        assert_eq!((config.node.role, config.discovery.mdns, config.http.open), (Role::Reader, false, true));
        assert_eq!(config.discovery.seeds, ["a:1", "b:2"]);
        assert!(!format!("{all:?}").contains("secret"));
        assert!(StartArgs::default().flags().is_empty());
    }
}
