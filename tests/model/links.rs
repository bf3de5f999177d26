//! The rules' table and the source say the same: each rule is marked, `// Model: name`, in the
//! functions that the table names, and nowhere else.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::rules::Rule;

/// (rule, `file::function`).
type Links = BTreeSet<(String, String)>;

/// What the table says.
fn in_table() -> Links {
    let of =
        |rule: &'static Rule| rule.places().iter().map(|place| (rule.name().to_owned(), (*place).to_owned()));
    Rule::ALL.iter().flat_map(of).collect()
}

/// The marks in one file, each with the function that was begun last before it.
fn marks(path: &str, text: &str) -> Links {
    let mut function = "";
    let mut found = Links::new();
    for line in text.lines().map(str::trim) {
        if let Some(rule) = line.strip_prefix("// Model: ") {
            found.insert((rule.to_owned(), format!("{path}::{function}")));
        } else if !line.starts_with("//")
            && let Some((_, rest)) = format!(" {line}").split_once(" fn ")
        {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            function = line.get(line.len() - rest.len()..).and_then(|name| name.get(..end)).unwrap_or("");
        }
    }
    found
}

/// Every Rust file below `dir`, by its path from there.
fn sources(root: &Path, dir: &Path, into: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push((path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), path));
        }
    }
}

#[test]
fn each_rule_is_marked_where_the_table_says() {
    let root = Path::new(option_env!("CARGO_MANIFEST_DIR").unwrap_or(".")).join("src");
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    let marked: Links =
        files.iter().flat_map(|(name, path)| marks(name, &fs::read_to_string(path).unwrap())).collect();
    let table = in_table();
    let missing: Vec<_> = table.difference(&marked).collect();
    let unknown: Vec<_> = marked.difference(&table).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not marked: {missing:#?}\nnot in the table: {unknown:#?}"
    );
}

#[test]
fn marks_are_read_with_their_function() {
    let text = "fn a() {\n    // Model: one\n    b();\n}\n/// fn not_this()\npub async fn c<T>(\n) {\n    // Model: two\n}";
    let want = [("one", "x.rs::a"), ("two", "x.rs::c")];
    assert_eq!(marks("x.rs", text), want.map(|(rule, at)| (rule.to_owned(), at.to_owned())).into());
}
