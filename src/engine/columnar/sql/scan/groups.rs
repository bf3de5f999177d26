//! Which row groups and pages of a file reach into zones, and which do not.

use std::sync::Arc;

use datafusion::{
    datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess},
    error::Result,
};
use parquet::{
    arrow::arrow_reader::{RowSelection, RowSelector},
    file::{
        metadata::ParquetMetaData, page_index::column_index::ColumnIndexMetaData, statistics::Statistics,
    },
};

use super::{Reading, Scan, zones::Zones};
use crate::{
    disk::Disk,
    engine::columnar::{data_file::DataFile, sql::reader::metadata},
};

/// Some rows of a row group that follow each other.
#[derive(Debug, Clone, Copy)]
struct Piece {
    rows: u64,
    /// None of them has a time outside of this.
    first: i64,
    last: i64,
}

/// What of a file is read how.
pub(super) struct Split {
    /// Rows that no other part has.
    pub(super) inner: Vec<Reading>,
    /// Rows of which that is true outside of zones, and not before a floor.
    pub(super) edge: Option<Reading>,
}

/// About how many rows a file has in what reaches between two times, ends included: windows are guessed.
pub(super) async fn rows_between(
    disk: &Arc<dyn Disk>,
    file: &Arc<DataFile>,
    from: i64,
    to: i64,
) -> Result<u64> {
    let Some(groups) = groups(disk, file).await? else { return Ok(file.entry.rows) };
    let here = groups.iter().flatten().filter(|piece| piece.first <= to && piece.last >= from);
    Ok(here.map(|piece| piece.rows).sum())
}

impl Scan<'_> {
    /// Splits a file. What is in zones with all of its rows, or gone, is in neither part.
    pub(super) async fn split(&self, file: &Arc<DataFile>, floor: i64, zones: &Zones) -> Result<Split> {
        let Some(groups) = groups(&self.table.disk, file).await? else {
            return Ok(Split { inner: Vec::new(), edge: Some(Reading::whole(file)) });
        };
        let inner = |piece: &Piece| piece.first >= floor && !zones.touch(piece.first, piece.last);
        let edge =
            |piece: &Piece| piece.last >= floor && !inner(piece) && !zones.cover(piece.first, piece.last);
        // Whole row groups apart: of a reading with a part of one none is left out while it is read, and
        // who looks for the newest rows does not need most of them.
        let whole = |group: &[Piece]| group.iter().all(inner);
        let inners = [
            reading(file, &groups, |group, piece| whole(group) && inner(piece)),
            reading(file, &groups, |group, piece| !whole(group) && inner(piece)),
        ];
        let edge = reading(file, &groups, |_, piece| edge(piece));
        Ok(Split { inner: inners.into_iter().flatten().collect(), edge })
    }
}

/// The row groups of a file in pieces; `None` for one that does not say enough.
async fn groups(disk: &Arc<dyn Disk>, file: &Arc<DataFile>) -> Result<Option<Vec<Vec<Piece>>>> {
    match windows(file) {
        Some(windows) => Ok(Some(windows)),
        None => Ok(pages(&*metadata(disk, file).await?)),
    }
}

/// The row groups of a file that was compacted, in each of which time goes to and fro; `None` for another.
fn windows(file: &DataFile) -> Option<Vec<Vec<Piece>>> {
    let windows = &file.entry.windows;
    // Each ends ahead of the next one. How many rows it has is a guess, which nothing depends on.
    let ends = windows.iter().skip(1).map(|next| next.saturating_sub(1)).chain([file.entry.max_time]);
    let rows = file.entry.rows.checked_div(windows.len() as u64)?;
    Some(windows.iter().zip(ends).map(|(&first, last)| vec![Piece { rows, first, last }]).collect())
}

/// The pages of each row group, by the statistics of time, the first column of every file.
fn pages(metadata: &ParquetMetaData) -> Option<Vec<Vec<Piece>>> {
    let mut groups = Vec::with_capacity(metadata.num_row_groups());
    for (at, group) in metadata.row_groups().iter().enumerate() {
        let rows = u64::try_from(group.num_rows()).ok()?;
        let Statistics::Int64(times) = group.columns().first()?.statistics()? else { return None };
        let whole = Piece { rows, first: *times.min_opt()?, last: *times.max_opt()? };
        groups.push(pages_of(metadata, at, rows).unwrap_or_else(|| vec![whole]));
    }
    Some(groups)
}

fn pages_of(metadata: &ParquetMetaData, group: usize, rows: u64) -> Option<Vec<Piece>> {
    let ColumnIndexMetaData::INT64(times) = metadata.column_index()?.get(group)?.first()? else {
        return None;
    };
    let places = &metadata.offset_index()?.get(group)?.first()?.page_locations;
    let starts = places.iter().map(|place| u64::try_from(place.first_row_index).ok());
    let mut starts = starts.collect::<Option<Vec<_>>>()?;
    starts.push(rows);
    let (firsts, lasts) = (times.min_values(), times.max_values());
    if firsts.len() + 1 != starts.len() || lasts.len() != firsts.len() || starts.first() != Some(&0) {
        return None;
    }
    let pages = starts.windows(2).zip(firsts.iter().zip(lasts)).map(|(rows, (&first, &last))| match rows {
        [start, end] => Some(Piece { rows: end.checked_sub(*start)?, first, last }),
        _ => None,
    });
    pages.collect()
}

fn reading(
    file: &Arc<DataFile>,
    groups: &[Vec<Piece>],
    wanted: impl Fn(&[Piece], &Piece) -> bool,
) -> Option<Reading> {
    let mut reading = Reading { file: file.clone(), groups: None, rows: 0, range: (i64::MAX, i64::MIN) };
    let mut access = Vec::with_capacity(groups.len());
    for group in groups {
        let mut selectors = Vec::with_capacity(group.len());
        for piece in group {
            let rows = usize::try_from(piece.rows).ok()?;
            if wanted(group, piece) {
                reading.rows += piece.rows;
                let (first, last) = reading.range;
                reading.range = (first.min(piece.first), last.max(piece.last));
                selectors.push(RowSelector::select(rows));
            } else {
                selectors.push(RowSelector::skip(rows));
            }
        }
        access.push(match selectors.iter().filter(|selector| !selector.skip).count() {
            0 => RowGroupAccess::Skip,
            taken if taken == selectors.len() => RowGroupAccess::Scan,
            _ => RowGroupAccess::Selection(RowSelection::from(selectors)),
        });
    }
    reading.groups = Some(ParquetAccessPlan::new(access));
    (reading.range.0 <= reading.range.1).then_some(reading)
}
