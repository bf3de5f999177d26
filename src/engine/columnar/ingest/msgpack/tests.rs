//! Bodies as Arc's clients make them, and as nobody should.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rmp_serde::encode::to_vec;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{
    super::{Precision, agree, line_protocol, line_protocol::row},
    *,
};
use crate::engine::columnar::schema::{ColumnKind, FieldType, TableSchema};

const NOW: i64 = 42;

fn options() -> Options {
    Options {
        database: "home".into(),
        precision: Precision::Nanosecond,
        now_ns: NOW,
        accept_partial: true,
        series: None,
    }
}

fn read_with(body: &[u8], schemas: &Schemas) -> Result<Parsed, BodyError> {
    let parsed = parse(body, &options(), schemas, &mut |_| true);
    agree(&parsed, &encode(body, &options(), schemas, &mut |_| true));
    parsed
}

fn read(body: &impl Serialize) -> Parsed {
    read_with(&to_vec(body).unwrap(), &Schemas::default()).unwrap()
}

/// All points of a body that must be good, table by table.
fn good(body: &Json) -> Vec<String> {
    let parsed = read(body);
    assert_eq!(parsed.rejected, [], "{body}");
    points(&parsed)
}

fn points(parsed: &Parsed) -> Vec<String> {
    let tables = parsed.batch.iter().flat_map(|batch| &batch.tables);
    let rows = |table: &super::super::super::batch::TableBatch| {
        let one = |at| format!("{} {}", table.table, row(&table.rows, at).join(" "));
        (0..table.rows.num_rows()).map(one).collect::<Vec<_>>()
    };
    tables.flat_map(rows).collect()
}

fn bad(body: &Json) -> String {
    let parsed = read(body);
    assert_eq!((parsed.rows, parsed.rejected_total), (0, 1), "{body}");
    parsed.rejected[0].error.clone()
}

#[test]
fn columns() {
    let body = json!({ "m": "cpu", "columns": {
        "time": [1_700_000_000_000_001i64, 1_700_000_000_000_002i64],
        "host": ["a", "b"], "usage": [0.5, null], "n": [1, 2], "up": [true, null],
    }});
    assert_eq!(
        good(&body),
        [
            "cpu time=1700000000000001000 host=\"a\" n=1i up=true usage=0.5",
            "cpu time=1700000000000002000 host=\"b\" n=2i",
        ]
    );
    // Tags are told from string fields if the client says which are which.
    let told = json!({ "columns": { "host": ["a"], "text": ["long"], "rack": [7] }, "m": 3, "tag_keys": ["host", "rack"] });
    let parsed = read(&told);
    let table = &parsed.batch.as_ref().unwrap().tables[0];
    assert_eq!(points(&parsed), ["measurement_3 time=42 host=\"a\" rack=\"7\" text=\"long\""]);
    assert_eq!(table.schema.kind("rack"), Some(ColumnKind::Tag));
    assert_eq!(table.schema.kind("text"), Some(ColumnKind::Field(FieldType::String)));
    // An integer among floats is one; an empty tag is none.
    let mixed = json!({ "m": "m", "columns": { "v": [1, 2.5], "host": ["", "x"] } });
    assert_eq!(good(&mixed), ["m time=42 v=1.0", "m time=42 host=\"x\" v=2.5"]);
    for (columns, why) in [
        (json!({ "time": [1, 2], "v": [1] }), "equally long"),
        (json!({ "time": [1], "v": ["a", 1] }), "equally long"),
        (json!({ "v": ["a", 1], "w": [1.5, "a"] }), "several types"),
        (json!({ "v": [[1]] }), "list or map"),
        (json!({ "v": 1 }), "not a list"),
        (json!({ "time": [1] }), "no value"),
        (json!({ "v": [null] }), "no value"),
        (json!({ "time": [], "v": [] }), "no rows"),
        (json!({ "time": ["now"], "v": [1] }), "not a number"),
        (json!({ "time": [null], "v": [1] }), "not a number"),
        (json!({ "": [1] }), "empty"),
        (json!({ "v": [true, 1] }), "several types"),
        (json!([1]), "not a map"),
    ] {
        let error = bad(&json!({ "m": "cpu", "columns": columns }));
        assert!(error.contains(why), "{columns}: {error}");
    }
}

