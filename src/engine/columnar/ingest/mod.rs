//! What a client sends becomes a [`Batch`]: one parser per wire format, and what they share.

mod budget;
mod columns;
mod cursor;
mod gathered;
pub mod line_protocol;
pub mod msgpack;
mod number;
mod precision;
mod unpack;

pub use precision::Precision;

use bytes::Bytes;
use serde::Serialize;

pub(super) use self::cursor::shortened;
use super::{SeriesGate, batch::Batch, schema::SchemaError};

/// Bad lines that are reported one by one; the others are only counted.
pub const MAX_REPORTED: usize = 100;
/// Length of the text about one bad line, in characters.
pub const MAX_ERROR: usize = 1_024;
/// Values of one batch, nulls included: rows times columns, over all tables. A body that is small
/// but sparse cannot take more memory than this many values do.
pub const MAX_VALUES: usize = 16 * 1024 * 1024;

/// Longest text of a tag or field, in bytes. A query holds thousands of rows at once.
pub const MAX_TEXT: usize = 1 << 20;
/// Longest body: offsets into its texts are 31 bits.
const MAX_BODY: usize = i32::MAX as usize;

/// Makes room for so many more bytes of points, before they are there; false if there is none. What
/// was asked for is needed until the record of the points is made.
pub type Room<'a> = &'a mut dyn FnMut(usize) -> bool;

/// How to read a body.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the points go.
    pub database: String,
    /// What a timestamp counts.
    pub precision: Precision,
    /// Time of points that carry none: nanoseconds since 1970.
    pub now_ns: i64,
    /// Whether good points of a body with bad ones are taken.
    pub accept_partial: bool,
    /// Judges points by their series; `None` where those are not limited.
    pub series: Option<SeriesGate>,
}

/// What became of a body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// The good points; None if there are none, or if one was bad and partial writes are off.
    pub batch: Option<Batch>,
    /// Points in `batch`.
    pub rows: usize,
    /// The first [`MAX_REPORTED`] bad points, in order.
    pub rejected: Vec<LineError>,
    /// How many points were bad.
    pub rejected_total: usize,
}

/// As [`Parsed`], with the points as they stand in a log record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// The good points, as [`encode`](super::batch::encode) makes it; None as in [`Parsed::batch`].
    pub payload: Option<Bytes>,
    /// Points in `payload`.
    pub rows: usize,
    /// The first [`MAX_REPORTED`] bad points, in order.
    pub rejected: Vec<LineError>,
    /// How many points were bad.
    pub rejected_total: usize,
}

/// A point that cannot be taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// The line, from 1, on which the point begins; a line break in a string counts. In a body of
    /// MessagePack, the number of the item.
    pub line: usize,
    /// Why, in at most [`MAX_ERROR`] characters.
    pub error: String,
}

/// A body of which no point can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The database's name is bad, or there are too many databases.
    #[error(transparent)]
    Database(#[from] SchemaError),
    /// Send it in parts.
    #[error("the body has {len} bytes, more than {limit}: send it in parts")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// What is possible.
        limit: usize,
    },
    /// It is not in its format, so nothing of it can be believed.
    #[error("{0}")]
    Malformed(String),
    /// Its points have no place in memory now.
    #[error("there is no room in memory for the points of this body")]
    NoRoom,
    /// The parser made columns that Arrow does not take: a bug in it.
    #[error("the points could not be put into columns: {0}")]
    Columns(String),
}

/// A body was read in both ways: with the same to say of it, and the same bytes.
#[cfg(test)]
pub(super) fn agree(parsed: &Result<Parsed, BodyError>, encoded: &Result<Encoded, BodyError>) {
    let payload = |batch: &Batch| super::batch::encode(batch).expect("what a parser made can be encoded");
    let as_parsed = parsed.clone().map(|parsed| Encoded {
        payload: parsed.batch.as_ref().map(payload),
        rows: parsed.rows,
        rejected: parsed.rejected,
        rejected_total: parsed.rejected_total,
    });
    assert_eq!(&as_parsed, encoded);
}
