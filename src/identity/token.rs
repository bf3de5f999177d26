//! Join tokens: the one string that makes a new node and a cluster trust each other.
//!
//! Text form `skein1-<role>-<body>`. The body is lower-case base32 without padding of
//!
//! ```text
//! version u8 = 1 | role u8 | flags u8 | [cluster id 16] | [CA fingerprint 32] | [expiry u64]
//!   | [uses u32] | token id u64 | secret 16 | number of seeds u8 | per seed: length u16, text
//!   | CRC-32C u32 of all before
//! ```
//!
//! numbers big-endian. Expiry and uses stand only in a token chosen before its cluster exists: the
//! node that makes the cluster learns them from it. Of any other the cluster keeps them. The secret never leaves the token: HKDF makes an Ed25519 key of it, with
//! which the joiner signs, and a MAC key for the cluster's own proof.

use std::{fmt, str::FromStr};

use data_encoding::{Encoding, Specification};
use rand::CryptoRng;
use ring::{hkdf, hmac, signature};
use zeroize::Zeroizing;

use super::cert::fingerprint;
use crate::types::{ClusterId, Role, TokenId};

/// Longest text that is looked at; the longest token that can be made is shorter.
pub const MAX_TOKEN_TEXT: usize = 4096;
/// Most seeds a token carries.
pub const MAX_TOKEN_SEEDS: usize = 8;
/// Longest seed (`host:port`) in bytes: a DNS name of 253, a colon, a port.
const MAX_SEED: usize = 253 + 6;

const PREFIX: &str = "skein1-";
const VERSION: u8 = 1;
const HAS_CLUSTER: u8 = 1;
const HAS_FINGERPRINT: u8 = 2;
const HAS_EXPIRY: u8 = 4;
const HAS_USES: u8 = 8;
const SECRET_LEN: usize = 16;

/// SHA-256 of a root certificate (DER): what a token pins.
pub type Fingerprint = [u8; 32];

/// A join token, checked whole. `Debug` never shows the secret, and there is no `Display`: the
/// text form is asked for by name, with [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    role: Role,
    cluster: Option<ClusterId>,
    fingerprint: Option<Fingerprint>,
    expires: Option<u64>,
    uses: Option<u32>,
    id: TokenId,
    secret: Zeroizing<[u8; SECRET_LEN]>,
    seeds: Vec<String>,
}

/// Why a text is not a join token, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("not a join token: it must look like skein1-<role>-<letters and digits>")]
    NotAToken,
    /// Longer than any token.
    #[error("not a join token: {0} characters, at most {MAX_TOKEN_TEXT} are possible")]
    TooLong(usize),
    /// The middle part is no role.
    #[error("join token for an unknown role {0:?}; roles are voter, reader, gateway")]
    Role(String),
    /// A character that base32 does not have; counted from 1, in the whole token.
    #[error("typing error in the join token at character {0}: only a-z and 2-7 occur there")]
    Character(usize),
    /// Characters are missing at the end.
    #[error("the join token was cut off; copy the whole line again")]
    CutOff,
    /// The checksum does not fit.
    #[error("typing error in the join token: its checksum does not fit; copy it again")]
    Checksum,
    /// The role in the text is not the one the token was made for.
    #[error("this join token was made for a {made_for}, its text says {says}; copy it again")]
    RoleMismatch {
        /// Role inside the token.
        made_for: Role,
        /// Role in the text.
        says: Role,
    },
    /// Made by a newer skein.
    #[error("join token of version {0}, this skein knows version 1; update skein on this node")]
    Version(u8),
    /// The checksum fits but the content makes no sense.
    #[error("join token with invalid content ({0}); make a new one with `skein token create`")]
    Content(&'static str),
    /// A seed that is not `host:port`, when a token is made.
    #[error("{0:?} cannot be put into a join token as a seed: want host:port, at most {MAX_TOKEN_SEEDS}")]
    Seed(String),
}

