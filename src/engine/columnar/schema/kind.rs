//! What a column is, and the numbers that stand for it on disk and on the wire.

use std::fmt;

use arrow_schema::DataType;
use serde::{Deserialize, Serialize};

use super::SchemaError;

/// Type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldType {
    /// 64-bit float, finite.
    Float,
    /// Signed 64-bit integer.
    Int,
    /// Unsigned 64-bit integer.
    UInt,
    /// True or false.
    Bool,
    /// UTF-8.
    String,
}

/// What a column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum ColumnKind {
    /// Part of a point's identity; always a string, null where a point does not have it.
    Tag,
    /// A measured value; null where a point does not have it.
    Field(FieldType),
}

impl FieldType {
    /// The Arrow type of such a column.
    #[must_use]
    pub fn data_type(self) -> DataType {
        match self {
            Self::Float => DataType::Float64,
            Self::Int => DataType::Int64,
            Self::UInt => DataType::UInt64,
            Self::Bool => DataType::Boolean,
            Self::String => DataType::Utf8,
        }
    }
}

impl fmt::Display for ColumnKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tag => "a tag",
            Self::Field(FieldType::Float) => "a float field",
            Self::Field(FieldType::Int) => "an int field",
            Self::Field(FieldType::UInt) => "a uint field",
            Self::Field(FieldType::Bool) => "a bool field",
            Self::Field(FieldType::String) => "a string field",
        })
    }
}

/// Stable: on the wire, in the manifest and in the fingerprint. Below 0x20, see `fingerprint`.
impl From<ColumnKind> for u8 {
    fn from(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::Tag => 0,
            ColumnKind::Field(FieldType::Float) => 1,
            ColumnKind::Field(FieldType::Int) => 2,
            ColumnKind::Field(FieldType::UInt) => 3,
            ColumnKind::Field(FieldType::Bool) => 4,
            ColumnKind::Field(FieldType::String) => 5,
        }
    }
}

impl TryFrom<u8> for ColumnKind {
    type Error = SchemaError;

    fn try_from(code: u8) -> Result<Self, SchemaError> {
        Ok(match code {
            0 => Self::Tag,
            1 => Self::Field(FieldType::Float),
            2 => Self::Field(FieldType::Int),
            3 => Self::Field(FieldType::UInt),
            4 => Self::Field(FieldType::Bool),
            5 => Self::Field(FieldType::String),
            _ => return Err(SchemaError::Malformed(format!("there is no column kind {code}"))),
        })
    }
}
