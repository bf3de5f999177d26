//! Batches and data files as format 1 had them: Arrow and Parquet may write others today, and read these
//! for ever.

use arrow_select::concat::concat_batches;

use super::{super::manifest::Manifest, *};
use crate::{
    disk::replace_file,
    engine::columnar::batch::{decode, tests::sample},
    testing::{SimDisk, kept_fixture, read_fixture},
};

/// Every type of column, with and without values.
fn batch_of_format_1() -> Bytes {
    kept_fixture("engine/batch", &encode(&sample()).unwrap()).into()
}

#[test]
fn a_batch_is_read() {
    assert_eq!(decode(&batch_of_format_1()).unwrap(), sample());
}

/// A checkpoint of that batch: its manifest, and a data file for each table and day.
#[tokio::test]
async fn a_checkpoint_is_read() {
    let (disk, dir) = (SimDisk::new(), Path::new("node/engine"));
    let engine = open(Arc::new(disk.boot()), dir).await;
    let record = Operation::Batch { encoding: 1, payload: batch_of_format_1() };
    engine.apply(at(1), &record).unwrap();
    engine.checkpoint(Bytes::from_static(b"sidecar")).await.unwrap();
    let made = disk.content(&dir.join("MANIFEST")).unwrap();
    let manifest = Manifest::decode(&kept_fixture("engine/checkpoint/MANIFEST", &made)).unwrap();
    assert_eq!(manifest.files.len(), 4);
    let names = manifest.files.iter().map(|file| file.name());
    for name in names.clone() {
        let made = disk.content(&dir.join(&name)).unwrap_or_default();
        kept_fixture(&format!("engine/checkpoint/{name}"), &made);
    }
    let wanted = all(&engine).await;
    assert_eq!(wanted.num_rows(), 3);

    let disk = SimDisk::new();
    for name in names.chain(["MANIFEST".to_owned()]) {
        let path = dir.join(&name);
        disk.create_dir(path.parent().unwrap()).await.unwrap();
        let kept = read_fixture(&format!("engine/checkpoint/{name}"));
        replace_file(&disk, &path, kept.into()).await.unwrap();
    }
    let engine = open(Arc::new(disk.boot()), dir).await;
    assert_eq!(engine.recovered(), (at(1), Bytes::from_static(b"sidecar")));
    assert_eq!(all(&engine).await, wanted);
    let pace: crate::engine::Pace = Arc::new(|_| Box::pin(std::future::ready(())));
    for (name, _) in engine.files() {
        assert!(engine.verify(&name, pace.clone()).await.unwrap(), "{name}");
    }
}

/// The rows of the larger table.
async fn all(engine: &ColumnarEngine) -> RecordBatch {
    let (_, batches) = engine.scan("home", "cpu").await.unwrap().unwrap();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}