impl JoinToken {
    /// A token for a cluster that exists: it names the cluster and pins its root certificate
    /// (DER), so the joiner knows whom it talks to before it proves anything. `seeds` are
    /// `host:port` texts that the joiner tries besides what it discovers.
    pub fn for_cluster(
        role: Role,
        cluster: ClusterId,
        root: &[u8],
        seeds: Vec<String>,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, TokenError> {
        Self::make(role, Some(cluster), Some(fingerprint(root)), seeds, rng)
    }

    /// A token chosen before its cluster exists, for automation: it pins nothing, so the cluster
    /// proves that it knows the secret too. Without end and for any number of nodes, unless
    /// [`JoinToken::limited`].
    pub fn generate(role: Role, seeds: Vec<String>, rng: &mut impl CryptoRng) -> Result<Self, TokenError> {
        Self::make(role, None, None, seeds, rng)
    }

    /// Limits a token chosen before its cluster exists: `expires` in seconds since 1970, `uses`
    /// the number of nodes it admits, at least 1.
    #[must_use]
    pub fn limited(mut self, expires: Option<u64>, uses: Option<u32>) -> Self {
        debug_assert!(self.fingerprint.is_none() && uses != Some(0), "the cluster keeps these limits");
        (self.expires, self.uses) = (expires, uses);
        self
    }

    fn make(
        role: Role,
        cluster: Option<ClusterId>,
        fingerprint: Option<Fingerprint>,
        seeds: Vec<String>,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, TokenError> {
        if let Some(wrong) =
            seeds.iter().skip(MAX_TOKEN_SEEDS).chain(seeds.iter().find(|s| !is_seed(s))).next()
        {
            return Err(TokenError::Seed(wrong.chars().take(64).collect()));
        }
        let mut secret = Zeroizing::new([0; SECRET_LEN]);
        rng.fill_bytes(secret.as_mut());
        let id = TokenId(rng.next_u64());
        Ok(Self { role, cluster, fingerprint, expires: None, uses: None, id, secret, seeds })
    }

    /// The role it admits to.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The cluster it is for, unless it was chosen before the cluster existed.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// SHA-256 of the cluster's root certificate, unless it was chosen before the cluster existed.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// When it ends, in seconds since 1970, if it was chosen before its cluster existed and ends.
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// How many nodes it admits, if it was chosen before its cluster existed and limited.
    pub fn uses(&self) -> Option<u32> {
        self.uses
    }

    /// Its public number.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Where to try, as `host:port`.
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// The text form. It holds the secret: for the operator's eyes, never for a log.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut body = Zeroizing::new(Vec::with_capacity(128));
        let flag = |there: bool, flag: u8| if there { flag } else { 0 };
        let flags = flag(self.cluster.is_some(), HAS_CLUSTER)
            | flag(self.fingerprint.is_some(), HAS_FINGERPRINT)
            | flag(self.expires.is_some(), HAS_EXPIRY)
            | flag(self.uses.is_some(), HAS_USES);
        body.extend([VERSION, role_number(self.role), flags]);
        if let Some(cluster) = self.cluster {
            body.extend(cluster.0);
        }
        if let Some(fingerprint) = self.fingerprint {
            body.extend(fingerprint);
        }
        if let Some(expires) = self.expires {
            body.extend(expires.to_be_bytes());
        }
        if let Some(uses) = self.uses {
            body.extend(uses.to_be_bytes());
        }
        body.extend(self.id.0.to_be_bytes());
        body.extend(self.secret.iter());
        // At most MAX_TOKEN_SEEDS seeds of at most MAX_SEED bytes: checked where tokens are made
        // and read.
        body.push(self.seeds.len() as u8);
        for seed in &self.seeds {
            body.extend((seed.len() as u16).to_be_bytes());
            body.extend(seed.as_bytes());
        }
        let crc = crc32c::crc32c(&body);
        body.extend(crc.to_be_bytes());
        let encoded = Zeroizing::new(base32().encode(&body));
        Zeroizing::new(format!("{PREFIX}{}-{}", self.role, *encoded))
    }

    /// The keys that HKDF makes of the secret.
    pub fn keys(&self) -> Result<TokenKeys, TokenError> {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"skein join token 1");
        let root = salt.extract(self.secret.as_ref());
        let seed = expand(&root, &[b"ed25519 key of the joiner", &self.id.0.to_be_bytes()])?;
        let mac = expand(&root, &[b"mac key of the cluster", &self.id.0.to_be_bytes()])?;
        let signer = signature::Ed25519KeyPair::from_seed_unchecked(seed.as_ref())
            .map_err(|_| TokenError::Content("no key can be made of it"))?;
        Ok(TokenKeys { signer, mac })
    }

    /// What the cluster stores of this token: with it nobody can join.
    pub fn verifier(&self) -> Result<TokenVerifier, TokenError> {
        let keys = self.keys()?;
        let mac_key = self.fingerprint.is_none().then(|| keys.mac.to_vec());
        Ok(TokenVerifier { public_key: keys.public_key(), mac_key })
    }
}

/// The parts of a stored token that come from its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenVerifier {
    /// Ed25519 public key: verifies the joiner's proof.
    pub public_key: Vec<u8>,
    /// Key of the cluster's own proof; only for tokens that pin no root.
    pub mac_key: Option<Vec<u8>>,
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier")
            .field("proves_itself", &self.mac_key.is_some())
            .finish_non_exhaustive()
    }
}

/// Keys derived from a token's secret.
pub struct TokenKeys {
    signer: signature::Ed25519KeyPair,
    mac: Zeroizing<[u8; 32]>,
}

