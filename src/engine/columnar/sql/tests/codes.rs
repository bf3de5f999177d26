//! Tags that are grouped by come as numbers where nothing else is done with them: that it makes no difference.

use super::{gaps::nothing_stays, tags::tagged, zones::flush, *};

/// What keeps a tag from being a number, and says the same.
const AS_TEXT: &str = "nullif(host, 'nowhere')";

const ASKED: [&str; 11] = [
    "select HOST as h, count(*) as n, sum(a) as s, max(b) as m from cpu where WHERE group by h order by h",
    "select HOST as h, date_bin(interval '10 nanoseconds', time) as t, avg(a) as a from cpu where WHERE \
     group by h, t order by h, t",
    "select date_bin(interval '1 second', time) as t, HOST as h, max(a) as last, count(b) as n from cpu \
     where WHERE group by t, h having count(*) > 2 order by t, h",
    "select h, count(*) as n from (select HOST as h, b from cpu where WHERE) x group by h order by n, h",
    "select x.h, x.n, y.m from (select HOST as h, count(*) as n from cpu where WHERE group by h) x \
     join (select HOST as h, min(b) as m from cpu where WHERE group by h) y on x.h = y.h order by h",
    "select HOST as h, sum(a) as s from cpu where WHERE and time > (select min(time) from cpu) group by h order by h",
    "select HOST as h, length(HOST) as l, count(*) as n from cpu where WHERE group by h, l order by h",
    "select upper(h) as u, n from (select HOST as h, count(*) as n from cpu where WHERE group by h) x \
     where n > 1 order by u, n limit 3",
    // The first of texts, not of numbers.
    "select HOST as h, count(*) as n from cpu where WHERE group by h order by h limit 2",
    "select HOST as h, max(a) as m from cpu where WHERE group by h order by h desc limit 2",
    "select h, n from (select HOST as h, count(*) as n from cpu where WHERE group by h) x order by h desc limit 1",
];
/// As they are, for which digests say too little.
const GROUPS_ALONE: [&str; 5] = [
    "select distinct HOST as h from cpu where a > 300 and WHERE order by h",
    "select distinct HOST as h from cpu where a > 300 and WHERE order by h limit 2",
    "select HOST as h from cpu where a > 300 and WHERE group by h order by h desc limit 2",
    "select h from (select HOST as h from cpu where a > 300 and WHERE) x group by h order by h limit 1",
    "select count(distinct HOST) as n from cpu where a > 300 and WHERE",
];

async fn is_coded(engine: &Arc<ColumnarEngine>, sql: &str) -> bool {
    let plan = csv(engine, &format!("explain {sql}")).await;
    assert_eq!(plan.contains("numbers=[host]"), plan.contains("tag_text("), "{plan}");
    plan.contains("tag_text(")
}

async fn compare(engine: &Arc<ColumnarEngine>, condition: &str, coded: bool) {
    for (at, asked) in ASKED.iter().chain(&GROUPS_ALONE).enumerate() {
        let asked = asked.replace("WHERE", condition);
        let (numbers, texts) = (asked.replace("HOST", "host"), asked.replace("HOST", AS_TEXT));
        assert_eq!(csv(engine, &numbers).await, csv(engine, &texts).await, "{numbers}");
        assert!(!is_coded(engine, &texts).await, "{texts}");
        if coded {
            assert_eq!(is_coded(engine, &numbers).await, at < ASKED.len(), "{numbers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_the_same_by_number_as_by_text() {
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path()).await;
        for seq in 1..25 {
            let from = rng.random_range(0..200);
            let value = |rng: &mut StdRng| rng.random_bool(0.7).then(|| f64::from(rng.random_range(0..1000)));
            // Empty stands for a point without the tag.
            let row = |rng: &mut StdRng| {
                let host = ["größe", "b", "", "long enough not to be short", "a"][rng.random_range(0..5)];
                (from + rng.random_range(0..40), host, value(rng), Some(1.0))
            };
            let rows: Vec<Row> = (0..rng.random_range(1..60)).map(|_| row(&mut rng)).collect();
            engine.apply(at(seq), &batch("db", &rows)).unwrap();
            match rng.random_range(0..6) {
                0 => drop(engine.checkpoint(Bytes::new()).await.unwrap()),
                1 | 2 => flush(&engine).await,
                _ => {}
            }
            if rng.random_bool(0.1) {
                engine.maintain().await.unwrap();
            }
            if rng.random_bool(0.2) {
                let least = rng.random_range(0..200);
                compare(&engine, &format!("time >= to_timestamp_nanos({least}) and a < 950"), false).await;
            }
        }
        compare(&engine, "time >= to_timestamp_nanos(7)", true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_codes_and_without_give_one_number_to_one_text() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut rows) = tagged(dir.path()).await;
    // In memory too, and over what is in files.
    let more: Vec<Row> = (5_990..6_020).map(|n| (n, "größe", Some(5.0), None)).collect();
    engine.apply(at(9), &batch("db", &more)).unwrap();
    rows.extend(more);
    compare(&engine, "time >= to_timestamp_nanos(7)", true).await;
    let asked =
        "select count(*) as n from (select host, count(a) as n from cpu group by host having count(a) > 0) x";
    assert!(is_coded(&engine, asked).await);
    let count = csv(&engine, asked).await;
    let points: BTreeMap<(i64, &str), f64> =
        rows.iter().filter_map(|row| Some(((row.0, row.1), row.2?))).collect();
    let hosts: std::collections::BTreeSet<&str> = points.keys().map(|point| point.1).collect();
    assert_eq!(count, format!("n\n{}\n", hosts.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_used_otherwise_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    for asked in [
        "select host, max(host) as m from cpu group by host order by host",
        "select host, count(*) as n from cpu where host <> 'x' group by host order by host",
        "select host, length(host) + a as l, count(*) as n from cpu group by host, l order by host, l",
        "select host, count(*) as n from cpu where a > 0 group by host order by host",
        "select host, count(*) filter (where host = 'x') as n from cpu group by host order by host",
        "select host, count(*) as n from cpu group by rollup(host) order by host, n",
        "select host, count(*) as n from (select * from cpu order by time limit 20) group by host order by host",
        "select a.host, count(*) as n from cpu a join cpu b on a.time = b.time group by a.host order by a.host",
        "select c.host, count(*) as n from cpu c where exists (select 1 from cpu d where d.host = c.host and d.b > 8) \
         group by c.host order by c.host",
    ] {
        assert!(!is_coded(&engine, asked).await, "{asked}");
        csv(&engine, asked).await;
    }
    // A number within, and from there on the text that the inner groups answer with.
    let nested = "select host, sum(n) as n from (select host, count(*) as n from cpu group by host) group by host \
                  order by host";
    assert!(is_coded(&engine, nested).await);
    assert_eq!(csv(&engine, nested).await, "host,n\nw,1\nx,2\ny,130\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_texts_than_a_query_has_memory_for_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = tagged(dir.path()).await;
    let asked = "select host, count(a) as n from cpu group by host";
    assert!(is_coded(&engine, asked).await);
    let few = SqlOptions { memory_limit: 3 << 20, ..options() };
    let memory = few.memory.clone();
    let error = engine.query(asked, few).await.unwrap().collect().await.unwrap_err();
    assert!(matches!(error, QueryError::TooLarge(_)), "{error}");
    nothing_stays(&memory).await;
}
