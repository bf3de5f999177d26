//! `skein backup`: everything at one position into one file, and whether a file is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Client, Failure, TargetArgs,
    archive::Archive,
    client::query_string,
    output,
    progress::{Progress, size},
    table::{number, render, text},
};
use crate::config::show_duration;

/// `skein backup`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    #[command(flatten)]
    take: TakeArgs,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Read a backup to its last byte and say whether it is whole; asks no node
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct TakeArgs {
    /// File that is not there yet, or a directory for one that is named by cluster and time [default: here]
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Only this database; may be given several times [default: all]
    #[arg(short, long, value_name = "NAME")]
    database: Vec<String>,
    /// Take what this node has, although no writer confirms that it is everything
    #[arg(long)]
    local: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The backup
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: BackupArgs) -> Result<(), Failure> {
    match args.command {
        Some(BackupCommand::Verify(args)) => {
            let archive = Archive::open(&args.file)?;
            verify(&archive)?;
            tell(&archive, &args.file, args.json)
        }
        None => take(args.take).await,
    }
}

/// Reads all of it, with a bar.
pub(super) fn verify(archive: &Archive) -> Result<crate::engine::columnar::saved::Saved, Failure> {
    let mut progress = Progress::new("verifying", archive.len());
    let saved = archive.verify(&mut |bytes| progress.add(bytes));
    progress.end();
    saved
}

/// Into a file that has no name before it is whole, durable and was read back.
async fn take(args: TakeArgs) -> Result<(), Failure> {
    let place = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    let (dir, named) = match place.is_dir() {
        true => (place, None),
        false => (
            place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).into(),
            Some(place),
        ),
    };
    if let Some(there) = named.as_ref().filter(|file| file.exists()) {
        return Err(Failure::usage(format!("{} is there already: name another file", there.display())));
    }
    let databases = (!args.database.is_empty()).then(|| args.database.join(","));
    let consistency = args.local.then_some("local");
    let query = query_string(&[("database", databases.as_deref()), ("consistency", consistency)]);
    let client = Client::from_env(args.target.resolve()?);
    let mut answer = client.send(Method::GET, &format!("/api/v1/backup{query}"), "").await?;
    let total = answer.header("content-length").and_then(|len| len.parse().ok()).unwrap_or_default();

    let mut part = Part::new(&dir)?;
    let mut progress = Progress::new("fetching", total);
    while let Some(piece) = answer.chunk().await? {
        part.file.write_all(&piece).map_err(|e| part.failed(&e))?;
        progress.add(piece.len() as u64);
    }
    progress.end();
    part.file.sync_all().map_err(|e| part.failed(&e))?;
    let archive = Archive::open(&part.path)?;
    verify(&archive)?;
    let name = named.unwrap_or_else(|| dir.join(name(&archive)));
    part.become_file(&dir, &name)?;
    tell(&archive, &name, args.json)
}

fn name(archive: &Archive) -> String {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(archive.contents.created).unwrap_or_default())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    let good = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '_';
    let cluster: String = archive.contents.cluster_name.chars().filter(good).collect();
    format!(
        "{cluster}-{:04}{:02}{:02}T{:02}{:02}{:02}Z.skein.tar",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// A file that is being written; it is gone with the value unless it became one.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(format!(".skein-backup-{}.part", std::process::id()));
        // What a process of the same number left.
        let _ = fs::remove_file(&path);
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = open.map_err(|e| Failure::disk(format!("cannot write {}: {e}", path.display())))?;
        Ok(Self { path, file })
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::disk(format!("cannot write {}: {error}; nothing of the backup is left", self.path.display()))
    }

    fn become_file(self, dir: &Path, name: &Path) -> Result<(), Failure> {
        if name.exists() {
            return Err(Failure::usage(format!(
                "{} came into being meanwhile: nothing is left",
                name.display()
            )));
        }
        let named = fs::rename(&self.path, name).and_then(|()| File::open(dir)?.sync_all());
        named.map_err(|e| Failure::disk(format!("cannot name the backup {}: {e}", name.display())))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has another name if all went well.
        let _ = fs::remove_file(&self.path);
    }
}

fn tell(archive: &Archive, file: &Path, as_json: bool) -> Result<(), Failure> {
    if as_json { output::json(&in_json(archive, file)) } else { output::print(&in_words(archive, file)) }
}

fn in_json(archive: &Archive, file: &Path) -> Value {
    let contents = &archive.contents;
    json!({
        "file": file.display().to_string(),
        "bytes": archive.len(),
        "cluster_id": contents.cluster_id.to_string(),
        "cluster_name": contents.cluster_name,
        "node_id": contents.node_id.to_string(),
        "position": contents.position.to_string(),
        "created": contents.created,
        "version": contents.version,
        "files": contents.files.len(),
        "databases": contents.databases,
    })
}

fn in_words(archive: &Archive, file: &Path) -> String {
    let contents = &archive.contents;
    let columns = [text("DATABASE"), number("TABLES"), number("ROWS"), number("BYTES"), text("KEEPS")];
    let rows: Vec<_> = contents
        .databases
        .iter()
        .map(|db| {
            vec![
                db.name.clone(),
                db.tables.to_string(),
                db.rows.to_string(),
                db.bytes.to_string(),
                keeps(db.keep_ns).unwrap_or_else(|| "for ever".to_owned()),
            ]
        })
        .collect();
    format!(
        "{}\nwhole: {} of cluster {} up to {}\n\n{}",
        file.display(),
        size(archive.len()),
        contents.cluster_name,
        contents.position,
        render(&columns, &rows)
    )
}

/// What a database keeps, as `skein db retention` takes it.
pub(super) fn keeps(keep_ns: Option<i64>) -> Option<String> {
    keep_ns.map(|ns| show_duration(Duration::from_nanos(ns.unsigned_abs())))
}
