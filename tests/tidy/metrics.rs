//! Every metric has its line in the operator's page, and every line its metric.

use std::collections::BTreeMap;

use super::{Source, Violation, catches, hold_for_all, production, violation};

const PAGE: &str = "docs/operations.md";
/// How API tokens begin.
const NO_METRIC: [&str; 1] = ["skein_"];

/// Every metric is documented, and what is documented is there.
fn metrics(sources: &[Source]) -> Vec<Violation> {
    let Some(page) = sources.iter().find(|source| source.path == PAGE) else {
        return vec![Violation { path: PAGE.into(), line: 1, says: "the page of metrics is gone".into() }];
    };
    let rows = page.text.lines().enumerate().filter(|(_, line)| line.starts_with("| `skein_"));
    let mut documented = BTreeMap::new();
    for (at, line) in rows {
        // The name column only.
        let names = line.split('|').nth(1).unwrap_or_default();
        documented.extend(between(names, '`').map(|name| (name.to_owned(), at + 1)));
    }
    let mut found = Vec::new();
    let rust: Vec<Source> = sources.iter().filter(|source| source.path.ends_with(".rs")).cloned().collect();
    let mut unused = documented.clone();
    for source in production(&rust) {
        let lines = source.text.lines().zip(source.production.lines());
        for (at, (text, _)) in lines.enumerate().filter(|(_, (_, production))| production.contains('"')) {
            for name in between(text, '"').filter(|name| is_metric(name)) {
                unused.remove(name);
                if !documented.contains_key(name) {
                    let says = format!("`{name}` has no line in the table of metrics of {PAGE}");
                    found.push(violation(source, at + 1, says));
                }
            }
        }
    }
    let gone =
        unused.into_iter().map(|(name, line)| violation(page, line, format!("there is no metric `{name}`")));
    found.extend(gone);
    found
}

/// What Grafana and Prometheus are told to ask for is there.
fn asked_for(sources: &[Source]) -> Vec<Violation> {
    let page = sources.iter().find(|source| source.path == PAGE).map_or("", |page| page.text.as_str());
    let rows = page.lines().filter(|line| line.starts_with("| `skein_"));
    let mut documented = BTreeMap::new();
    for line in rows {
        let mut columns = line.split('|').skip(1);
        let names = columns.next().unwrap_or_default();
        let kind = columns.next().unwrap_or_default().trim();
        documented.extend(between(names, '`').map(|name| (name, kind)));
    }
    let is_there = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| name.strip_suffix(part));
        documented.contains_key(name)
            || parts.into_iter().any(|whole| documented.get(whole) == Some(&"histogram"))
    };
    let mut found = Vec::new();
    let asks = |path: &str| path.starts_with("deploy/prometheus/") || path.starts_with("deploy/grafana/");
    for source in sources.iter().filter(|source| asks(&source.path)) {
        for (at, line) in source.text.lines().enumerate() {
            let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            for name in words.filter(|word| word.starts_with("skein_") && !is_there(word)) {
                found.push(violation(source, at + 1, format!("there is no metric `{name}`")));
            }
        }
    }
    found
}

#[test]
fn boards_and_alerts_ask_for_metrics_that_are_there() {
    hold_for_all(asked_for);
}

#[test]
fn a_board_that_asks_for_nothing_is_seen() {
    let page = "# p\n| `skein_a`, `skein_b_total` | gauge | x |\n| `skein_t_seconds` | histogram | x |";
    let board = "\"expr\": \"rate(skein_b_total{job=1}[5m]) + skein_a / skein_t_seconds_bucket\"\nskein_gone\nskein_a_bucket";
    let sources = [
        Source::new("src/lib.rs", "//! l"),
        Source::new(PAGE, page),
        Source::new("deploy/grafana/skein.json", board),
        Source::new("deploy/compose.yaml", "skein_token"),
    ];
    catches(asked_for, &sources, "deploy/grafana/skein.json", "no metric `skein_gone`");
    catches(asked_for, &sources, "deploy/grafana/skein.json", "no metric `skein_a_bucket`");
    assert_eq!(asked_for(&sources).len(), 2);
}

/// What stands between two marks, every stretch between any two neighbours counted.
fn between(line: &str, mark: char) -> impl Iterator<Item = &str> {
    line.split(mark).skip(1).filter(|part| part.starts_with("skein_"))
}

fn is_metric(text: &str) -> bool {
    !NO_METRIC.contains(&text)
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn every_metric_is_documented() {
    hold_for_all(metrics);
}

#[test]
fn a_metric_without_a_line_and_a_line_without_a_metric_are_seen() {
    let page = "# p\n| `skein_a`, `skein_b` | gauge | `skein_not_here` |\n| `skein_old` | gauge | x |\n`skein_c` is worth an alarm";
    let source = "//! m\nfn f() { gauge(\"skein_a\"); gauge(\"skein_b\") }\n// \"skein_d\"\nfn g() { gauge(\n    \"skein_c\",\n) }\n\
                  const T: &str = \"skein_\";\n#[cfg(test)]\nmod tests { fn t() { gauge(\"skein_e\") } }";
    let sources = [
        Source::new("src/lib.rs", "//! l\nmod m;"),
        Source::new("src/m.rs", source),
        Source::new(PAGE, page),
    ];
    catches(metrics, &sources, "src/m.rs", "`skein_c` has no line");
    catches(metrics, &sources, PAGE, "no metric `skein_old`");
    assert_eq!(metrics(&sources).len(), 2, "{:?}", metrics(&sources));
}
