//! One log, replicas that flush, crash and are copied at different moments: what they show is the
//! same at every position, and what a plain model of the log says.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

/// Time and host of a point of a table of a database.
type Name = (&'static str, &'static str, i64, String);
type Values = (Option<f64>, Option<f64>);

const SECOND: i64 = 1_000_000_000;
const DATABASES: [&str; 2] = ["one", "two"];
const TABLES: [&str; 2] = ["cpu", "mem"];

/// What the log comes to, the plain way.
#[derive(Debug, Default)]
struct Model {
    points: BTreeMap<Name, Values>,
    keep: BTreeMap<&'static str, (Option<i64>, Option<i64>)>,
}

impl Model {
    fn purge(&mut self, database: &str, before: Option<i64>) {
        self.points.retain(|name, _| name.0 != database || before.is_some_and(|before| name.2 >= before));
    }

    fn shown(&self) -> BTreeMap<Name, Values> {
        let there = |name: &Name| {
            let horizon = self.keep.get(name.0).and_then(|(_, horizon)| *horizon);
            horizon.is_none_or(|horizon| name.2 >= horizon)
        };
        let shown = self.points.iter().filter(|(name, _)| there(name));
        shown.map(|(name, values)| (name.clone(), *values)).collect()
    }

    /// A record, done here and returned for the engines.
    fn next(&mut self, rng: &mut StdRng, clock: &mut i64) -> Operation {
        let database = DATABASES[rng.random_range(0..2)];
        match rng.random_range(0..20) {
            0 => {
                self.purge(database, None);
                self.keep.remove(database);
                Operation::DropDatabase { database: database.into() }
            }
            1 | 2 => {
                let keep = [None, Some(50), Some(100), Some(200)][rng.random_range(0..4)];
                let keep = keep.map(|seconds| seconds * SECOND);
                let (kept, horizon) = self.keep.get(database).copied().unwrap_or_default();
                if kept != keep {
                    if let Some(horizon) = horizon {
                        self.purge(database, Some(horizon));
                    }
                    self.keep.insert(database, (keep, None));
                }
                Operation::SetRetention { database: database.into(), keep_ns: keep }
            }
            3..6 => {
                // Clocks of one writer and the next differ.
                *clock += rng.random_range(-20..60) * SECOND;
                for (keep, horizon) in self.keep.values_mut() {
                    let due = keep.map(|keep| *clock - keep);
                    *horizon = (*horizon).max(due);
                }
                Operation::Expire { now_ns: *clock }
            }
            _ => {
                let table = TABLES[rng.random_range(0..2)];
                let mut rows: Vec<Row> = Vec::new();
                for _ in 0..rng.random_range(1..12) {
                    let time = *clock - rng.random_range(-3..300) * SECOND;
                    let mut value = || rng.random_bool(0.7).then(|| f64::from(rng.random_range(0..100u8)));
                    let (a, b) = (value(), value());
                    rows.push((time, ["x", "y", "z"][rng.random_range(0..3)], a, b));
                }
                for &(time, host, a, b) in &rows {
                    let held = self.points.entry((database, table, time, host.into())).or_default();
                    *held = (a.or(held.0), b.or(held.1));
                }
                table_batch(database, table, &rows)
            }
        }
    }
}

/// Every point that an engine shows.
async fn shown(engine: &ColumnarEngine) -> BTreeMap<Name, Values> {
    use arrow_array::{cast::AsArray, types::Float64Type};
    let mut found = BTreeMap::new();
    for (database, table) in DATABASES.into_iter().flat_map(|db| TABLES.map(|table| (db, table))) {
        let Some((_, batches)) = engine.scan(database, table).await.unwrap() else { continue };
        for batch in batches {
            let float = |name: &str, row: usize| {
                let column = batch.column_by_name(name)?.as_primitive::<Float64Type>();
                column.is_valid(row).then(|| column.value(row))
            };
            for (row, time) in times(&batch).unwrap().iter().enumerate() {
                let host = batch.column_by_name("host").unwrap().as_string::<i32>().value(row).to_owned();
                let twice = found.insert((database, table, *time, host), (float("a", row), float("b", row)));
                assert!(twice.is_none(), "a point comes once");
            }
        }
    }
    found
}

/// What SQL says of it: number of points, and the time of the first, of each table.
#[cfg(feature = "sql")]
async fn check_sql(engine: &Arc<ColumnarEngine>, wanted: &BTreeMap<Name, Values>) {
    use arrow_array::{cast::AsArray, types::Int64Type};
    for (database, table) in DATABASES.into_iter().flat_map(|db| TABLES.map(|table| (db, table))) {
        let Some(_) = engine.schemas().get(database, table) else { continue };
        let mut times = wanted.keys().filter(|name| (name.0, name.1) == (database, table)).map(|name| name.2);
        let (first, count) = (times.clone().min(), times.by_ref().count());
        let sql = format!("select count(*), cast(min(time) as bigint) from {database}.{table}");
        let rows = engine.query(&sql, crate::engine::columnar::sql::SqlOptions::default()).await.unwrap();
        let rows = rows.collect().await.unwrap();
        let number = |column: usize| {
            let column = rows[0].column(column).as_primitive::<Int64Type>();
            column.is_valid(0).then(|| column.value(0))
        };
        assert_eq!((number(0), number(1)), (Some(count as i64), first), "{sql}");
    }
}

