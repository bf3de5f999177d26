//! What the package is built from: sources, versions, licences and features of its dependencies.
//!
//! Reads Cargo.lock, and asks the cargo that runs the tests, without the network.

use std::{collections::BTreeMap, collections::BTreeSet, process::Command};

/// So that its tests run.
#[path = "../patches/base2histogram/src/lib.rs"]
#[allow(dead_code, unreachable_pub)]
mod base2histogram;

/// Where every dependency comes from.
const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Written here: this package, and what stands in the place of a dependency's dependency.
const OURS: [&str; 2] = [env!("CARGO_PKG_NAME"), "base2histogram"];

/// Present once: two versions would mean types that look alike and are not, or a second TLS.
const ONCE: [&str; 9] = [
    "arrow-array",
    "arrow-schema",
    "datafusion",
    "openraft",
    "parquet",
    "quinn-proto",
    "ring",
    "rustls",
    "tokio",
];

/// Versions below which a known fault lies.
const AT_LEAST: [(&str, [u64; 3]); 1] = [("quinn-proto", [0, 11, 18])];

/// Permissive licences, by their SPDX names.
const LICENCES: [&str; 9] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Locked {
    name: String,
    version: String,
    /// Empty for [`OURS`].
    source: String,
    checksum: bool,
}

#[test]
fn every_dependency_comes_from_the_public_registry() {
    assert_eq!(foreign(&lockfile()), Vec::<String>::new());
}

#[test]
fn a_foreign_source_is_seen() {
    let lock = |source: &str, sum: &str| {
        parse_lock(&format!(
            "version = 4\n\n[[package]]\nname = \"x\"\nversion = \"1.0.0\"\n{source}\n{sum}\n"
        ))
    };
    let sum = "checksum = \"00\"";
    assert_eq!(foreign(&lock(&format!("source = \"{SOURCE}\""), sum)), Vec::<String>::new());
    assert_eq!(foreign(&lock("source = \"git+https://example.com/x#1\"", sum)).len(), 1);
    assert_eq!(foreign(&lock(&format!("source = \"{SOURCE}\""), "")).len(), 1, "no checksum");
    assert_eq!(foreign(&lock("", "")).len(), 1, "a path dependency");
}

fn foreign(packages: &[Locked]) -> Vec<String> {
    let ours = |p: &&Locked| OURS.contains(&p.name.as_str()) && p.source.is_empty();
    let public = |p: &&Locked| p.source == SOURCE && p.checksum;
    packages
        .iter()
        .filter(|p| !ours(p) && !public(p))
        .map(|p| format!("{} from {:?}", p.name, p.source))
        .collect()
}

#[test]
fn what_must_be_there_once_is_there_once() {
    assert_eq!(not_once(&lockfile()), Vec::<String>::new());
}

#[test]
fn a_second_version_is_seen() {
    let mut packages = lockfile();
    packages.push(Locked { name: "rustls".into(), version: "0.22.0".into(), ..Locked::default() });
    packages.retain(|p| p.name != "parquet");
    assert_eq!(not_once(&packages).len(), 2, "{:?}", not_once(&packages));
}

fn not_once(packages: &[Locked]) -> Vec<String> {
    let versions = |name: &str| -> Vec<&str> {
        packages.iter().filter(|p| p.name == name).map(|p| p.version.as_str()).collect()
    };
    let wrong = ONCE.iter().filter(|name| versions(name).len() != 1);
    wrong.map(|name| format!("{name}: {:?}", versions(name))).collect()
}

#[test]
fn nothing_is_older_than_its_fix() {
    for (name, least) in AT_LEAST {
        for package in lockfile().iter().filter(|p| p.name == name) {
            assert!(number(&package.version) >= least, "{name} {} is older than {least:?}", package.version);
        }
    }
    assert!(number("0.11.9") < [0, 11, 18] && number("0.12.0") >= [0, 11, 18]);
    assert!(number("0.11.18-rc.1") < number("0.11.18"), "a pre-release does not count as the release");
}

/// A pre-release sorts below everything, which is the strict answer.
fn number(version: &str) -> [u64; 3] {
    let parts: Vec<u64> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    if version.contains('-') { [0; 3] } else { std::array::from_fn(|at| parts.get(at).copied().unwrap_or(0)) }
}

