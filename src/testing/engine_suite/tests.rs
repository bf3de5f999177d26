//! The engines there are pass the suite, and each planted fault is found by the check that is for it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::{
    disk::{Create, DiskFile, Durability, Io},
    engine::{Export, MemoryEngine, Operation, Refused},
    types::Lsn,
};

/// The reference engine keeps records; what they come to is read out of them.
struct Memory;

fn line(database: &str, point: u64, time_ns: i64) -> (u8, Bytes) {
    (1, Bytes::from(format!("{database} {point} {time_ns}")))
}

/// Database, point and time of a payload, if it is one of the suite's.
fn parse(payload: &[u8]) -> Option<(&str, u64, i64)> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ');
    Some((words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// What a log comes to in one database.
fn replay(log: BTreeMap<Lsn, Operation>, of: &str) -> Vec<u64> {
    let (mut points, mut keep) = (Vec::new(), None);
    for operation in log.into_values() {
        match operation {
            Operation::Batch { payload, .. } => {
                points.extend(parse(&payload).filter(|p| p.0 == of).map(|(_, point, time)| (point, time)));
            }
            Operation::DropDatabase { database } if database == of => (points, keep) = (Vec::new(), None),
            Operation::SetRetention { database, keep_ns } if database == of => keep = keep_ns,
            Operation::Expire { now_ns } => {
                points.retain(|(_, time)| keep.is_none_or(|keep| *time >= now_ns - keep));
            }
            _ => {}
        }
    }
    let mut points: Vec<u64> = points.into_iter().map(|(point, _)| point).collect();
    points.sort_unstable();
    points
}

impl Subject for Memory {
    type Engine = MemoryEngine;

    fn open(&self, disk: Arc<dyn Disk>, dir: PathBuf) -> Work<Arc<MemoryEngine>> {
        Box::pin(async move { Ok(Arc::new(MemoryEngine::open(disk, dir).await?)) })
    }

    fn batch(&self, database: &str, point: u64, time_ns: i64) -> (u8, Bytes) {
        line(database, point, time_ns)
    }

    fn held<'a>(
        &'a self,
        engine: &'a MemoryEngine,
        database: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u64>, EngineError>> {
        Box::pin(async move { Ok(replay(engine.contents(), database)) })
    }
}

#[tokio::test]
async fn the_reference_engine_passes() {
    let report = run(&Memory, Ground::Simulated).await;
    assert!(report.failed.is_empty(), "{report}");
    // It names no files.
    assert_eq!((report.passed.len(), report.skipped.len()), (22, 1), "{report}");
    let real = tempfile::tempdir().unwrap();
    let report = run(&Memory, Ground::Directory(real.path().to_owned())).await;
    assert!(report.failed.is_empty(), "{report}");
    assert_eq!((report.passed.len(), report.skipped.len()), (18, 5), "{report}");
}

#[cfg(feature = "columnar")]
mod columnar {
    use arrow_array::{Int64Array, RecordBatch, StringArray, TimestampNanosecondArray, cast::AsArray};

    use super::*;
    use crate::engine::columnar::{
        ColumnarConfig, ColumnarEngine,
        batch::{Batch, ENCODING, TableBatch, encode},
        schema::{ColumnKind, FieldType, TableSchema},
    };

    struct Columnar;

    impl Subject for Columnar {
        type Engine = ColumnarEngine;

        fn open(&self, disk: Arc<dyn Disk>, dir: PathBuf) -> Work<Arc<ColumnarEngine>> {
            Box::pin(ColumnarEngine::open(disk, dir, ColumnarConfig::default()))
        }

        fn batch(&self, database: &str, point: u64, time_ns: i64) -> (u8, Bytes) {
            let columns =
                [("point".to_owned(), ColumnKind::Tag), ("n".to_owned(), ColumnKind::Field(FieldType::Int))];
            let schema = TableSchema::new(columns).unwrap();
            let rows = RecordBatch::try_new(
                schema.to_arrow(),
                vec![
                    Arc::new(TimestampNanosecondArray::from(vec![time_ns])),
                    Arc::new(StringArray::from(vec![point.to_string()])),
                    Arc::new(Int64Array::from(vec![point as i64])),
                ],
            )
            .unwrap();
            let table = TableBatch { table: "t".into(), schema: schema.into(), assigned: 0, rows };
            (ENCODING, encode(&Batch { database: database.into(), tables: vec![table] }).unwrap())
        }

        fn held<'a>(
            &'a self,
            engine: &'a ColumnarEngine,
            database: &'a str,
        ) -> BoxFuture<'a, Result<Vec<u64>, EngineError>> {
            Box::pin(async move {
                let mut held = Vec::new();
                let batches = engine.scan(database, "t").await?.map_or_else(Vec::new, |(_, batches)| batches);
                for batch in &batches {
                    let points = batch.column_by_name("point").unwrap().as_string::<i32>();
                    held.extend(points.iter().flatten().filter_map(|point| point.parse::<u64>().ok()));
                }
                held.sort_unstable();
                Ok(held)
            })
        }
    }

    #[tokio::test]
    async fn the_columnar_engine_passes() {
        let report = run(&Columnar, Ground::Simulated).await;
        assert!(report.failed.is_empty(), "{report}");
        assert_eq!((report.passed.len(), report.skipped.len()), (23, 0), "{report}");
    }
}

