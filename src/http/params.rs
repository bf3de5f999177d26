//! What a request asks for besides its body: parameters of the query string or a form, and the
//! headers that mean the same.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use axum::http::{HeaderMap, Uri, uri::Authority};

use super::error::ApiError;
use crate::{config::parse_duration, node::AckLevel};

/// Names of a form or an object in a body: many times what any route knows.
pub(super) const MAX_NAMES: usize = 1_000;

pub(super) fn too_many_names() -> ApiError {
    ApiError::invalid(format!("the body has more than {MAX_NAMES} names"))
}

/// Parameters in order of appearance. No `Debug`: `p` may hold a secret.
#[derive(Default)]
pub(super) struct Params {
    /// Names and values, each behind the one before.
    text: String,
    /// Where in it each name ends, and its value.
    ends: Vec<(usize, usize)>,
}

impl Params {
    /// Those of the query string.
    pub(super) fn of(uri: &Uri) -> Self {
        Self::parse(uri.query().unwrap_or_default())
    }

    /// Those of a body that is a form, which may be longer than a query string can.
    pub(super) fn of_form(body: &[u8]) -> Result<Self, ApiError> {
        if body.iter().filter(|byte| **byte == b'&').count() >= MAX_NAMES {
            return Err(too_many_names());
        }
        Ok(Self::parse(&String::from_utf8_lossy(body)))
    }

    /// From `a=1&b=2`, as query strings and forms have it.
    pub(super) fn parse(text: &str) -> Self {
        let mut params = Self { text: String::with_capacity(text.len()), ends: Vec::new() };
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            params.add(&decoded(name), &decoded(value));
        }
        params
    }

    /// The first value of that name; an empty one counts as none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(n, v)| *n == name && !v.is_empty()).map(|(_, v)| v)
    }

    /// True when the name is there, with or without value, unless the value is `false`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.pairs().any(|(n, v)| n == name && v != "false" && v != "0")
    }

    /// Adds one behind those that are there.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.text.push_str(name);
        let end = self.text.len();
        self.text.push_str(value);
        self.ends.push((end, self.text.len()));
    }

    /// Adds `more` behind those that are there.
    pub(super) fn extend(&mut self, more: &Self) {
        for (name, value) in more.pairs() {
            self.add(name, value);
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |(name, value)| {
            let pair = (self.text.get(start..*name), self.text.get(*name..*value));
            start = *value;
            (pair.0.unwrap_or_default(), pair.1.unwrap_or_default())
        })
    }
}

/// `+` is a space, `%41` is `A`; what is no such escape stays, bytes that are not UTF-8 become U+FFFD.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        let digit = |b: &u8| char::from(*b).to_digit(16);
        (out, bytes) = match (first, rest) {
            (b'+', _) => (pushed(out, b' '), rest),
            (b'%', [high, low, after @ ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => (pushed(out, (high * 16 + low) as u8), after),
                _ => (pushed(out, b'%'), rest),
            },
            (byte, _) => (pushed(out, *byte), rest),
        };
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn pushed(mut out: Vec<u8>, byte: u8) -> Vec<u8> {
    out.push(byte);
    out
}

/// A parameter, else the header `x-skein-NAME`.
pub(super) fn either<'a>(
    params: &'a Params,
    headers: &'a HeaderMap,
    name: &str,
    header: &str,
) -> Result<Option<&'a str>, ApiError> {
    if let Some(value) = params.get(name) {
        return Ok(Some(value));
    }
    text_header(headers, header)
}

/// A header as text.
pub(super) fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    match headers.get(name) {
        None => Ok(None),
        Some(value) => {
            value.to_str().map(Some).map_err(|_| ApiError::invalid(format!("header {name} is not text")))
        }
    }
}

/// The level a write asks for; `None` for the cluster's default. A word that is no level is refused,
/// never taken for another one.
pub(super) fn ack(params: &Params, headers: &HeaderMap) -> Result<Option<AckLevel>, ApiError> {
    let Some(word) = either(params, headers, "ack", "x-skein-ack")? else { return Ok(None) };
    AckLevel::from_word(word).map(Some).ok_or_else(|| {
        let known = AckLevel::EVERY.map(AckLevel::as_str).join(", ");
        ApiError::invalid(format!("ack={} is no level: use one of {known}", shown(word)))
    })
}

