//! Section `node`: what a node is called and wants to be, and how it becomes a member.

use std::{
    fmt,
    io::{self, Read},
    path::PathBuf,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FromText, section::section};
use crate::types::{Role, TimingProfile};

section! {
    /// What the node is called and wants to be, and how it becomes a member.
    Node in "node" {
        /// A label for people, at most 64 bytes. Default: the host name.
        name: String = String::new(),
        /// What the node wants to be. Fixed when it joins.
        role: Role = Role::Voter,
        /// The join token: itself, `@file` or `-` (standard input). Ignored by a node that is a member.
        join: Option<JoinSource> = None,
        /// Make a new cluster although mDNS shows one. Ignored by a node that is a member.
        new_cluster: bool = false,
        /// How many nodes start together with one token chosen up front. Ignored by a node that is
        /// a member.
        bootstrap_expect: Option<u32> = None,
        /// Certificate (PEM) of the CA that a new cluster is to have; without one it makes its own. Only the
        /// node that makes the cluster reads it.
        ca_cert: Option<PathBuf> = None,
        /// Its key (PEM, PKCS#8, Ed25519); not needed any more once the cluster stands.
        ca_key: Option<PathBuf> = None,
        /// Cluster-wide timeouts; only the node that makes the cluster decides.
        profile: TimingProfile = TimingProfile::Lan,
    }
}

/// Longest label, in bytes.
const NAME_LIMIT: usize = 64;

impl Node {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.len() > NAME_LIMIT || self.name.chars().any(char::is_control) {
            return Err(format!(
                "node.name (--name): at most {NAME_LIMIT} bytes and no control characters, not {:?}",
                self.name.chars().take(80).collect::<String>()
            ));
        }
        if self.bootstrap_expect == Some(0) {
            return Err("node.bootstrap_expect (--bootstrap-expect): at least 1".to_owned());
        }
        if self.bootstrap_expect.is_some() && self.join.is_none() {
            return Err("--bootstrap-expect needs the token that all nodes share: --join @FILE".to_owned());
        }
        if self.ca_cert.is_some() != self.ca_key.is_some() {
            return Err(
                "node.ca_cert (--ca-cert) and node.ca_key (--ca-key) go together: give both".to_owned()
            );
        }
        if self.ca_cert.is_some() && self.join.is_some() && self.bootstrap_expect.is_none() {
            return Err(
                "--ca-cert is for the node that makes the cluster, and --join joins one: give one".to_owned()
            );
        }
        if self.new_cluster && self.join.is_some() {
            return Err(
                "--new-cluster and --join contradict each other: give one (a cluster with a token chosen up \
                        front is made by --bootstrap-expect 1 --join @FILE)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Where a join token comes from. The token itself is in no log and no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinSource {
    /// The token itself.
    Token(String),
    /// A file that holds it.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Longest token text taken from a file or standard input, in bytes.
const TOKEN_LIMIT: u64 = 4096;

impl JoinSource {
    /// The token, read from `stdin` if that is where it comes from.
    pub fn read(&self, stdin: impl Read) -> io::Result<String> {
        let mut text = String::new();
        match self {
            Self::Token(token) => text.clone_from(token),
            Self::File(path) => {
                let file = std::fs::File::open(path).map_err(|e| {
                    io::Error::new(
                        e.kind(),
                        format!("cannot read the join token from {}: {e}", path.display()),
                    )
                })?;
                file.take(TOKEN_LIMIT).read_to_string(&mut text)?;
            }
            Self::Stdin => {
                stdin.take(TOKEN_LIMIT).read_to_string(&mut text)?;
            }
        }
        Ok(text.trim().to_owned())
    }
}

impl FromText for JoinSource {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(match text.strip_prefix('@') {
            Some("") => return Err("@ wants the name of the file that holds the token".to_owned()),
            Some(path) => Self::File(path.into()),
            None if text == "-" => Self::Stdin,
            None => Self::Token(text.trim().to_owned()),
        })
    }
}

impl fmt::Display for JoinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(_) => f.write_str("(a token)"),
            Self::File(path) => write!(f, "@{}", path.display()),
            Self::Stdin => f.write_str("-"),
        }
    }
}

impl fmt::Debug for JoinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is shown is never the token.
impl Serialize for JoinSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JoinSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_from_argv_file_or_stdin_and_never_out() {
        let token = JoinSource::from_text("skein1-voter-secret").unwrap();
        assert_eq!(token.read(io::empty()).unwrap(), "skein1-voter-secret");
        assert!(!format!("{token:?} {token}").contains("secret"));
        assert!(!serde_json::to_string(&token).unwrap().contains("secret"));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "skein1-reader-x\n").unwrap();
        let file = JoinSource::from_text(&format!("@{}", path.display())).unwrap();
        assert_eq!(file.read(io::empty()).unwrap(), "skein1-reader-x");
        let missing = JoinSource::from_text("@/nowhere/token").unwrap().read(io::empty()).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/token"));
        assert!(JoinSource::from_text("@").is_err());

        let stdin = JoinSource::from_text("-").unwrap();
        assert_eq!(stdin.read(&b"  skein1-voter-y \n"[..]).unwrap(), "skein1-voter-y");
    }

    #[test]
    fn contradictions_are_refused() {
        let join = Some(JoinSource::Token("t".into()));
        assert!(Node { bootstrap_expect: Some(3), ..Node::default() }.check().is_err());
        assert!(Node { bootstrap_expect: Some(3), join: join.clone(), ..Node::default() }.check().is_ok());
        assert!(Node { new_cluster: true, join: join.clone(), ..Node::default() }.check().is_err());
        let ca = Node { ca_cert: Some("c".into()), ca_key: Some("k".into()), ..Node::default() };
        assert!(ca.check().is_ok() && Node { ca_key: None, ..ca.clone() }.check().is_err());
        assert!(Node { join: join.clone(), ..ca.clone() }.check().is_err());
        assert!(Node { join, bootstrap_expect: Some(3), ..ca }.check().is_ok());
        assert!(Node { name: "x".repeat(65), ..Node::default() }.check().is_err());
    }
}
