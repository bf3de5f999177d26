//! API tokens: made here, stored as hashes, checked in constant time.
//!
//! They are part of the replicated state: every node checks a token by what it has applied itself.
//! A node that is cut off goes on with what it had.

use std::{collections::BTreeSet, time::Duration};

use data_encoding::BASE32_NOPAD;
use ring::{digest, digest::SHA256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    handle::{ControlFailure, Node, PROPOSAL},
    readiness,
    surroundings::Surroundings,
};
use crate::{
    raft::{ApiToken, Command, State},
    types::{Scope, TokenId},
};

/// Longest text taken for a token.
const MAX_TEXT: usize = 256;
/// Longest name.
const MAX_NAME: usize = 64;
/// Most databases of one token.
const MAX_DATABASES: usize = 256;

/// What a new API token is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewApiToken {
    /// For people; `None` for one made of scopes and id.
    pub name: Option<String>,
    /// What it may do: at least one, and `Admin` stands alone.
    pub scopes: BTreeSet<Scope>,
    /// Where it may read and write; `None` for every database. Names are not judged here.
    pub databases: Option<BTreeSet<String>>,
    /// How long it is good; `None` for no end.
    pub ttl: Option<Duration>,
}

/// Why a text is no API token to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiTokenError {
    /// No such token, or not any more.
    #[error("the API token is not known to this cluster")]
    Unknown,
    /// Its time is over.
    #[error("the API token has expired")]
    Expired,
    /// This node knows of no such token, and may be behind the cluster: others may know it.
    #[error(
        "this node cannot tell whether the API token counts: it is not up to date; ask again, or another node"
    )]
    NotUpToDate,
}

impl NewApiToken {
    fn check(&self) -> Result<(), ControlFailure> {
        let rejected = |why: &str| Err(ControlFailure::Rejected(why.to_owned()));
        let name = self.name.as_deref();
        if name.is_some_and(|n| n.is_empty() || n.len() > MAX_NAME || n.chars().any(char::is_control)) {
            return rejected("the name of an API token has 1 to 64 bytes and no control characters");
        }
        if self.scopes.is_empty() {
            return rejected("an API token needs a scope: read, write or admin");
        }
        if self.scopes.contains(&Scope::Admin) && (self.scopes.len() > 1 || self.databases.is_some()) {
            return rejected("an admin token may do everything: it has no other scope and no database");
        }
        match self.databases.as_ref().map(BTreeSet::len) {
            Some(0) => rejected("an API token without any database could do nothing"),
            Some(MAX_DATABASES..) => {
                rejected("an API token may name 255 databases; leave them out for every one")
            }
            _ if self.ttl.is_some_and(|ttl| ttl.is_zero()) => {
                rejected("an API token of no time is of no use")
            }
            _ => Ok(()),
        }
    }
}

impl Node {
    /// The API token this text is.
    ///
    /// # Errors
    /// There is no such token, as far as this node has applied, or its time is over.
    pub fn check_api_token(&self, text: &str) -> Result<ApiToken, ApiTokenError> {
        let this = self.this();
        check(&this.control.state(), text, this.surroundings.unix_ms()).map_err(|why| match why {
            ApiTokenError::Unknown if !readiness::cut_off(this, self.timing()).is_empty() => {
                ApiTokenError::NotUpToDate
            }
            why => why,
        })
    }

    /// The API tokens there are, those that have expired included. Nothing in them is a secret.
    pub fn api_tokens(&self) -> Vec<ApiToken> {
        self.this().control.state().api_tokens.values().cloned().collect()
    }

    /// Makes an API token, once the cluster has agreed on it and this node has heard so: the secret,
    /// which is nowhere else, and what is kept of it. Dropping the future leaves the outcome unknown.
    ///
    /// # Errors
    /// It makes no sense, its name is taken, or there is no leader.
    pub async fn create_api_token(
        &self,
        wanted: NewApiToken,
    ) -> Result<(Zeroizing<String>, ApiToken), ControlFailure> {
        wanted.check()?;
        let (secret, token) = make(wanted, &self.this().surroundings);
        self.propose(Command::CreateApiToken(token.clone())).await?;
        let id = token.id();
        self.applied_here(|state| state.api_tokens.values().any(|there| there.id() == id)).await;
        Ok((secret, token))
    }

    /// Takes an API token back. When it returns this node refuses it, and every other from the moment
    /// it applies the same entry of the log.
    ///
    /// # Errors
    /// There is no such token, or no leader.
    pub async fn revoke_api_token(&self, token: TokenId) -> Result<(), ControlFailure> {
        let none = || format!("there is no API token {token}");
        let taken = self.take_back(Command::RevokeApiToken { token }, none).await;
        if matches!(taken, Ok(()) | Err(ControlFailure::NotFound(_))) {
            self.applied_here(|state| state.api_tokens.values().all(|there| there.id() != token)).await;
        }
        taken
    }

    /// Waits until this node has applied what was agreed upon.
    async fn applied_here(&self, done: impl Fn(&State) -> bool) {
        let control = &self.this().control;
        let mut view = control.view();
        let applied = view.wait_for(|_| done(&control.state()));
        // Agreed upon it is in any case.
        if timeout(PROPOSAL, applied).await.is_err() {
            tracing::warn!("this node has not heard yet of the API tokens that the cluster agreed on");
        }
    }
}

