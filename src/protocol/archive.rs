//! A backup as bytes: a tar archive in one fixed form, so that every byte of it can be judged.
//!
//! ```text
//! backup.json   what it holds: cluster, position, each file with its length and SHA-256
//! MANIFEST      the engine's manifest, of what is in here only
//! data/...      the Parquet files as they lie
//! backup.sum    SHA-256 of backup.json, hexadecimal
//! two blocks of zeros
//! ```
//! `tar` unpacks it. This program makes every header anew from `backup.json` and compares: a header has
//! no room for a bit that means nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, EpochTable, Lsn, NodeId};

/// Name of the first entry.
pub const CONTENTS: &str = "backup.json";
/// Name of the last entry.
pub const SUM: &str = "backup.sum";
/// Name of the second entry: what the files mean.
pub const MANIFEST: &str = "MANIFEST";
/// Length of the last entry: 64 digits and the end of the line.
pub const SUM_LEN: u64 = 65;
/// What every entry is a multiple of.
pub const BLOCK: usize = 512;
/// Zeros behind the last entry.
pub const END: usize = 2 * BLOCK;
/// Longest `backup.json` that is read: a million files are less.
pub const MAX_CONTENTS: u64 = 256 << 20;
/// The form described here.
const FORMAT: u32 = 1;
/// Largest number in eleven octal digits.
const MAX_OCTAL: u64 = (1 << 33) - 1;

/// `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Of the archive.
    pub format: u32,
    /// Of the program that made it.
    pub version: String,
    /// Which cluster it is of.
    #[serde(with = "text")]
    pub cluster_id: ClusterId,
    /// Its name, for people.
    pub cluster_name: String,
    /// The node that made it.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Everything up to this record is in it, of every database, and nothing behind it.
    #[serde(with = "text")]
    pub position: Lsn,
    /// The epochs up to there, each with its first record.
    pub epochs: EpochTable,
    /// Seconds since 1970, by that node's clock.
    pub created: u64,
    /// The databases by name.
    pub databases: Vec<DatabaseContents>,
    /// The files in order, the manifest first.
    pub files: Vec<FileContents>,
}

/// What a backup has of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseContents {
    /// Its name.
    pub name: String,
    /// Age from which on its points are gone, ns; `None` for ever.
    pub keep_ns: Option<i64>,
    /// How many tables.
    pub tables: u64,
    /// How many rows; a point that was written twice may count twice.
    pub rows: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A file in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContents {
    /// Under the engine's directory, `/` between parts.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

impl Contents {
    /// The format that [`head`] makes entries of.
    pub const fn format() -> u32 {
        FORMAT
    }

    /// From the bytes of `backup.json`.
    ///
    /// # Errors
    /// They are not, or of a newer program, or name what cannot be.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let Head { format } = serde_json::from_slice(bytes).map_err(|e| format!("{CONTENTS}: {e}"))?;
        if format != FORMAT {
            return Err(format!("it has format {format}, and this program knows {FORMAT}: use a newer one"));
        }
        let contents: Self = serde_json::from_slice(bytes).map_err(|e| format!("{CONTENTS}: {e}"))?;
        contents.check().map_err(|why| format!("{CONTENTS}: {why}"))?;
        Ok(contents)
    }

    fn check(&self) -> Result<(), String> {
        let entries = self.epochs.entries();
        let increasing = EpochTable::from_entries(entries.to_vec()).is_some();
        let last = entries.last().is_none_or(|(_, start)| *start <= self.position.seq);
        if !increasing || !last || !self.epochs.holds(self.position, self.position.seq) {
            return Err(format!("position {} is not in its epochs", self.position));
        }
        if self.files.first().is_none_or(|file| file.name != MANIFEST) {
            return Err("the first file is not the manifest".into());
        }
        let mut names = BTreeSet::from([CONTENTS, SUM]);
        for file in &self.files {
            let strange =
                |part: &str| part.is_empty() || part.starts_with('.') || part.contains(['\0', '\\']);
            if file.name.split('/').any(strange) || !names.insert(&file.name) {
                return Err(format!("no file can be called {:?} here", file.name));
            }
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if file.sha256.len() != 64 || !file.sha256.bytes().all(hex) {
                return Err(format!("{} has no SHA-256", file.name));
            }
        }
        let total = self.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.bytes));
        if total.is_none_or(|total| total > u64::MAX / 4) {
            return Err("its files are longer than any disk".into());
        }
        Ok(())
    }

    /// Bytes of the whole archive, `contents` of them for `backup.json`.
    pub fn archive_len(&self, contents: u64) -> u64 {
        let files: u64 = self.files.iter().map(|file| entry_len(&file.name, file.bytes)).sum();
        entry_len(CONTENTS, contents) + files + entry_len(SUM, SUM_LEN) + END as u64
    }
}

fn entry_len(name: &str, bytes: u64) -> u64 {
    let heads = if split(name).is_some() {
        BLOCK
    } else {
        2 * BLOCK + extension(name).len() + padding(extension(name).len() as u64)
    };
    heads as u64 + bytes + padding(bytes) as u64
}

/// Zeros behind an entry of so many bytes.
pub const fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(BLOCK as u64) - bytes) as usize
}

/// What stands before the bytes of an entry: a header (POSIX ustar), behind an extended one (pax) if
/// the name is too long for it.
pub fn head(name: &str, bytes: u64, created: u64) -> Vec<u8> {
    if let Some((prefix, last)) = split(name) {
        return header(prefix, last, bytes, created, b'0').to_vec();
    }
    let extension = extension(name);
    let mut head = header("", "pax", extension.len() as u64, created, b'x').to_vec();
    head.extend_from_slice(extension.as_bytes());
    head.resize(head.len().next_multiple_of(BLOCK), 0);
    head.extend_from_slice(&header("", "long", bytes, created, b'0'));
    head
}

