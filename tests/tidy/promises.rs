//! What docs/consistency.md promises and docs/security.md says is refused: beside each stands the test that
//! shows it, and it is there.

use super::{Source, Violation, catches, hold_for_all, violation};

/// The pages with a table that names tests, and its heading.
const PAGES: [(&str, &str); 2] = [
    ("docs/consistency.md", "## What makes it hold"),
    ("docs/security.md", "## What is refused, and the test that says so"),
];

fn promises(sources: &[Source]) -> Vec<Violation> {
    let page = |path: &str| sources.iter().find(|source| source.path == path);
    let of = |(path, table): &(&str, &str)| page(path).map(|page| promises_of(page, table, sources));
    PAGES.iter().filter_map(of).flatten().collect()
}

/// Each row names tests that exist: `path.rs::name`, `name` in the file named last, or a file of tests.
fn promises_of(page: &Source, table: &str, sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut rows = 0;
    let lines = page.text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let rows_of = lines.skip_while(|(_, line)| *line != table).skip(1);
    let rows_of =
        rows_of.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with('|'));
    // The first two lines are the head.
    for (at, line) in rows_of.skip(2) {
        rows += 1;
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let named: Vec<&str> =
            cells.last().map_or(Vec::new(), |cell| cell.split('`').skip(1).step_by(2).collect());
        if cells.len() != 2 || named.is_empty() {
            found.push(violation(page, at, "a promise has two cells and names a test"));
        }
        let mut file = None;
        for name in named {
            let (path, test) = match name.split_once("::") {
                Some((path, test)) => (Some(path), Some(test)),
                None if name.ends_with(".rs") => (Some(name), None),
                None => (None, Some(name)),
            };
            if let Some(path) = path {
                file = sources.iter().find(|source| source.path == path);
            }
            let there = file.is_some_and(|file| match test {
                Some(test) => is_test(file, test),
                None => file.code.contains("#[test]") || file.code.contains("::test"),
            });
            if !there {
                found.push(violation(page, at, format!("there is no test `{name}`")));
            }
        }
    }
    if rows == 0 {
        found.push(violation(page, 1, format!("no table under `{table}`")));
    }
    found
}

/// True for a function behind an attribute that makes it a test which is run.
fn is_test(file: &Source, name: &str) -> bool {
    let lines: Vec<&str> = file.code.lines().map(str::trim).collect();
    let begins = |line: &&str| {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    };
    lines.iter().enumerate().filter(|(_, line)| begins(line)).any(|(at, _)| {
        let attributes: Vec<&&str> =
            lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.is_empty()).collect();
        let is = |what: &str| attributes.iter().any(|line| line.contains(what));
        (is("#[test]") || is("::test]") || is("::test(")) && !is("ignore")
    })
}

#[test]
fn every_promise_names_a_test_that_exists() {
    hold_for_all(promises);
}

#[test]
fn a_promise_without_its_test_is_caught() {
    let tests = Source::new(
        "src/a/tests.rs",
        "#[tokio::test(start_paused = true)]\nasync fn one() {}\n\n#[test]\nfn two() {}\n\nfn three() {}\n\n#[test]\n#[ignore]\nfn four() {}\n",
    );
    for (path, heading) in PAGES {
        let page = |row: &str| {
            let text = format!(
                "# Promises\n\n{heading}\n\n| invariant | test |\n|---|---|\n{row}\n\n## What is not covered\n"
            );
            Source::new(path, &text)
        };
        let good = page("| kept at `quorum` | `src/a/tests.rs::one` (I1), `two`, `src/a/tests.rs` |");
        assert_eq!(promises(&[good, tests.clone()]), []);
        for (row, want) in [
            ("| lost | `src/a/tests.rs::none` |", "no test `src/a/tests.rs::none`"),
            ("| no test | `src/a/tests.rs::three` |", "no test `src/a/tests.rs::three`"),
            ("| not run | `src/a/tests.rs::four` |", "no test `src/a/tests.rs::four`"),
            ("| no file | `src/b.rs::one` |", "no test `src/b.rs::one`"),
            ("| nothing | later |", "names a test"),
            ("", "no table"),
        ] {
            catches(promises, &[page(row), tests.clone()], path, want);
        }
    }
}
