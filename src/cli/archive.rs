//! A backup file: opened, judged to the last byte, read.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256, digest};

use super::Failure;
use crate::{
    engine::columnar::saved::Saved,
    protocol::archive::{self, BLOCK, Contents, END, FileContents, SUM_LEN},
};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// A backup file whose beginning is good, and which is as long as that says.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    /// What it says it holds.
    pub(super) contents: Contents,
    /// `backup.json`.
    json: Vec<u8>,
    /// Where the content of each file begins.
    starts: Vec<u64>,
    len: u64,
}

impl Archive {
    /// Opens it and reads what it holds.
    ///
    /// # Errors
    /// It is not there, no backup, or not as long as it should be.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let bad = |why: String| Failure::new(format!("{} is no whole backup: {why}", path.display()));
        let unreadable = |e: io::Error| Failure::new(format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        let mut block = [0; BLOCK];
        if len < (3 * BLOCK + END) as u64 {
            return Err(bad(format!("it has {len} bytes")));
        }
        file.read_exact_at(&mut block, 0).map_err(unreadable)?;
        let (bytes, created) = archive::open(&block).map_err(bad)?;
        if bytes > len {
            return Err(bad(format!("it ends within {}", archive::CONTENTS)));
        }
        let mut json = vec![0; usize::try_from(bytes).unwrap_or_default()];
        file.read_exact_at(&mut json, BLOCK as u64).map_err(unreadable)?;
        let contents = Contents::read(&json).map_err(bad)?;
        if contents.created != created {
            return Err(bad(format!("the header of {} is damaged", archive::CONTENTS)));
        }
        let want = contents.archive_len(bytes);
        if want != len {
            return Err(bad(format!(
                "it has {len} bytes and should have {want}: it was cut short or changed"
            )));
        }
        let mut at = BLOCK as u64 + bytes + archive::padding(bytes) as u64;
        let mut starts = Vec::with_capacity(contents.files.len());
        for FileContents { name, bytes, .. } in &contents.files {
            at += archive::head(name, *bytes, created).len() as u64;
            starts.push(at);
            at += bytes + archive::padding(*bytes) as u64;
        }
        Ok(Self { path: path.to_path_buf(), file, contents, json, starts, len })
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads all of it and compares every byte with what it must be. Returns what the files mean.
    ///
    /// # Errors
    /// Names the file in the backup that is damaged, or in which the system's error was.
    pub(super) fn verify(&self, tell: &mut dyn FnMut(u64)) -> Result<Saved, Failure> {
        let sum = format!("{}\n", HEXLOWER.encode(digest(&SHA256, &self.json).as_ref()));
        let end = self.len - END as u64 - BLOCK as u64 - archive::padding(SUM_LEN) as u64 - SUM_LEN;
        // backup.json first: what everything else is compared with.
        self.must_be(end, &archive::head(archive::SUM, SUM_LEN, self.contents.created), archive::SUM)?;
        self.must_be(end + BLOCK as u64, sum.as_bytes(), archive::CONTENTS)?;
        let zeros = vec![0; archive::padding(SUM_LEN) + END];
        self.must_be(end + BLOCK as u64 + SUM_LEN, &zeros, "the end")?;
        let json = self.json.len() as u64;
        self.must_be(BLOCK as u64 + json, &vec![0; archive::padding(json)], archive::CONTENTS)?;
        for (file, start) in self.contents.files.iter().zip(&self.starts) {
            let head = archive::head(&file.name, file.bytes, self.contents.created);
            self.must_be(start - head.len() as u64, &head, &file.name)?;
            let mut hash = Context::new(&SHA256);
            self.pieces(*start, file.bytes, |piece| {
                hash.update(piece);
                tell(piece.len() as u64);
            })?;
            if HEXLOWER.encode(hash.finish().as_ref()) != file.sha256 {
                return Err(self.damaged(&file.name, *start, "its SHA-256 is another"));
            }
            self.must_be(start + file.bytes, &vec![0; archive::padding(file.bytes)], &file.name)?;
        }
        self.meaning()
    }

    /// The manifest, which must name exactly the files that are there.
    fn meaning(&self) -> Result<Saved, Failure> {
        let contents = &self.contents;
        let bad = |why: String| Failure::new(format!("{} cannot be restored: {why}", self.path.display()));
        let saved = Saved::read(&self.read(0)?).map_err(|e| bad(e.to_string()))?;
        let named = saved.files().into_iter().map(|file| FileContents {
            name: file.name,
            bytes: file.bytes,
            sha256: HEXLOWER.encode(&file.hash),
        });
        if saved.position() != contents.position || !named.eq(contents.files.iter().skip(1).cloned()) {
            return Err(bad(format!("{} and {} differ", archive::MANIFEST, archive::CONTENTS)));
        }
        Ok(saved)
    }

    /// Where a file is in the backup, the manifest first.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.contents.files.iter().position(|file| file.name == name)
    }

    /// The content of a file.
    pub(super) fn read(&self, file: usize) -> Result<Bytes, Failure> {
        let mut content = Vec::new();
        self.read_to(file, |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content.into())
    }

    /// The content of a file, in pieces.
    pub(super) fn read_to(
        &self,
        file: usize,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let found = self.contents.files.get(file).zip(self.starts.get(file));
        let Some((file, start)) = found else {
            return Err(Failure::new(format!("{} has no file {file}", self.path.display())));
        };
        let mut taken = Ok(());
        let mut hash = Context::new(&SHA256);
        self.pieces(*start, file.bytes, |piece| {
            hash.update(piece);
            if taken.is_ok() {
                taken = take(piece);
            }
        })?;
        taken.map_err(|e| Failure::disk(format!("{}: {e}", file.name)))?;
        if HEXLOWER.encode(hash.finish().as_ref()) == file.sha256 {
            Ok(())
        } else {
            Err(self.damaged(&file.name, *start, "it has changed since it was verified"))
        }
    }

