//! Words that do not stay: unfinished work, unexplained unwraps, the machine it was written on.

use super::{Source, Violation, catches, hold, hold_for_all, production, violation};

/// Nothing half-done: in sources, tests, examples and benches alike.
fn unfinished(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources {
        for (at, line) in source.code.lines().enumerate() {
            let bare: String = line.chars().filter(|c| !c.is_whitespace()).collect();
            for word in ["todo!", "unimplemented!", "dbg!", "#[ignore", "unreachable!()"] {
                // `todo!` but not `my_todo!`.
                let whole = |at: usize| !bare[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if bare.match_indices(word).any(|(at, _)| whole(at)) {
                    found.push(violation(source, at + 1, format!("`{word}` does not stay in the tree")));
                }
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_unfinished() {
    hold(unfinished);
}

#[test]
fn what_is_unfinished_is_seen() {
    for word in [
        "todo!()",
        "unimplemented!(\"later\")",
        "dbg!(x)",
        "#[ignore]",
        "# [ignore = \"slow\"]",
        "unreachable!()",
    ] {
        let text = format!("//! w\nfn f() {{\n    {word}\n}}");
        catches(unfinished, &[Source::new("tests/it/main.rs", &text)], "tests/it/main.rs", "does not stay");
    }
    let text = "//! todo!()\nfn f() { unreachable!(\"a closed enum\") } // dbg!(x)\nmy_todo!();";
    assert_eq!(unfinished(&[Source::new("src/wal/mod.rs", text)]), []);
}

/// `unwrap` and `expect` only with the reason why they cannot fail.
fn unwraps(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    let not_harness = |source: &&Source| source.in_src().is_some_and(|below| !below.starts_with("testing/"));
    for source in production(sources).filter(not_harness) {
        let original: Vec<&str> = source.text.lines().collect();
        let reason = |line: usize| original.get(line).is_some_and(|text| text.contains("// infallible: "));
        for (at, line) in source.production.lines().enumerate() {
            let unwraps = line.contains(".unwrap()") || line.contains(".expect(");
            if unwraps && !reason(at) && !(at > 0 && reason(at - 1)) {
                let says = "handle the failure, or say `// infallible: why` on this line or the one above";
                found.push(violation(source, at + 1, says));
            }
        }
    }
    found
}

#[test]
fn nothing_is_unwrapped_without_a_reason() {
    hold(unwraps);
}

#[test]
fn an_unwrap_without_a_reason_is_seen() {
    for text in ["//! w\nfn f() { g().unwrap() }", "//! w\nfn f() {\n    g()\n        .expect(\"g\")\n}"] {
        catches(unwraps, &[Source::new("src/wal/mod.rs", text)], "src/wal/mod.rs", "handle the failure");
    }
    let fine = "//! w.unwrap()\nfn f() {\n    g().unwrap(); // infallible: g is constant\n    // infallible: h too\n    h().expect(\"h\");\n\
                    i().unwrap_or_default();\n}\n#[cfg(test)]\nmod tests { fn t() { g().unwrap() } }";
    assert_eq!(unwraps(&[Source::new("src/wal/mod.rs", fine)]), []);
}

/// The tree names no machine it was written on and no package source but the public one.
fn machine_words(sources: &[Source]) -> Vec<Violation> {
    // In two halves, so that this list is not a finding.
    let homes = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/Us", "ers/"],
        ["/fa", "rm/"],
        ["C:\\Us", "ers\\"],
    ];
    let hosts = [
        ["registry", "+http"],
        ["sparse", "+http"],
        ["replace", "-with"],
        ["[sour", "ce."],
        ["[regis", "tries"],
    ];
    let mut found = Vec::new();
    // These two say where dependencies come from, and check it.
    let about_sources = ["Cargo.lock", "benches/Cargo.lock", "tests/supply_chain.rs"];
    for source in sources.iter().filter(|source| !about_sources.contains(&source.path.as_str())) {
        for (at, line) in source.text.lines().enumerate() {
            for home in homes.map(|halves| halves.concat()) {
                // `src/home/x` and `a/root/b` are not absolute.
                let absolute = |at: usize| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}])>*".contains(c))
                };
                if line.match_indices(&home).any(|(at, _)| absolute(at)) {
                    found.push(violation(source, at + 1, format!("a path of one machine: {home}")));
                }
            }
            for host in hosts.map(|halves| halves.concat()).iter().filter(|host| line.contains(*host)) {
                found.push(violation(source, at + 1, format!("names a package source: {host}")));
            }
        }
    }
    found
}

#[test]
fn no_machine_is_named() {
    hold_for_all(machine_words);
}

#[test]
fn a_machine_path_or_package_source_is_seen() {
    for (path, halves) in [
        ("README.md", ["see /wo", "rk/notes"]),
        (".ci/run", ["cd \"/ho", "me/someone/x\""]),
        (".cargo/config.toml", ["[sour", "ce.mirror]"]),
        ("docs/build.md", ["sparse", "+https://mirror.example/"]),
    ] {
        let want = if path == "README.md" || path == ".ci/run" {
            "a path of one machine"
        } else {
            "names a package source"
        };
        catches(machine_words, &[Source::new(path, &format!("first\n{}", halves.concat()))], path, want);
    }
    let fine = ["frame", "work/x, $HO", "ME/.local, ~/x, /var/lib/skein, src/ho", "me/x.rs"].concat();
    assert_eq!(machine_words(&[Source::new("README.md", &fine)]), []);
}
