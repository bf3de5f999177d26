//! Statements with parameters.

use std::sync::Arc;

use arrow_schema::{DataType, TimeUnit};

use super::{
    super::{MAX_PARAMETERS, Parameters, QueryError, SqlOptions, parameter_names},
    engine, filled, options,
};
use crate::engine::columnar::ColumnarEngine;

async fn ask(engine: &Arc<ColumnarEngine>, sql: &str, json: &str) -> Result<String, QueryError> {
    let options = SqlOptions { parameters: Parameters::from_json(json)?, ..options() };
    let rows = engine.query(sql, options).await?.collect().await?;
    let mut text = Vec::new();
    let mut csv = arrow_csv::WriterBuilder::new().with_header(false).build(&mut text);
    for batch in &rows {
        csv.write(batch).unwrap();
    }
    drop(csv);
    Ok(String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_where_values_may_stand() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let mut wrong = Vec::new();
    let at_two = r#"{"at":"1970-01-01T00:00:00.000000002Z"}"#;
    for (sql, json, want) in [
        ("select count(*) from cpu where host = $host", r#"{"host":"x"}"#, "2\n"),
        ("select count(*) from cpu where host = $1 and a > $2", r#"["x", 1.5]"#, "1\n"),
        ("select count(*) from cpu where host = $1 and a > $2", r#"{"2":1.5,"1":"x"}"#, "1\n"),
        ("select count(*) from cpu where host = ? and a > ?", r#"["x", 1.5]"#, "1\n"),
        ("select a from cpu where host = $h and time = $at", &at_two.replace('{', r#"{"h":"x","#), "5.0\n"),
        ("select count(*) from cpu where time <= $at", at_two, "2\n"),
        ("select count(*) from cpu where time <= $at", r#"{"at":{"timestamp_ns":2}}"#, "2\n"),
        (
            "select $at - interval '1 nanosecond'",
            r#"{"at":{"timestamp_ns":2}}"#,
            "1970-01-01T00:00:00.000000001\n",
        ),
        ("select count(*) from cpu where a > $1", "[null]", "0\n"),
        ("select count(*) from cpu where (b is null) = $1", "[true]", "130\n"),
        ("select a from cpu where host = 'x' order by time limit $1 offset $2", "[1, 1]", "5.0\n"),
        ("select count(*) from cpu where host in ($1, $2)", r#"["x", "w"]"#, "3\n"),
        (
            "select count(*) from cpu where host like $p and a between $lo and $hi",
            r#"{"p":"x%","lo":0,"hi":1}"#,
            "1\n",
        ),
        (
            "select $1 as n, $2 as f, $3 as t, $4 as b",
            r#"[18446744073709551615, 0.5, "a", false]"#,
            "18446744073709551615,0.5,a,false\n",
        ),
        (
            "with h as (select distinct host from cpu where host <> $a) select count(*) from h",
            r#"{"a":"x"}"#,
            "2\n",
        ),
        ("select count(*) from cpu where a = (select max(a) from cpu where host = $1)", r#"["x"]"#, "1\n"),
        (
            "select date_bin($every, time) as t, count(*) from cpu where time < $to group by t",
            r#"{"every":"1 day","to":"1970-01-02T00:00:00Z"}"#,
            "1970-01-01T00:00:00,132\n",
        ),
        (
            "select host, count(*) as n from cpu group by host having count(*) > $1 order by n",
            "[2]",
            "y,130\n",
        ),
        ("select count(*) from cpu where regexp_like(host, $1)", r#"["^[xw]$"]"#, "3\n"),
        ("select count(*) from cpu where host ~ $1", r#"["^[xw]$"]"#, "3\n"),
        (
            "select case when a > $1 then 'much' else $2 end from cpu where host = 'x' order by 1",
            r#"[2, "little"]"#,
            "little\nmuch\n",
        ),
        // One of them twice is one.
        ("select $a + $a", r#"{"a":4}"#, "8\n"),
        ("select '$a', \"$b\" from (select 1 as \"$b\") t", "{}", "$a,1\n"),
    ] {
        let got = ask(&engine, sql, json).await;
        if !got.as_ref().is_ok_and(|got| got == want) {
            wrong.push(format!("{sql} {json}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is in a value stays there.
    for text in [
        "x' or 'a' = 'a",
        "x'; drop table cpu; --",
        "$host",
        "x\" or 1=1",
        "\\' or 1=1 --",
        "*/ or 1=1",
        "\0",
    ] {
        let json = serde_json::json!({ "host": text }).to_string();
        assert_eq!(
            ask(&engine, "select count(*) from cpu where host = $host", &json).await.unwrap(),
            "0\n",
            "{text}"
        );
        assert_eq!(
            ask(&engine, "select length($host)", &json).await.unwrap(),
            format!("{}\n", text.chars().count())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let mut wrong = Vec::new();
    let many: Vec<String> = (1..=MAX_PARAMETERS + 1).map(|n| format!("${n}")).collect();
    let many = format!("select 1 where 1 in ({})", many.join(","));
    let long = serde_json::json!(["x".repeat(300_000)]).to_string();
    for (sql, json, says) in [
        ("select $a", "{}", "parameter $a has no value"),
        ("select $a + $b", r#"{"a":1}"#, "parameter $b has no value"),
        ("select $2", "[1, 2]", "no parameter $1"),
        ("select ?, ?", "[1]", "parameter $2 has no value"),
        ("select ?", "[1, 2]", "no parameter $2"),
        ("select 1", r#"{"a":1}"#, "no parameter $a"),
        ("show tables", r#"{"a":1}"#, "no parameter $a"),
        ("select $a", r#"{"A":1}"#, "parameter $a has no value"),
        ("select ?, $a", r#"{"1":1,"a":1}"#, "not both"),
        ("select $0", r#"{"0":1}"#, "zero"),
        ("select $01", r#"{"1":1}"#, "$01 has no value"),
        ("select :a", r#"{"a":1}"#, "a"),
        ("select * from $t", r#"{"t":"cpu"}"#, "$t"),
        ("select * from cpu order by $a.b", r#"{"a":1}"#, ""),
        ("select count(*) from cpu where time > $1", "[true]", "Boolean"),
        ("select count(*) from cpu where a = $1", r#"["much"]"#, "much"),
        ("select a from cpu limit $1", r#"["x"]"#, ""),
        ("select a from cpu limit $1", "[-1]", ""),
        (&many, "[]", "1000 parameters"),
        ("select $1", &long, "262144 bytes"),
    ] {
        let answer = ask(&engine, sql, json).await;
        let told = match &answer {
            Err(QueryError::Invalid(why) | QueryError::NotAllowed(why) | QueryError::TooLarge(why)) => {
                why.contains(says)
            }
            _ => false,
        };
        if !told {
            wrong.push(format!("{sql} {}: {answer:?}", &json[..json.len().min(80)]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Values weigh as what is written out does.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_no_way_around_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let text = serde_json::json!(["x".repeat(200_000)]).to_string();
    let columns = (0..6).map(|n| format!("$1 as c{n}")).collect::<Vec<_>>().join(", ");
    let answer = ask(&engine, &format!("select {columns}"), &text).await;
    assert!(matches!(&answer, Err(QueryError::TooLarge(why)) if why.contains("constant text")), "{answer:?}");
    for sql in [
        "insert into cpu values ($1)",
        "create table t as select $1",
        "copy (select $1) to '/tmp/x.csv'",
        "prepare p as select $1",
        "execute p($1)",
        "set x = $1",
    ] {
        let answer = ask(&engine, sql, "[1]").await;
        assert!(
            matches!(answer, Err(QueryError::NotAllowed(_) | QueryError::Invalid(_))),
            "{sql}: {answer:?}"
        );
    }
    let sql = "select concat($1, $1, $1, $1, $1, $1)";
    let answer = ask(&engine, sql, &text).await;
    assert!(matches!(answer, Err(QueryError::TooLarge(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_prepared_without_values() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let sql = "select time, a * 2 as twice, $what as what from cpu where host = $host and time > $since and a < $most";
    assert_eq!(parameter_names(sql).unwrap(), ["what", "host", "since", "most"]);
    assert_eq!(parameter_names("select ?, 'a?', ?").unwrap(), ["1", "2"]);
    let prepared = engine.prepare(sql, options()).await.unwrap();
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let (text, float) = (DataType::Utf8, DataType::Float64);
    let wanted = [("what", text.clone()), ("host", text), ("since", time), ("most", float)];
    assert_eq!(prepared.parameters, wanted.map(|(name, kind)| (name.to_owned(), kind)));
    let columns: Vec<_> = prepared.columns.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(columns, ["time", "twice", "what"]);
    for sql in ["drop table cpu where $1", "insert into cpu values ($1)", "select * from nope where a = $1"] {
        assert!(engine.prepare(sql, options()).await.is_err(), "{sql}");
    }
}