    fn pieces(&self, start: u64, len: u64, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
            let Some(part) = piece.get_mut(..want) else { break };
            self.file.read_exact_at(part, start + done).map_err(|e| {
                Failure::new(format!("cannot read {} at byte {}: {e}", self.path.display(), start + done))
            })?;
            take(part);
            done += want as u64;
        }
        Ok(())
    }

    fn must_be(&self, start: u64, want: &[u8], name: &str) -> Result<(), Failure> {
        let mut at = 0;
        let mut same = true;
        self.pieces(start, want.len() as u64, |piece| {
            same &= want.get(at..at + piece.len()) == Some(piece);
            at += piece.len();
        })?;
        if same { Ok(()) } else { Err(self.damaged(name, start, "it is not what was written")) }
    }

    fn damaged(&self, name: &str, at: u64, why: &str) -> Failure {
        let file = self.path.display();
        Failure::new(format!("{file} is damaged: {name}, at byte {at}: {why}. Take another backup"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        disk::RealDisk,
        engine::{
            Operation, StorageEngine,
            columnar::{
                ColumnarConfig, ColumnarEngine, batch,
                ingest::{Options, Precision, line_protocol},
            },
        },
        types::{ClusterId, EpochTable, Lsn, NodeId},
    };

    /// A backup of an engine with two tables, as a node sends it.
    async fn backup(dir: &Path) -> Vec<u8> {
        let engine = ColumnarEngine::open(Arc::new(RealDisk), dir.join("engine"), ColumnarConfig::default());
        let engine = engine.await.unwrap();
        let options = Options {
            database: "home".into(),
            precision: Precision::Nanosecond,
            now_ns: 0,
            accept_partial: true,
            series: None,
        };
        let lines = Bytes::from_static(b"cpu,host=a v=1 1\nmem,host=b v=\"text\" 2\n");
        let parsed = line_protocol::parse(&lines, &options, &engine.schemas(), &mut |_| true).unwrap();
        let payload = batch::encode(&parsed.batch.unwrap()).unwrap();
        let batch = Operation::Batch { encoding: batch::ENCODING, payload };
        engine.apply(Lsn::new(2, 9), &batch).unwrap();
        engine.checkpoint(Bytes::new()).await.unwrap();
        let export = engine.export().await.unwrap();
        let mut files = Vec::new();
        for file in &export.files {
            let content = std::fs::read(&file.path).unwrap();
            let (bytes, sha256) = (content.len() as u64, HEXLOWER.encode(digest(&SHA256, &content).as_ref()));
            files.push((FileContents { name: file.name.clone(), bytes, sha256 }, content));
        }
        let contents = Contents {
            format: Contents::format(),
            version: "1".into(),
            cluster_id: ClusterId([1; 16]),
            cluster_name: "home".into(),
            node_id: NodeId([1; 16]),
            position: export.position,
            epochs: EpochTable::from_entries(vec![(2, 1)]).unwrap(),
            created: 1_800_000_000,
            databases: Vec::new(),
            files: files.iter().map(|(file, _)| file.clone()).collect(),
        };
        let json = serde_json::to_vec(&contents).unwrap();
        let sum = format!("{}\n", HEXLOWER.encode(digest(&SHA256, &json).as_ref())).into_bytes();
        let mut all = Vec::new();
        let first = std::iter::once((archive::CONTENTS, &json));
        let between = files.iter().map(|(file, content)| (file.name.as_str(), content));
        for (name, content) in first.chain(between).chain([(archive::SUM, &sum)]) {
            all.extend_from_slice(&archive::head(name, content.len() as u64, contents.created));
            all.extend_from_slice(content);
            all.resize(all.len().next_multiple_of(BLOCK), 0);
        }
        all.resize(all.len() + END, 0);
        assert_eq!(contents.archive_len(json.len() as u64), all.len() as u64);
        all
    }

    fn judged(path: &Path) -> Result<Saved, Failure> {
        Archive::open(path)?.verify(&mut |_| {})
    }

    #[tokio::test]
    async fn every_changed_byte_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = backup(dir.path()).await;
        let path = dir.path().join("b.tar");
        std::fs::write(&path, &bytes).unwrap();
        let saved = judged(&path).unwrap();
        assert_eq!((saved.position(), saved.files().len()), (Lsn::new(2, 9), 2));
        let parquet = Archive::open(&path).unwrap();
        assert!(parquet.read(1).unwrap().starts_with(b"PAR1"));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            std::fs::write(&path, &changed).unwrap();
            assert!(judged(&path).is_err(), "byte {at} of {}", bytes.len());
        }
        for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(judged(&path).is_err(), "cut at {len}");
        }
        std::fs::write(&path, [&bytes[..], b"\0"].concat()).unwrap();
        assert!(judged(&path).is_err(), "longer");
        let said = judged(Path::new("Cargo.toml")).unwrap_err().to_string();
        assert!(said.contains("Cargo.toml is no whole backup"), "{said}");
    }

    #[tokio::test]
    async fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = backup(dir.path()).await;
        let path = dir.path().join("b.tar");
        let at = bytes.windows(4).position(|four| four == b"PAR1").unwrap();
        bytes[at + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let said = judged(&path).unwrap_err().to_string();
        assert!(said.contains("data/home/cpu/") && said.contains(&format!("byte {at}")), "{said}");
    }
}
