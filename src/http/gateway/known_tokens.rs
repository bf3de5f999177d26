//! API tokens at a gateway, which has none of them, not even their hashes: a node with data says what a
//! token may do, and that word holds until the cluster state is known to have changed.
//!
//! The word comes with the index of the state it was judged by. A token that is taken back is an entry of
//! raft's log, so the view that this gateway follows has a later index then, and the next request asks
//! again. A gateway whose view is not current takes no word for good, an old one least of all.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use crate::{
    http::{
        auth::Looked,
        error::{ApiError, Fault},
    },
    node::{ApiToken, ApiTokenError, Errand, Gateway, Piece},
    protocol::http::HttpRequest,
    types::Scope,
};

/// Words that are kept; beyond it all are forgotten.
const KEPT: usize = 1024;
/// Longest word of a node.
const MAX_WORD: usize = 64 * 1024;
/// How long a node that has not applied what this gateway has seen is asked again.
const CATCH_UP: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(20);

/// The words there are, by SHA-256 of the token.
pub(super) struct KnownTokens {
    gateway: Gateway,
    words: Mutex<HashMap<[u8; 32], Word>>,
}

/// What a node said of a token.
#[derive(Clone)]
struct Word {
    token: ApiToken,
    /// Index of the cluster state by which that was judged.
    state: u64,
}

/// `GET /api/v1/auth/self`.
#[derive(Deserialize)]
struct OwnToken {
    #[serde(default)]
    name: String,
    scopes: BTreeSet<Scope>,
    databases: Option<BTreeSet<String>>,
    #[serde(default)]
    expires_ms: Option<u64>,
    state: u64,
}

impl OwnToken {
    fn word(self, hash: [u8; 32]) -> Word {
        let has = |scope| self.scopes.contains(&scope);
        let token = ApiToken {
            admin: has(Scope::Admin),
            read: has(Scope::Read),
            write: has(Scope::Write),
            name: self.name,
            hash: hash.to_vec(),
            databases: self.databases,
            expires_ms: self.expires_ms,
            ..ApiToken::default()
        };
        Word { token, state: self.state }
    }
}

impl KnownTokens {
    pub(super) fn new(gateway: Gateway) -> Self {
        Self { gateway, words: Mutex::default() }
    }

    /// The token that a text is.
    ///
    /// # Errors
    /// Nobody can say now (unavailable).
    pub(super) async fn look_up(&self, text: &str) -> Result<Looked, ApiError> {
        let cannot_say = |why: &str| {
            ApiError::new(
                Fault::Unavailable,
                format!("this gateway cannot tell whether the API token counts: {why}"),
            )
        };
        if !self.gateway.is_current() {
            return Err(cannot_say("it has not heard a node with data lately"));
        }
        let key = hash(text);
        let known = self.words().get(&key).cloned();
        if let Some(word) = known.filter(|word| word.state >= self.state()) {
            return Ok(self.in_time(word));
        }
        let until = Instant::now() + CATCH_UP;
        loop {
            let state = self.state();
            let Some(word) = self.ask(text).await.map_err(|why| cannot_say(&why))? else {
                self.words().remove(&key);
                return Ok(Err(ApiTokenError::Unknown));
            };
            // A node that is behind may not know yet what has been taken back.
            if word.state >= state {
                let mut words = self.words();
                if words.len() >= KEPT {
                    words.clear();
                }
                words.insert(key, word.clone());
                drop(words);
                return Ok(self.in_time(word));
            }
            if Instant::now() >= until {
                return Err(cannot_say("nodes with data are behind its view of the cluster"));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What a node with data says of it; `None` if it is no token of this cluster, or not any more.
    async fn ask(&self, text: &str) -> Result<Option<Word>, String> {
        let request = HttpRequest {
            method: "GET".to_owned(),
            target: "/api/v1/auth/self".to_owned(),
            http2: false,
            headers: vec![("authorization".to_owned(), ByteBuf::from(format!("Bearer {text}")))],
            vouched: false,
        };
        let asked = self.gateway.ask(Errand::Query, &request, &Bytes::new()).await;
        let mut answer = asked.map_err(|error| error.to_string())?;
        match answer.head.status {
            200 => {}
            // Wrong ones are counted there too, all gateways' clients together; this question itself is not.
            401 | 429 => return Ok(None),
            other => return Err(format!("{} answers {other}", answer.node)),
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.next().await.map_err(|error| error.to_string())? {
            let Piece::Data(bytes) = piece else { continue };
            if body.len() + bytes.len() > MAX_WORD {
                return Err("its answer is too long".to_owned());
            }
            body.extend_from_slice(&bytes);
        }
        let own: OwnToken = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        Ok(Some(own.word(hash(text))))
    }

    fn in_time(&self, word: Word) -> Looked {
        if word.token.is_expired(self.gateway.unix_ms()) {
            Err(ApiTokenError::Expired)
        } else {
            Ok(word.token)
        }
    }

    /// Index of the newest cluster state that this gateway has seen.
    fn state(&self) -> u64 {
        self.gateway.view().borrow().applied_index
    }

    fn words(&self) -> MutexGuard<'_, HashMap<[u8; 32], Word>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(digest(&SHA256, text.as_bytes()).as_ref()) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_what_the_node_says_and_no_more() {
        let word = |text: &str| serde_json::from_str::<OwnToken>(text).map(|own| own.word([7; 32]));
        let own =
            word(r#"{"id":"x","name":"a","scopes":["write"],"databases":["d"],"expires_ms":5,"state":7}"#);
        let Word { token, state } = own.unwrap();
        assert_eq!((state, token.admin, token.read, token.write), (7, false, false, true));
        assert!(token.databases().contains("d") && !token.databases().contains("e"));
        assert!(token.is_expired(5) && !token.is_expired(4));
        for wrong in ["", "{}", r#"{"scopes":["read"]}"#, r#"{"scopes":["king"],"databases":null,"state":1}"#]
        {
            assert!(word(wrong).is_err(), "{wrong}");
        }
    }
}