/// What is wrong with an engine, and the check that is for it.
const FAULTS: [(Fault, &str); 24] = [
    (Fault::LosesARecord, "applies_each_record_once"),
    (Fault::AppliesTwice, "applies_each_record_once"),
    (Fault::NothingMovesNothing, "applies_each_record_once"),
    (Fault::TakesOldPositions, "refuses_what_was_applied"),
    (Fault::RefusesForGood, "takes_back_what_it_reserved"),
    (Fault::PanicsOnRubbish, "answers_whatever_bytes"),
    (Fault::AdmitsWhatItCannotApply, "answers_whatever_bytes"),
    (Fault::CutsLate, "fixes_a_checkpoint_when_it_is_asked_for"),
    (Fault::ForgetsTheSidecar, "keeps_the_sidecar"),
    (Fault::ForgetsThePosition, "goes_back_to_the_checkpoint"),
    (Fault::KeepsNothing, "goes_back_to_the_checkpoint"),
    (Fault::ConfirmsWithoutSaving, "fixes_a_checkpoint_when_it_is_asked_for"),
    (Fault::DoesNotSync, "survives_a_power_cut_in_a_checkpoint"),
    (Fault::BelievesThePageCache, "recovers_what_no_power_cut_takes_back"),
    (Fault::GivesUpOnAFullDisk, "survives_a_full_disk"),
    (Fault::ExportsNothing, "exports_the_last_checkpoint"),
    (Fault::ExportsAWrongHash, "exports_the_last_checkpoint"),
    (Fault::ExportsOutside, "exports_the_last_checkpoint"),
    (Fault::ExportsTheLiveState, "exports_the_last_checkpoint"),
    (Fault::ChangesAnExport, "keeps_an_export_while_it_is_held"),
    (Fault::InstallsNothing, "installs_over_anything"),
    (Fault::TakesADamagedExport, "refuses_a_damaged_export"),
    (Fault::MaintenanceLoses, "maintains_without_a_trace"),
    (Fault::DropsNothing, "keeps_databases_apart"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    LosesARecord,
    AppliesTwice,
    NothingMovesNothing,
    TakesOldPositions,
    RefusesForGood,
    PanicsOnRubbish,
    AdmitsWhatItCannotApply,
    CutsLate,
    ForgetsTheSidecar,
    ForgetsThePosition,
    KeepsNothing,
    ConfirmsWithoutSaving,
    DoesNotSync,
    BelievesThePageCache,
    GivesUpOnAFullDisk,
    ExportsNothing,
    ExportsAWrongHash,
    ExportsOutside,
    ExportsTheLiveState,
    ChangesAnExport,
    InstallsNothing,
    TakesADamagedExport,
    MaintenanceLoses,
    DropsNothing,
}

/// The reference engine with a fault.
#[derive(Debug)]
struct Faulty {
    inner: Arc<MemoryEngine>,
    fault: Fault,
    disk: Arc<dyn Disk>,
    refused: Mutex<Vec<Bytes>>,
    /// Points that are there once more, or not.
    more: Mutex<Vec<u64>>,
    fewer: Mutex<Vec<u64>>,
    failed: Arc<Mutex<bool>>,
}

impl Faulty {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }
}

