//! What the parser takes and what it refuses.

use std::sync::Arc;

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};

use super::{
    super::{MAX_REPORTED, MAX_VALUES, Precision, agree},
    *,
};
use crate::engine::columnar::{
    batch::TableBatch,
    schema::{FieldType, MAX_COLUMNS, TableSchema},
};

const NOW: i64 = 42;

pub(super) fn options() -> Options {
    Options {
        database: "home".into(),
        precision: Precision::Nanosecond,
        now_ns: NOW,
        accept_partial: true,
        series: None,
    }
}

pub(super) fn read(body: impl AsRef<[u8]>) -> Parsed {
    read_with(body.as_ref(), &options(), &Schemas::default()).unwrap()
}

/// In both ways.
pub(super) fn read_with(body: &[u8], options: &Options, schemas: &Schemas) -> Result<Parsed, BodyError> {
    let parsed = parse(body, options, schemas, &mut |_| true);
    agree(&parsed, &encode(body, options, schemas, &mut |_| true));
    parsed
}

#[test]
fn keys_begin_what_they_begin() {
    let text = b"abcdefghijklmnopqrstuvwxyz";
    for len in 1..text.len() {
        let key = Key::new(&text[..len]);
        for end in 0..=text.len() {
            assert_eq!(key.begins(&text[..end]), end >= len, "{len} of {end}");
        }
        for at in 0..len {
            let mut other = *text;
            other[at] ^= 0x80;
            assert!(!key.begins(&other), "{len}: {at}");
        }
    }
}

/// One point as `column=value` in order of columns, nulls left out.
pub(in super::super) fn row(rows: &RecordBatch, at: usize) -> Vec<String> {
    let mut row =
        vec![format!("time={}", rows.column(0).as_primitive::<TimestampNanosecondType>().value(at))];
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()).skip(1) {
        if column.is_null(at) {
            continue;
        }
        let value = if let Some(text) = column.as_string_opt::<i32>() {
            format!("{:?}", text.value(at))
        } else if let Some(values) = column.as_primitive_opt::<Float64Type>() {
            format!("{:?}", values.value(at))
        } else if let Some(values) = column.as_primitive_opt::<Int64Type>() {
            format!("{}i", values.value(at))
        } else if let Some(values) = column.as_primitive_opt::<UInt64Type>() {
            format!("{}u", values.value(at))
        } else {
            column.as_boolean().value(at).to_string()
        };
        row.push(format!("{}={value}", field.name()));
    }
    row
}

/// All points of a body that must be good.
fn good(body: &str) -> Vec<String> {
    let parsed = read(body);
    assert_eq!(parsed.rejected, [], "{body:?}");
    rows_of(&parsed)
}

fn rows_of(parsed: &Parsed) -> Vec<String> {
    let tables: &[TableBatch] = parsed.batch.as_ref().map_or(&[], |batch| &batch.tables);
    let rows = tables.iter().flat_map(|table| {
        (0..table.rows.num_rows()).map(|at| format!("{} {}", table.table, row(&table.rows, at).join(" ")))
    });
    let rows: Vec<_> = rows.collect();
    assert_eq!(parsed.rows, rows.len());
    rows
}

/// The error of the only line, which must be bad.
fn bad(line: &str) -> String {
    let parsed = read(line);
    assert_eq!(parsed.batch, None, "{line:?}");
    assert_eq!(parsed.rejected_total, 1, "{line:?}: {:?}", parsed.rejected);
    parsed.rejected.into_iter().next().unwrap().error
}

#[test]
fn every_kind_of_value() {
    assert_eq!(
        good("m,t=a f=1.5,e=-1e3,i=-3i,u=7u,b=t,c=FALSE,s=\"x y\" 123"),
        ["m time=123 t=\"a\" f=1.5 e=-1000.0 i=-3i u=7u b=true c=false s=\"x y\""]
    );
    for (text, value) in [("t", true), ("T", true), ("true", true), ("True", true), ("TRUE", true)]
        .into_iter()
        .chain([("f", false), ("F", false), ("false", false), ("False", false), ("FALSE", false)])
    {
        assert_eq!(good(&format!("m b={text}")), [format!("m time=42 b={value}")]);
    }
    assert_eq!(good("m s=\"\" 1"), ["m time=1 s=\"\""]);
}