/// InfluxDB 1's `consistency` of a write: `quorum` and `all` raise the level, `any` and `one` do not.
pub(super) fn raised(ack: Option<AckLevel>, params: &Params) -> Result<Option<AckLevel>, ApiError> {
    match params.get("consistency") {
        None | Some("any" | "one") => Ok(ack),
        Some("quorum") => Ok(ack.max(Some(AckLevel::Quorum))),
        Some("all") => Ok(Some(AckLevel::All)),
        Some(word) => Err(ApiError::invalid(format!(
            "consistency={} is no write consistency: use any, one, quorum or all",
            shown(word)
        ))),
    }
}

/// How long the request may take: what it asks for, at most `ceiling`; `default` if it asks for nothing.
pub(super) fn timeout(
    params: &Params,
    headers: &HeaderMap,
    default: Duration,
    ceiling: Duration,
) -> Result<Duration, ApiError> {
    match either(params, headers, "timeout", "x-skein-timeout")? {
        None => Ok(default),
        Some(text) => match parse_duration(text) {
            Ok(asked) if asked.is_zero() => {
                Err(ApiError::invalid("timeout=0: there must be some time".to_owned()))
            }
            Ok(asked) => Ok(asked.min(ceiling)),
            Err(e) => Err(ApiError::invalid(format!("timeout: {e}"))),
        },
    }
}

/// A word of the client's, short enough to be shown back.
pub(super) fn shown(word: &str) -> String {
    word.chars().take(64).filter(|c| !c.is_control()).collect()
}

/// The credentials of a request, wherever its client family puts them.
pub(super) fn credentials(headers: &HeaderMap, params: &Params) -> Option<String> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = header("authorization") {
        return Some(authorization(value.trim()));
    }
    header("x-api-key").or_else(|| params.get("p")).map(|token| token.trim().to_owned())
}

/// `Bearer T`, `Token T`, `Basic base64(user:T)` or a bare `T`.
fn authorization(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once(' ') else { return value.to_owned() };
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
        // Clients of InfluxDB 1.8 send `Token user:password`.
        return rest.rsplit_once(':').map_or(rest, |(_, password)| password).to_owned();
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = data_encoding::BASE64.decode(rest.as_bytes()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        return text.and_then(|t| t.split_once(':').map(|(_, p)| p.to_owned())).unwrap_or_default();
    }
    String::new()
}

/// Where a request says it goes: `Host`, or the target of a request in absolute form. `Ok(None)`
/// when it says nothing (HTTP/1.0); an error when it says two things.
pub(super) fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, ApiError> {
    let wrong = || ApiError::forbidden("the Host header is not one host".to_owned());
    let mut hosts = headers.get_all("host").iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(wrong()),
        (None, None) => None,
        (Some(host), None) => {
            Some(host.to_str().ok().and_then(|h| h.parse::<Authority>().ok()).ok_or_else(wrong)?)
        }
    };
    Ok(uri.authority().cloned().or(host))
}