/// The admin token of a new cluster.
pub(super) fn make_first(surroundings: &Surroundings) -> (Zeroizing<String>, ApiToken) {
    let scopes = BTreeSet::from([Scope::Admin]);
    make(NewApiToken { name: Some("admin".into()), scopes, ..NewApiToken::default() }, surroundings)
}

/// A new token and what is stored of it.
fn make(wanted: NewApiToken, surroundings: &Surroundings) -> (Zeroizing<String>, ApiToken) {
    let secret: Zeroizing<[u8; 32]> = Zeroizing::new(surroundings.random());
    let text = Zeroizing::new(BASE32_NOPAD.encode(&*secret).to_lowercase());
    let token = Zeroizing::new(format!("skein_{}", *text));
    let created_ms = surroundings.unix_ms();
    let life = wanted.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let mut stored = ApiToken {
        name: String::new(),
        hash: hash(&token).to_vec(),
        admin: wanted.scopes.contains(&Scope::Admin),
        read: wanted.scopes.contains(&Scope::Read),
        write: wanted.scopes.contains(&Scope::Write),
        databases: wanted.databases,
        expires_ms: life.map(|life| created_ms.saturating_add(life)),
        created_ms,
    };
    let scopes = || wanted.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join("-");
    stored.name = wanted.name.unwrap_or_else(|| format!("{}-{}", scopes(), stored.id()));
    (token, stored)
}

/// The token this text is. Every stored hash is compared, each in constant time, and what is found
/// on the way changes nothing about the way.
fn check(state: &State, text: &str, now_ms: u64) -> Result<ApiToken, ApiTokenError> {
    if text.len() > MAX_TEXT {
        return Err(ApiTokenError::Unknown);
    }
    let hash = hash(text);
    let (mut found, mut at) = (Choice::from(0), 0_u32);
    for (place, token) in (0_u32..).zip(state.api_tokens.values()) {
        let same = token.hash.ct_eq(&hash);
        found |= same;
        at.conditional_assign(&place, same);
    }
    let token = state.api_tokens.values().nth(at as usize).filter(|_| bool::from(found));
    match token {
        None => Err(ApiTokenError::Unknown),
        Some(token) if token.is_expired(now_ms) => Err(ApiTokenError::Expired),
        Some(token) => Ok(token.clone()),
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(digest::digest(&SHA256, token.as_bytes()).as_ref()) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(scopes: &[Scope]) -> NewApiToken {
        NewApiToken { scopes: scopes.iter().copied().collect(), ..NewApiToken::default() }
    }

    #[test]
    fn only_the_whole_token_counts_among_many() {
        let surroundings = Surroundings::real();
        let mut state = State::default();
        let mut secrets = vec![make_first(&surroundings)];
        secrets.extend((0..20).map(|_| make(wanted(&[Scope::Read]), &surroundings)));
        for (_, stored) in &secrets {
            state.api_tokens.insert(stored.name.clone(), stored.clone());
        }
        assert_eq!(state.api_tokens.len(), 21, "names of their own");
        for (secret, stored) in &secrets {
            assert_eq!(check(&state, secret, 0), Ok(stored.clone()));
            assert_eq!(check(&state, &secret[..secret.len() - 1], 0), Err(ApiTokenError::Unknown));
            assert!(!format!("{state:?}").contains(secret.as_str()));
        }
        let of_hash = data_encoding::HEXLOWER.encode(&secrets[0].1.hash);
        for wrong in ["", "skein_", "admin", &of_hash, &"x".repeat(10_000)] {
            assert_eq!(check(&state, wrong, 0), Err(ApiTokenError::Unknown), "{wrong}");
        }
        assert_eq!(check(&State::default(), "", 0), Err(ApiTokenError::Unknown));
    }

    #[test]
    fn a_token_ends_at_its_time() {
        let surroundings =
            Surroundings { clock: std::sync::Arc::new(|| 5_000_000_000), ..Surroundings::real() };
        let ttl = Some(Duration::from_secs(1));
        let (secret, stored) = make(NewApiToken { ttl, ..wanted(&[Scope::Write]) }, &surroundings);
        assert_eq!((stored.created_ms, stored.expires_ms), (5_000, Some(6_000)));
        let state = State { api_tokens: [(stored.name.clone(), stored)].into(), ..State::default() };
        assert!(check(&state, &secret, 5_999).is_ok());
        assert_eq!(check(&state, &secret, 6_000), Err(ApiTokenError::Expired));
    }

    #[test]
    fn what_makes_no_sense_is_not_made() {
        let of = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
        assert!(wanted(&[Scope::Read, Scope::Write]).check().is_ok());
        assert!(NewApiToken { databases: of(&["a"]), ..wanted(&[Scope::Read]) }.check().is_ok());
        assert!(wanted(&[Scope::Admin]).check().is_ok());
        for wrong in [
            wanted(&[]),
            wanted(&[Scope::Admin, Scope::Read]),
            NewApiToken { databases: of(&["a"]), ..wanted(&[Scope::Admin]) },
            NewApiToken { databases: of(&[]), ..wanted(&[Scope::Read]) },
            NewApiToken { name: Some(String::new()), ..wanted(&[Scope::Read]) },
            NewApiToken { name: Some("a\nb".into()), ..wanted(&[Scope::Read]) },
            NewApiToken { name: Some("a".repeat(65)), ..wanted(&[Scope::Read]) },
            NewApiToken { ttl: Some(Duration::ZERO), ..wanted(&[Scope::Read]) },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
