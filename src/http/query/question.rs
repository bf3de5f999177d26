//! What a request asks: names with values in the query string, in a form or in a JSON object.
//!
//! A body of a megabyte may be half a million small lists, and a tree of them takes ninety times as much: so
//! nothing is made of what no route knows.

use std::{collections::BTreeMap, fmt};

use axum::http::{HeaderMap, Uri, header};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{
    engine::columnar::sql::{GivenParameters, Parameters},
    http::{
        error::ApiError,
        params::{self, MAX_NAMES, Params},
    },
};

/// The one name whose value may be a list or an object.
const VALUES: &str = "params";

/// Parameters of the request, and the values for those of its statement.
pub(super) struct Question {
    pub(super) params: Params,
    /// As the body has them, unless `params` is a text.
    given: Parameters,
}

impl Question {
    /// What the query string asks.
    pub(super) fn of(uri: &Uri) -> Self {
        Self { params: Params::of(uri), given: Parameters::default() }
    }

    /// Adds what the body asks, behind that.
    pub(super) fn extend(&mut self, headers: &HeaderMap, body: &[u8]) -> Result<(), ApiError> {
        let body = body.trim_ascii();
        if body.is_empty() {
            return Ok(());
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/x-www-form-urlencoded") && body.first() != Some(&b'{') {
            self.params.extend(&Params::of_form(body)?);
            return Ok(());
        }
        let Object(named) = serde_json::from_slice(body)
            .map_err(|e| ApiError::invalid(format!("the body is neither a form nor a JSON object: {e}")))?;
        if named.len() > MAX_NAMES {
            return Err(params::too_many_names());
        }
        for (name, member) in named {
            match member {
                Member::Null => {}
                Member::Plain(text) => self.params.add(&name, &text),
                Member::Nested(_) if name == VALUES => self.given = given(body)?,
                Member::Nested(shown) => self.params.add(&name, shown),
            }
        }
        Ok(())
    }

    /// The values for the parameters of the statement.
    pub(super) fn values(&self) -> Result<Parameters, ApiError> {
        match self.params.get(VALUES) {
            Some(text) => Ok(Parameters::from_json(text)?),
            None => Ok(self.given.clone()),
        }
    }
}

/// The values in a body that is known to be an object and to have some.
fn given(body: &[u8]) -> Result<Parameters, ApiError> {
    #[derive(Deserialize)]
    struct Given {
        params: GivenParameters,
    }
    let Given { params } =
        serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("params: {e}")))?;
    Ok(Parameters::from_given(params)?)
}

/// Members by name, one more at most than there may be. Of two with the same name the last one counts.
struct Object(BTreeMap<String, Member>);

enum Member {
    Null,
    /// A text, a number or a truth value, as text.
    Plain(String),
    /// A list or an object, of which only this is left: what no parameter takes for a value, so that a route
    /// that knows the name refuses it.
    Nested(&'static str),
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Naming)
    }
}

struct Naming;

impl<'de> Visitor<'de> for Naming {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Object, A::Error> {
        let mut named = BTreeMap::new();
        while named.len() <= MAX_NAMES {
            let Some((name, member)) = from.next_entry()? else { return Ok(Object(named)) };
            named.insert(name, member);
        }
        while from.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Object(named))
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value")
    }

    fn visit_unit<E>(self) -> Result<Member, E> {
        Ok(Member::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Member, E> {
        Ok(Member::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Member, E> {
        Ok(Member::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Member, E> {
        Ok(Member::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Member, E> {
        Ok(Member::Plain(Value::from(value).to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Member, E> {
        Ok(Member::Plain(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Member, E> {
        Ok(Member::Plain(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Member, A::Error> {
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Member::Nested("[...]"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Member, A::Error> {
        while from.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Member::Nested("{...}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::columnar::sql::Parameter;

    fn asked(kind: &str, body: &str) -> Result<Question, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        let mut question = Question::of(&"/?db=first".parse().unwrap());
        question.extend(&headers, body.as_bytes()).map(|()| question)
    }

    fn said(body: &str) -> String {
        match asked("application/json", body).and_then(|question| question.values()) {
            Ok(values) => format!("{values:?}"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn names_of_a_body_come_behind_those_of_the_query_string() {
        let form = asked("application/x-www-form-urlencoded", "db=home&q=select+1").unwrap();
        assert_eq!((form.params.get("db"), form.params.get("q")), (Some("first"), Some("select 1")));
        for kind in ["application/json", "application/x-www-form-urlencoded", "text/plain"] {
            let json = r#" {"q":"none","q":"select 1","n":7,"m":-7,"x":2.50,"b":true,"z":null,"l":[{}],"o":{"q":[]}}"#;
            let Question { params, .. } = asked(kind, json).unwrap();
            let got: Vec<_> =
                ["db", "q", "n", "m", "x", "b", "z", "l", "o"].map(|name| params.get(name)).into();
            let want = ["first", "select 1", "7", "-7", "2.5", "true", "", "[...]", "{...}"];
            assert_eq!(got, want.map(|text| Some(text).filter(|text| !text.is_empty())));
        }
        assert!(asked("application/json", "select 1").is_err());
        assert!(asked("application/json", r#"{"q":"select 1"}{}"#).is_err());
        assert!(asked("application/json", " ").unwrap().params.get("q").is_none());
    }

    #[test]
    fn values_are_those_of_the_body_or_a_text() {
        let want = |name: &str, value| {
            let mut values = Parameters::default();
            values.set(name, value);
            values
        };
        for (kind, body, name) in [
            ("application/json", r#"{"params":{"a":7},"q":""}"#, "a"),
            ("application/json", r#"{"q":[],"params":[7]}"#, "1"),
            ("application/json", r#"{"params":"{\"a\":7}"}"#, "a"),
            ("application/x-www-form-urlencoded", "params=[7]", "1"),
        ] {
            let got = asked(kind, body).and_then(|question| question.values()).unwrap();
            assert_eq!(got, want(name, Parameter::Int(7)), "{body}");
        }
        for none in ["{}", r#"{"params":null}"#, r#"{"params":""}"#, r#"{"params":[]}"#] {
            assert_eq!(said(none), format!("{:?}", Parameters::default()));
        }
        for (wrong, says) in [
            (r#"{"params":[1,[2]]}"#, "params: $2: a list"),
            (r#"{"params":{"a":{"x":1}}}"#, "params: $a: an object"),
            (r#"{"params":7}"#, "by name"),
            (r#"{"params":[1],"params":[2]}"#, "params: duplicate field"),
        ] {
            assert!(said(wrong).contains(says), "{wrong}: {}", said(wrong));
        }
    }

    #[test]
    fn names_are_few() {
        let object = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!(r#""{n}":[{n}]"#)).collect();
            format!("{{{}}}", members.join(","))
        };
        let form = |count: usize| vec!["n=1"; count].join("&");
        for (kind, body) in [
            ("application/json", &object as &dyn Fn(usize) -> String),
            ("application/x-www-form-urlencoded", &form),
        ] {
            assert!(asked(kind, &body(MAX_NAMES)).is_ok());
            let error = asked(kind, &body(MAX_NAMES + 1)).map(drop).unwrap_err();
            assert!(format!("{error:?}").contains("more than 1000 names"), "{error:?}");
        }
    }
}