impl StorageEngine for Faulty {
    fn recovered(&self) -> (Lsn, Bytes) {
        let (position, sidecar) = self.inner.recovered();
        match self.fault {
            Fault::ForgetsTheSidecar => (position, Bytes::new()),
            Fault::ForgetsThePosition => (Lsn::ZERO, sidecar),
            _ => (position, sidecar),
        }
    }

    fn applied(&self) -> Lsn {
        self.inner.applied()
    }

    fn admit(&self, encoding: u8, payload: &Bytes) -> Result<(), Refused> {
        let mut refused = self.refused.lock().unwrap();
        if self.has(Fault::RefusesForGood) {
            if refused.contains(payload) {
                return Err(Refused::Invalid("reserved".into()));
            }
            refused.push(payload.clone());
        }
        self.inner.admit(encoding, payload)
    }

    fn validate(&self, encoding: u8, payload: &Bytes) -> Result<(), String> {
        if self.has(Fault::PanicsOnRubbish) {
            parse(payload).expect("a line of the suite");
        }
        self.inner.validate(encoding, payload)
    }

    fn forget_reservations(&self) {
        self.inner.forget_reservations();
    }

    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        let point = match operation {
            Operation::Batch { payload, .. } => parse(payload).map(|line| line.1),
            _ => None,
        };
        match self.fault {
            Fault::LosesARecord if at.seq == 5 => return self.inner.apply(at, &Operation::Nothing),
            Fault::AppliesTwice if at.seq == 5 => self.more.lock().unwrap().extend(point),
            Fault::NothingMovesNothing if *operation == Operation::Nothing => return Ok(()),
            Fault::TakesOldPositions if at <= self.inner.applied() => return Ok(()),
            Fault::AdmitsWhatItCannotApply if at.seq > 2 && point.is_none() => {
                return Err(EngineError::Broken("no line of the suite".into()));
            }
            Fault::DropsNothing if matches!(operation, Operation::DropDatabase { .. }) => {
                return self.inner.apply(at, &Operation::Nothing);
            }
            _ => {}
        }
        self.inner.apply(at, operation)
    }

    fn checkpoint_due(&self) -> bool {
        self.inner.checkpoint_due()
    }

    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        let (inner, failed) = (self.inner.clone(), self.failed.clone());
        match self.fault {
            Fault::CutsLate => Box::pin(async move { inner.checkpoint(sidecar).await }),
            Fault::ConfirmsWithoutSaving => Box::pin(std::future::ready(Ok(inner.applied()))),
            Fault::GivesUpOnAFullDisk => Box::pin(async move {
                if *failed.lock().unwrap() {
                    return Err(EngineError::Broken("it failed before".into()));
                }
                let done = inner.checkpoint(sidecar).await;
                *failed.lock().unwrap() = done.is_err();
                done
            }),
            _ => inner.checkpoint(sidecar),
        }
    }

    fn export(&self) -> Work<Export> {
        let (inner, fault) = (self.inner.clone(), self.fault);
        let disk = self.disk.clone();
        Box::pin(async move {
            if fault == Fault::ExportsTheLiveState {
                inner.checkpoint(Bytes::from_static(b"one")).await?;
            }
            let mut export = inner.export().await?;
            match fault {
                Fault::ExportsNothing => export.files.clear(),
                Fault::ExportsAWrongHash => export.files[0].hash[31] ^= 1,
                Fault::ExportsOutside => export.files[0].name.insert_str(0, "../"),
                Fault::ChangesAnExport => {
                    // The image itself instead of a copy.
                    let image = export.files[0].path.with_file_name("IMAGE");
                    let content = crate::disk::read_file(&*disk, &image, 1 << 20).await?;
                    export.files[0] = crate::engine::ExportFile::of("IMAGE", image, &content);
                }
                _ => {}
            }
            Ok(export)
        })
    }

    fn maintain(&self) -> Work<bool> {
        if self.has(Fault::MaintenanceLoses) {
            self.fewer.lock().unwrap().push(2);
        }
        self.inner.maintain()
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let inner = self.inner.clone();
        match self.fault {
            Fault::InstallsNothing => Box::pin(std::future::ready(Ok(inner.applied()))),
            Fault::TakesADamagedExport => {
                Box::pin(async move { Ok(inner.install(from).await.unwrap_or(Lsn::new(1, 3))) })
            }
            _ => inner.install(from),
        }
    }
}

