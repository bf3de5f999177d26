//! Why a query has no answer, by who is at fault.

use std::time::Duration;

use datafusion::error::DataFusionError;

use super::memory::AllTaken;

use crate::{engine::EngineError, types::Lsn};

/// A query failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The statement is wrong: it does not parse, names no such column, divides by zero.
    #[error("{0}")]
    Invalid(String),
    /// The statement is well-formed and does what queries here may not do.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// What it names is there or not, and not for whoever asks.
    #[error("database {0:?} is not open to this query")]
    Forbidden(String),
    /// The time for it is over.
    #[error("the query took longer than {0:?}")]
    TimedOut(Duration),
    /// The answer or the memory for it is over its limit.
    #[error("{0}")]
    TooLarge(String),
    /// Other queries have the memory that it needs.
    #[error("{0}")]
    Busy(String),
    /// There is no such database.
    #[error("there is no database {0:?}")]
    UnknownDatabase(String),
    /// The database has no such table.
    #[error("there is no table {table:?} in database {database:?}")]
    UnknownTable {
        /// The database.
        database: String,
        /// The table that it does not have.
        table: String,
    },
    /// A file of this node that the query needs is not what was written. Other nodes have its rows.
    #[error("data file {file} is damaged on this node")]
    Damaged {
        /// Its path under the engine's directory.
        file: String,
    },
    /// Data of this node was damaged and has been replaced; it has not applied again what it had shown.
    #[error("this node replaces damaged data, and has applied {applied} again, not yet {shown}")]
    Mending {
        /// What it has.
        applied: Lsn,
        /// What it had shown.
        shown: Lsn,
    },
    /// Not the query's fault.
    #[error("the query failed: {0}")]
    Internal(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        use DataFusionError as E;
        let root = match error.find_root() {
            E::Collection(errors) => errors.first().map_or(&error, DataFusionError::find_root),
            root => root,
        };
        let text = root.strip_backtrace();
        // What is left of DataFusion's own error classes says nothing to a user.
        let plain = |class: &str| text.strip_prefix(class).unwrap_or(&text).trim_start().to_owned();
        match root {
            E::SQL(..) => Self::Invalid(plain("SQL error:")),
            E::Plan(_) => Self::Invalid(plain("Error during planning:")),
            E::SchemaError(..) => Self::Invalid(plain("Schema error:")),
            E::Execution(_) => Self::Invalid(plain("Execution error:")),
            E::NotImplemented(_) => Self::Invalid(plain("This feature is not implemented:")),
            E::ResourcesExhausted(_) => Self::TooLarge("the query needs more memory than it may take".into()),
            E::External(cause) if cause.is::<AllTaken>() => Self::Busy(cause.to_string()),
            E::ArrowError(..) => Self::Invalid(plain("Arrow error:")),
            _ => Self::Internal(text),
        }
    }
}

impl From<EngineError> for QueryError {
    fn from(error: EngineError) -> Self {
        Self::Internal(error.to_string())
    }
}