/// What JSON has no words for.
#[test]
fn a_float_that_is_not_finite_is_refused_by_name_in_every_shape() {
    #[derive(Serialize)]
    struct Columns {
        m: &'static str,
        columns: BTreeMap<&'static str, Vec<f64>>,
    }
    #[derive(Serialize)]
    struct Row {
        m: &'static str,
        fields: BTreeMap<&'static str, f64>,
    }
    #[derive(Serialize)]
    struct Compact {
        m: &'static str,
        f: Vec<f64>,
    }
    fn named(body: &impl Serialize) -> Parsed {
        read_with(&rmp_serde::to_vec_named(body).unwrap(), &Schemas::default()).unwrap()
    }
    let largest = [f64::MAX, f64::MIN, f64::MIN_POSITIVE, -0.0, 5e-324];
    let fine = named(&Columns { m: "m", columns: [("v", largest.to_vec())].into() });
    assert_eq!((fine.rows, fine.rejected_total), (largest.len(), 0));
    for (odd, word) in
        [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf"), (-f64::NAN, "NaN")]
    {
        // Alone, first and last of many, and between integers: short and long runs are read differently.
        let columns = [vec![odd], vec![odd, 1.0, 2.0], [vec![1.0; 700], vec![odd]].concat()];
        let mut said: Vec<Parsed> =
            columns.into_iter().map(|v| named(&Columns { m: "m", columns: [("v", v)].into() })).collect();
        said.push(named(&Row { m: "m", fields: [("v", odd)].into() }));
        said.push(named(&Compact { m: "m", f: vec![1.0, odd] }));
        for parsed in said {
            assert_eq!((parsed.rows, parsed.rejected_total), (0, 1), "{odd}");
            let error = &parsed.rejected[0].error;
            assert!(
                error.contains(&format!("has {word}, which cannot be stored: a float must be finite")),
                "{error}"
            );
            assert!(error.contains("\"v\"") || error.contains("\"field_1\""), "{error}");
        }
    }
}

#[test]
fn rows_and_batches() {
    let one = json!({
        "m": "cpu", "t": 1_700_000_000, "h": "a", "fields": { "usage": 0.5, "text": "x", "none": null },
        "tags": { "region": "eu", "rack": 7, "none": null },
    });
    let one_is = "cpu time=1700000000000000000 rack=\"7\" region=\"eu\" host=\"a\" text=\"x\" usage=0.5";
    assert_eq!(good(&one), [one_is]);
    let compact = json!({ "m": "mem", "t": 1_700_000_000_000i64, "h": 9, "f": [1, null, 2.5] });
    let compact_is = "mem time=1700000000000000000 host=\"host_9\" field_0=1i field_2=2.5";
    assert_eq!(good(&compact), [compact_is]);
    assert_eq!(good(&json!({ "m": "m", "t": null, "fields": { "v": true } })), ["m time=42 v=true"]);
    let columnar =
        json!({ "m": "cpu", "columns": { "time": [1_700_000_000], "host": ["b"], "usage": [1.5] } });
    let columnar_is = "cpu time=1700000000000000000 host=\"b\" usage=1.5";
    for body in [json!([one, columnar, compact]), json!({ "batch": [one, columnar, compact] })] {
        assert_eq!(good(&body), [one_is, columnar_is, compact_is]);
    }
    let partly = read(&json!([one, 7, { "m": "x" }, { "m": "cpu", "fields": { "usage": "x" } }, compact]));
    assert_eq!(points(&partly), [one_is, compact_is]);
    assert_eq!(partly.rejected.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(partly.batch.unwrap().tables.len(), 2, "a table without points is none");
    let strict = Options { accept_partial: false, ..options() };
    let body = to_vec(&json!([one, 7])).unwrap();
    let (parsed, none) = (parse(&body, &strict, &Schemas::default(), &mut |_| true), Schemas::default());
    agree(&parsed, &encode(&body, &strict, &none, &mut |_| true));
    assert_eq!(parsed.unwrap().batch, None);
    for (item, why) in [
        (json!({ "fields": { "v": 1 } }), "no measurement"),
        (json!({ "m": 1.5, "fields": { "v": 1 } }), "neither a string"),
        (json!({ "m": "x", "fields": {} }), "no fields"),
        (json!({ "m": "x", "fields": [1] }), "not a map"),
        (json!({ "m": "x", "fields": { "v": [1] } }), "list or map"),
        (json!({ "m": "x", "fields": { "time": 1 } }), "reserved"),
        (json!({ "m": "x", "f": { "a": 1 } }), "not a list"),
        (json!({ "m": "x", "h": 1.5, "f": [1] }), "neither a string"),
        (json!({ "m": "x", "t": "now", "f": [1] }), "not a number"),
        (json!({ "m": "x", "t": u64::MAX, "f": [1] }), "64 bits"),
        (json!({ "m": "x\n", "f": [1] }), "control character"),
        (json!({ "m": "x", "batch": [] }), "batch within"),
    ] {
        let error = bad(&json!([item]));
        assert!(error.contains(why), "{item}: {error}");
    }
}

#[test]
fn times_have_the_unit_of_their_magnitude() {
    let time =
        |t: Json| good(&json!({ "m": "m", "t": t, "f": [1] }))[0].split(' ').nth(1).unwrap().to_owned();
    assert_eq!(time(json!(9_000_000_000i64)), "time=9000000000000000000");
    assert_eq!(time(json!(10_000_000_000i64)), "time=10000000000000000");
    assert_eq!(time(json!(9_000_000_000_000i64)), "time=9000000000000000000");
    assert_eq!(time(json!(10_000_000_000_000i64)), "time=10000000000000000");
    assert_eq!(time(json!(10_000_000_000_000_000i64)), "time=10000000000000000");
    assert_eq!(time(json!(-5)), "time=-5000000000");
    assert_eq!(time(json!(1_700_000_000.75)), "time=1700000000000000000");
    // In columns the first decides.
    let body =
        json!({ "m": "m", "columns": { "time": [9_000_000_000_000i64, 1_000_000_000i64], "v": [1, 2] } });
    assert_eq!(good(&body), ["m time=9000000000000000000 v=1i", "m time=1000000000000000 v=2i"]);
    let body = json!({ "m": "m", "columns": { "time": [9_999_999_999i64], "v": [1] } });
    assert!(bad(&body).contains("out of range"), "the year 2286 does not fit");
}

#[test]
fn types_follow_the_table() {
    let kinds = [
        ("host", ColumnKind::Tag),
        ("text", ColumnKind::Field(FieldType::String)),
        ("f", ColumnKind::Field(FieldType::Float)),
        ("u", ColumnKind::Field(FieldType::UInt)),
    ];
    let table = TableSchema::new(kinds.map(|(name, kind)| (name.to_owned(), kind))).unwrap();
    let mut schemas = Schemas::default();
    schemas.merge("home", "cpu", &table.into()).unwrap();
    let read = |body: Json| {
        let parsed = read_with(&to_vec(&body).unwrap(), &schemas).unwrap();
        (points(&parsed), parsed.rejected.first().map(|bad| bad.error.clone()).unwrap_or_default())
    };
    let (rows, _) =
        read(json!({ "m": "cpu", "columns": { "host": [1], "text": ["x"], "f": [2], "u": [3] } }));
    assert_eq!(rows, ["cpu time=42 host=\"1\" f=2.0 text=\"x\" u=3u"].map(ToOwned::to_owned));
    let (rows, _) = read(json!({ "m": "cpu", "fields": { "text": "x", "f": 2, "u": 3 } }));
    assert_eq!(rows, ["cpu time=42 f=2.0 text=\"x\" u=3u"].map(ToOwned::to_owned));
    let (_, error) = read(json!({ "m": "cpu", "columns": { "u": [-3] } }));
    assert!(error.contains("\"u\""), "{error}");
    let (_, error) = read(json!({ "m": "cpu", "columns": { "f": ["x"] } }));
    assert!(error.contains("\"f\""), "{error}");
    // A bad column leaves nothing of the good ones before it.
    let (rows, error) = read(json!([
        { "m": "cpu", "columns": { "f": [1, 2], "new": [1, 2], "u": [1, "x"] } },
        { "m": "cpu", "columns": { "f": [3] } },
    ]));
    assert_eq!(rows, ["cpu time=42 f=3.0"]);
    assert!(error.contains("several types"), "{error}");
    let large = json!({ "m": "new", "columns": { "u": [u64::MAX, 1], "f": [u64::MAX, 0.5] } });
    assert_eq!(
        good(&large),
        ["new time=42 f=1.8446744073709552e19 u=18446744073709551615u", "new time=42 f=0.5 u=1u"]
    );
}

#[test]
fn what_is_no_such_body_is_told() {
    let error = |body: &[u8]| read_with(body, &Schemas::default()).unwrap_err().to_string();
    assert!(error(&[]).contains("breaks off"));
    assert!(error(b"cpu v=1").contains("bytes behind"));
    assert!(error(&to_vec(&7).unwrap()).contains("neither a map"));
    assert!(error(&to_vec(&json!({ "batch": 7 })).unwrap()).contains("not a list"));
    let mut two = to_vec(&json!({ "m": "m", "f": [1] })).unwrap();
    two.extend_from_slice(&two.clone());
    assert!(error(&two).contains("bytes behind"));
    let wrong = Options { database: "_x".into(), ..options() };
    assert!(matches!(parse(&two, &wrong, &Schemas::default(), &mut |_| true), Err(BodyError::Database(_))));
}

#[test]
fn text_that_a_number_becomes_is_paid_for() {
    let body =
        json!({ "m": "t", "tag_keys": ["x"], "columns": { "x": vec![5e-324; 1_000], "v": vec![1; 1_000] } });
    let row = json!({ "m": "t", "fields": { "v": 1 }, "tags": { "x": 5e-324 } });
    for (body, texts) in [(to_vec(&body).unwrap(), 1_000), (to_vec(&vec![row; 100]).unwrap(), 100)] {
        assert!(body.len() < 12_000);
        let mut paid = 0;
        let mut room = |bytes| {
            paid += bytes;
            true
        };
        let parsed = parse(&body, &options(), &Schemas::default(), &mut room).unwrap();
        assert_eq!(parsed.rows, texts);
        assert!(paid > 3 * 326 * texts, "{paid} for {texts}");
    }
}

#[test]
fn a_body_gets_no_more_room_than_there_is() {
    // 900 columns of 900 rows out of a few kilobytes.
    let sparse: Vec<Json> = (0..900).map(|n| json!({ "m": "m", "fields": { format!("c{n}"): 1 } })).collect();
    let sparse = to_vec(&sparse).unwrap();
    let mut asked = 0usize;
    let mut room = |bytes: usize| {
        asked += bytes;
        asked <= 1 << 20
    };
    assert!(matches!(parse(&sparse, &options(), &Schemas::default(), &mut room), Err(BodyError::NoRoom)));
    // A list of nils is one byte for each: asked for before it is made.
    let mut nils = to_vec(&json!({ "m": "m" })).unwrap();
    nils[0] = 0x82;
    nils.extend([0xa7]);
    nils.extend(b"columns");
    nils.extend([0x81, 0xa1, b'v', 0xdd]);
    nils.extend(1_000_000u32.to_be_bytes());
    nils.extend(vec![0xc0; 999_999]);
    nils.push(1);
    let mut asked = 0usize;
    let mut room = |bytes: usize| {
        asked += bytes;
        asked <= 4 << 20
    };
    assert!(matches!(parse(&nils, &options(), &Schemas::default(), &mut room), Err(BodyError::NoRoom)));
    assert_eq!(read_with(&nils, &Schemas::default()).unwrap().rows, 1_000_000);
}

fn any_value() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        (-1e9..1e9f64).prop_map(Json::from),
        "[a-zä]{0,5}".prop_map(Json::from),
        prop::collection::vec(any::<i8>().prop_map(Json::from), 0..3).prop_map(Json::from),
    ]
}

