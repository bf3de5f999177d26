//! The parser against InfluxData's own, crate `influxdb_line_protocol`.
//!
//! Known differences, where one takes what the other does not, or reads it otherwise:
//! - a doubled backslash in a measurement, key or tag value: there one backslash, here two;
//! - a backslash before a line break outside of a string: there it protects the break;
//! - a carriage return before the measurement: there a part of its name, here space as others;
//! - refused here: a repeated tag, an infinite float (`1e999`), a comma in a key, a control character
//!   in a name, a column called `time`, another type than before, names and numbers beyond limits;
//! - refused there: CRLF, spaces at the end of a line without timestamp, `.5` and `1.`, a tab in
//!   a tag value, an unclosed quote in a comment (it hides what follows);
//! - a repeated field: there both are given, here the last wins;
//! - an integer in a column that a line before made one of floats: there an integer, here a float.

use std::collections::{BTreeMap, BTreeSet};

use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines};
use proptest::prelude::*;

use super::{
    tests::{options, read, read_with, row},
    *,
};

/// What a line says: measurement, then `column=value`, sorted.
type Point = (String, Vec<String>);

#[derive(Debug, Clone)]
struct Line {
    measurement: String,
    tags: BTreeMap<String, String>,
    fields: BTreeMap<String, Field>,
    time: Option<i64>,
}

#[derive(Debug, Clone)]
enum Field {
    Float(f64),
    Int(i64),
    UInt(u64),
    Bool(bool),
    Text(String),
}

/// Text of pieces that are awkward somewhere, without a doubled or last backslash.
fn text(first: &'static str) -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a", "Z", "0", "_", "-", ".", "\"", "'", "#", ",", "=", " ", "\\x", "\\\u{e9}", "ü", "日本", "i",
        "t", "1e5",
    ]);
    prop::collection::vec(piece, 0..6).prop_map(move |pieces| format!("{first}{}", pieces.concat()))
}

