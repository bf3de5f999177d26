//! What a query that may see one database sees of another: nothing, whether it is there or not.

use super::*;
use crate::types::Databases;

/// In every name of the database that is not to be seen, and in its values.
const CANARY: &str = "canary";

async fn two_databases(dir: &Path) -> Arc<ColumnarEngine> {
    let engine = engine(dir).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), Some(1.0))])).unwrap();
    engine
        .apply(at(2), &table_batch("canary_db", "canary_table", &[(1, "canary", Some(2.0), Some(1.0))]))
        .unwrap();
    engine
}

fn only_db(database: &str) -> SqlOptions {
    let databases = Databases::Only(["db".to_owned()].into());
    SqlOptions { database: Some(database.into()), databases, ..SqlOptions::default() }
}

async fn asked(engine: &Arc<ColumnarEngine>, sql: &str, database: &str) -> Result<String, QueryError> {
    let mut rows = std::pin::pin!(encode(engine.query(sql, only_db(database)).await?, Format::Csv));
    let mut bytes = Vec::new();
    while let Some(part) = rows.next().await {
        bytes.extend_from_slice(&part?);
    }
    Ok(String::from_utf8(bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_reaches_over() {
    let dir = tempfile::tempdir().unwrap();
    let engine = two_databases(dir.path()).await;
    let reaching = |db: &str| {
        [
            format!("select * from {db}.canary_table"),
            format!("select * from skein.{db}.canary_table"),
            format!("select * from \"{db}\".\"canary_table\""),
            format!("select count(*) from cpu where a in (select a from {db}.canary_table)"),
            format!("select (select max(a) from {db}.canary_table)"),
            format!("with t as (select * from {db}.canary_table) select * from t"),
            format!("with cpu as (select * from {db}.canary_table) select * from cpu"),
            format!("select a from cpu union all select a from {db}.canary_table"),
            format!("select cpu.a from cpu join {db}.canary_table x on cpu.host = x.host"),
            format!("select exists (select 1 from {db}.canary_table)"),
            format!("select * from cpu, lateral (select * from {db}.canary_table) x"),
            format!("explain select * from {db}.canary_table"),
            format!("explain analyze select * from {db}.canary_table"),
            format!("table {db}.canary_table"),
            format!("show tables from {db}"),
            format!("show columns from {db}.canary_table"),
            format!("describe {db}.canary_table"),
        ]
    };
    // The same answer, word for word, for a database that is there and for one that is not.
    let mut refusals = Vec::new();
    for db in ["canary_db", "absent_db"] {
        let mut said = Vec::new();
        for sql in reaching(db) {
            let error = asked(&engine, &sql, "db").await.expect_err(&sql);
            assert!(matches!(error, QueryError::Forbidden(_) | QueryError::Invalid(_)), "{sql}: {error:?}");
            said.push(error.to_string().replace(db, "DB"));
        }
        refusals.push(said);
    }
    assert_eq!(refusals[0], refusals[1]);
    // Named by the request instead of the statement.
    for sql in ["select * from canary_table", "show tables", "show columns from canary_table"] {
        assert!(matches!(asked(&engine, sql, "canary_db").await, Err(QueryError::Forbidden(_))), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = two_databases(dir.path()).await;
    for sql in [
        "show databases",
        "show schemas",
        "show tables",
        "select * from information_schema.tables",
        "select * from information_schema.columns",
        "select * from information_schema.schemata",
        "select * from information_schema.views",
        "select table_schema || table_name from information_schema.tables where table_schema like '%can%'",
        "explain select * from information_schema.tables",
        "select * from cpu",
    ] {
        match asked(&engine, sql, "db").await {
            Ok(answer) => assert!(!answer.replace(sql, "").contains(CANARY), "{sql}: {answer}"),
            Err(error) => assert!(!error.to_string().contains(CANARY), "{sql}: {error}"),
        }
    }
    // Neither does a wrong name fish for it.
    for sql in
        ["select * from canary_tabl", "select canary from cpu", "select * from information_schema.tabl"]
    {
        let said = asked(&engine, sql, "db").await.unwrap_err().to_string();
        assert!(!said.contains("canary_table") && !said.contains("canary_db"), "{sql}: {said}");
    }
    // What it may see it sees, and whoever may see everything does.
    assert!(asked(&engine, "show databases", "db").await.unwrap().contains("db"));
    assert!(asked(&engine, "select * from db.cpu", "db").await.unwrap().contains('x'));
    assert!(csv(&engine, "select table_name from information_schema.tables").await.contains(CANARY));
    assert!(csv(&engine, "select * from canary_db.canary_table").await.contains(CANARY));
}