fn any_item() -> impl Strategy<Value = Json> {
    let key = prop_oneof![
        Just("m"),
        Just("t"),
        Just("h"),
        Just("tags"),
        Just("fields"),
        Just("f"),
        Just("columns"),
        Just("tag_keys"),
        Just("batch"),
        Just("x")
    ];
    let map = || prop::collection::btree_map("[a-c]|time|host", any_value(), 0..4).prop_map(|map| json!(map));
    let lists = prop::collection::btree_map("[a-c]|time", prop::collection::vec(any_value(), 1..4), 0..4);
    let value = prop_oneof![any_value(), map(), lists.prop_map(|map| json!(map))];
    prop::collection::vec((key, value), 0..6).prop_map(|parts| parts.into_iter().collect::<Json>())
}

proptest! {
    /// The same points as columns, as rows and as line protocol are the same.
    #[test]
    fn shapes_agree(
        rows in prop::collection::vec(("[a-c]", prop::option::of(-1e6..1e6f64), any::<i32>(), prop::option::of(any::<bool>())), 1..40),
        start in 1_600_000_000_000_000_001i64..1_700_000_000_000_000_000,
    ) {
        let time = |n: usize| start + n as i64;
        let columns = json!({ "m": "cpu", "tag_keys": ["host"], "columns": {
            "time": (0..rows.len()).map(time).collect::<Vec<_>>(),
            "host": rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>(),
            "a": rows.iter().map(|row| row.1).collect::<Vec<_>>(),
            "b": rows.iter().map(|row| row.2).collect::<Vec<_>>(),
            "c": rows.iter().map(|row| row.3).collect::<Vec<_>>(),
        }});
        let items: Vec<Json> = rows.iter().enumerate().map(|(n, row)| json!({
            "m": "cpu", "t": time(n), "h": row.0, "fields": { "a": row.1, "b": row.2, "c": row.3 },
        })).collect();
        let lines: Vec<String> = rows.iter().enumerate().map(|(n, row)| {
            let a = row.1.map_or(String::new(), |a| format!("a={a:?},"));
            let c = row.3.map_or(String::new(), |c| format!(",c={c}"));
            format!("cpu,host={} {a}b={}i{c} {}", row.0, row.2, time(n))
        }).collect();
        let lines = line_protocol::parse(lines.join("\n").as_bytes(), &options(), &Schemas::default(), &mut |_| true);
        let sorted = |parsed: &Parsed| points(parsed).into_iter().map(|point| {
            let mut parts: Vec<_> = point.split(' ').map(ToOwned::to_owned).collect();
            parts.sort();
            parts
        }).collect::<Vec<_>>();
        let want = sorted(&lines.unwrap());
        prop_assert_eq!(&sorted(&read(&columns)), &want);
        prop_assert_eq!(&sorted(&read(&items)), &want);
    }

    #[test]
    fn no_body_breaks_it(items in prop::collection::vec(any_item(), 0..5), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bit in 0..8u8) {
        let body = to_vec(&items).unwrap();
        let parsed = read_with(&body, &Schemas::default()).unwrap();
        prop_assert!(parsed.rejected_total <= items.len());
        let mut asked = 0usize;
        let mut room = |bytes: usize| { asked += bytes; true };
        let _ = parse(&body[..cut.index(body.len())], &options(), &Schemas::default(), &mut room);
        let mut flipped = body.clone();
        let at = flip.index(flipped.len());
        flipped[at] ^= 1 << bit;
        let _ = parse(&flipped, &options(), &Schemas::default(), &mut room);
        let _ = read_with(&flipped, &Schemas::default());
        prop_assert!(asked <= body.len() * 2_000 + (1 << 20), "{} bytes asked for {}", asked, body.len());
    }
}
