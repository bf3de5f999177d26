//! Where other crates, and status codes, may be named.

use super::{
    Source, Violation, catches, hold, production,
    source::{Token, tokens},
    violation,
};

/// A crate (or the beginning of its name, if it ends in `*`) and the only places that may name it.
const CONFINED: [(&str, &[&str]); 19] = [
    ("arrow_flight", &["http/flight"]),
    ("arrow", &["engine/columnar/", "http/query"]),
    ("arrow_*", &["engine/columnar/", "http/query", "http/flight"]),
    ("parquet", &["engine/columnar/", "http/query"]),
    ("datafusion*", &["engine/columnar/sql", "http/query"]),
    ("axum*", &["http/", "cli/"]),
    ("hyper", &["http/", "cli/", "chaos/"]),
    ("prost", &["http/flight"]),
    ("tonic", &["http/flight"]),
    ("hyper_util", &["http/", "cli/", "chaos/"]),
    ("http_body_util", &["http/", "cli/", "chaos/"]),
    ("clap", &["cli/", "chaos/"]),
    ("clap_complete", &["cli/"]),
    ("clap_mangen", &["cli/"]),
    ("quinn", &["transport/", "testing/"]),
    ("quinn_*", &["transport/", "testing/"]),
    ("openraft", &["raft/"]),
    ("mdns_sd", &["discovery/"]),
    ("tracing_subscriber", &["telemetry/", "cli/"]),
];

/// Only these know HTTP status codes: the edge that gives them, and the client that reads them.
const STATUS_CODES: [&str; 3] = ["http/error.rs", "http/mod.rs", "cli/client.rs"];

fn confined_crates(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in production(sources) {
        let Some(below) = source.in_src() else { continue };
        for token in crate_names(&source.production) {
            let rule = CONFINED.iter().find(|(name, _)| match name.strip_suffix('*') {
                Some(start) => token.text.starts_with(start),
                None => token.text == *name,
            });
            if let Some((_, places)) = rule.filter(|(_, places)| !places.iter().any(|p| below.starts_with(p)))
            {
                let places = places.join(", ");
                found.push(violation(
                    source,
                    token.line,
                    format!("crate `{}` belongs to {places}", token.text),
                ));
            }
        }
    }
    found
}

/// Words that begin a path: `name::`, `use name;`, `use {name, ..}`.
fn crate_names(code: &str) -> Vec<Token<'_>> {
    let tokens = tokens(code);
    let word = |at: usize| tokens.get(at).map_or("", |token: &Token<'_>| token.text);
    let starts = |at: usize| {
        let before = if at == 0 { "" } else { word(at - 1) };
        // `::name::`, but not the middle of `a::name::` or `<T>::name::`.
        let behind = |at: usize| tokens[at].is_word() && tokens[at].text != "use";
        let absolute = at == 1 || (at > 1 && !behind(at - 2) && !matches!(word(at - 2), ">" | "}"));
        let path = word(at + 1) == "::" && (before != "::" || absolute);
        path || before == "use" || (before == "crate" && at > 1 && word(at - 2) == "extern")
    };
    (0..tokens.len()).filter(|at| tokens[*at].is_word() && starts(*at)).map(|at| tokens[at]).collect()
}

#[test]
fn crates_stay_in_their_places() {
    hold(confined_crates);
}

#[test]
fn a_crate_outside_its_place_is_seen() {
    for (path, text, want) in [
        (
            "src/engine/memory.rs",
            "//! m\nuse arrow_array::RecordBatch;",
            "crate `arrow_array` belongs to engine/columnar/",
        ),
        (
            "src/engine/columnar/flush.rs",
            "//! f\nuse datafusion::prelude::*;",
            "crate `datafusion` belongs to engine/columnar/sql",
        ),
        ("src/node/start.rs", "//! s\nfn f() -> axum::Router { g() }", "crate `axum` belongs to http/"),
        ("src/config/mod.rs", "//! c\n#[derive(clap::Args)]\nstruct S;", "crate `clap` belongs to cli/"),
        ("src/join/client.rs", "//! c\nuse ::quinn::Connection;", "crate `quinn` belongs to transport/"),
        ("src/node/roles.rs", "//! r\nuse {std::fmt, openraft::Raft};", "crate `openraft` belongs to raft/"),
        ("src/wal/mod.rs", "//! w\nuse parquet;", "crate `parquet` belongs to engine/columnar/"),
    ] {
        catches(confined_crates, &[Source::new(path, text)], path, want);
    }
    let fine = [
        Source::new("src/engine/columnar/sql.rs", "//! s\nuse datafusion::arrow::array::Int64Array;"),
        Source::new("src/engine/columnar/mod.rs", "//! c\nmod parquet;\nuse parquet::write;"),
        Source::new("src/http/query.rs", "//! q\nuse arrow_ipc::writer;"),
        Source::new(
            "src/wal/record.rs",
            "//! openraft::x\nconst A: &str = \"clap::Parser\";\nuse self::hyper;",
        ),
    ];
    assert_eq!(confined_crates(&fine), []);
}

fn status_codes(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in
        production(sources).filter(|s| s.in_src().is_some_and(|below| !STATUS_CODES.contains(&below)))
    {
        for token in tokens(&source.production).iter().filter(|token| token.text == "StatusCode") {
            found.push(violation(
                source,
                token.line,
                "only http/error.rs knows status codes: answer with its error type",
            ));
        }
    }
    found
}

#[test]
fn status_codes_are_named_in_one_place() {
    hold(status_codes);
}

#[test]
fn a_status_code_elsewhere_is_seen() {
    let text = "//! w\nfn f() -> axum::http::StatusCode { g() }";
    catches(
        status_codes,
        &[Source::new("src/http/write.rs", text)],
        "src/http/write.rs",
        "only http/error.rs",
    );
    assert_eq!(status_codes(&[Source::new("src/http/error.rs", text)]), []);
}
