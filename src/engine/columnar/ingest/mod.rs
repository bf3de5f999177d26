//! What a client sends becomes a [`Batch`]: one parser per wire format, and what they share.

mod columns;
mod cursor;
pub mod line_protocol;
mod number;
mod precision;

pub use precision::Precision;

use serde::Serialize;

use super::{batch::Batch, schema::SchemaError};

/// Bad lines that are reported one by one; the others are only counted.
pub const MAX_REPORTED: usize = 100;
/// Length of the text about one bad line, in characters.
pub const MAX_ERROR: usize = 1_024;
/// Values of one batch, nulls included: rows times columns, over all tables. A body that is small
/// but sparse cannot take more memory than this many values do.
pub const MAX_VALUES: usize = 16 * 1024 * 1024;

/// How to read a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the points go.
    pub database: String,
    /// What a timestamp counts.
    pub precision: Precision,
    /// Time of points that carry none: nanoseconds since 1970.
    pub now_ns: i64,
    /// Whether good points of a body with bad ones are taken.
    pub accept_partial: bool,
}

/// What became of a body.
#[derive(Debug, Clone, PartialEq)]
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

/// A point that cannot be taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// The line, from 1, on which the point begins; a line break in a string counts.
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
    /// The parser made columns that Arrow does not take: a bug in it.
    #[error("the points could not be put into columns: {0}")]
    Columns(String),
}