impl Subject for Fault {
    type Engine = Faulty;

    fn open(&self, disk: Arc<dyn Disk>, dir: PathBuf) -> Work<Arc<Faulty>> {
        let fault = *self;
        Box::pin(async move {
            let (never, at_first) = (fault == Self::DoesNotSync, fault == Self::BelievesThePageCache);
            let lies = Arc::new(AtomicBool::new(never || at_first));
            let given: Arc<dyn Disk> = Arc::new(NoSync(disk.clone(), lies.clone()));
            let inner = match fault {
                Self::KeepsNothing => MemoryEngine::new(),
                _ => MemoryEngine::open(given, dir).await?,
            };
            lies.store(never, Ordering::Relaxed);
            Ok(Arc::new(Faulty {
                inner: Arc::new(inner),
                fault,
                disk,
                refused: Mutex::default(),
                more: Mutex::default(),
                fewer: Mutex::default(),
                failed: Arc::default(),
            }))
        })
    }

    fn batch(&self, database: &str, point: u64, time_ns: i64) -> (u8, Bytes) {
        line(database, point, time_ns)
    }

    fn held<'a>(
        &'a self,
        engine: &'a Faulty,
        database: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u64>, EngineError>> {
        let mut held = replay(engine.inner.contents(), database);
        held.extend(engine.more.lock().unwrap().iter());
        held.retain(|point| !engine.fewer.lock().unwrap().contains(point));
        held.sort_unstable();
        Box::pin(std::future::ready(Ok(held)))
    }
}

/// A disk that says it has synced, whether it has or, while the flag is set, has not.
#[derive(Debug)]
struct NoSync(Arc<dyn Disk>, Arc<AtomicBool>);

#[derive(Debug)]
struct NoSyncFile(Arc<dyn DiskFile>, Arc<AtomicBool>);

impl Disk for NoSync {
    fn open(&self, path: &std::path::Path, how: Create) -> Io<Arc<dyn DiskFile>> {
        let (open, lies) = (self.0.open(path, how), self.1.clone());
        Box::pin(async move { Ok(Arc::new(NoSyncFile(open.await?, lies)) as Arc<dyn DiskFile>) })
    }
    fn list(&self, dir: &std::path::Path) -> Io<Vec<String>> {
        self.0.list(dir)
    }
    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> Io<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &std::path::Path) -> Io<()> {
        self.0.remove(path)
    }
    fn create_dir(&self, dir: &std::path::Path) -> Io<()> {
        self.0.create_dir(dir)
    }
    fn sync_dir(&self, dir: &std::path::Path) -> Io<()> {
        match self.1.load(Ordering::Relaxed) {
            true => Box::pin(std::future::ready(Ok(()))),
            false => self.0.sync_dir(dir),
        }
    }
}

impl DiskFile for NoSyncFile {
    fn write(&self, offset: u64, parts: Vec<Bytes>, durability: Durability) -> Io<()> {
        let lies = self.1.load(Ordering::Relaxed);
        self.0.write(offset, parts, if lies { Durability::Later } else { durability })
    }
    fn read(&self, offset: u64, len: usize) -> Io<Bytes> {
        self.0.read(offset, len)
    }
    fn len(&self) -> Io<u64> {
        self.0.len()
    }
    fn resize(&self, len: u64) -> Io<()> {
        self.0.resize(len)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[tokio::test]
async fn every_planted_fault_is_found_by_the_check_that_is_for_it() {
    for (fault, check) in FAULTS {
        let report = run(&fault, Ground::Simulated).await;
        assert!(
            report.failed.iter().any(|(failed, _)| *failed == check),
            "{fault} is not seen by {check}: {report}"
        );
    }
}