fn lockfile() -> Vec<Locked> {
    let packages = parse_lock(include_str!("../Cargo.lock"));
    assert!(packages.len() > 100, "Cargo.lock was not understood");
    packages
}

fn parse_lock(text: &str) -> Vec<Locked> {
    let mut packages: Vec<Locked> = Vec::new();
    for line in text.lines() {
        if line == "[[package]]" {
            packages.push(Locked::default());
        }
        let (Some(package), Some((key, value))) = (packages.last_mut(), line.split_once(" = ")) else {
            continue;
        };
        let value = value.trim_matches('"').to_owned();
        match key {
            "name" => package.name = value,
            "version" => package.version = value,
            "source" => package.source = value,
            "checksum" => package.checksum = true,
            _ => {}
        }
    }
    packages
}

// ---------------------------------------------------------------------------------------------
// Licences, of what is built on this platform with the features under test

#[test]
fn every_licence_is_on_the_list() {
    let host = cargo(&["-vV"]);
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo -vV names its host");
    let features = enabled_features();
    let metadata = cargo(&[
        "metadata",
        "--offline",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        host,
        "--no-default-features",
        "--features",
        &features,
    ]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "cargo metadata lists {} packages", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|p| !p["license"].as_str().is_some_and(is_allowed))
        .map(|p| format!("{} {}: {}", p["name"], p["version"], p["license"]))
        .collect();
    assert!(refused.is_empty(), "licences not on the list:\n{}", refused.join("\n"));
}

#[test]
fn licence_expressions_are_understood() {
    for fine in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0-only OR MIT",
        "(MIT OR GPL-2.0-only) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
        "MIT OR GPL-2.0-only AND GPL-3.0-only",
    ] {
        assert!(is_allowed(fine), "{fine}");
    }
    for wrong in [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "(MIT OR ISC) AND SSPL-1.0",
        "GPL-2.0-only WITH Classpath-exception-2.0",
    ] {
        assert!(!is_allowed(wrong), "{wrong}");
    }
}

/// An SPDX expression that can be satisfied from [`LICENCES`]. `AND` binds closer than `OR`; a
/// slash is the old spelling of `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (allowed, rest) = any_of(&words);
    allowed && rest.is_empty()
}

fn any_of<'a, 'w>(words: &'a [&'w str]) -> (bool, &'a [&'w str]) {
    let (mut allowed, mut rest) = all_of(words);
    while let ["OR", more @ ..] = rest {
        let next = all_of(more);
        (allowed, rest) = (allowed || next.0, next.1);
    }
    (allowed, rest)
}

fn all_of<'a, 'w>(words: &'a [&'w str]) -> (bool, &'a [&'w str]) {
    let (mut allowed, mut rest) = one(words);
    while let ["AND", more @ ..] = rest {
        let next = one(more);
        (allowed, rest) = (allowed && next.0, next.1);
    }
    (allowed, rest)
}

fn one<'a, 'w>(words: &'a [&'w str]) -> (bool, &'a [&'w str]) {
    match words {
        ["(", inner @ ..] => match any_of(inner) {
            (allowed, [")", rest @ ..]) => (allowed, rest),
            (_, rest) => (false, rest),
        },
        [name, "WITH", exception, rest @ ..] => {
            (LICENCES.contains(&format!("{name} WITH {exception}").as_str()), rest)
        }
        [name, rest @ ..] => (LICENCES.contains(name), rest),
        [] => (false, &[]),
    }
}

