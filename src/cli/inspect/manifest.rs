//! `skein inspect manifest`.

use clap::Args;
use serde::Serialize;

use super::PlaceArgs;
use crate::{
    cli::{
        Failure, output,
        table::{number, or_dash, render, text},
    },
    engine::columnar::survey::{ManifestSurvey, survey},
};

/// What to look at, and how closely.
#[derive(Debug, Args)]
pub(super) struct ManifestArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Read every data file and compare it with its checksum, not only its length
    #[arg(long)]
    verify: bool,
}

pub(super) async fn run(args: ManifestArgs) -> Result<(), Failure> {
    let (dir, disk) = args.place.open()?;
    let survey = survey(&*disk, &dir.path().join("engine"), args.verify)
        .await
        .map_err(|e| Failure::disk(e.to_string()))?;
    let Some(survey) = survey else {
        return output::print(if args.place.json { "null\n" } else { "no checkpoint yet\n" });
    };
    if args.place.json {
        output::json(&Report::of(&survey))?;
    } else {
        output::print(&show(&survey))?;
    }
    match survey.damage.len() {
        0 => Ok(()),
        1 => Err(Failure::new("1 file of the checkpoint is damaged")),
        count => Err(Failure::new(format!("{count} files of the checkpoint are damaged"))),
    }
}

/// The checkpoint in a line, its tables below.
pub(super) fn show(survey: &ManifestSurvey) -> String {
    let columns = [
        text("DATABASE"),
        text("TABLE"),
        number("FILES"),
        number("ROWS"),
        number("BYTES"),
        number("FIRST NS"),
        number("LAST NS"),
    ];
    let rows: Vec<Vec<String>> = survey
        .tables
        .iter()
        .map(|((database, name), table)| {
            vec![
                database.clone(),
                name.clone(),
                table.files.to_string(),
                table.rows.to_string(),
                table.bytes.to_string(),
                or_dash(table.times.map(|times| times.0)),
                or_dash(table.times.map(|times| times.1)),
            ]
        })
        .collect();
    let mut out = format!("flushed  {}\nkeys     {} bytes\n\n", survey.position, survey.sidecar);
    out.push_str(&render(&columns, &rows));
    for damage in &survey.damage {
        out.push_str(&format!("\nDAMAGE: {damage}"));
    }
    if !survey.damage.is_empty() {
        out.push('\n');
    }
    out
}

/// What `--json` says of a checkpoint.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    flushed: String,
    sidecar_bytes: u64,
    files: u64,
    rows: u64,
    bytes: u64,
    tables: Vec<TableLine>,
    damage: Vec<String>,
}

#[derive(Debug, Serialize)]
struct TableLine {
    database: String,
    table: String,
    files: u64,
    rows: u64,
    bytes: u64,
    first_ns: Option<i64>,
    last_ns: Option<i64>,
}

impl Report {
    pub(super) fn of(survey: &ManifestSurvey) -> Self {
        let tables = survey.tables.iter().map(|((database, name), table)| TableLine {
            database: database.clone(),
            table: name.clone(),
            files: table.files,
            rows: table.rows,
            bytes: table.bytes,
            first_ns: table.times.map(|times| times.0),
            last_ns: table.times.map(|times| times.1),
        });
        Self {
            flushed: survey.position.to_string(),
            sidecar_bytes: survey.sidecar,
            files: survey.tables.values().map(|table| table.files).sum(),
            rows: survey.tables.values().map(|table| table.rows).sum(),
            bytes: survey.tables.values().map(|table| table.bytes).sum(),
            tables: tables.collect(),
            damage: survey.damage.clone(),
        }
    }
}
