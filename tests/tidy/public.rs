//! What an embedder builds on changes knowingly: its listing is checked in.
//!
//! `unreachable_pub` is on, so what says `pub` can be reached, and a scan of tokens finds it.

use std::path::Path;

use super::{
    Source, package, production,
    source::{Token, tokens},
};

const LISTING: &str = "tests/fixtures/public-api.txt";
/// Modules that are promised to embedders, as the beginning of paths below `src/`. What the program is
/// made of beside them (HTTP, command line, columns) may change between versions.
const PROMISED: [&str; 8] = [
    "disk/",
    "engine/image.rs",
    "engine/memory.rs",
    "engine/mod.rs",
    "node/",
    "testing/engine_suite/",
    "transport/",
    "types/",
];

/// Every public item of the promised modules, a line each.
fn listing(sources: &[Source]) -> Vec<String> {
    let mut lines = Vec::new();
    for source in production(sources) {
        let below = source.in_src().unwrap_or_default();
        if !PROMISED.iter().any(|promised| below.starts_with(promised)) {
            continue;
        }
        let module = source.module().join("::");
        let tokens = tokens(&source.production);
        lines.extend(items(&tokens).into_iter().map(|item| format!("{module}: {item}")));
    }
    lines.sort();
    lines
}

/// Public items of one file, those of `impl` blocks behind their header.
fn items(tokens: &[Token<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside: Vec<(usize, String)> = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    while at < tokens.len() {
        let text = tokens[at].text;
        let context =
            |inside: &[(usize, String)]| inside.last().map_or_else(String::new, |i| format!("{} ", i.1));
        if text == "impl" && inside.is_empty() && begins_item(tokens, at) {
            let end = head(tokens, at);
            let header = join(&tokens[at..end]);
            if header.contains(" for ") {
                found.push(header.clone());
            }
            inside.push((depth, header));
            at = end;
            continue;
        }
        if text == "pub" && tokens.get(at + 1).is_some_and(|next| next.text != "(") {
            let whole = tokens[at..].iter().take(3).any(|t| matches!(t.text, "enum" | "trait"));
            let end = if whole { body(tokens, at) } else { head(tokens, at) };
            let text = if whole { outline(&tokens[at..end]) } else { join(&tokens[at..end]) };
            found.push(format!("{}{text}", context(&inside)));
            if let [_, kind, name, ..] = tokens[at..end]
                && kind.text == "struct"
                && tokens.get(end).is_some_and(|next| next.text == "{")
            {
                inside.push((depth, name.text.to_owned()));
            }
            at = end;
            continue;
        }
        match text {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inside.retain(|(opened, _)| *opened < depth);
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// `impl` in a signature is a type, not an item.
fn begins_item(tokens: &[Token<'_>], at: usize) -> bool {
    at == 0 || matches!(tokens[at - 1].text, "}" | ";" | "]" | "{")
}

/// Where the head of an item ends: before its body, its end, or the next field.
fn head(tokens: &[Token<'_>], from: usize) -> usize {
    let (mut round, mut angle) = (0_i32, 0_i32);
    let is_use = tokens.get(from + 1).is_some_and(|next| next.text == "use");
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text {
            "(" | "[" => round += 1,
            ")" | "]" if round == 0 => return at,
            ")" | "]" => round -= 1,
            "<" => angle += 1,
            ">" if tokens[at - 1].text != "-" && tokens[at - 1].text != "=" => angle -= 1,
            ";" if round == 0 => return at,
            "{" | "}" | "=" if round == 0 && !is_use => return at,
            "," if round == 0 && angle == 0 && !is_use => return at,
            _ => {}
        }
    }
    tokens.len()
}

/// Where an item with a body ends.
fn body(tokens: &[Token<'_>], from: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// An enum as it stands; a trait without the bodies of its methods.
fn outline(tokens: &[Token<'_>]) -> String {
    let is_trait = tokens.iter().take(3).any(|token| token.text == "trait");
    let mut depth = 0;
    let mut kept = Vec::new();
    for token in tokens {
        if token.text == "}" {
            depth -= 1;
        }
        if !is_trait || depth < 2 {
            kept.push(*token);
        }
        if token.text == "{" {
            depth += 1;
        }
    }
    join(&kept)
}

fn join(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    for pair in [None].into_iter().chain(tokens.iter().map(Some)).zip(tokens.iter().map(Some).chain([None])) {
        let (before, Some(token)) = pair else { break };
        let word = |token: &Token<'_>| token.text.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let apart = before.is_some_and(|before| {
            word(before) && word(token)
                || matches!(before.text, "," | ":" | "{" | ";" | "=" | "+")
                || matches!(token.text, "{" | "}" | "=" | "+" | "-") && before.text != "::"
                || before.text == ">" && word(token)
        });
        if apart {
            text.push(' ');
        }
        text.push_str(token.text);
    }
    text
}

#[test]
fn the_public_api_is_the_one_that_is_checked_in() {
    let rust: Vec<Source> = package().into_iter().filter(|source| source.path.ends_with(".rs")).collect();
    let now = listing(&rust).join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LISTING);
    if std::env::var_os("SKEIN_UPDATE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let then = std::fs::read_to_string(&path).unwrap_or_default();
    let gone: Vec<&str> = then.lines().filter(|line| !now.lines().any(|there| there == *line)).collect();
    let new: Vec<&str> = now.lines().filter(|line| !then.lines().any(|there| there == *line)).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "the public API is another. If it is meant, say it in CHANGELOG.md and run\n  \
         SKEIN_UPDATE=1 cargo test --test tidy public_api\ngone:\n  {}\nnew:\n  {}",
        gone.join("\n  "),
        new.join("\n  ")
    );
}

#[test]
fn items_of_every_form_are_seen() {
    let text = "//! t\npub use a::{B, C};\n/// d\npub struct S<T> { pub f: Map<K, V>, g: u8, pub h: [u8; 4] }\n\
        impl<T> S<T> {\n pub const fn new(x: impl Fn(u8) -> u8) -> Option<Self> where T: X { if a < b { y } }\n fn no() {}\n\
        pub async fn run(&self) { pub_not() } }\nimpl fmt::Debug for S<u8> { fn fmt() {} }\npub(crate) fn hidden() {}\n\
        pub trait T: A + 'static {\n fn a(&self) -> u8;\n fn b(&self) { let x = 1; }\n}\npub enum E { A, B { x: u8 } }\n\
        pub const N: usize = 3;\n#[cfg(test)]\nmod tests { pub fn t() {} }";
    let sources = [Source::new("src/lib.rs", "//! l\nmod types;"), Source::new("src/types/t.rs", text)];
    let seen = listing(&sources);
    let wanted = [
        "pub use a::{ B, C }",
        "pub struct S<T>",
        "S pub f: Map<K, V>",
        "S pub h: [u8; 4]",
        "impl<T> S<T> pub const fn new(x: impl Fn(u8) -> u8) -> Option<Self> where T: X",
        "impl<T> S<T> pub async fn run(&self)",
        "impl fmt::Debug for S<u8>",
        "pub trait T: A + 'static { fn a(&self) -> u8; fn b(&self) { } }",
        "pub enum E { A, B { x: u8 } }",
        "pub const N: usize",
    ];
    let mut wanted = wanted.map(|item| format!("types::t: {item}"));
    wanted.sort();
    assert_eq!(seen, wanted);
}
