//! `skein inspect wal`, and mending a log that nobody can supply.

use std::path::Path;

use clap::Args;
use rand::RngCore;
use serde::Serialize;

use super::{FileLine, PlaceArgs, file_lines};
use crate::{
    cli::{
        Failure, output,
        table::{number, or_dash, render, text},
    },
    disk::Disk,
    engine::columnar::survey as checkpoint,
    node::Surroundings,
    types::Lsn,
    wal::{Loss, Survey, accept_loss, survey},
};

/// Flags of `skein inspect wal`.
#[derive(Debug, Args)]
pub(super) struct WalArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Say what mending the log would cost; changes nothing without --accept-loss
    #[arg(long)]
    repair: bool,
    /// Cut the log back to its last good record and go on without what is lost
    #[arg(long, requires = "repair")]
    accept_loss: bool,
}

pub(super) async fn run(args: WalArgs) -> Result<(), Failure> {
    let (dir, disk) = args.place.open()?;
    let wal = dir.path().join("wal");
    if !wal.is_dir() {
        return Err(Failure::new(format!("{} holds no log", dir.path().display())));
    }
    if args.repair {
        return repair(&args, dir.path(), disk).await;
    }
    let survey = survey(&*disk, &wal).await.map_err(|e| Failure::disk(e.to_string()))?;
    if args.place.json {
        output::json(&Report::of(&survey))?;
    } else {
        output::print(&show(&survey))?;
    }
    if survey.damage.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(
            "the log is damaged. With other voters up, start the node: it fetches the records again. On a lone \
             node, --repair shows what would be lost",
        ))
    }
}

async fn repair(args: &WalArgs, dir: &Path, disk: std::sync::Arc<dyn Disk>) -> Result<(), Failure> {
    // What is in a checkpoint is not lost with the log.
    let engine = checkpoint::survey(&*disk, &dir.join("engine"), false).await;
    let engine = engine.map_err(|e| Failure::disk(format!("{e}; the log is left as it is")))?;
    let flushed = engine.map_or(Lsn::ZERO, |manifest| manifest.position);
    let mut random = Surroundings::real().rng();
    let nonce = Box::new(move || random.next_u64());
    let mut shown = Ok(());
    let mended = accept_loss(disk, &dir.join("wal"), flushed, nonce, |loss| {
        shown = if args.place.json {
            output::json(&LossReport::of(loss, args.accept_loss))
        } else {
            output::print(&show_loss(loss))
        };
        args.accept_loss && shown.is_ok()
    })
    .await
    .map_err(|e| Failure::disk(e.to_string()))?;
    shown?;
    match mended {
        None => output::print(if args.place.json { "null\n" } else { "nothing to mend\n" }),
        Some(_) if !args.accept_loss => {
            Err(Failure::new("nothing was changed: say --accept-loss to go on without these records"))
        }
        Some(_) if args.place.json => Ok(()),
        Some(loss) => output::print(&format!(
            "done: the log ends at {}; what was set aside is in {}\n",
            loss.end,
            dir.join("wal/quarantine").display()
        )),
    }
}

fn show_loss(loss: &Loss) -> String {
    let mut out = match loss.records {
        Some((first, last)) => {
            format!("lost: records {first} to {last}, {} in all, as far as is known\n", last + 1 - first)
        }
        None => "lost: no record that is known of\n".to_owned(),
    };
    out.push_str(&format!("set aside: {} bytes of the log\n", loss.bytes));
    if let Some(at) = loss.checkpoint {
        out.push_str(&format!("kept: everything up to {at}, which is in the checkpoint\n"));
    }
    out.push_str(&format!("the log will end at {}\n", loss.end));
    out
}

/// What `--repair --json` says before it does anything.
#[derive(Debug, Serialize)]
struct LossReport {
    lost_first: Option<u64>,
    lost_last: Option<u64>,
    lost_records: u64,
    set_aside_bytes: u64,
    end: String,
    checkpoint: Option<String>,
    accepted: bool,
}

impl LossReport {
    fn of(loss: &Loss, accepted: bool) -> Self {
        Self {
            lost_first: loss.records.map(|range| range.0),
            lost_last: loss.records.map(|range| range.1),
            lost_records: loss.records.map_or(0, |(first, last)| last + 1 - first),
            set_aside_bytes: loss.bytes,
            end: loss.end.to_string(),
            checkpoint: loss.checkpoint.map(|at| at.to_string()),
            accepted,
        }
    }
}