fn enabled_features() -> String {
    let all = [
        ("server", cfg!(feature = "server")),
        ("columnar", cfg!(feature = "columnar")),
        ("sql", cfg!(feature = "sql")),
        ("mdns", cfg!(feature = "mdns")),
        ("testing", cfg!(feature = "testing")),
    ];
    all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

// ---------------------------------------------------------------------------------------------
// Features

/// `cargo run` and `cargo test` share every build of a dependency: a dev-dependency that switched
/// a feature on in something below DataFusion would build DataFusion twice. Asked of the default
/// features, whose dependencies are at hand only when they are what is being tested.
#[test]
#[cfg(all(feature = "server", feature = "columnar", feature = "sql", feature = "mdns"))]
fn tests_do_not_change_the_features_of_what_the_program_uses() {
    let program = features_of("normal,build");
    let tests = features_of("normal,build,dev");
    assert!(program.len() > 100, "cargo tree lists {} packages", program.len());
    let changed = changed_features(&program, &tests);
    assert!(
        changed.is_empty(),
        "add these features to [dependencies], as smallvec's are:\n{}",
        changed.join("\n")
    );
}

/// An embedder of the mesh builds the mesh.
#[test]
fn without_features_there_is_no_edge_no_sql_and_no_command_line() {
    let tree = |features: &[&str]| {
        let asked = ["tree", "--offline", "--locked", "-e", "normal,build", "--prefix", "none", "-f", "{p}"];
        let tree = cargo(&[&asked[..], features].concat());
        tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let alone = tree(&["--no-default-features"]);
    assert!(alone.contains("quinn") && alone.contains("openraft") && alone.len() > 100, "{}", alone.len());
    let apart = |name: &&String| {
        ["axum", "clap", "hyper", "tower", "tonic", "datafusion", "arrow", "parquet", "sqlparser"]
            .iter()
            .any(|family| name.split('-').next() == Some(family))
            || ["mdns-sd", "zstd", "flate2", "sysinfo", "toml", "tracing-subscriber"].contains(&name.as_str())
    };
    assert_eq!(alone.iter().filter(apart).collect::<Vec<_>>(), Vec::<&String>::new());
    if cfg!(all(feature = "server", feature = "sql", feature = "mdns")) {
        let all = tree(&[]);
        assert!(["axum", "clap", "datafusion", "mdns-sd"].iter().all(|name| all.contains(*name)));
        assert!(alone.len() * 2 < all.len(), "{} of {} packages", alone.len(), all.len());
    }
}

#[test]
fn a_changed_feature_is_seen() {
    let program = parse_tree("a v1.0.0 std\nb v1.0.0 (proc-macro) \nc v0.4.0 \n");
    let same = parse_tree(
        "a v1.0.0 std\na v1.0.0 std (*)\nb v1.0.0 (proc-macro) \nc v0.4.0 \nd v1.0.0 only,tests\n",
    );
    assert_eq!(changed_features(&program, &same), Vec::<String>::new());
    let other = parse_tree("a v1.0.0 alloc,std\nb v1.0.0 (proc-macro) \nc v0.4.0 \n");
    assert_eq!(changed_features(&program, &other).len(), 1);
}

type Features = BTreeMap<String, BTreeSet<String>>;

/// Packages of the program that the tests no longer build with the features the program has. This
/// package itself may differ (the tests have its feature `testing`): it is built for them anyway.
fn changed_features(program: &Features, tests: &Features) -> Vec<String> {
    let same =
        |name: &String, features: &BTreeSet<String>| tests.get(name).is_some_and(|f| f.is_superset(features));
    let ours = concat!(env!("CARGO_PKG_NAME"), " v", env!("CARGO_PKG_VERSION"));
    let changed = program.iter().filter(|(name, features)| *name != ours && !same(name, features));
    changed.map(|(name, features)| format!("{name}: {features:?}, in tests {:?}", tests.get(name))).collect()
}

#[cfg(all(feature = "server", feature = "columnar", feature = "sql", feature = "mdns"))]
fn features_of(edges: &str) -> Features {
    parse_tree(&cargo(&["tree", "--offline", "--locked", "-e", edges, "-f", "{p} {f}", "--prefix", "none"]))
}

/// Lines of `name version [(proc-macro)] features [(*)]`. One package may stand there with several
/// sets of features: for the program, and for build scripts and macros.
fn parse_tree(text: &str) -> Features {
    let mut found = Features::new();
    for line in text.lines() {
        let words: Vec<&str> = line.trim_end_matches("(*)").split_whitespace().collect();
        let [name, version, rest @ ..] = &words[..] else { continue };
        let features: Vec<&str> = rest.iter().filter(|word| !word.starts_with('(')).copied().collect();
        found.entry(format!("{name} {version}")).or_default().insert(features.join(","));
    }
    found
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}