impl TokenKeys {
    /// Ed25519 signature of `message` by the joiner's key.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).as_ref().to_vec()
    }

    /// The public half of the joiner's key.
    pub fn public_key(&self) -> Vec<u8> {
        use signature::KeyPair as _;
        self.signer.public_key().as_ref().to_vec()
    }

    /// The key of the cluster's own proof (HMAC-SHA256).
    pub fn mac_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.mac.as_ref())
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKeys").finish_non_exhaustive()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("cluster", &self.cluster)
            .field("pinned", &self.fingerprint.is_some())
            .field("expires", &self.expires)
            .field("uses", &self.uses)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Reads a token as pasted or as read from a file; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_TEXT {
            return Err(TokenError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let (role, body) = rest.split_once('-').ok_or(TokenError::NotAToken)?;
        let says = role.parse().map_err(|_| TokenError::Role(role.chars().take(16).collect()))?;
        let alphabet = |b: u8| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b);
        if let Some(at) = body.bytes().position(|b| !alphabet(b)) {
            return Err(TokenError::Character(text.len() - body.len() + at + 1));
        }
        let bytes = Zeroizing::new(base32().decode(body.as_bytes()).map_err(|error| match error.kind {
            data_encoding::DecodeKind::Length => TokenError::CutOff,
            _ => TokenError::Checksum,
        })?);
        Self::decode(&bytes, says)
    }
}

impl JoinToken {
    fn decode(bytes: &[u8], says: Role) -> Result<Self, TokenError> {
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or(TokenError::CutOff)?;
        if crc32c::crc32c(content) != u32::from_be_bytes(*crc) {
            return Err(TokenError::Checksum);
        }
        let mut rest = Fields(content);
        let [version] = rest.take()?;
        if version != VERSION {
            return Err(TokenError::Version(version));
        }
        let [number, flags] = rest.take()?;
        let role = role_of(number).ok_or(TokenError::Content("role"))?;
        if role != says {
            return Err(TokenError::RoleMismatch { made_for: role, says });
        }
        let has = |flag: u8| flags & flag != 0;
        let limits = HAS_EXPIRY | HAS_USES;
        let known = HAS_CLUSTER | HAS_FINGERPRINT | limits;
        if has(!known) || (has(limits) && has(HAS_CLUSTER | HAS_FINGERPRINT)) {
            return Err(TokenError::Content("flags"));
        }
        let cluster = if has(HAS_CLUSTER) { Some(ClusterId(rest.take()?)) } else { None };
        let fingerprint = if has(HAS_FINGERPRINT) { Some(rest.take()?) } else { None };
        let expires = if has(HAS_EXPIRY) { Some(u64::from_be_bytes(rest.take()?)) } else { None };
        let uses = if has(HAS_USES) { Some(u32::from_be_bytes(rest.take()?)) } else { None };
        if uses == Some(0) {
            return Err(TokenError::Content("uses"));
        }
        let id = TokenId(u64::from_be_bytes(rest.take()?));
        let secret = Zeroizing::new(rest.take()?);
        let [count] = rest.take()?;
        if usize::from(count) > MAX_TOKEN_SEEDS {
            return Err(TokenError::Content("number of seeds"));
        }
        let mut seeds = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let len = usize::from(u16::from_be_bytes(rest.take()?));
            let seed = rest.slice(len).and_then(|b| std::str::from_utf8(b).ok()).filter(|s| is_seed(s));
            seeds.push(seed.ok_or(TokenError::Content("seed"))?.to_owned());
        }
        if !rest.0.is_empty() {
            return Err(TokenError::Content("length"));
        }
        Ok(Self { role, cluster, fingerprint, expires, uses, id, secret, seeds })
    }
}

/// What is left of a token's content.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(TokenError::Content("length"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
}

/// True for `host:port` with a port that can be dialled, in the characters of host names and
/// IP literals.
fn is_seed(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b);
    text.len() <= MAX_SEED
        && !host.is_empty()
        && host.bytes().all(host_ok)
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|p| p != 0)
}

fn role_number(role: Role) -> u8 {
    match role {
        Role::Voter => 1,
        Role::Reader => 2,
        Role::Gateway => 3,
    }
}

fn role_of(number: u8) -> Option<Role> {
    [Role::Voter, Role::Reader, Role::Gateway].into_iter().find(|role| role_number(*role) == number)
}

fn base32() -> Encoding {
    // A constant specification: building it cannot fail.
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
}