struct Replica {
    dir: tempfile::TempDir,
    engine: Arc<ColumnarEngine>,
}

impl Replica {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { engine: open(real(), &dir.path().join("engine")).await, dir }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("engine")
    }

    async fn flush(&self) {
        self.engine.checkpoint(Bytes::new()).await.unwrap();
    }

    /// The log from the last checkpoint on, after a crash or a copy.
    fn replay(&self, log: &[Operation]) {
        for (record, seq) in log.iter().zip(1..).filter(|(_, seq)| at(*seq) > self.engine.applied()) {
            self.engine.apply(at(seq), record).unwrap();
        }
    }

    /// Everything of another replica's last checkpoint.
    async fn copy_of(&self, other: &Self) {
        let incoming = self.dir.path().join("incoming");
        for file in &other.engine.export().await.unwrap().files {
            let copy = incoming.join(&file.name);
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(&file.path, copy).unwrap();
        }
        self.engine.install(incoming).await.unwrap();
    }
}

#[tokio::test]
async fn replicas_agree_on_what_is_dropped_and_what_is_too_old() {
    let mut gone = 0;
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut model, mut clock, mut log) = (Model::default(), 1_700_000_000 * SECOND, Vec::new());
        // One that never flushes, one that flushes, one that crashes, one that is copied.
        let mut replicas =
            [Replica::new().await, Replica::new().await, Replica::new().await, Replica::new().await];
        for seq in 1..=150u64 {
            let record = model.next(&mut rng, &mut clock);
            for replica in &replicas {
                replica.engine.apply(at(seq), &record).unwrap();
            }
            log.push(record);
            if rng.random_bool(0.2) {
                replicas[1].flush().await;
            }
            if rng.random_bool(0.2) {
                while replicas[1].engine.maintain().await.unwrap() {}
            }
            if rng.random_bool(0.1) {
                replicas[2].flush().await;
            }
            if rng.random_bool(0.05) {
                replicas[2].engine = open(real(), &replicas[2].home()).await;
                replicas[2].replay(&log);
            }
            if rng.random_bool(0.05) {
                replicas[3].copy_of(&replicas[1]).await;
                replicas[3].replay(&log);
            }
            if seq % 5 == 0 {
                let wanted = model.shown();
                gone += model.points.len() - wanted.len();
                for (n, replica) in replicas.iter().enumerate() {
                    let found = shown(&replica.engine).await;
                    assert!(
                        found == wanted,
                        "seed {seed}, record {seq}, replica {n}: {found:?} is not {wanted:?}"
                    );
                    #[cfg(feature = "sql")]
                    check_sql(&replica.engine, &wanted).await;
                }
            }
        }
        let names = |replica: &Replica| {
            let all = replica.engine.survey_databases().into_iter();
            all.map(|db| (db.name, db.tables, db.keep, db.horizon_ns)).collect::<Vec<_>>()
        };
        assert!(replicas.iter().all(|replica| names(replica) == names(&replicas[0])), "seed {seed}");
        replicas[1].flush().await;
        let kept = replicas[1].engine.survey_databases().iter().map(|db| db.files).sum::<u64>();
        assert_eq!(parquet_files(&replicas[1].home()) as u64, kept, "seed {seed}: files of what is gone");
    }
    assert!(gone > 1_000, "{gone} points were hidden: too few to tell");
}

#[tokio::test]
async fn a_query_under_way_keeps_the_files_of_what_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    let query = engine.inner.state().view("db", "cpu").unwrap().unwrap();
    assert!(!engine.checkpoint_due());
    engine.apply(at(2), &Operation::DropDatabase { database: "db".into() }).unwrap();
    assert!(engine.checkpoint_due(), "space is given back soon");
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(parquet_files(dir.path()), 1, "it is being read");
    drop(query);
    engine.apply(at(3), &batch("db", &[(2, "x", None, Some(1.0))])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(parquet_files(dir.path()), 1);
    assert_eq!(points(&engine).await, [(2, "x".to_owned(), None, Some(1.0))], "it begins anew");
}

#[tokio::test]
async fn what_time_it_is_is_said_only_if_something_goes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let (keep, now) = (100 * SECOND, 1_000 * SECOND);
    let retention = Operation::SetRetention { database: "db".into(), keep_ns: Some(keep) };
    engine.apply(at(1), &retention).unwrap();
    assert!(!engine.expiry_due(now), "there is nothing");
    engine.apply(at(2), &batch("db", &[(now, "x", Some(1.0), None)])).unwrap();
    assert!(engine.expiry_due(now), "what is in memory may be old");
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert!(!engine.expiry_due(now) && !engine.expiry_due(now + keep), "it is not old enough");
    assert!(engine.expiry_due(now + keep + SECOND));
    engine.apply(at(3), &Operation::Expire { now_ns: now + keep + SECOND }).unwrap();
    assert_eq!(points(&engine).await, []);
    assert!(!engine.expiry_due(now + 2 * keep), "it is gone");
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(parquet_files(dir.path()), 0);
}