#[test]
fn escapes() {
    for (line, point) in [
        (r"m\,\ x,t\,\=\ k=v\,\=\ w f\,\=\ g=1 1", r#"m, x time=1 t,= k="v,= w" f,= g=1.0"#),
        // Before anything else a backslash stands for itself.
        (r"m\=\a,t\a=C:\\dir\\x f\b=1 1", r#"m\=\a time=1 t\a="C:\\\\dir\\\\x" f\b=1.0"#),
        (r"m,t=a\\ b f=1 1", r#"m time=1 t="a\\ b" f=1.0"#),
        (r#"m s="\"\\\n\x," 1"#, r#"m time=1 s="\"\\\\n\\x,""#),
        (r#"m s="a\\",t="\\\"" 1"#, r#"m time=1 s="a\\" t="\\\"""#),
        (r#"m,t="a=b" f=1 1"#, r#"m time=1 t="\"a=b\"" f=1.0"#),
        ("größe,ort=köln höhe=1 1", "größe time=1 ort=\"köln\" höhe=1.0"),
    ] {
        assert_eq!(good(line), [point], "{line}");
    }
}

#[test]
fn lines_comments_and_blanks() {
    let body = "# a comment with \" in it\n\n  \t\nm f=1 1\r\n  m f=2 2  \r\n\r\n#end\nm   f=3   3\nm f=4\nm f=5 \nm f=6 6";
    let times = ["1 f=1.0", "2 f=2.0", "3 f=3.0", "42 f=4.0", "42 f=5.0", "6 f=6.0"];
    assert_eq!(good(body), times.map(|rest| format!("m time={rest}")));
    assert_eq!(good(""), [""; 0]);
    assert_eq!(good("\n# nothing\n"), [""; 0]);
    assert_eq!(good("m f=1 1\r"), ["m time=1 f=1.0"]);
}

#[test]
fn a_line_break_in_a_string_belongs_to_it_and_counts() {
    let body = "m s=\"one\ntwo\r\nthree\",f=1 1\nbad\nm s=\"x\n\ny\" zz\nm f=\"\n";
    let parsed = read(body);
    assert_eq!(rows_of(&parsed), ["m time=1 s=\"one\\ntwo\\r\\nthree\" f=1.0"]);
    let lines: Vec<_> = parsed.rejected.iter().map(|error| error.line).collect();
    assert_eq!(lines, [4, 5, 8]);
}

#[test]
fn nothing_in_a_string_becomes_a_point() {
    let parsed = read("m f=bad,s=\"text\nm f=1 1\n\" 5\nm f=2 2\nm s=\"open\nm f=3 3");
    assert_eq!(rows_of(&parsed), ["m time=2 f=2.0"]);
    let errors: Vec<_> = parsed.rejected.iter().map(|error| (error.line, error.error.as_str())).collect();
    let first = "field \"f\": \"bad\" is not a number, a boolean or a string in quotes";
    assert_eq!(errors, [(1, first), (5, "field \"s\": the string is not closed")]);
}

#[test]
fn bad_lines_say_why() {
    for (line, error) in [
        ("m", "there are no fields"),
        ("m ", "there are no fields"),
        ("m,t=a", "there are no fields"),
        (",t=a f=1", "table name \"\" is empty"),
        ("m, f=1", "tag \"\" has no value"),
        ("m,t f=1", "tag \"t\" has no value"),
        ("m,t= f=1", "tag \"t\" has an empty value"),
        ("m,=a f=1", "a tag has an empty name"),
        ("m,t=a,t=b f=1", "tag \"t\" appears twice"),
        ("m f", "field \"f\" has no value"),
        ("m f=", "field \"f\": there is no value"),
        ("m f=1,", "field \"\" has no value"),
        ("m =1", "a field has an empty name"),
        ("m f=1 x", "\"x\" is not a timestamp"),
        ("m f=1 1x", "\"1x\" is not a timestamp"),
        ("m f=1 1 2", "there is text behind the timestamp: \"2\""),
        ("m f=1 9223372036854775808", "timestamp \"9223372036854775808\" does not fit 64 bits"),
        ("m f=NaN", "field \"f\": \"NaN\" cannot be stored: a float must be finite"),
        ("m f=-inf", "field \"f\": \"-inf\" cannot be stored: a float must be finite"),
        ("m f=+Infinity", "field \"f\": \"+Infinity\" cannot be stored: a float must be finite"),
        ("m f=1e999", "field \"f\": \"1e999\" is out of range"),
        ("m f=9223372036854775808i", "field \"f\": \"9223372036854775808i\" is out of range"),
        ("m f=18446744073709551616u", "field \"f\": \"18446744073709551616u\" is out of range"),
        ("m f=-1u", "field \"f\": \"-1u\" is not a number, a boolean or a string in quotes"),
        ("m f=1.5i", "field \"f\": \"1.5i\" is not a number, a boolean or a string in quotes"),
        ("m f=0x10", "field \"f\": \"0x10\" is not a number, a boolean or a string in quotes"),
        ("m f=tru", "field \"f\": \"tru\" is not a number, a boolean or a string in quotes"),
        ("m f='a'", "field \"f\": \"'a'\" is not a number, a boolean or a string in quotes"),
        ("m f=\"a", "field \"f\": the string is not closed"),
        ("m f=\"a\"b", "field \"f\": there is text behind the string's closing quote"),
        ("m f=1,f=\"a\"", "column \"f\" of table \"m\" is a float field and cannot take a string field"),
        ("m,x=a x=1", "column \"x\" of table \"m\" is a tag and cannot take a float field"),
        ("m time=1", "column name \"time\" is reserved: the time of a point has its own place"),
        ("m,time=1 f=1", "column name \"time\" is reserved: the time of a point has its own place"),
        ("m\u{7} f=1", "table name \"m\\u{7}\" has a control character"),
    ] {
        assert_eq!(bad(line), error, "{line:?}");
    }
    let long = "x".repeat(256);
    assert!(bad(&format!("{long} f=1")).contains("longer than 255 bytes"));
    assert!(bad(&format!("m {long}=1")).contains("longer than 255 bytes"));
    assert!(bad(&format!("m f={long}{long}")).len() < 200);
    assert_eq!(good(&format!("{} f=1", &long[1..])).len(), 1);
}

#[test]
fn the_last_of_repeated_fields_wins_and_gaps_are_null() {
    assert_eq!(good("m f=1,g=\"a\",f=2,g=\"b\" 1"), ["m time=1 f=2.0 g=\"b\""]);
    assert_eq!(
        good("m a=1 1\nm b=2i 2\nm,t=x a=3,c=t 3\nn a=1i 4\nm s=\"x\" 5\nm a=4 6"),
        [
            "m time=1 a=1.0",
            "m time=2 b=2i",
            "m time=3 t=\"x\" a=3.0 c=true",
            "m time=5 s=\"x\"",
            "m time=6 a=4.0",
            "n time=4 a=1i"
        ]
    );
}

#[test]
fn the_first_type_wins() {
    let parsed = read("m f=1i 1\nm f=1.5 2\nm f=2i,g=1 3\nm f=\"x\",h=1 4\nm g=5i 5\nm h=t 6");
    assert_eq!(
        rows_of(&parsed),
        ["m time=1 f=1i", "m time=3 f=2i g=1.0", "m time=5 g=5.0", "m time=6 h=true"]
    );
    let errors: Vec<_> = parsed.rejected.iter().map(|error| (error.line, error.error.as_str())).collect();
    assert_eq!(
        errors,
        [
            (2, "column \"f\" of table \"m\" is an int field and cannot take a float field"),
            (4, "column \"f\" of table \"m\" is an int field and cannot take a string field"),
        ]
    );
}

#[test]
fn the_registry_wins_over_the_body() {
    let mut schemas = Schemas::default();
    let columns = [("h", ColumnKind::Tag), ("f", ColumnKind::Field(FieldType::Float))];
    let schema = TableSchema::new(columns.map(|(name, kind)| (name.to_owned(), kind))).unwrap();
    let schema = Arc::new(schema);
    schemas.merge("home", "m", &schema).unwrap();
    let body = "m,h=a f=3i 1\nm f=t 2\nm h=1 3\nm,f=a g=1 4\nm g=1u 5";
    let parsed = read_with(body.as_bytes(), &options(), &schemas).unwrap();
    assert_eq!(rows_of(&parsed), ["m time=1 h=\"a\" f=3.0", "m time=5 g=1u"]);
    let errors: Vec<_> = parsed.rejected.iter().map(|error| (error.line, error.error.as_str())).collect();
    assert_eq!(
        errors,
        [
            (2, "column \"f\" of table \"m\" is a float field and cannot take a bool field"),
            (3, "column \"h\" of table \"m\" is a tag and cannot take a float field"),
            (4, "column \"f\" of table \"m\" is a float field and cannot take a tag"),
        ]
    );
    let batch = parsed.batch.unwrap();
    assert_eq!(batch.tables[0].assigned, schema.fingerprint());
    assert_eq!(schemas.conflict("home", "m", &batch.tables[0].schema), None);
    assert_eq!(read("m f=1").batch.unwrap().tables[0].assigned, 0);
}

#[test]
fn a_bad_line_leaves_no_column_and_no_table() {
    let parsed = read("n,q=1 z=1 x\nm,t=a f=1 1\nm,u=a g=1 bad\nm,t=b f=2 2\nn x=\nn y=1 3");
    assert_eq!(rows_of(&parsed), ["m time=1 t=\"a\" f=1.0", "m time=2 t=\"b\" f=2.0", "n time=3 y=1.0"]);
    let names: Vec<_> = parsed.batch.unwrap().tables.into_iter().map(|table| table.schema).collect();
    assert_eq!(names.iter().map(|schema| schema.columns().len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn partial_or_nothing() {
    let strict = Options { accept_partial: false, ..options() };
    let parsed = read_with(b"m f=1 1\nm f= 2\nm f=3 3", &strict, &Schemas::default()).unwrap();
    assert_eq!((parsed.batch, parsed.rows, parsed.rejected_total), (None, 0, 1));
    assert_eq!(read_with(b"m f=1 1", &strict, &Schemas::default()).unwrap().rows, 1);
    let parsed = read("m f=\n".repeat(MAX_REPORTED + 7));
    assert_eq!((parsed.rejected.len(), parsed.rejected_total), (MAX_REPORTED, MAX_REPORTED + 7));
    assert_eq!(parsed.rejected.last().unwrap().line, MAX_REPORTED);
}

#[test]
fn bytes_that_are_not_utf8_cost_their_line_only() {
    for bytes in [&b"m s=\"\xff\" 2"[..], b"m,t=\xff f=1 2", b"\xff f=1 2", b"m \xff=1 2", b"m,\xff=a f=1 2"]
    {
        let body = [b"m f=1 1\n", bytes, b"\nm f=3 3"].concat();
        let parsed = read(&body);
        assert_eq!(rows_of(&parsed), ["m time=1 f=1.0", "m time=3 f=3.0"]);
        assert_eq!(parsed.rejected[0].line, 2);
        assert!(parsed.rejected[0].error.contains("not valid UTF-8"), "{:?}", parsed.rejected);
    }
}

#[test]
fn timestamps_are_scaled() {
    let at = |precision, time: &str| {
        let options = Options { precision, ..options() };
        let parsed = read_with(format!("m f=1 {time}").as_bytes(), &options, &Schemas::default()).unwrap();
        parsed
            .batch
            .map(|batch| batch.tables[0].rows.column(0).as_primitive::<TimestampNanosecondType>().value(0))
    };
    assert_eq!(at(Precision::Second, "-2"), Some(-2_000_000_000));
    assert_eq!(at(Precision::Hour, "1"), Some(3_600_000_000_000));
    assert_eq!(at(Precision::Auto, "1700000000000"), Some(1_700_000_000_000_000_000));
    assert_eq!(at(Precision::Nanosecond, "-9223372036854775808"), Some(i64::MIN));
    assert_eq!(at(Precision::Microsecond, "9223372036854775807"), None);
    // A missing timestamp is now, whatever the precision.
    assert_eq!(at(Precision::Second, ""), Some(NOW));
}

#[test]
fn limits_are_per_line() {
    let wide: Vec<_> = (0..MAX_COLUMNS).map(|at| format!("c{at}=1")).collect();
    let body = format!("m {} 1\nm more=1 2\nm c0=2 3", wide.join(","));
    let parsed = read(&body);
    assert_eq!((parsed.rows, parsed.rejected_total), (2, 1));
    assert_eq!(parsed.rejected[0].error, "table \"m\" would have more than 1000 columns");

    let tables: String = (0..=MAX_TABLES).map(|at| format!("m{at} f=1\n")).collect();
    let parsed = read(&tables);
    assert_eq!((parsed.rows, parsed.rejected_total), (MAX_TABLES, 1));
    assert_eq!(parsed.rejected[0].error, "database \"home\" would have more than 10000 tables");

    assert!(matches!(
        read_with(b"m f=1", &Options { database: "_x".into(), ..options() }, &Schemas::default()),
        Err(BodyError::Database(_))
    ));
}

#[test]
fn a_small_body_cannot_make_a_large_batch() {
    let wide: Vec<_> = (0..MAX_COLUMNS).map(|at| format!("c{at}=t")).collect();
    let body = format!("m {}\n{}", wide.join(","), "m c0=t\n".repeat(MAX_VALUES / MAX_COLUMNS));
    let parsed = read(&body);
    assert!(parsed.rejected_total > 0 && parsed.rows > 10_000);
    assert!(parsed.rejected[0].error.contains("send it in parts"));
}