/// The two parts that a header has room for.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    name.match_indices('/')
        .map(|(at, _)| (&name[..at], &name[at + 1..]))
        .find(|(prefix, last)| prefix.len() <= 155 && last.len() <= 100)
}

/// The record of an extended header: its length, which counts its own digits, and the name.
fn extension(name: &str) -> String {
    let rest = format!(" path={name}\n");
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}")
}

fn header(prefix: &str, name: &str, bytes: u64, created: u64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).zip(text) {
            *slot = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, &number(bytes));
    put(136, &number(created));
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (slot, byte) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
    block
}

/// A number in twelve bytes: octal digits, or binary, marked by the first bit, if they do not reach.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value <= MAX_OCTAL {
        for (slot, digit) in field.iter_mut().zip(format!("{value:011o}").bytes()) {
            *slot = digit;
        }
    } else {
        field[0] = 0x80;
        for (slot, byte) in field.iter_mut().skip(4).zip(value.to_be_bytes()) {
            *slot = byte;
        }
    }
    field
}

/// Length of `backup.json`, and when it was made, by the first block of an archive.
///
/// # Errors
/// It is no backup of this program.
pub fn open(block: &[u8; BLOCK]) -> Result<(u64, u64), String> {
    let read = |at: usize| {
        let digits = block.get(at..at + 11).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| u64::from_str_radix(digits, 8).ok())
    };
    match (read(124), read(136)) {
        (Some(bytes), Some(created)) if head(CONTENTS, bytes, created) == block => {
            if bytes > MAX_CONTENTS {
                return Err(format!("its {CONTENTS} is longer than {} MiB", MAX_CONTENTS >> 20));
            }
            Ok((bytes, created))
        }
        _ => Err("it does not begin as a backup of skein does".into()),
    }
}

mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'a, T: FromStr<Err: Display>, D: Deserializer<'a>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let file = |name: &str| FileContents { name: name.into(), bytes: 3, sha256: "0a".repeat(32) };
        Contents {
            format: FORMAT,
            version: "1".into(),
            cluster_id: ClusterId([1; 16]),
            cluster_name: "home".into(),
            node_id: NodeId([2; 16]),
            position: Lsn::new(3, 9),
            epochs: EpochTable::from_entries(vec![(1, 1), (3, 5)]).unwrap(),
            created: 1_800_000_000,
            databases: Vec::new(),
            files: vec![file(MANIFEST), file("data/a/b/c.parquet")],
        }
    }

    #[test]
    fn comes_back_and_nothing_impossible_does() {
        let good = contents();
        let bytes = serde_json::to_vec(&good).unwrap();
        assert_eq!(Contents::read(&bytes).unwrap(), good);
        let bad: [fn(&mut Contents); 9] = [
            |c| c.format = 2,
            |c| c.position = Lsn::new(2, 9),
            |c| c.position = Lsn::new(3, 4),
            |c| c.files[0].name = "data/x".into(),
            |c| c.files[1].name = "../../etc/passwd".into(),
            |c| c.files[1].name = "/etc/passwd".into(),
            |c| c.files[1].name = MANIFEST.into(),
            |c| c.files[1].sha256 = "0A".repeat(32),
            |c| c.files[1].bytes = u64::MAX,
        ];
        for (at, spoil) in bad.iter().enumerate() {
            let mut contents = contents();
            spoil(&mut contents);
            assert!(Contents::read(&serde_json::to_vec(&contents).unwrap()).is_err(), "{at}");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let contents = contents();
        let json = serde_json::to_vec_pretty(&contents).unwrap();
        let mut bytes = head(CONTENTS, json.len() as u64, contents.created);
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&head(&"d/".repeat(150), 1 << 33, contents.created));
        crate::testing::fixture("backup/contents", &bytes);
        let kept = crate::testing::read_fixture("backup/contents");
        assert_eq!(Contents::read(&kept[BLOCK..BLOCK + json.len()]).unwrap(), contents);
    }

    #[test]
    fn a_header_is_read_only_as_it_was_made() {
        let head = head(CONTENTS, 1234, 1_800_000_000);
        let block: [u8; BLOCK] = head.try_into().unwrap();
        assert_eq!(open(&block), Ok((1234, 1_800_000_000)));
        for bit in 0..BLOCK * 8 {
            let mut block = block;
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&block).is_err(), "bit {bit}");
        }
    }

    /// What tar makes of it: also names that have no room in a header, and lengths that have none.
    #[test]
    fn tar_reads_it() {
        let long = format!("data/{}/{}/{}.parquet", "d".repeat(64), "t".repeat(137), "f".repeat(80));
        let split = format!("data/{}/{}.parquet", "d".repeat(64), "f".repeat(80));
        let mut archive = Vec::new();
        for name in ["MANIFEST", &split, &long] {
            let entry = head(name, 3, 1_800_000_000);
            assert_eq!(entry_len(name, 3), entry.len() as u64 + 512, "{name}");
            archive.extend_from_slice(&entry);
            archive.extend_from_slice(b"abc");
            archive.resize(archive.len() + padding(3), 0);
        }
        archive.resize(archive.len() + END, 0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        std::fs::write(&file, archive).unwrap();
        let Ok(listed) = std::process::Command::new("tar").arg("-tf").arg(&file).output() else {
            println!("SKIPPED: no tar on this machine");
            return;
        };
        let names = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(names.lines().collect::<Vec<_>>(), ["MANIFEST", split.as_str(), long.as_str()]);
        assert_eq!(number(MAX_OCTAL), *b"77777777777\0");
        assert_eq!(number(MAX_OCTAL + 1), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }
}
