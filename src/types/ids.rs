//! Identifiers: who a node, a cluster, a process run or a join token is.

use std::{fmt, str::FromStr, sync::LazyLock};

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use serde::{Deserialize, Serialize};

/// Lower-case RFC 4648 base32 without padding, the text form of every identifier here.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    // The specification is a constant, so building it cannot fail; the standard upper-case
    // encoding stands in rather than a panic.
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().unwrap_or(BASE32_NOPAD)
});

/// Letters that 16 bytes take in it.
const ID_TEXT: usize = 26;

/// A text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: {text:?}")]
pub struct IdParseError {
    what: &'static str,
    text: String,
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; ID_TEXT];
                BASE32.encode_mut(&self.0, &mut text);
                f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let wrong = || IdParseError { what: $what, text: text.chars().take(64).collect() };
                let bytes = BASE32.decode(text.as_bytes()).map_err(|_| wrong())?;
                Ok(Self(bytes.try_into().map_err(|_| wrong())?))
            }
        }

        impl $name {
            /// The first six characters of the text form: enough for people, never for machines.
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate(6);
                text
            }
        }
    };
}

id128!(
    /// Who a node is: the first 128 bits of the SHA-256 of its public key (SubjectPublicKeyInfo).
    /// Text form: 26 characters of base32. A name is only a label, an address only a hint.
    NodeId,
    "node id"
);
id128!(
    /// Which cluster: drawn at random when the first node makes it.
    ClusterId,
    "cluster id"
);

/// One run of one process: drawn at random at process start. An epoch belongs to a boot.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which token, one to join or one of the API: public, unlike the token's secret. Text form: 16 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub u64);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        if text.len() == 16
            && text.bytes().all(|b| b.is_ascii_hexdigit())
            && let Ok(id) = u64::from_str_radix(text, 16)
        {
            return Ok(Self(id));
        }
        Err(IdParseError { what: "token id", text: text.chars().take(64).collect() })
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes in raft and counts for the WAL quorum; up to five of them.
    #[default]
    Voter,
    /// A raft learner: full copy of the data, serves queries, never counts for a quorum.
    Reader,
    /// A member without data and not in raft.
    Gateway,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Voter => "voter",
            Self::Reader => "reader",
            Self::Gateway => "gateway",
        })
    }
}

impl FromStr for Role {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        match text {
            "voter" => Ok(Self::Voter),
            "reader" => Ok(Self::Reader),
            "gateway" => Ok(Self::Gateway),
            _ => Err(IdParseError {
                what: "role (voter, reader, gateway)",
                text: text.chars().take(64).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let id = NodeId([7; 16]);
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert!("".parse::<NodeId>().is_err());
        assert!("a".repeat(27).parse::<NodeId>().is_err());
        let token = TokenId(0xfeed);
        assert_eq!(token.to_string().parse::<TokenId>(), Ok(token));
        assert!("+00000000000feed".parse::<TokenId>().is_err());
    }
}
