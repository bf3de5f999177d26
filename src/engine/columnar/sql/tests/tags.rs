//! Conditions on tags are judged by their codes where files have codes: that it makes no difference.

use super::{zones::flush, *};

/// Of many rows whose tags are of few texts, of as many as there are rows, and missing.
pub(super) async fn tagged(dir: &Path) -> (Arc<ColumnarEngine>, Vec<Row>) {
    let engine = engine(dir).await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut rows: Vec<Row> = Vec::new();
    // Longer than a row group, whose texts are numbered anew.
    for n in 0..6_000 {
        let host = ["a", "b", "größe", "1", "22"][rng.random_range(0..5)];
        rows.push((n, host, rng.random_bool(0.9).then(|| f64::from(rng.random_range(0..100u8))), None));
    }
    let many: Vec<Row> = (6_000..9_000)
        .map(|n| {
            let host: &'static str = Box::leak(format!("{}{n}", "long ".repeat(250)).into_boxed_str());
            (n, host, Some(1.0), Some(2.0))
        })
        .collect();
    engine.apply(at(1), &batch("db", &rows)).unwrap();
    flush(&engine).await;
    engine.apply(at(2), &batch("db", &many)).unwrap();
    flush(&engine).await;
    rows.extend(many);
    // Into a file of their own: points without the tag.
    let none: Vec<Row> = (9_000..9_010).map(|n| (n, "", Some(3.0), None)).collect();
    engine.apply(at(3), &batch("db", &none)).unwrap();
    flush(&engine).await;
    rows.extend(none);
    // What files say of themselves is known once they were read.
    csv(&engine, "select sum(a) as s from cpu").await;
    (engine, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_on_tags_are_true_of_the_same_rows_however_they_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, rows) = tagged(dir.path()).await;
    // The same condition behind what keeps it from the files: nothing is known of a column of a window.
    let apart = "select time, h, a from (select time, a, max(host) over (partition by time) as h from cpu)";
    for condition in [
        "HOST = 'a'",
        "HOST <> 'a'",
        "HOST in ('b', 'größe', 'nowhere')",
        "HOST not in ('b', '22')",
        "HOST like '%ö%' or HOST like 'long%9'",
        "HOST is null",
        "HOST is not null and HOST < 'b'",
        "HOST = 'a' and time >= to_timestamp_nanos(3000)",
        "HOST = 'b' and a > 50",
        "HOST = 'b' or a > 98",
        "length(HOST) = 2 and HOST > '1'",
        "case when HOST = 'a' then null else HOST = 'b' end",
        "cast(HOST as bigint) = 22",
        "HOST = 'nowhere'",
    ] {
        let direct = format!(
            "select time, host as h, a from cpu where {} order by time",
            condition.replace("HOST", "host")
        );
        let apart = format!("{apart} where {} order by time", condition.replace("HOST", "h"));
        let (direct, apart) =
            (written(&engine, &direct, Format::Csv).await, written(&engine, &apart, Format::Csv).await);
        match (&direct, &apart) {
            (Ok(direct), Ok(apart)) => assert!(direct == apart, "{condition}"),
            // What fails must fail either way.
            (Err(_), Err(_)) => {}
            (direct, _) => {
                panic!("{condition}: only one of the two works, the direct one: {}", direct.is_ok())
            }
        }
    }
    let count = csv(&engine, "select count(*) as n, sum(a) as s from cpu where host = 'a'").await;
    let here = rows.iter().filter(|row| row.1 == "a");
    let sum: f64 = here.clone().filter_map(|row| row.2).sum();
    assert_eq!(count, format!("n,s\n{},{sum:.1}\n", here.count()));
    let newest = csv(&engine, "select time from cpu where host = 'a' order by time desc limit 1").await;
    let last = rows.iter().rev().find(|row| row.1 == "a").unwrap().0;
    assert!(newest.ends_with(&format!("00.{last:09}\n")), "{newest} is not {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_judged_by_their_codes_where_files_have_nothing_but_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = tagged(dir.path()).await;
    let steps = |plan: &str| plan.matches("TagsExec").count();
    let few =
        csv(&engine, "explain select a from cpu where host = 'a' and time < to_timestamp_nanos(6000)").await;
    assert!(steps(&few) == 1 && few.contains("TagsExec: host@0 = a"), "{few}");
    // Conditions on something besides a tag say nothing about its texts.
    for other in ["a > 1", "host = 'a' or a > 1"] {
        let plan = csv(&engine, &format!("explain select a from cpu where {other}")).await;
        assert_eq!(steps(&plan), 0, "{plan}");
    }
    // Row groups without a row that is looked for are not read, as if there were no codes.
    let plan = csv(&engine, "explain analyze select a from cpu where host = 'c'").await;
    let read = plan.split("TagsExec").nth(1).unwrap();
    assert!(read.contains("output_rows=0"), "{plan}");
}
