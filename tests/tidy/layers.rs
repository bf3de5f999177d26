//! Imports go down only.

use std::collections::BTreeMap;

use super::{Source, Violation, catches, hold, production, violation};

/// Lowest first. A module may import what stands in a lower row.
const LAYERS: [&[&str]; 8] = [
    &["types", "config", "telemetry", "disk"],
    &["identity", "protocol", "wal", "engine"],
    &["transport", "discovery"],
    &["raft"],
    &["join", "replication"],
    &["write_path"],
    &["node"],
    &["cli", "http"],
];

/// May see every module, and nothing imports it.
const SEES_ALL: [&str; 3] = ["testing", "main", "chaos"];

/// Importer and imported of the same row, where that is meant.
const SIDEWAYS: [(&str, &str); 7] = [
    ("config", "types"),
    ("telemetry", "types"),
    ("telemetry", "config"),
    ("identity", "protocol"),
    ("wal", "protocol"),
    ("engine", "protocol"),
    ("cli", "http"),
];

/// Importer and imported that stay apart although the rows would allow it: what crosses between
/// them is a value on a watch channel.
const APART: [(&str, &str); 4] =
    [("transport", "wal"), ("transport", "engine"), ("replication", "raft"), ("http", "raft")];

/// Imports go down only.
fn layers(sources: &[Source]) -> Vec<Violation> {
    let root = root_exports(sources);
    let mut found = Vec::new();
    for source in production(sources) {
        let Some(from) = source.module().into_iter().next() else { continue };
        if SEES_ALL.contains(&from.as_str()) || from == "bin" {
            continue;
        }
        if row(&from).is_none() {
            found.push(violation(source, 1, format!("module `{from}` has no row in the layer table")));
            continue;
        }
        for (line, path) in source.paths() {
            let Some(first) = path.first() else { continue };
            let targets = match root.get(first) {
                _ if row(first).is_some() || SEES_ALL.contains(&first.as_str()) => vec![first.clone()],
                Some(modules) => modules.clone(),
                None => {
                    let says =
                        format!("`crate::{first}` is no module in the layer table and no export of lib.rs");
                    found.push(violation(source, line, says));
                    continue;
                }
            };
            for to in targets.iter().filter(|to| !may_import(&from, to)) {
                let full = path.join("::");
                found.push(violation(
                    source,
                    line,
                    format!("`{from}` may not import `{to}` (crate::{full})"),
                ));
            }
        }
    }
    found
}

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn may_import(from: &str, to: &str) -> bool {
    let pair = (from, to);
    match (row(from), row(to)) {
        _ if from == to => true,
        (Some(upper), Some(lower)) if upper > lower => !APART.contains(&pair),
        (Some(upper), Some(lower)) if upper == lower => SIDEWAYS.contains(&pair),
        _ => false,
    }
}

/// What lib.rs hands out under its own name, and the modules that come with it.
fn root_exports(sources: &[Source]) -> BTreeMap<String, Vec<String>> {
    let mut exports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.path == "src/lib.rs") {
        // `pub use node::Node` is relative; write it as the absolute path it is here.
        let absolute =
            source.production.replace("pub use crate::", "pub use ").replace("pub use ", "use crate::");
        for (_, path) in Source::new("src/lib.rs", &absolute).paths() {
            if let (Some(module), Some(name), true) = (path.first(), path.last(), path.len() > 1) {
                exports.entry(name.clone()).or_default().push(module.clone());
            }
        }
    }
    exports
}

#[test]
fn imports_go_down_only() {
    hold(layers);
}

#[test]
fn an_upward_import_is_seen_in_every_form() {
    for (path, text, want) in [
        ("src/wal/writer.rs", "//! w\nuse crate::raft::Raft;", "`wal` may not import `raft`"),
        ("src/wal/writer.rs", "//! w\nuse super::super::engine::Engine;", "`wal` may not import `engine`"),
        ("src/wal/mod.rs", "//! w\nuse super::identity;", "`wal` may not import `identity`"),
        (
            "src/types/ids.rs",
            "//! i\nuse crate::{\n    types::Lsn,\n    wal::{self, Wal},\n};",
            "`types` may not import `wal` (crate::wal::Wal)",
        ),
        (
            "src/transport/pool.rs",
            "//! p\nfn f() { crate::engine::g() }",
            "`transport` may not import `engine`",
        ),
        (
            "src/replication/sender.rs",
            "//! s\nuse crate::raft::types::Command;",
            "`replication` may not import `raft`",
        ),
        ("src/http/write.rs", "//! w\nuse crate::raft::Raft;", "`http` may not import `raft`"),
        (
            "src/join/server.rs",
            "//! s\nuse crate::replication::Sender;",
            "`join` may not import `replication`",
        ),
        (
            "src/protocol/join.rs",
            "//! j\nuse crate::identity::Token;",
            "`protocol` may not import `identity`",
        ),
        ("src/wal/mod.rs", "//! w\nuse crate::Node;", "`wal` may not import `node`"),
        ("src/wal/mod.rs", "//! w\nuse crate::testing::mutant;", "`wal` may not import `testing`"),
        ("src/wal/mod.rs", "//! w\nuse crate::nowhere::x;", "`crate::nowhere` is no module"),
        ("src/shelf/mod.rs", "//! s", "module `shelf` has no row"),
        (
            "src/node/mod.rs",
            "//! n\nmod inner { use super::super::cli::run; }",
            "`node` may not import `cli`",
        ),
    ] {
        let root = Source::new("src/lib.rs", "//! l\npub mod node;\npub use node::{Node, error::Error};");
        catches(layers, &[root, Source::new(path, text)], path, want);
    }
}

#[test]
fn what_the_table_allows_passes() {
    let sources = [
        Source::new("src/lib.rs", "//! l\npub use types::Lsn;"),
        Source::new(
            "src/wal/mod.rs",
            "//! w\nuse crate::{Lsn, disk::Disk, protocol::frame, types::{self, Epoch}, wal::x};",
        ),
        Source::new(
            "src/wal/record.rs",
            "//! r\n//! [`crate::raft`]\nuse super::segment;\n#[cfg(test)]\nmod tests { use crate::raft::Raft; }",
        ),
        Source::new("src/cli/start.rs", "//! s\nuse crate::{http, node::Node};"),
        Source::new("src/testing/disk.rs", "//! d\nuse crate::{cli, wal};"),
    ];
    assert_eq!(layers(&sources), []);
}
