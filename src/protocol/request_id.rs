//! What a client's request is called in the log of every node that it passes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name, in bytes.
pub const LONGEST: usize = 64;

/// Lines of the log in a second about requests that clients have named. Some proxies name all of them.
const TOLD: u32 = 50;

/// The name of a request: letters, digits and `-_.:`, at most [`LONGEST`] of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Told", into = "Told")]
pub struct RequestId {
    name: Arc<str>,
    by_client: bool,
}

/// As it travels.
#[derive(Serialize, Deserialize)]
struct Told {
    name: String,
    by_client: bool,
}

impl RequestId {
    /// The name that a client gave, if it may be one.
    pub fn by_client(name: &str) -> Option<Self> {
        may_be(name).then(|| Self { name: name.into(), by_client: true })
    }

    /// A name that a node gave, if it may be one.
    pub fn made(name: &str) -> Option<Self> {
        may_be(name).then(|| Self { name: name.into(), by_client: false })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// True if the client gave it: somebody may want to find this request again.
    pub const fn is_by_client(&self) -> bool {
        self.by_client
    }

    /// True if a line at the usual level may be spent on it: of those that clients named, some each second.
    pub fn is_worth_a_line(&self) -> bool {
        static SPENT: Mutex<Option<(Instant, u32)>> = Mutex::new(None);
        if !self.by_client {
            return false;
        }
        let mut spent = SPENT.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (_, lines) = match &mut *spent {
            Some(second) if now.duration_since(second.0) < Duration::from_secs(1) => second,
            begun => begun.insert((now, 0)),
        };
        *lines = lines.saturating_add(1);
        *lines <= TOLD
    }
}

fn may_be(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=LONGEST).contains(&name.len()) && name.bytes().all(plain)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl TryFrom<Told> for RequestId {
    type Error = String;

    fn try_from(told: Told) -> Result<Self, String> {
        if !may_be(&told.name) {
            return Err(format!("the name of a request is 1 to {LONGEST} letters, digits and -_.:"));
        }
        Ok(Self { name: told.name.into(), by_client: told.by_client })
    }
}

/// A name that this version does not take is none: no write fails for what it is called.
pub(super) fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RequestId>, D::Error> {
    Ok(Option::<Told>::deserialize(deserializer)?.and_then(|told| told.try_into().ok()))
}

impl From<RequestId> for Told {
    fn from(id: RequestId) -> Self {
        Self { name: id.name.as_ref().to_owned(), by_client: id.by_client }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{decode, encode};

    #[test]
    fn names_spend_so_many_lines_a_second() {
        let (named, made) = (RequestId::by_client("a").unwrap(), RequestId::made("b").unwrap());
        assert!((0..10).all(|_| !made.is_worth_a_line()));
        let began = Instant::now();
        let told = (0..10_000).filter(|_| named.is_worth_a_line()).count() as u64;
        let seconds = began.elapsed().as_secs() + 2;
        assert!(told >= 1 && told <= seconds * u64::from(TOLD), "{told} lines in {seconds} s");
    }

    #[test]
    fn what_would_break_a_log_is_no_name() {
        for good in ["a", "0190c6e2-7e3b-7cc0-8d0a-1c2b3d4e5f60", "00-4bf92f35-01", "A_b.c:9"] {
            let id = RequestId::by_client(good).unwrap();
            assert_eq!((id.as_str(), id.is_by_client()), (good, true));
            assert_eq!(decode::<RequestId>(&encode(&id), 100), Ok(id));
        }
        let long = "x".repeat(LONGEST + 1);
        for bad in ["", "a b", "a\nb", "\u{1b}[31m", "\u{e9}", long.as_str(), "a=b", "\"q\""] {
            assert_eq!((RequestId::by_client(bad), RequestId::made(bad)), (None, None), "{bad:?}");
            let told = encode(&Told { name: bad.to_owned(), by_client: true });
            assert!(decode::<RequestId>(&told, 100).is_err(), "{bad:?}");
        }
    }
}