/// True for an IP literal, `localhost` and the configured names: what a foreign page cannot make a
/// browser say by pointing its own name here.
pub(super) fn is_own_host(authority: &Authority, names: &[String]) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let name = bare.strip_suffix('.').unwrap_or(bare);
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect::<HeaderMap>()
    }

    fn params(text: &str) -> Params {
        Params::parse(text)
    }

    #[test]
    fn query_strings_and_forms() {
        let p = params("db=a%20b&q=select+1%2B1&x&db=second&bad=%zz%4&u=%c3%a4&e=");
        assert_eq!(p.get("db"), Some("a b"));
        assert_eq!(p.get("q"), Some("select 1+1"));
        assert_eq!(p.get("bad"), Some("%zz%4"));
        assert_eq!(p.get("u"), Some("ä"));
        assert_eq!((p.get("x"), p.get("e"), p.get("nope")), (None, None, None));
        assert!(p.flag("x") && !p.flag("nope") && !params("v=false").flag("v"));
        let mut both = params("a=1&b=");
        both.extend(&params("b=%32&a=3&%C3"));
        assert_eq!((both.get("a"), both.get("b"), both.get("%C3")), (Some("1"), Some("2"), None));
        assert!(both.flag("\u{fffd}"), "what is no UTF-8 is shown as that");
    }

    #[test]
    fn ack_levels_are_never_lowered() {
        let none = HeaderMap::new();
        assert_eq!(ack(&params(""), &none).unwrap(), None);
        assert_eq!(ack(&params("ack=local"), &none).unwrap(), Some(AckLevel::Local));
        let header = headers(&[("x-skein-ack", "quorum")]);
        assert_eq!(ack(&params(""), &header).unwrap(), Some(AckLevel::Quorum));
        for level in AckLevel::EVERY {
            assert_eq!(ack(&params(&format!("ack={level}")), &none).unwrap(), Some(level));
            assert_eq!(ack(&params(""), &headers(&[("x-skein-ack", level.as_str())])).unwrap(), Some(level));
        }
        for word in ["Quorum", "most", "local%20"] {
            let error = ack(&params(&format!("ack={word}")), &none).unwrap_err();
            assert_eq!(error.fault(), crate::http::error::Fault::Invalid, "{word}");
        }
        let raise = |have, text: &str| raised(have, &params(text));
        assert_eq!(raise(None, "consistency=quorum").unwrap(), Some(AckLevel::Quorum));
        assert_eq!(raise(Some(AckLevel::Local), "consistency=quorum").unwrap(), Some(AckLevel::Quorum));
        assert_eq!(raise(Some(AckLevel::Quorum), "consistency=one").unwrap(), Some(AckLevel::Quorum));
        assert_eq!(raise(Some(AckLevel::Local), "consistency=any").unwrap(), Some(AckLevel::Local));
        assert_eq!(raise(Some(AckLevel::All), "consistency=quorum").unwrap(), Some(AckLevel::All));
        for have in [None, Some(AckLevel::Memory), Some(AckLevel::Quorum)] {
            assert_eq!(raise(have, "consistency=all").unwrap(), Some(AckLevel::All));
        }
        assert_eq!(raise(Some(AckLevel::Memory), "consistency=one").unwrap(), Some(AckLevel::Memory));
        assert!(raise(None, "consistency=two").is_err());
    }

    #[test]
    fn timeouts_have_a_ceiling() {
        let s = Duration::from_secs;
        let ask = |text: &str| timeout(&params(text), &HeaderMap::new(), s(10), s(60));
        assert_eq!(ask("").unwrap(), s(10));
        assert_eq!(ask("timeout=2s").unwrap(), s(2));
        assert_eq!(ask("timeout=2h").unwrap(), s(60));
        assert!(ask("timeout=0s").is_err());
        assert!(ask("timeout=2").is_err());
    }

    #[test]
    fn credentials_of_every_client_family() {
        let by_header =
            |name: &'static str, value: &str| credentials(&headers(&[(name, value)]), &Params::default());
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("authorization", "bearer  secret"),
            ("authorization", "Token secret"),
            ("authorization", "Token me:secret"),
            ("authorization", "Basic bWU6c2VjcmV0"),
            ("authorization", "secret"),
            ("x-api-key", "secret"),
        ] {
            assert_eq!(by_header(name, value).as_deref(), Some("secret"), "{value}");
        }
        assert_eq!(credentials(&HeaderMap::new(), &params("u=me&p=secret")).as_deref(), Some("secret"));
        assert_eq!(credentials(&HeaderMap::new(), &params("u=me")), None);
        assert_eq!(by_header("authorization", "Digest secret").as_deref(), Some(""));
        assert_eq!(by_header("authorization", "Basic ???").as_deref(), Some(""));
    }

    #[test]
    fn own_hosts() {
        let names = ["db.example".to_owned()];
        let own = |host: &str| {
            let headers = headers(&[("host", host)]);
            authority(&Uri::from_static("/"), &headers).map(|a| a.is_some_and(|a| is_own_host(&a, &names)))
        };
        for host in [
            "127.0.0.1:8086",
            "192.0.2.9",
            "[::1]:8086",
            "localhost:1",
            "LOCALHOST",
            "db.example:80",
            "localhost.",
        ] {
            assert!(own(host).unwrap(), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xdb.example", "a@b.c"]
        {
            assert!(!own(host).unwrap_or(false), "{host}");
        }
        let mut two = headers(&[("host", "localhost")]);
        two.append("host", "evil.example".parse().unwrap());
        assert!(authority(&Uri::from_static("/"), &two).is_err());
        let absolute =
            authority(&Uri::from_static("http://evil.example/"), &headers(&[("host", "localhost")]));
        assert!(!is_own_host(&absolute.unwrap().unwrap(), &names));
    }
}
