//! Files that overlap at their ends: what is merged, what is read as it lies, and that it makes no difference.

use std::sync::atomic::Ordering;

use super::*;

/// Values of a and b by time and host.
type Points = BTreeMap<(i64, &'static str), (Option<f64>, Option<f64>)>;

type Point<'a> = (&'a (i64, &'static str), &'a (Option<f64>, Option<f64>));

const HOSTS: [&str; 3] = ["x", "y", "z"];

fn write(engine: &ColumnarEngine, seq: u64, points: &mut Points, rows: &[Row]) {
    engine.apply(at(seq), &batch("db", rows)).unwrap();
    for &(time, host, a, b) in rows {
        let held = points.entry((time, host)).or_default();
        *held = (a.or(held.0), b.or(held.1));
    }
}

/// Puts what is in memory into a file of its own, which later flushes leave alone.
pub(super) async fn flush(engine: &ColumnarEngine) {
    engine.checkpoint(Bytes::new()).await.unwrap();
    claim(engine, true);
}

fn claim(engine: &ColumnarEngine, claimed: bool) {
    for file in &engine.inner.state().committed {
        file.claimed.store(claimed, Ordering::Release);
    }
}

fn text(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.1}"))
}

/// What the engine has to answer: each question as SQL, and its answer from the points.
async fn check(engine: &Arc<ColumnarEngine>, points: &Points, floor: i64, what: &str) {
    let there = || points.iter().filter(move |((time, _), _)| *time >= floor);
    let (first, last) = (there().next().unwrap().0.0, there().next_back().unwrap().0.0);
    let middle = first + (last - first) / 2;
    let count = csv(engine, "select count(*) as n from cpu").await;
    assert_eq!(count, format!("n\n{}\n", there().count()), "{what}");
    let span = csv(engine, "select min(time) = to_timestamp_nanos(FIRST) and max(time) = to_timestamp_nanos(LAST) as same from cpu".replace("FIRST", &first.to_string()).replace("LAST", &last.to_string()).as_str()).await;
    assert_eq!(span, "same\ntrue\n", "{what}: {first} to {last}");
    let line = |((time, host), (a, b)): Point<'_>| format!("{time},{host},{},{}\n", text(*a), text(*b));
    let columns = "select cast(time as bigint) as t, host, a, b from cpu";
    for (condition, fits) in [
        ("true", Box::new(|_: &Row| true) as Box<dyn Fn(&Row) -> bool>),
        ("host = 'y'", Box::new(|row| row.1 == "y")),
        // What was written over must not come back through a condition on a field.
        ("a >= 100", Box::new(|row| row.2.is_some_and(|a| a >= 100.0))),
        ("b is null and host <> 'x'", Box::new(|row| row.3.is_none() && row.1 != "x")),
        ("time >= to_timestamp_nanos(MIDDLE)", Box::new(move |row| row.0 >= middle)),
        (
            "time < to_timestamp_nanos(MIDDLE) and a < 100",
            Box::new(move |row| row.0 < middle && row.2.is_some_and(|a| a < 100.0)),
        ),
    ] {
        let condition = condition.replace("MIDDLE", &middle.to_string());
        let wanted: String =
            there().filter(|((time, host), (a, b))| fits(&(*time, host, *a, *b))).map(line).collect();
        let found = csv(engine, &format!("{columns} where {condition} order by t, host")).await;
        assert!(found == format!("t,host,a,b\n{wanted}"), "{what}: {condition}");
    }
    let newest: String = there().rev().take(20).map(line).collect();
    let found = csv(engine, &format!("{columns} order by time desc, host desc limit 20")).await;
    assert_eq!(found, format!("t,host,a,b\n{newest}"), "{what}");
    let without_time = csv(engine, "select count(a) as n, sum(b) as s from cpu").await;
    let (n, s) =
        there().fold((0, 0.0), |(n, s), (_, (a, b))| (n + u32::from(a.is_some()), s + b.unwrap_or(0.0)));
    assert_eq!(without_time, format!("n,s\n{n},{s:.1}\n"), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_overlap_at_their_ends_answer_as_if_they_were_one() {
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path()).await;
        let mut points = Points::new();
        let (mut start, mut seq, mut floor) = (0, 0, i64::MIN);
        for file in 0..5 {
            // Each begins somewhere in the last tenth of the one before it, or right behind it, and some
            // points of that are written again.
            let len = rng.random_range(2_000..6_000);
            let rows: Vec<Row> = (0..len)
                .map(|n| {
                    let value = f64::from(rng.random_range(0..200u8));
                    let (a, b) = if rng.random_bool(0.5) { (Some(value), None) } else { (None, Some(value)) };
                    (start + n / 2, HOSTS[rng.random_range(0..HOSTS.len())], a, b)
                })
                .collect();
            seq += 1;
            write(&engine, seq, &mut points, &rows);
            // The last one stays in memory.
            if file < 4 {
                flush(&engine).await;
            }
            start += len / 2 - [0, 1, 50, 300][rng.random_range(0..4)];
            let what = format!("seed {seed}, file {file}");
            check(&engine, &points, floor, &what).await;
            if file == 3 {
                // The day is over; where files are compacted their windows are by tags.
                seq += 1;
                write(&engine, seq, &mut points, &[(3 * DAY, "x", Some(1.0), None)]);
                flush(&engine).await;
                claim(&engine, false);
                while seed % 2 == 0 && engine.maintain().await.unwrap() {}
                check(&engine, &points, floor, &format!("{what}, compacted")).await;
                if floor > i64::MIN {
                    // Into what is by tags now.
                    seq += 1;
                    floor += 1_500;
                    engine.apply(at(seq), &Operation::Expire { now_ns: 60_000_000_000 + floor }).unwrap();
                    check(&engine, &points, floor, &format!("{what}, from {floor}")).await;
                }
            }
            if file == 2 && seed > 1 {
                seq += 2;
                let keep = Operation::SetRetention { database: "db".into(), keep_ns: Some(60_000_000_000) };
                engine.apply(at(seq - 1), &keep).unwrap();
                floor = rng.random_range(100..3_000);
                engine.apply(at(seq), &Operation::Expire { now_ns: 60_000_000_000 + floor }).unwrap();
                check(&engine, &points, floor, &format!("{what}, less what is before {floor}")).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_row_groups_that_reach_into_an_overlap_are_read_with_care() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    // The last hundred of one are at the times of the first of the other.
    for (seq, start) in [(1, 0), (2, 10_140)] {
        let rows: Vec<Row> = (start..start + 10_240).map(|n| (n, "x", Some(seq as f64), None)).collect();
        engine.apply(at(seq), &batch("db", &rows)).unwrap();
        flush(&engine).await;
    }
    let plan = csv(&engine, "explain analyze select time, a from cpu").await;
    let rows_of = |step: &str| -> u64 {
        let (_, after) = plan.split_once(step).unwrap_or_else(|| panic!("no {step}: {plan}"));
        let (_, after) = after.split_once("output_rows=").unwrap();
        let number: String = after.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let thousands = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
        (number.parse::<f64>().unwrap() * if thousands.starts_with('K') { 1e3 } else { 1.0 }) as u64
    };
    // At most a page of each, of 64 rows here, besides what they have in common.
    let care = rows_of("FilterExec: time@0 outside of 1 zones");
    assert!((1..=2 * 64).contains(&care), "{care}: {plan}");
    assert!(rows_of("DataSourceExec") > 18_000, "{plan}");
    assert_eq!(csv(&engine, "select count(*) as n, sum(a) as s from cpu").await, "n,s\n20380,30620.0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_have_no_point_in_common_are_not_merged() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let mut seq = 0;
    let mut write = |rows: &[Row]| {
        seq += 1;
        engine.apply(at(seq), &batch("db", rows)).unwrap();
    };
    let rows = |times: std::ops::Range<i64>, host, a: f64| -> Vec<Row> {
        times.map(|n| (n, host, Some(a), None)).collect()
    };
    // The same times in the middle, of another host.
    write(&rows(0..600, "x", 1.0));
    flush(&engine).await;
    write(&rows(500..1_200, "y", 1.0));
    flush(&engine).await;
    let count = async |n: u64, sum: f64| {
        let found = csv(&engine, "select count(*) as n, sum(a) as s from cpu").await;
        assert_eq!(found, format!("n,s\n{n},{sum:.1}\n"));
        let found = csv(&engine, "select count(*) as n from cpu").await;
        assert_eq!(found, format!("n\n{n}\n"));
        csv(&engine, "explain select time, host, a from cpu").await.contains("OverlapExec")
    };
    // Not before something is known of both files.
    count(1_300, 1_300.0).await;
    assert!(!count(1_300, 1_300.0).await, "two files without a point in common are merged");
    // A third one: nothing in common with the first, and one point with the second.
    write(&[rows(550..600, "z", 1.0), vec![(700, "y", Some(5.0), None)]].concat());
    flush(&engine).await;
    count(1_350, 1_354.0).await;
    assert!(count(1_350, 1_354.0).await, "a point that is in two files is counted twice before long");
    // In the first stretch, of which nothing was in common: memory is never known to be apart.
    write(&[(100, "x", Some(3.0), None)]);
    assert!(count(1_350, 1_356.0).await);
    flush(&engine).await;
    count(1_350, 1_356.0).await;
    count(1_350, 1_356.0).await;
    let y = csv(
        &engine,
        "select count(*) as n, max(a) as m from cpu where host = 'y' and time >= to_timestamp_nanos(600)",
    )
    .await;
    assert_eq!(y, "n,m\n600,5.0\n");
}
