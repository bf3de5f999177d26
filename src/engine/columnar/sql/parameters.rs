//! Values for the parameters of a statement. They take the place of `$name` in the plan, as literals
//! of their type; no text of a client's is ever put into a statement.

use std::{collections::BTreeMap, fmt};

use datafusion::{common::ScalarValue, logical_expr::LogicalPlan};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{error::QueryError, sandbox::MAX_TEXT};

/// Most parameters of a statement.
pub const MAX_PARAMETERS: usize = 1_000;
/// What a time is written as in JSON: an object with this one member.
const TIMESTAMP: &str = "timestamp_ns";

/// Values by name, without `$`; those of `?`, or of a list, are called `1`, `2` and so on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, Parameter>);

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// No value.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer that is larger than any [`Self::Int`].
    UInt(u64),
    /// A number that is no integer.
    Float(f64),
    /// A text. Compared with a time it is one, in RFC 3339.
    Text(String),
    /// A time, in nanoseconds since 1970.
    Time(i64),
}

/// Values as a request gives them: by name in an object, or in order in a list. Nothing is kept of lists and
/// objects that are no values, nor of what comes behind the first value too many.
#[derive(Default)]
pub(crate) struct GivenParameters(Vec<(String, Candidate)>);

impl<'de> Deserialize<'de> for GivenParameters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Giving { lists: true })
    }
}

/// By name alone, as a ticket has them.
impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let given = from.deserialize_any(Giving { lists: false })?;
        Self::from_given(given).map_err(de::Error::custom)
    }
}

struct Giving {
    /// Whether they may be a list, too.
    lists: bool,
}

