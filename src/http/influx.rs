//! `/query` of InfluxDB 1: as much of it as writing clients need when they connect.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::Method,
};
use serde_json::{Value, json};

use super::{
    Edge,
    auth::Principal,
    body,
    error::ApiError,
    params::{Params, shown},
};
use crate::types::Scope;

/// `GET` and `POST /query`.
pub(super) async fn query(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (head, body) = request.into_parts();
    let caller = Principal::of(&head.extensions)?;
    let mut params = Params::of(&head.uri);
    if head.method == Method::POST {
        let taken = body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
        params.extend(&Params::of_form(&taken.bytes)?);
    }
    let Some(text) = params.get("q") else {
        return Err(ApiError::invalid("q is required: q=SHOW DATABASES"));
    };
    match Statement::parse(text)? {
        Statement::CreateDatabase(name) => {
            caller.check(Scope::Write, Some(&name))?;
            // It comes into being with its first write; here only its name is judged.
            edge.app.engine.schemas().check_database(&name).map_err(|e| ApiError::invalid(e.to_string()))?;
            Ok(Json(json!({ "results": [{ "statement_id": 0 }] })))
        }
        Statement::ShowDatabases => {
            caller.check(Scope::Read, None)?;
            let visible = caller.databases();
            let names = edge.app.engine.databases().into_iter().filter(|name| visible.contains(name));
            Ok(Json(json!({ "results": [{ "statement_id": 0, "series": [series("databases", names)] }] })))
        }
        Statement::ShowMeasurements(named) => {
            let Some(database) = named.as_deref().or(params.get("db")) else {
                return Err(ApiError::invalid(
                    "a database is required: db=NAME, or SHOW MEASUREMENTS ON NAME",
                ));
            };
            caller.check(Scope::Read, Some(database))?;
            let Some(tables) = edge.app.engine.tables(database) else {
                // InfluxDB says so with 200, in the result.
                let error = format!("database not found: {}", shown(database));
                return Ok(Json(json!({ "results": [{ "statement_id": 0, "error": error }] })));
            };
            let mut result = json!({ "statement_id": 0 });
            if !tables.is_empty() {
                result["series"] = json!([series("measurements", tables.into_iter())]);
            }
            Ok(Json(json!({ "results": [result] })))
        }
    }
}

/// Names as InfluxDB lists them.
fn series(of: &str, names: impl Iterator<Item = String>) -> Value {
    let names: Vec<Value> = names.map(|name| json!([name])).collect();
    let mut series = json!({ "name": of, "columns": ["name"] });
    if !names.is_empty() {
        series["values"] = names.into();
    }
    series
}

#[derive(Debug, PartialEq, Eq)]
enum Statement {
    CreateDatabase(String),
    ShowDatabases,
    /// Of that database, or of the one that the request names.
    ShowMeasurements(Option<String>),
}

impl Statement {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let other = || {
            ApiError::invalid(format!(
                "InfluxQL is not spoken here ({}): only CREATE DATABASE, SHOW DATABASES and SHOW MEASUREMENTS; \
                 ask in SQL at /api/v3/query_sql?db=...&q=...",
                shown(text)
            ))
        };
        let text = text.trim().trim_end_matches(';').trim_end();
        let (first, rest) = word(text);
        let (second, rest) = word(rest);
        let is = |word: &str, want: &str| word.eq_ignore_ascii_case(want);
        if is(first, "show") && is(second, "databases") && rest.is_empty() {
            return Ok(Self::ShowDatabases);
        }
        if is(first, "show") && is(second, "measurements") {
            let (on, rest) = word(rest);
            return match name(rest) {
                _ if on.is_empty() => Ok(Self::ShowMeasurements(None)),
                Some((name, "")) if is(on, "on") => Ok(Self::ShowMeasurements(Some(name.to_owned()))),
                _ => Err(other()),
            };
        }
        if !is(first, "create") || !is(second, "database") {
            return Err(other());
        }
        // `WITH DURATION ...` behind the name is let pass: retention is not set this way.
        match name(rest) {
            Some((name, after)) if after.is_empty() || is(word(after).0, "with") => {
                Ok(Self::CreateDatabase(name.to_owned()))
            }
            _ => Err(other()),
        }
    }
}

/// A name, quoted or not, and what follows it without the space between.
fn name(text: &str) -> Option<(&str, &str)> {
    let (name, after) = match text.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => word(text),
    };
    let well_formed = !name.is_empty() && !name.contains(['"', ';', '\\']);
    well_formed.then_some((name, after.trim_start()))
}

/// The first word, and what follows it without the space between.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements() {
        for text in [
            "CREATE DATABASE \"telegraf\"",
            "create database telegraf;",
            "  CREATE  DATABASE telegraf WITH DURATION 7d",
            "CREATE DATABASE \"telegraf\" WITH NAME x",
        ] {
            let want = Statement::CreateDatabase("telegraf".into());
            assert_eq!(Statement::parse(text).unwrap(), want, "{text}");
        }
        assert_eq!(Statement::parse("show databases").unwrap(), Statement::ShowDatabases);
        assert_eq!(Statement::parse("SHOW MEASUREMENTS").unwrap(), Statement::ShowMeasurements(None));
        for text in ["SHOW MEASUREMENTS ON \"a\"", "show measurements on a ;"] {
            let want = Statement::ShowMeasurements(Some("a".into()));
            assert_eq!(Statement::parse(text).unwrap(), want, "{text}");
        }
        for text in [
            "",
            "SELECT * FROM cpu",
            "CREATE DATABASE",
            "CREATE DATABASE \"open",
            "CREATE DATABASE a; DROP DATABASE b",
            "CREATE DATABASE a b",
            "SHOW DATABASES x",
            "SHOW MEASUREMENTS x",
            "SHOW MEASUREMENTS ON",
            "SHOW MEASUREMENTS ON a LIMIT 1",
            "DROP DATABASE a",
        ] {
            assert!(Statement::parse(text).is_err(), "{text}");
        }
    }
}
