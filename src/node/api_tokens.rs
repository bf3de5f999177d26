//! API tokens: made here, stored as hashes, checked in constant time.

use data_encoding::BASE32_NOPAD;
use ring::{digest, digest::SHA256};

use crate::raft::{ApiToken, State};

use super::surroundings::Surroundings;

/// Longest text taken for a token.
const MAX_TEXT: usize = 256;

/// A new token and what is stored of it.
pub(super) fn make(name: &str, admin: bool, surroundings: &Surroundings) -> (String, ApiToken) {
    let secret: [u8; 32] = surroundings.random();
    let token = format!("skein_{}", BASE32_NOPAD.encode(&secret).to_lowercase());
    let stored =
        ApiToken { name: name.to_owned(), hash: hash(&token), admin, created_ms: surroundings.unix_ms() };
    (token, stored)
}

/// The token this text is, if any. Every stored hash is compared, each in constant time.
pub(super) fn check(state: &State, text: &str) -> Option<ApiToken> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let hash = hash(text);
    state.api_tokens.values().fold(None, |found, token| {
        // The inputs are hashes: what timing could tell of them helps nobody to find a token.
        let same = token.hash.len() == hash.len()
            && token.hash.iter().zip(&hash).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0;
        if same { Some(token.clone()) } else { found }
    })
}

fn hash(token: &str) -> Vec<u8> {
    digest::digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_counts() {
        let (token, stored) = make("admin", true, &Surroundings::real());
        let state = State { api_tokens: [("admin".to_owned(), stored.clone())].into(), ..State::default() };
        assert_eq!(check(&state, &token), Some(stored));
        assert_eq!(check(&state, &token[..token.len() - 1]), None);
        assert_eq!(check(&state, ""), None);
        assert!(!format!("{state:?}").contains(&token));
    }
}
