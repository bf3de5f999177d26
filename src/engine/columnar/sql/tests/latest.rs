//! What each series was last, and which series there are: from digests the same answers as from all
//! rows.

use super::{zones::flush, *};

const HOSTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A condition on a field, which every row meets: with it all rows are read.
const ALL: &str = "coalesce(a, 0.0) < 1e300";

async fn reads_files(engine: &Arc<ColumnarEngine>, sql: &str) -> bool {
    let plan = csv(engine, &format!("explain {sql}")).await;
    plan.contains("file_groups") || plan.contains("files=") && !plan.contains("files=0")
}

/// Rows of some hosts, each written a few times with some of its fields left out.
fn some(rng: &mut StdRng) -> Vec<Row> {
    let value = |rng: &mut StdRng| rng.random_bool(0.6).then(|| f64::from(rng.random_range(0..1000)));
    let from = rng.random_range(0..200);
    (0..rng.random_range(1..80))
        .map(|_| {
            let host = HOSTS[rng.random_range(0..HOSTS.len())];
            // So that a row always has a field.
            let (a, b) = (value(rng), value(rng));
            (from + rng.random_range(0..40), host, a.or_else(|| b.is_none().then_some(1.0)), b)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_each_series_is_the_same_from_digests_as_from_all_rows() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path()).await;
        for seq in 1..30 {
            engine.apply(at(seq), &batch("db", &some(&mut rng))).unwrap();
            match rng.random_range(0..6) {
                0 => drop(engine.checkpoint(Bytes::new()).await.unwrap()),
                // Into a file that stays: there are some whose digests are put together.
                1 | 2 => flush(&engine).await,
                _ => {}
            }
            if rng.random_bool(0.1) {
                engine.maintain().await.unwrap();
            }
            if rng.random_bool(0.7) {
                continue;
            }
            let least = rng.random_range(0..240);
            let time = format!("time >= to_timestamp_nanos({least})");
            for asked in [
                "select host, last_value(a order by time) as a, last_value(b order by time) as b, max(time) as t \
                 from cpu where WHERE group by host order by host",
                "select host, last_value(a order by time) ignore nulls as a, \
                 first_value(b order by time desc) ignore nulls as b from cpu where WHERE group by host order by host",
                "select distinct on (host) * from cpu where WHERE order by host, time desc",
                "select distinct host from cpu where WHERE order by host",
                "select count(distinct host) as n from cpu where WHERE",
                "select upper(host) as h, last_value(a order by time) as a, max(time) as t \
                 from (select host, time, a from cpu) x where WHERE and host <> 'c' group by h order by h",
            ] {
                let quick = asked.replace("WHERE", &time);
                let plain = asked.replace("WHERE", &format!("{time} and {ALL}"));
                assert_eq!(csv(&engine, &quick).await, csv(&engine, &plain).await, "{quick}");
                assert!(!reads_files(&engine, &quick).await, "{quick}");
            }
        }
        assert!(reads_files(&engine, "select * from cpu").await, "there are files");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_needs_more_than_digests_reads_everything() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let rows: Vec<Row> = (1..9).map(|n| (n, HOSTS[n as usize % 2], Some(n as f64), Some(0.0))).collect();
    engine.apply(at(1), &batch("db", &rows)).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    for asked in [
        "select host, max(a) from cpu group by host",
        "select host, count(*) from cpu group by host",
        "select host, min(time) from cpu group by host",
        "select host, last_value(a order by a) from cpu group by host",
        "select host, last_value(a order by time desc) from cpu group by host",
        "select host, first_value(a order by time) from cpu group by host",
        "select host, last_value(a) from cpu group by host",
        "select host, last_value(a order by time) filter (where b = 1.0) from cpu group by host",
        "select host, last_value(a + b order by time) ignore nulls from cpu group by host",
        // On a row that was written over, and is in a digest, an expression may fail.
        "select host, last_value(100.0 / a order by time) from cpu group by host",
        "select host, last_value(q order by time) from (select host, time, 100.0 / a as q from cpu) x group by host",
        "select host, a, last_value(b order by time) from cpu group by host, a",
        "select host, max(time) from cpu where a > 0 group by host",
        "select host, max(time) from cpu where a > 0 or host = 'x' group by host",
        "select host, max(time) from cpu where time < to_timestamp_nanos(3) group by host",
        "select host, max(time) from cpu where time = to_timestamp_nanos(3) group by host",
        "select host, max(time) from cpu where time >= to_timestamp_nanos(1) and random() < 0.5 group by host",
        "select host, max(time) from (select * from cpu limit 1) group by host",
        "select host, max(time) from (select * from cpu order by time limit 1) group by host",
        "select date_bin(interval '1 minute', time) as t, last_value(a order by time) from cpu group by t",
        "select distinct host, a from cpu",
    ] {
        assert!(reads_files(&engine, asked).await, "{asked}");
    }
    // The last time of all is known without reading anything.
    let plan = csv(&engine, "explain select max(time) from cpu").await;
    assert!(plan.contains("PlaceholderRowExec"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_put_together_once_and_go_on_with_each_file() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let asked =
        "select host, last_value(a order by time) as a from cpu where WHERE group by host order by host";
    let answer = async |condition: &str| csv(&engine, &asked.replace("WHERE", condition)).await;
    let together = || {
        let digests = &engine.inner.digests;
        let files = engine.inner.state().committed.clone();
        let runs = files.iter().map(|file| digests.run(file).map_or(0, |(paths, _)| paths.len()));
        runs.collect::<Vec<_>>()
    };
    for seq in 1..=4 {
        let time = 10 * i64::try_from(seq).unwrap();
        let rows =
            [(time, "a", Some(time as f64), None), (time + 1, HOSTS[time as usize / 10], Some(0.5), None)];
        engine.apply(at(seq), &batch("db", &rows)).unwrap();
        flush(&engine).await;
        assert!(answer("time > to_timestamp_nanos(0)").await.contains(&format!("\na,{time}.0\n")));
        let kept = together();
        assert_eq!(kept[0], if seq == 1 { 0 } else { seq as usize }, "{kept:?}");
    }
    // Whoever asks for less begins with another file.
    assert_eq!(answer("time >= to_timestamp_nanos(30)").await, "host,a\na,40.0\nd,0.5\ne,0.5\n");
    assert_eq!(together(), [4, 0, 2, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_row_is_a_series_of_its_own_there_is_no_digest() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let names: Vec<&'static str> = (0..3000).map(|n| &*format!("h{n}").leak()).collect();
    let rows: Vec<Row> = (0..).zip(&names).map(|(time, host)| (time, *host, Some(1.0), None)).collect();
    engine.apply(at(1), &batch("db", &rows)).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    let asked = "select count(*) as n from (select distinct host from cpu)";
    assert!(reads_files(&engine, asked).await);
    assert_eq!(csv(&engine, asked).await, "n\n3000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    drop(engine);
    let engine = super::engine(dir.path()).await;
    let (name, _) = engine.files().pop().unwrap();
    let path = dir.path().join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let asked = "select distinct host from cpu";
    let error = engine.query(asked, options()).await.unwrap_err();
    assert!(matches!(error, QueryError::Damaged { .. }), "{error:?}");
}
