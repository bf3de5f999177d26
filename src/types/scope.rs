//! What an API token lets its holder do, and to which databases.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One kind of thing a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Query, and see the state of the cluster.
    Read,
    /// Bring points in.
    Write,
    /// Everything: also members, tokens and data policy.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const EVERY: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// Its word: `read`, `write`, `admin`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::EVERY.into_iter().find(|scope| scope.as_str() == text);
        known.ok_or_else(|| "a scope is read, write or admin".to_owned())
    }
}

/// Databases by name: every one, those of the future too, or only some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Databases {
    /// Every one.
    #[default]
    Every,
    /// These.
    Only(BTreeSet<String>),
}

impl Databases {
    /// True when `name` is one of them, whether there is such a database or not.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_have_words() {
        for scope in Scope::EVERY {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("Admin".parse::<Scope>().is_err() && "".parse::<Scope>().is_err());
    }

    #[test]
    fn no_database_is_not_every_database() {
        assert!(Databases::Every.contains("a"));
        assert!(!Databases::Only(BTreeSet::new()).contains("a"));
        let one = Databases::Only(BTreeSet::from(["a".to_owned()]));
        assert!(one.contains("a") && !one.contains("A") && !one.contains(""));
    }
}