fn field() -> impl Strategy<Value = Field> {
    let piece = prop::sample::select(vec![
        "a", "\"", "\\", ",", "=", " ", "\n", "\r\n", "#", "é", "日本", "\t", "\0",
    ]);
    prop_oneof![
        prop::num::f64::NORMAL.prop_map(Field::Float),
        (-1_000_000_i32..1_000_000, 0..5_i32).prop_map(|(n, e)| Field::Float(f64::from(n) / 10_f64.powi(e))),
        any::<i64>().prop_map(Field::Int),
        any::<u64>().prop_map(Field::UInt),
        any::<bool>().prop_map(Field::Bool),
        prop::collection::vec(piece, 0..8).prop_map(|pieces| Field::Text(pieces.concat())),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    (
        text("m"),
        prop::collection::btree_map(text("t"), text("v"), 0..4),
        prop::collection::btree_map(text("f"), field(), 1..5),
        any::<Option<i64>>(),
    )
        .prop_map(|(measurement, tags, fields, time)| Line { measurement, tags, fields, time })
}

fn escape(text: &str, special: &str) -> String {
    text.chars().flat_map(|c| special.contains(c).then_some('\\').into_iter().chain([c])).collect()
}

impl Line {
    fn spell(&self) -> String {
        let mut line = escape(&self.measurement, ", ");
        for (key, value) in &self.tags {
            line += &format!(",{}={}", escape(key, ",= "), escape(value, ",= "));
        }
        for (at, (key, value)) in self.fields.iter().enumerate() {
            let value = match value {
                Field::Float(value) if value.abs() > 1e15 || value.abs() < 1e-5 => format!("{value:e}"),
                Field::Float(value) => value.to_string(),
                Field::Int(value) => format!("{value}i"),
                Field::UInt(value) => format!("{value}u"),
                Field::Bool(value) => value.to_string(),
                Field::Text(text) => format!("\"{}\"", escape(text, "\"\\")),
            };
            line += &format!("{}{}={value}", if at == 0 { ' ' } else { ',' }, escape(key, ",= "));
        }
        line + &self.time.map(|time| format!(" {time}")).unwrap_or_default()
    }

    fn point(&self) -> Point {
        let tags = self.tags.iter().map(|(key, value)| format!("{key}={value:?}"));
        let fields = self.fields.iter().map(|(key, value)| match value {
            Field::Float(value) => format!("{key}={value:?}"),
            Field::Int(value) => format!("{key}={value}i"),
            Field::UInt(value) => format!("{key}={value}u"),
            Field::Bool(value) => format!("{key}={value}"),
            Field::Text(value) => format!("{key}={value:?}"),
        });
        point(&self.measurement, self.time, tags.chain(fields).collect())
    }
}

fn point(measurement: &str, time: Option<i64>, mut columns: Vec<String>) -> Point {
    columns.push(format!("time={}", time.unwrap_or(options().now_ns)));
    columns.sort();
    (measurement.to_owned(), columns)
}

/// Fields that have floats, by measurement.
type Floats = BTreeSet<(String, String)>;

fn floats(lines: &[ParsedLine<'_>]) -> Floats {
    let fields = lines.iter().flat_map(|line| line.field_set.iter().map(move |field| (line, field)));
    let floats = fields.filter(|(_, (_, value))| matches!(value, FieldValue::F64(_)));
    floats.map(|(line, (key, _))| (line.series.measurement.to_string(), key.to_string())).collect()
}

fn theirs(line: &ParsedLine<'_>, floats: &Floats) -> Point {
    let tags = line
        .series
        .tag_set
        .iter()
        .flatten()
        .map(|(key, value)| (key.to_string(), format!("{:?}", value.as_str())));
    let fields = line.field_set.iter().map(|(key, value)| {
        let value = match value {
            FieldValue::F64(value) => format!("{value:?}"),
            FieldValue::I64(value)
                if floats.contains(&(line.series.measurement.to_string(), key.to_string())) =>
            {
                format!("{:?}", *value as f64)
            }
            FieldValue::I64(value) => format!("{value}i"),
            FieldValue::U64(value) => format!("{value}u"),
            FieldValue::Boolean(value) => value.to_string(),
            FieldValue::String(value) => format!("{:?}", value.as_str()),
        };
        (key.to_string(), value)
    });
    // A map, because of repeated fields the last wins.
    let columns: BTreeMap<_, _> = tags.chain(fields).collect();
    let columns = columns.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    point(&line.series.measurement, line.timestamp, columns)
}

fn ours(parsed: &Parsed) -> Vec<Point> {
    let tables = parsed.batch.iter().flat_map(|batch| &batch.tables);
    let points =
        tables.flat_map(|table| (0..table.rows.num_rows()).map(|at| (&table.table, row(&table.rows, at))));
    let mut points: Vec<Point> = points
        .map(|(table, mut columns)| {
            columns.sort();
            (table.clone(), columns)
        })
        .collect();
    points.sort();
    points
}

/// A doubled backslash, one before a line break, or a carriage return where a line begins: see above.
fn is_known_difference(body: &str) -> bool {
    let returns = |line: &str| {
        line.trim_start_matches([' ', '\t', '\r']).len() < line.trim_start_matches([' ', '\t']).len()
    };
    body.contains("\\\\") || body.contains("\\\n") || body.split('\n').any(returns)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn valid_lines_mean_the_same_to_both(line in line()) {
        let body = line.spell();
        let parsed = read(&body);
        prop_assert_eq!(&parsed.rejected, &[], "{}", body);
        prop_assert_eq!(ours(&parsed), vec![line.point()]);
        let oracle: Vec<_> = parse_lines(&body).map(|line| theirs(&line.unwrap(), &Floats::new())).collect();
        prop_assert_eq!(oracle, vec![line.point()]);
    }

    #[test]
    fn a_body_means_the_sum_of_its_lines(lines in prop::collection::vec(line(), 1..8), repeat in 1..4_usize) {
        // Columns of one name and many types would be refused: a table for each line.
        let mut expected = Vec::new();
        let mut body = String::new();
        for at in 0..lines.len() * repeat {
            let mut line = lines[at % lines.len()].clone();
            line.measurement += &format!("_{}", at % lines.len());
            body += &line.spell();
            body.push('\n');
            expected.push(line.point());
        }
        expected.sort();
        let parsed = read(&body);
        prop_assert_eq!(&parsed.rejected, &[], "{}", body);
        prop_assert_eq!(ours(&parsed), expected);
    }

    #[test]
    fn mutated_lines_never_panic_and_where_both_accept_they_agree(
        lines in prop::collection::vec(line(), 1..3),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(b" ,=\"\\\n#\t\r01ietu.-\0\xff".to_vec()), 0..3_u8),
            1..4,
        ),
    ) {
        let lines: Vec<_> = lines.iter().map(Line::spell).collect();
        let mut body = lines.join("\n").into_bytes();
        for (at, byte, edit) in edits {
            let at = at.index(body.len());
            match edit {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ if body.len() > 1 => { body.remove(at); }
                _ => {}
            }
        }
        let parsed = read(&body);
        let strict = Options { accept_partial: false, ..options() };
        let all_or_nothing = read_with(&body, &strict, &Schemas::default()).unwrap();
        prop_assert_eq!(all_or_nothing.batch.is_some(), parsed.rejected_total == 0 && parsed.rows > 0);
        let Ok(text) = std::str::from_utf8(&body) else { return Ok(()) };
        let oracle: Result<Vec<_>, _> = parse_lines(text).collect();
        if let (Ok(oracle), 0, false) = (oracle, parsed.rejected_total, is_known_difference(text)) {
            let floats = floats(&oracle);
            let mut oracle: Vec<_> = oracle.iter().map(|line| theirs(line, &floats)).collect();
            oracle.sort();
            prop_assert_eq!(ours(&parsed), oracle, "{}", text);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        body in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"mtf ,=\"\\\n#1ie.-".to_vec())],
            0..200,
        ),
    ) {
        let parsed = read(&body);
        let lines = body.iter().filter(|&&byte| byte == b'\n').count() + 1;
        prop_assert!(parsed.rows + parsed.rejected_total <= lines);
        if let Some(batch) = parsed.batch {
            let payload = crate::engine::columnar::batch::encode(&batch).unwrap();
            prop_assert_eq!(crate::engine::columnar::batch::decode(&payload).unwrap(), batch);
        }
    }
}
