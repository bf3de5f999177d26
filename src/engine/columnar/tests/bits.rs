//! Every bit of the data files flipped and every file cut at every byte: whoever reads sees it, in a
//! first read and in a later one, in a query and in a scrub; and no row that was not written is given.
//!
//! Some bytes, drawn by a seed (`SKEIN_SWEEP_SEED`), through the block checks, and a few through SQL;
//! with `SKEIN_SWEEP=all` every bit and every cut.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    engine::{ExportFile, Pace},
    testing::{SimDisk, sweep},
};

const DIR: &str = "node/engine";

/// Two tables; one of them in two files that overlap in time and are longer than a block.
async fn stored() -> (SimDisk, Arc<ColumnarEngine>) {
    let disk = SimDisk::new();
    let engine = open(Arc::new(disk.boot()), Path::new(DIR)).await;
    let mut random = StdRng::seed_from_u64(7);
    let hosts: Vec<&'static str> = (0..40)
        .map(|n| &*Box::leak(format!("host-{n}-{}", random.random::<u64>()).into_boxed_str()))
        .collect();
    for (seq, rows) in [(1, 16_000), (2, 7_000)] {
        let rows: Vec<Row> = (0..rows)
            .map(|n| (n * 2 + seq, hosts[n as usize % 40], Some(random.random()), Some(random.random())))
            .collect();
        engine.apply(at(seq as u64), &batch("db", &rows)).unwrap();
        if seq == 1 {
            engine.checkpoint(Bytes::new()).await.unwrap();
        }
    }
    engine.apply(at(3), &table_batch("db", "small", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    (disk, engine)
}

fn stored_files(engine: &ColumnarEngine) -> Vec<(PathBuf, u64)> {
    let state = engine.inner.state();
    let files: Vec<_> = state.committed.iter().map(|file| (file.path.clone(), file.entry.size)).collect();
    assert!(files.len() >= 2 && files.iter().any(|file| file.1 > 3 * super::super::verify::BLOCK as u64));
    files
}

/// What a process that starts now, and reads that range, is given.
async fn fresh(disk: &SimDisk, path: &Path, range: std::ops::Range<u64>) -> Result<Bytes, EngineError> {
    let engine = open(Arc::new(disk.boot()), Path::new(DIR)).await;
    let file = engine.inner.state().committed.iter().find(|file| file.path == path).cloned().unwrap();
    let open = disk.open(path, Create::No).await?;
    let read = file.read_range(disk, &*open, range).await;
    assert_eq!(read.is_err(), engine.damaged().len() == 1, "what is refused is told");
    read
}

#[tokio::test(start_paused = true)]
async fn every_flipped_bit_of_a_data_file_is_seen_in_a_first_read_and_in_a_later_one() {
    let (disk, engine) = stored().await;
    let mut random = sweep::random();
    for (path, size) in stored_files(&engine) {
        for (at, bit) in sweep::bits(size, 220) {
            let (from, to) = (random.random_range(0..=at), random.random_range(at + 1..=size));
            assert!(disk.flip(&path, at, bit));
            // A process that has not read the file reads all of it first, wherever the damage is.
            let first = fresh(&disk, &path, 0..8.min(size)).await;
            assert!(matches!(first, Err(EngineError::Damaged(..))), "{path:?} byte {at} bit {bit}");
            // One that knew it whole sees the damage in what it reads, and nothing else.
            let again = open(Arc::new(disk.boot()), Path::new(DIR)).await;
            let file = again.inner.state().committed.iter().find(|file| file.path == path).cloned().unwrap();
            let known =
                engine.inner.state().committed.iter().find(|file| file.path == path).cloned().unwrap();
            file.sums.set(known.sums.get().cloned().unwrap()).unwrap();
            let handle = disk.open(&path, Create::No).await.unwrap();
            let block = super::super::verify::BLOCK as u64;
            if at >= block {
                let before = file.read_range(&disk, &*handle, 0..at / block * block).await.unwrap();
                assert_eq!(before, disk.content(&path).unwrap()[..before.len()]);
            }
            let read = file.read_range(&disk, &*handle, from..to).await;
            assert!(
                matches!(read, Err(EngineError::Damaged(..))),
                "{path:?} byte {at} bit {bit}, {from}..{to}"
            );
            // And from then on in nothing, also where the disk gives the right bytes again.
            assert!(disk.flip(&path, at, bit));
            assert!(file.read_range(&disk, &*handle, from..to).await.is_err());
        }
        let whole = fresh(&disk, &path, 0..size).await.unwrap();
        assert_eq!(whole, disk.content(&path).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn every_cut_of_a_data_file_is_seen() {
    let (disk, engine) = stored().await;
    for (path, size) in stored_files(&engine) {
        let copy = disk.fork();
        let file = copy.open(&path, Create::No).await.unwrap();
        for len in sweep::cuts(size, 60) {
            file.resize(len).await.unwrap();
            let read = fresh(&copy, &path, 0..1.min(size)).await;
            assert!(matches!(read, Err(EngineError::Damaged(..))), "{path:?} cut to {len}");
        }
        copy.remove(&path).await.unwrap();
        let gone = open(Arc::new(copy.boot()), Path::new(DIR)).await;
        assert_eq!(gone.damaged().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_scrub_finds_the_file_and_a_whole_one_stays_whole() {
    let (disk, engine) = stored().await;
    let pace: Pace = Arc::new(|_| Box::pin(std::future::ready(())));
    for (name, _) in engine.files() {
        assert!(engine.verify(&name, pace.clone()).await.unwrap());
    }
    assert!(engine.verify("data/db/cpu/no-such-file.parquet", pace.clone()).await.unwrap());
    let (name, size) = engine.files().remove(0);
    assert!(disk.flip(&Path::new(DIR).join(&name), size / 2, 3));
    assert!(!engine.verify(&name, pace.clone()).await.unwrap());
    assert_eq!(engine.damaged(), [name]);
    assert!(matches!(engine.export().await, Err(EngineError::Damaged(..))));
}

/// No row that was not written, no row left out: all of it or an error that names the file.
#[cfg(feature = "sql")]
#[tokio::test]
async fn a_query_gives_the_rows_or_names_the_damaged_file() {
    use crate::engine::columnar::sql::{QueryError, SqlOptions};

    // Sums of floats would differ in their last bit with the order in which partitions end.
    const SQL: &str = "SELECT host, count(*), sum(cast(a * 1e9 AS BIGINT)), sum(cast(b * 1e9 AS BIGINT)), \
                       min(time), max(time) FROM cpu GROUP BY host ORDER BY host";
    let (disk, engine) = stored().await;
    let options = || SqlOptions { database: Some("db".into()), ..SqlOptions::default() };
    let whole = engine.query(SQL, options()).await.unwrap().collect().await.unwrap();
    assert_eq!(whole.iter().map(RecordBatch::num_rows).sum::<usize>(), 40);
    let files = stored_files(&engine);
    for (path, size) in files.iter().filter(|file| file.0.parent().is_some_and(|dir| dir.ends_with("cpu"))) {
        for (at, bit) in sweep::bits(*size, 6) {
            assert!(disk.flip(path, at, bit));
            let engine = open(Arc::new(disk.boot()), Path::new(DIR)).await;
            // It is planned by what files say of themselves.
            let answer = match engine.query(SQL, options()).await {
                Ok(rows) => rows.collect().await,
                Err(error) => Err(error),
            };
            let named = matches!(&answer, Err(QueryError::Damaged { file }) if path.ends_with(file));
            assert!(named, "byte {at} bit {bit} of {path:?}: {answer:?}");
            let small = engine.query("SELECT a FROM small", options()).await.unwrap().collect().await;
            assert!(small.is_ok(), "what does not need the file does not fail: {small:?}");
            assert!(disk.flip(path, at, bit));
        }
    }
    let again = open(Arc::new(disk.boot()), Path::new(DIR)).await;
    assert_eq!(again.query(SQL, options()).await.unwrap().collect().await.unwrap(), whole);
}

/// A snapshot that comes damaged, in its manifest or in a data file, is refused whole: what the engine
/// has stays as it is.
#[tokio::test(start_paused = true)]
async fn a_snapshot_with_a_flipped_bit_or_a_cut_is_not_taken() {
    let (disk, engine) = stored().await;
    let export = engine.export().await.unwrap();
    let home = Path::new("other/engine");
    let from = Path::new("other/incoming");
    let target = open(Arc::new(disk.boot()), home).await;
    target.apply(at(1), &batch("db", &[(1, "mine", Some(1.0), None)])).unwrap();
    target.checkpoint(Bytes::new()).await.unwrap();
    let mine = points(&target).await;
    let put = async || {
        for ExportFile { name, path, .. } in &export.files {
            let to = from.join(name);
            disk.create_dir(to.parent().unwrap()).await.unwrap();
            let content = Bytes::from(disk.content(path).unwrap());
            crate::disk::replace_file(&disk, &to, content).await.unwrap();
        }
    };
    let (mut flips, mut cuts) = (0, 0);
    for ExportFile { name, path, len, .. } in &export.files {
        put().await;
        let copy = from.join(name);
        for (at, bit) in sweep::bits(*len, 40) {
            assert!(disk.flip(&copy, at, bit));
            let refused = target.install(from.to_owned()).await;
            assert!(
                matches!(refused, Err(EngineError::Damaged(..))),
                "{name} byte {at} bit {bit}: {refused:?}"
            );
            assert!(disk.flip(&copy, at, bit));
            flips += 1;
        }
        let content = Bytes::from(disk.content(path).unwrap());
        for cut in sweep::cuts(*len, 20) {
            crate::disk::replace_file(&disk, &copy, content.slice(..cut as usize)).await.unwrap();
            let refused = target.install(from.to_owned()).await;
            assert!(matches!(refused, Err(EngineError::Damaged(..))), "{name} cut to {cut}: {refused:?}");
            cuts += 1;
        }
        disk.remove(&copy).await.unwrap();
        assert!(
            matches!(target.install(from.to_owned()).await, Err(EngineError::Damaged(..))),
            "{name} is gone"
        );
    }
    assert!(flips >= 80 && cuts >= 40, "{flips} {cuts}");
    assert_eq!((points(&target).await, target.applied()), (mine, at(1)), "nothing was changed");
    put().await;
    assert_eq!(target.install(from.to_owned()).await.unwrap(), at(3));
}

/// A snapshot may be behind what was shown: then nothing is shown until it is there again.
#[cfg(feature = "sql")]
#[tokio::test]
async fn after_an_older_snapshot_no_query_is_answered_before_the_records_are_applied_again() {
    use crate::engine::columnar::sql::{QueryError, SqlOptions};

    let (disk, engine) = stored().await;
    let export = engine.export().await.unwrap();
    let from = Path::new("node/mending");
    for ExportFile { name, path, .. } in &export.files {
        let to = from.join(name);
        disk.create_dir(to.parent().unwrap()).await.unwrap();
        let content = Bytes::from(disk.content(path).unwrap());
        crate::disk::replace_file(&disk, &to, content).await.unwrap();
    }
    let later = [4, 5].map(|seq| batch("db", &[(-(seq as i64), "late", Some(1.0), None)]));
    let ask = async || {
        let options = SqlOptions { database: Some("db".into()), ..SqlOptions::default() };
        let rows = engine.query("SELECT time FROM cpu WHERE host = 'late'", options).await?;
        Ok::<_, QueryError>(rows.collect().await?.iter().map(RecordBatch::num_rows).sum::<usize>())
    };
    for (record, seq) in later.iter().zip(4..) {
        engine.apply(at(seq), record).unwrap();
    }
    assert_eq!(ask().await.unwrap(), 2);
    let (damaged, size) = engine.files().remove(0);
    assert!(disk.flip(&Path::new(DIR).join(&damaged), size / 2, 5));
    assert!(!engine.verify(&damaged, Arc::new(|_| Box::pin(std::future::ready(())))).await.unwrap());
    assert_eq!(engine.install(from.to_owned()).await.unwrap(), at(3));
    assert_eq!((engine.damaged().len(), engine.applied()), (0, at(3)));
    for (record, seq) in later.iter().zip(4..) {
        assert!(matches!(ask().await, Err(QueryError::Mending { shown, .. }) if shown == at(5)));
        engine.apply(at(seq), record).unwrap();
    }
    assert_eq!(ask().await.unwrap(), 2);
}