fn expand(root: &hkdf::Prk, info: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let mut out = Zeroizing::new([0; 32]);
    root.expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut()))
        .map_err(|_| TokenError::Content("no key can be made of it"))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn sample(seed: u64) -> JoinToken {
        let mut rng = StdRng::seed_from_u64(seed);
        let seeds = vec!["db-1.example.org:7400".into(), "[fd00::2]:7400".into()];
        JoinToken::for_cluster(Role::Voter, ClusterId([9; 16]), b"root", seeds, &mut rng).unwrap()
    }

    proptest! {
        #[test]
        fn text_form_round_trips(
            seed: u64,
            role in 0..3usize,
            pinned: bool,
            expires: Option<u64>,
            uses in prop::option::of(1..=u32::MAX),
            ports in prop::collection::vec(1..=65535u16, 0..=MAX_TOKEN_SEEDS),
        ) {
            let role = [Role::Voter, Role::Reader, Role::Gateway][role];
            let seeds = ports.iter().map(|p| format!("10.0.0.1:{p}")).collect::<Vec<_>>();
            let mut rng = StdRng::seed_from_u64(seed);
            let token = if pinned {
                JoinToken::for_cluster(role, ClusterId([3; 16]), b"root", seeds, &mut rng)
            } else {
                JoinToken::generate(role, seeds, &mut rng).map(|token| token.limited(expires, uses))
            }.unwrap();
            let text = token.reveal();
            prop_assert!(text.len() <= MAX_TOKEN_TEXT);
            prop_assert_eq!(text.matches('-').count(), 2);
            prop_assert_eq!(text.parse::<JoinToken>(), Ok(token));
        }

        #[test]
        fn any_text_is_refused_without_panic(text in "(skein1-voter-)?[ -~]{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
        }
    }

    #[test]
    fn every_single_wrong_character_is_found() {
        let text = sample(1).reveal();
        for at in 0..text.len() {
            for wrong in "abcdefghijklmnopqrstuvwxyz234567-0A".chars() {
                let mut bad = text.to_string();
                bad.replace_range(at..=at, &wrong.to_string());
                if bad != *text {
                    assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
                }
            }
            assert!(text[..at].parse::<JoinToken>().is_err());
            let dropped = format!("{}{}", &text[..at], &text[at + 1..]);
            // Dropping one of two equal neighbours drops the other just as well.
            assert!(dropped.parse::<JoinToken>().is_err(), "{dropped}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = sample(2).reveal();
        let parse = |t: &str| t.parse::<JoinToken>().unwrap_err();
        assert_eq!(parse("K10abc::server:x"), TokenError::NotAToken);
        assert_eq!(parse(&text.replace("voter", "writer")), TokenError::Role("writer".into()));
        assert_eq!(
            parse(&text.replace("voter", "reader")),
            TokenError::RoleMismatch { made_for: Role::Voter, says: Role::Reader }
        );
        assert_eq!(parse(&text.to_uppercase()), TokenError::NotAToken);
        let typo = format!("{}1{}", &text[..20], &text[21..]);
        assert_eq!(parse(&typo), TokenError::Character(21));
        let swapped = if text.ends_with("aa") { "bb" } else { "aa" };
        assert_eq!(parse(&format!("{}{swapped}", &text[..text.len() - 2])), TokenError::Checksum);
        assert!(matches!(parse(&"x".repeat(9999)), TokenError::TooLong(9999)));
        assert!(format!("\n {} \r\n", *text).parse::<JoinToken>().is_ok());
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = sample(3);
        let secret = token.secret.iter().map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
        let shown = format!("{token:?} {:?} {:?}", token.keys().unwrap(), token.verifier().unwrap());
        assert!(!shown.contains(&secret) && !shown.contains(&token.reveal()[14..40]), "{shown}");
    }

    #[test]
    fn keys_follow_from_the_secret_alone() {
        let token = sample(4);
        let again: JoinToken = token.reveal().parse().unwrap();
        assert_eq!(token.keys().unwrap().public_key(), again.keys().unwrap().public_key());
        assert_ne!(token.keys().unwrap().public_key(), sample(5).keys().unwrap().public_key());
        assert_eq!(token.verifier().unwrap().mac_key, None, "a pinned token needs no proof of the cluster");
        let chosen = JoinToken::generate(Role::Reader, vec![], &mut StdRng::seed_from_u64(6)).unwrap();
        assert!(chosen.verifier().unwrap().mac_key.is_some());
    }

    #[test]
    fn seeds_are_checked_and_bounded() {
        let mut rng = StdRng::seed_from_u64(7);
        for wrong in ["", "host", "host:0", "host:x", ":7400", "a b:1", "host:70000"] {
            let made = JoinToken::generate(Role::Voter, vec![wrong.into()], &mut rng);
            assert_eq!(made, Err(TokenError::Seed(wrong.into())));
        }
        assert!(JoinToken::generate(Role::Voter, vec!["h:1".into(); 9], &mut rng).is_err());
    }
}