/// The log in a few lines, its segments in a table, what is beside it below.
fn show(survey: &Survey) -> String {
    let mut out = format!(
        "cluster    {}\npromise    epoch {}\nwatermark  {}\ncommit     {}\nbase       {}\nend        {}\n",
        or_dash(survey.cluster),
        survey.promise,
        survey.watermark,
        survey.commit,
        survey.base,
        survey.end,
    );
    let starts: Vec<String> =
        survey.epochs.entries().iter().map(|(epoch, start)| format!("{epoch} from {start}")).collect();
    out.push_str(&format!("epochs     {}\n", if starts.is_empty() { "-".into() } else { starts.join(", ") }));
    if let Some(debt) = survey.debt {
        out.push_str(&format!(
            "repair     records from {} on are fetched from the writer again; {} was reached before\n",
            debt.lost_from, debt.reach
        ));
    }
    if let Some(end) = survey.cut {
        out.push_str(&format!("cut        behind {end}, finished at the next start\n"));
    }
    if survey.torn > 0 {
        out.push_str(&format!("torn tail  {} bytes, dropped at the next start\n", survey.torn));
    }
    let columns =
        [text("SEGMENT"), number("FIRST"), number("LAST"), number("BYTES"), number("LENGTH"), text("EPOCHS")];
    let rows: Vec<Vec<String>> = survey.segments.iter().map(row).collect();
    out.push('\n');
    out.push_str(&render(&columns, &rows));
    for (what, files) in [("orphan", &survey.orphans), ("quarantine", &survey.quarantine)] {
        for (file, bytes) in files {
            out.push_str(&format!("\n{what}/{file}: {bytes} bytes"));
        }
    }
    for damage in &survey.damage {
        let records = damage.records.map(|(first, last)| format!("records {first} to {last}: "));
        let offset = damage.offset.map(|offset| format!(" at byte {offset}"));
        out.push_str(&format!(
            "\nDAMAGE in {}{}: {}{}",
            damage.file,
            offset.unwrap_or_default(),
            records.unwrap_or_default(),
            damage.reason
        ));
    }
    if !survey.damage.is_empty() {
        out.push_str(&format!("\n{} bytes are damaged or lie behind damage", survey.damaged_bytes));
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn row(segment: &crate::wal::SegmentSurvey) -> Vec<String> {
    let epochs: Vec<String> = segment.epochs.iter().map(ToString::to_string).collect();
    let last = (segment.last >= segment.first).then_some(segment.last);
    vec![
        segment.file.clone(),
        segment.first.to_string(),
        or_dash(last),
        segment.bytes.to_string(),
        segment.len.to_string(),
        epochs.join(", "),
    ]
}

/// What `--json` says.
#[derive(Debug, Serialize)]
struct Report {
    cluster: Option<String>,
    promise: u64,
    repair: Option<RepairLine>,
    watermark: String,
    commit: String,
    cut: Option<u64>,
    base: String,
    end: String,
    epochs: Vec<EpochLine>,
    segments: Vec<SegmentLine>,
    torn_bytes: u64,
    damage: Vec<DamageLine>,
    damaged_bytes: u64,
    orphans: Vec<FileLine>,
    quarantine: Vec<FileLine>,
}

#[derive(Debug, Serialize)]
struct RepairLine {
    lost_from: u64,
    reached: String,
}

#[derive(Debug, Serialize)]
struct EpochLine {
    epoch: u64,
    start: u64,
}

#[derive(Debug, Serialize)]
struct SegmentLine {
    file: String,
    first: u64,
    last: u64,
    epochs: Vec<u64>,
    bytes: u64,
    length: u64,
}

#[derive(Debug, Serialize)]
struct DamageLine {
    file: String,
    offset: Option<u64>,
    first: Option<u64>,
    last: Option<u64>,
    reason: String,
}

impl Report {
    fn of(survey: &Survey) -> Self {
        let segments = survey.segments.iter().map(|segment| SegmentLine {
            file: segment.file.clone(),
            first: segment.first,
            last: segment.last,
            epochs: segment.epochs.clone(),
            bytes: segment.bytes,
            length: segment.len,
        });
        let damage = survey.damage.iter().map(|damage| DamageLine {
            file: damage.file.clone(),
            offset: damage.offset,
            first: damage.records.map(|range| range.0),
            last: damage.records.map(|range| range.1),
            reason: damage.reason.clone(),
        });
        let epochs = survey.epochs.entries().iter();
        Self {
            cluster: survey.cluster.map(|id| id.to_string()),
            promise: survey.promise,
            repair: survey
                .debt
                .map(|debt| RepairLine { lost_from: debt.lost_from, reached: debt.reach.to_string() }),
            watermark: survey.watermark.to_string(),
            commit: survey.commit.to_string(),
            cut: survey.cut,
            base: survey.base.to_string(),
            end: survey.end.to_string(),
            epochs: epochs.map(|(epoch, start)| EpochLine { epoch: *epoch, start: *start }).collect(),
            segments: segments.collect(),
            torn_bytes: survey.torn,
            damage: damage.collect(),
            damaged_bytes: survey.damaged_bytes,
            orphans: file_lines(&survey.orphans),
            quarantine: file_lines(&survey.quarantine),
        }
    }
}