impl<'de> Visitor<'de> for Giving {
    type Value = GivenParameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "values in an object, by name{}", if self.lists { ", or in a list" } else { "" })
    }

    fn visit_unit<E>(self) -> Result<GivenParameters, E> {
        Ok(GivenParameters::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<GivenParameters, A::Error> {
        let mut given = Vec::new();
        while given.len() <= MAX_PARAMETERS {
            let Some(one) = from.next_entry()? else { return Ok(GivenParameters(given)) };
            given.push(one);
        }
        while from.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(GivenParameters(given))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<GivenParameters, A::Error> {
        if !self.lists {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        let mut given = Vec::new();
        while given.len() <= MAX_PARAMETERS {
            let Some(one) = from.next_element()? else { return Ok(GivenParameters(given)) };
            given.push(((given.len() + 1).to_string(), one));
        }
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(GivenParameters(given))
    }
}

/// What stands where a value should, or why it is none.
struct Candidate(Result<Parameter, &'static str>);

impl<'de> Deserialize<'de> for Candidate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Judging).map(Self)
    }
}

struct Judging;

impl<'de> Visitor<'de> for Judging {
    type Value = Result<Parameter, &'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Ok(Parameter::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Ok(Parameter::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Ok(Parameter::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Ok(i64::try_from(value).map_or(Parameter::UInt(value), Parameter::Int)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(if value.is_finite() { Ok(Parameter::Float(value)) } else { Err("the number is out of range") })
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Ok(Parameter::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(Ok(Parameter::Text(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("a list is no value: write a parameter for each of its members"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut time) = (0, None);
        while let Some(name) = from.next_key::<String>()? {
            members += 1;
            if name == TIMESTAMP {
                time = from.next_value::<Candidate>()?.0.ok();
            } else {
                from.next_value::<IgnoredAny>()?;
            }
        }
        match time {
            Some(Parameter::Int(ns)) if members == 1 => Ok(Ok(Parameter::Time(ns))),
            _ => Ok(Err("an object is no value, but for a time in nanoseconds: {\"timestamp_ns\": 0}")),
        }
    }
}

impl Parameters {
    /// Those of a JSON object, by name, or of a list, in order. `null` and nothing are none.
    ///
    /// # Errors
    /// It is neither, or holds what is no value; says which.
    pub fn from_json(text: &str) -> Result<Self, QueryError> {
        let wrong = |e: &dyn fmt::Display| QueryError::Invalid(format!("params: {e}"));
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let given: GivenParameters = serde_json::from_str(text).map_err(|e| wrong(&e))?;
        Self::from_given(given)
    }

    /// As [`Self::from_json`].
    pub(crate) fn from_given(GivenParameters(named): GivenParameters) -> Result<Self, QueryError> {
        // Counted with every name, also one that comes twice: what comes behind is not known any more.
        if named.len() > MAX_PARAMETERS {
            return Err(too_many());
        }
        let value = |(name, Candidate(value)): (String, Candidate)| match value {
            Ok(value) => Ok((name, value)),
            Err(why) => Err(QueryError::Invalid(format!("params: ${}: {why}", shown(&name)))),
        };
        named.into_iter().map(value).collect::<Result<_, _>>().map(Self)
    }

    /// Adds one.
    pub fn set(&mut self, name: impl Into<String>, value: Parameter) {
        self.0.insert(name.into(), value);
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses what does not fit a statement that has parameters of these names.
    pub(super) fn check(&self, wanted: &[String]) -> Result<(), QueryError> {
        let text = |value: &Parameter| if let Parameter::Text(text) = value { text.len() } else { 0 };
        let bytes: usize = self.0.iter().map(|(name, value)| name.len() + text(value)).sum();
        if wanted.len().max(self.0.len()) > MAX_PARAMETERS || bytes > MAX_TEXT {
            return Err(too_many());
        }
        if let Some(name) = wanted.iter().find(|name| !self.0.contains_key(*name)) {
            let name = shown(name);
            return Err(QueryError::Invalid(format!("parameter ${name} has no value: give one in params")));
        }
        match self.0.keys().find(|name| !wanted.contains(name)) {
            Some(name) => {
                let name = shown(name);
                Err(QueryError::Invalid(format!(
                    "the statement has no parameter ${name}, and params has one"
                )))
            }
            None => Ok(()),
        }
    }

    /// Puts the values where the plan has parameters.
    pub(super) fn bind(&self, plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
        let named = self.0.iter().map(|(name, value)| (name.clone(), value.scalar()));
        let plan = plan.with_param_values(named.collect::<Vec<_>>())?;
        match plan.get_parameter_names()?.into_iter().min() {
            None => Ok(plan),
            Some(left) => Err(QueryError::Invalid(format!("parameter {} is not understood", shown(&left)))),
        }
    }
}

impl Parameter {
    fn scalar(&self) -> ScalarValue {
        match self {
            Self::Null => ScalarValue::Null,
            Self::Bool(value) => ScalarValue::Boolean(Some(*value)),
            Self::Int(value) => ScalarValue::Int64(Some(*value)),
            Self::UInt(value) => ScalarValue::UInt64(Some(*value)),
            Self::Float(value) => ScalarValue::Float64(Some(*value)),
            Self::Text(text) => ScalarValue::Utf8(Some(text.clone())),
            Self::Time(ns) => ScalarValue::TimestampNanosecond(Some(*ns), None),
        }
    }
}

impl Serialize for Parameter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::UInt(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Time(ns) => BTreeMap::from([(TIMESTAMP, ns)]).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Candidate::deserialize(deserializer)?.0.map_err(de::Error::custom)
    }
}

fn too_many() -> QueryError {
    QueryError::TooLarge(format!(
        "a statement may have {MAX_PARAMETERS} parameters, and {MAX_TEXT} bytes in all of their values"
    ))
}

/// A name of the client's, short enough to be shown back.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(values: &[(&str, Parameter)]) -> Parameters {
        Parameters(values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    #[test]
    fn json_has_types() {
        use Parameter::{Bool, Float, Int, Null, Text, Time, UInt};
        let text = r#"{"n":null,"b":true,"i":-7,"u":18446744073709551615,"f":2.0,"t":"1'; --","at":{"timestamp_ns":-5}}"#;
        let want = parameters(&[
            ("n", Null),
            ("b", Bool(true)),
            ("i", Int(-7)),
            ("u", UInt(u64::MAX)),
            ("f", Float(2.0)),
            ("t", Text("1'; --".into())),
            ("at", Time(-5)),
        ]);
        assert_eq!(Parameters::from_json(text).unwrap(), want);
        // As a ticket carries them.
        let again = serde_json::to_string(&want).unwrap();
        assert_eq!(serde_json::from_str::<Parameters>(&again).unwrap(), want);
        let list = parameters(&[("1", Text("a".into())), ("2", Int(3))]);
        assert_eq!(Parameters::from_json(r#"["a", 3]"#).unwrap(), list);
        let many = |more: &str| format!("{{{}{more}}}", vec![r#""a":1"#; MAX_PARAMETERS].join(","));
        assert_eq!(Parameters::from_json(&many("")).unwrap(), parameters(&[("a", Int(1))]));
        let over = Parameters::from_json(&many(r#","a":2"#));
        assert!(matches!(&over, Err(QueryError::TooLarge(_))), "{over:?}");
        assert!(serde_json::from_str::<Parameters>(&many(r#","a":2"#)).is_err());
        assert!(serde_json::from_str::<Parameters>("[1]").unwrap_err().to_string().contains("by name"));
        for none in ["", " ", "null", "{}", "[]"] {
            assert!(Parameters::from_json(none).unwrap().is_empty(), "{none}");
        }
        for (wrong, says) in [
            ("7", "by name"),
            ("\"a\"", "by name"),
            ("{", "params: "),
            (r#"{"a":[1]}"#, "$a: a list"),
            (r#"[1, {"x":1}]"#, "$2: an object"),
            (r#"{"a":{"timestamp_ns":"now"}}"#, "$a: an object"),
            (r#"{"a":{"timestamp_ns":1,"x":1}}"#, "$a: an object"),
            (r#"{"a":{"timestamp_ns":1,"timestamp_ns":1}}"#, "$a: an object"),
            (r#"{"a":{"timestamp_ns":9223372036854775808}}"#, "$a: an object"),
            (r#"{"a":{}}"#, "$a: an object"),
            (r#"{"a":1e999}"#, "out of range"),
        ] {
            let error = Parameters::from_json(wrong).unwrap_err();
            assert!(matches!(&error, QueryError::Invalid(why) if why.contains(says)), "{wrong}: {error}");
        }
    }
}
