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
        let taken = body::take(body, &head.headers, &edge.app.config, &edge.bodies).await?;
        params.extend(Params::parse(&String::from_utf8_lossy(&taken.bytes)));
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
            let names: Vec<Value> = names.map(|name| json!([name])).collect();
            let mut series = json!({ "name": "databases", "columns": ["name"] });
            if !names.is_empty() {
                series["values"] = names.into();
            }
            Ok(Json(json!({ "results": [{ "statement_id": 0, "series": [series] }] })))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Statement {
    CreateDatabase(String),
    ShowDatabases,
}

impl Statement {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let other = || {
            ApiError::invalid(format!(
                "InfluxQL is not spoken here ({}): only CREATE DATABASE and SHOW DATABASES; \
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
        if !is(first, "create") || !is(second, "database") {
            return Err(other());
        }
        // `WITH DURATION ...` behind the name is let pass: retention is not set this way.
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(other)?,
            None => word(rest),
        };
        let (with, _) = word(after.trim_start());
        let well_formed = !name.is_empty() && !name.contains(['"', ';', '\\']);
        if well_formed && (with.is_empty() || is(with, "with")) {
            Ok(Self::CreateDatabase(name.to_owned()))
        } else {
            Err(other())
        }
    }
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
        for text in [
            "",
            "SELECT * FROM cpu",
            "CREATE DATABASE",
            "CREATE DATABASE \"open",
            "CREATE DATABASE a; DROP DATABASE b",
            "CREATE DATABASE a b",
            "SHOW DATABASES x",
            "DROP DATABASE a",
        ] {
            assert!(Statement::parse(text).is_err(), "{text}");
        }
    }
}
