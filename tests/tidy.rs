//! The house rules as a test: layers, where a dependency may appear, file shape, metrics, banned words.
//!
//! Each rule is a function from sources to violations and stands beside a test that plants one.
//! `docs/ARCHITECTURE.md` says why the rules are there.

#[path = "tidy/crates.rs"]
mod crates;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/metrics.rs"]
mod metrics;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/public.rs"]
mod public;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use std::{path::Path, process::Command};

use source::{Source, test_modules};

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    says: String,
}

fn violation(source: &Source, line: usize, says: impl Into<String>) -> Violation {
    Violation { path: source.path.clone(), line, says: says.into() }
}

/// The rule finds nothing in the Rust files of the package.
fn hold(rule: fn(&[Source]) -> Vec<Violation>) {
    hold_over(rule, |path| path.ends_with(".rs"));
}

/// As [`hold`], over every text file.
fn hold_for_all(rule: fn(&[Source]) -> Vec<Violation>) {
    hold_over(rule, |_| true);
}

fn hold_over(rule: fn(&[Source]) -> Vec<Violation>, which: fn(&str) -> bool) {
    let mut sources = package();
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the package was not found");
    sources.retain(|source| which(&source.path));
    let found: Vec<String> =
        rule(&sources).iter().map(|v| format!("  {}:{}: {}", v.path, v.line, v.says)).collect();
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

/// The rule finds exactly what was planted in `path`.
fn catches(rule: fn(&[Source]) -> Vec<Violation>, sources: &[Source], path: &str, want: &str) {
    let found = rule(sources);
    let there = found.iter().filter(|v| v.path == path && v.says.contains(want)).count();
    assert!(there == 1, "{path}: wanted one `{want}`, found {found:?}");
}

/// The files that are compiled into the library or the program, not only into tests.
fn production(sources: &[Source]) -> impl Iterator<Item = &Source> {
    let tests = test_files(sources);
    sources.iter().filter(move |source| source.in_src().is_some() && !is_under(&source.path, &tests))
}

/// Paths (without `.rs`) of the modules declared under `#[cfg(test)]`.
fn test_files(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.in_src().is_some()) {
        let mut dir = vec!["src".to_owned()];
        dir.extend(source.module());
        found.extend(test_modules(&source.code).into_iter().map(|name| format!("{}/{name}", dir.join("/"))));
    }
    found
}

fn is_under(path: &str, modules: &[String]) -> bool {
    let inside = |module: &String| {
        path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    modules.iter().any(inside)
}

/// Every text file of the package that is or would be committed.
fn package() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git =
        Command::new("git").args(["ls-files", "-z", "-co", "--exclude-standard"]).current_dir(root).output();
    let listed = match git {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        _ => String::new(),
    };
    let mut paths: Vec<String> =
        listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    if paths.is_empty() {
        // An unpacked source archive.
        walk(root, "", &mut paths);
    }
    paths.sort();
    let read = |path: &String| Some(Source::new(path, &std::fs::read_to_string(root.join(path)).ok()?));
    paths.iter().filter_map(read).collect()
}

fn walk(root: &Path, below: &str, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(below)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !matches!(name.as_str(), "target" | ".git") => {
                walk(root, &path, paths)
            }
            Ok(kind) if kind.is_file() => paths.push(path),
            _ => {}
        }
    }
}
