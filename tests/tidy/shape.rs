//! A file opens with what it is, is not long, is named for what is in it, and is compiled.

use std::collections::BTreeSet;

use super::{Source, Violation, catches, hold, is_under, source::tokens, test_files, violation};

/// Lines before the tests of a file.
const LINES: usize = 450;

/// Files that are longer, with the length they may not exceed. This list only shrinks.
const LONGER: &[(&str, usize)] = &[("src/testing/disk.rs", 490)];

/// Names that say nothing about what is inside, and what to do instead: name the noun.
const DRAWERS: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "misc", "shared", "handlers"];

/// Opens with what it is, is not long, is named for what is in it, and is reached.
fn shape(sources: &[Source]) -> Vec<Violation> {
    let declared = declared_modules(sources);
    let tests = test_files(sources);
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.in_src().is_some()) {
        if !source.text.starts_with("//! ") {
            found.push(violation(source, 1, "open the file with a `//!` line that says what it is"));
        }
        let limit = LONGER.iter().find(|(path, _)| *path == source.path).map_or(LINES, |(_, lines)| *lines);
        let lines = source.lines_before_tests();
        if lines > limit && !is_under(&source.path, &tests) {
            found.push(violation(
                source,
                lines,
                format!("{lines} lines before its tests, {limit} allowed: split it"),
            ));
        }
        let module = source.module();
        if let Some(drawer) = module.iter().find(|part| DRAWERS.contains(&part.as_str())) {
            found.push(violation(
                source,
                1,
                format!("`{drawer}` says nothing: name the noun that is inside"),
            ));
        }
        let root = module.is_empty() || source.is_program() || module[0] == "bin";
        if !root && !declared.contains(&module) {
            found.push(violation(source, 1, "no `mod` declares this file, so it is never compiled"));
        }
    }
    found
}

/// Every module that a `mod name;` names, as a path from the root.
fn declared_modules(sources: &[Source]) -> BTreeSet<Vec<String>> {
    let mut declared = BTreeSet::new();
    for source in sources.iter().filter(|source| source.in_src().is_some()) {
        let tokens = tokens(&source.code);
        for window in tokens.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";") {
            let mut module = source.module();
            module.push(window[1].text.to_owned());
            declared.insert(module);
        }
    }
    declared
}

#[test]
fn files_have_the_shape_of_the_house() {
    hold(shape);
}

/// An exception that is not needed any more, or allows more than is there.
fn loose_exceptions(sources: &[Source]) -> Vec<Violation> {
    loose(LONGER, sources)
}

fn loose(exceptions: &[(&str, usize)], sources: &[Source]) -> Vec<Violation> {
    let lines =
        |path: &str| sources.iter().find(|source| source.path == path).map_or(0, Source::lines_before_tests);
    let loose =
        exceptions.iter().filter(|(path, allowed)| lines(path) <= LINES || lines(path) + 20 < *allowed);
    let says = |path: &str| format!("is {} lines now: shrink its entry in LONGER", lines(path));
    loose.map(|(path, _)| Violation { path: (*path).into(), line: 1, says: says(path) }).collect()
}

#[test]
fn the_list_of_long_files_only_shrinks() {
    hold(loose_exceptions);
    let long = |lines: usize| Source::new("src/a.rs", &"fn f() {}\n".repeat(lines));
    for (lines, wanted) in [(LINES + 50, 0), (LINES + 20, 1), (LINES, 1)] {
        assert_eq!(loose(&[("src/a.rs", LINES + 50)], &[long(lines)]).len(), wanted, "{lines}");
    }
    assert_eq!(loose(&[("src/gone.rs", LINES + 50)], &[long(1)]).len(), 1);
}

#[test]
fn a_misshapen_file_is_seen() {
    let long = format!("//! l\n{}", "fn f() {}\n".repeat(LINES));
    for (path, text, want) in [
        ("src/wal/record.rs", "use std::fmt;", "open the file with"),
        ("src/wal/record.rs", long.as_str(), "451 lines before its tests, 450 allowed"),
        ("src/wal/util.rs", "//! u", "`util` says nothing"),
        ("src/common/mod.rs", "//! c", "`common` says nothing"),
        ("src/wal/lost.rs", "//! l", "no `mod` declares this file"),
    ] {
        let parent = Source::new("src/wal/mod.rs", "//! w\nmod record;\nmod util;");
        catches(shape, &[parent, Source::new(path, text)], path, want);
    }
    let tested =
        format!("//! l\nfn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn g() {}\n".repeat(LINES));
    let fine = [
        Source::new("src/lib.rs", "//! l\npub mod wal;"),
        Source::new("src/wal/mod.rs", "//! w\npub(crate) mod record;\n#[cfg(test)]\nmod tests;"),
        Source::new("src/wal/record.rs", &tested),
        Source::new("src/wal/tests.rs", &long),
        Source::new("src/chaos/main.rs", "//! c\nmod check;"),
        Source::new("src/chaos/check.rs", "//! c"),
    ];
    assert_eq!(shape(&fine), []);
}
