//! The columns of a table: how they are named and typed.
//!
//! A table's columns come from the data: the first type wins and never changes. The time column is
//! in every table and therefore never listed.

use std::sync::{Arc, OnceLock};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use rmp::encode::{self, ByteBuf};
use serde::{Deserialize, Serialize};

pub use super::registry::{Schemas, Tables};
pub use kind::{ColumnKind, FieldType};

mod kind;

/// Columns of a table, time not counted.
pub const MAX_COLUMNS: usize = 1_000;
/// Tables of a database.
pub const MAX_TABLES: usize = 10_000;
/// Databases of a cluster.
pub const MAX_DATABASES: usize = 1_000;
/// Length of a table or column name in bytes.
pub const MAX_NAME: usize = 255;
/// Length of a database name in bytes.
pub const MAX_DATABASE_NAME: usize = 64;
/// Name of the time column: Timestamp(ns), never null, first.
pub const TIME: &str = "time";
/// Key of the Arrow field metadata that says what a column is: `time`, `tag` or `field`.
pub const KIND_METADATA: &str = "skein.kind";

/// The columns of one table: tags in order of appearance, then fields in order of appearance.
///
/// The column at index `i` is field `i + 1` of [`TableSchema::to_arrow`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(String, ColumnKind)>", into = "Vec<(String, ColumnKind)>")]
pub struct TableSchema {
    columns: Vec<(String, ColumnKind)>,
    /// Indices into `columns`, sorted by name.
    by_name: Vec<u16>,
    tags: usize,
    /// Made once, when first asked for.
    fingerprint: OnceLock<u64>,
    /// Likewise.
    arrow: OnceLock<SchemaRef>,
    /// Likewise.
    encoded: OnceLock<Box<[u8]>>,
}

/// A name, a column or a table cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The first type wins; this came later.
    #[error("column {column:?} of table {table:?} is {assigned} and cannot take {given}")]
    Mismatch {
        /// The table, empty where it is not known.
        table: String,
        /// The column.
        column: String,
        /// What the column is.
        assigned: ColumnKind,
        /// What was to be stored in it.
        given: ColumnKind,
    },
    /// A name breaks the rules.
    #[error("{what} name {name:?} {reason}")]
    Name {
        /// Whose name: database, table or column.
        what: &'static str,
        /// The name, shortened.
        name: String,
        /// Which rule.
        reason: &'static str,
    },
    /// A limit is reached: more tags or fields than this model is meant for.
    #[error("{what} would have more than {limit} {things}")]
    Limit {
        /// Which database or table.
        what: String,
        /// How many there may be.
        limit: usize,
        /// Of what.
        things: &'static str,
    },
    /// Bytes or an Arrow schema that do not describe a table.
    #[error("not a table schema: {0}")]
    Malformed(String),
}

impl TableSchema {
    /// A schema of these columns; tags are moved before fields, the order is kept otherwise.
    ///
    /// # Errors
    /// A bad or repeated name, or too many columns.
    pub fn new(columns: impl IntoIterator<Item = (String, ColumnKind)>) -> Result<Self, SchemaError> {
        let (mut columns, fields): (Vec<_>, Vec<_>) =
            columns.into_iter().partition(|(_, kind)| *kind == ColumnKind::Tag);
        let tags = columns.len();
        columns.extend(fields);
        if columns.len() > MAX_COLUMNS {
            return Err(SchemaError::too_many_columns());
        }
        // The limit on columns keeps every index within u16.
        let mut by_name: Vec<(&str, u16)> =
            (0..).zip(&columns).map(|(at, (name, _))| (name.as_str(), at)).collect();
        by_name.sort_unstable();
        for pair in by_name.windows(2) {
            if let [(one, _), (two, _)] = pair
                && one == two
            {
                return Err(SchemaError::name("column", one, "appears twice"));
            }
        }
        for (name, _) in &by_name {
            check_column_name(name)?;
        }
        let by_name = by_name.into_iter().map(|(_, at)| at).collect();
        Ok(Self { columns, by_name, tags, ..Self::default() })
    }

    /// Name and kind of every column, tags first, without time.
    #[must_use]
    pub fn columns(&self) -> &[(String, ColumnKind)] {
        &self.columns
    }

    /// How many of the columns are tags; they come first.
    #[must_use]
    pub fn tags(&self) -> usize {
        self.tags
    }

    /// Index of a column in [`TableSchema::columns`].
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        let at = self.search(name).ok()?;
        self.by_name.get(at).map(|&index| usize::from(index))
    }

    /// What a column is.
    #[must_use]
    pub fn kind(&self, name: &str) -> Option<ColumnKind> {
        self.position(name).and_then(|at| self.columns.get(at)).map(|(_, kind)| *kind)
    }

    /// Makes sure that there is such a column; a new tag goes behind the last tag, a new field to
    /// the end. True if it is new.
    ///
    /// # Errors
    /// The column has another kind, its name is bad, or the table is full. Nothing was changed.
    pub fn add(&mut self, name: &str, kind: ColumnKind) -> Result<bool, SchemaError> {
        let slot = match self.search(name) {
            Ok(_) => {
                let assigned = self.kind(name).unwrap_or(kind);
                if assigned == kind {
                    return Ok(false);
                }
                return Err(SchemaError::mismatch("", name, assigned, kind));
            }
            Err(slot) => slot,
        };
        check_column_name(name)?;
        if self.columns.len() >= MAX_COLUMNS {
            return Err(SchemaError::Limit {
                what: "the table".into(),
                limit: MAX_COLUMNS,
                things: "columns",
            });
        }
        let at = if kind == ColumnKind::Tag { self.tags } else { self.columns.len() };
        for index in &mut self.by_name {
            *index += u16::from(usize::from(*index) >= at);
        }
        self.columns.insert(at, (name.to_owned(), kind));
        self.tags += usize::from(kind == ColumnKind::Tag);
        (self.fingerprint, self.arrow, self.encoded) = <_>::default();
        // The limit on columns keeps every index within u16.
        self.by_name.insert(slot, u16::try_from(at).unwrap_or(u16::MAX));
        Ok(true)
    }

    /// Why `other` cannot be stored in a table of this schema: another kind for a column, or too
    /// many columns. None if it can, be it by adding columns.
    #[must_use]
    pub fn conflict(&self, other: &Self) -> Option<SchemaError> {
        let mut total = self.columns.len();
        for (name, given) in &other.columns {
            match self.kind(name) {
                Some(assigned) if assigned != *given => {
                    return Some(SchemaError::mismatch("", name, assigned, *given));
                }
                Some(_) => {}
                None => total += 1,
            }
        }
        (total > MAX_COLUMNS).then(SchemaError::too_many_columns)
    }

    /// True if every column of `other` is here with the same kind.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self == other || other.columns.iter().all(|(name, kind)| self.kind(name) == Some(*kind))
    }

    /// 64 bits over names and kinds sorted by name: the same on every node and version, whatever
    /// the order of appearance. A hint that two schemas are equal, not a proof.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
            for (name, kind) in self.by_name.iter().filter_map(|&at| self.columns.get(usize::from(at))) {
                digest.update(name.as_bytes());
                // No name holds a control character, so this byte ends it.
                digest.update(&[u8::from(*kind)]);
            }
            digest.finish().as_ref().iter().take(8).fold(0, |word, byte| (word << 8) | u64::from(*byte))
        })
    }

    /// As Arrow: time, tags, fields. Clones have the same one.
    #[must_use]
    pub fn to_arrow(&self) -> SchemaRef {
        let make = || {
            let time = arrow_field(TIME, DataType::Timestamp(TimeUnit::Nanosecond, None), false, TIME);
            let columns = self.columns.iter().map(|(name, kind)| match kind {
                ColumnKind::Tag => arrow_field(name, DataType::Utf8, true, "tag"),
                ColumnKind::Field(field) => arrow_field(name, field.data_type(), true, "field"),
            });
            Arc::new(Schema::new(std::iter::once(time).chain(columns).collect::<Vec<_>>()))
        };
        self.arrow.get_or_init(make).clone()
    }

    /// As serde writes it in MessagePack, which is how it stands in records. Made once; clones have it too.
    pub(super) fn encoded(&self) -> &[u8] {
        self.encoded.get_or_init(|| {
            let mut bytes = ByteBuf::with_capacity(8 + self.columns.len() * 16);
            // The limits on names and columns keep every length within u32.
            let Ok(_) = encode::write_array_len(&mut bytes, self.columns.len() as u32);
            for (name, kind) in &self.columns {
                let Ok(_) = encode::write_array_len(&mut bytes, 2);
                let Ok(()) = encode::write_str(&mut bytes, name);
                let Ok(_) = encode::write_uint(&mut bytes, u8::from(*kind).into());
            }
            bytes.into_vec().into()
        })
    }

    /// From Arrow as [`TableSchema::to_arrow`] makes it, also after a detour over Parquet or
    /// DataFusion (dictionaries, large strings and views stand for strings).
    ///
    /// # Errors
    /// A column without kind, a type that no column has, no time column.
    pub fn from_arrow(schema: &Schema) -> Result<Self, SchemaError> {
        let mut time = false;
        let mut table = Self::default();
        for field in schema.fields() {
            let kind = match (field.metadata().get(KIND_METADATA).map(String::as_str), field.data_type()) {
                (Some("time"), DataType::Timestamp(TimeUnit::Nanosecond, _))
                    if field.name() == TIME && !time =>
                {
                    time = true;
                    continue;
                }
                (Some("tag"), kind) if is_text(kind) => ColumnKind::Tag,
                (Some("field"), DataType::Float64) => ColumnKind::Field(FieldType::Float),
                (Some("field"), DataType::Int64) => ColumnKind::Field(FieldType::Int),
                (Some("field"), DataType::UInt64) => ColumnKind::Field(FieldType::UInt),
                (Some("field"), DataType::Boolean) => ColumnKind::Field(FieldType::Bool),
                (Some("field"), kind) if is_text(kind) => ColumnKind::Field(FieldType::String),
                (kind, found) => {
                    let kind = kind.unwrap_or("nothing");
                    let reason = format!("column {:?} is marked {kind:?} and has type {found}", field.name());
                    return Err(SchemaError::Malformed(reason));
                }
            };
            if !table.add(field.name(), kind)? {
                return Err(SchemaError::Malformed(format!("column {:?} appears twice", field.name())));
            }
        }
        if time { Ok(table) } else { Err(SchemaError::Malformed("there is no time column".into())) }
    }

    fn search(&self, name: &str) -> Result<usize, usize> {
        self.by_name.binary_search_by(|&at| {
            self.columns.get(usize::from(at)).map_or("", |(name, _)| name.as_str()).cmp(name)
        })
    }
}

impl PartialEq for TableSchema {
    fn eq(&self, other: &Self) -> bool {
        self.columns == other.columns
    }
}

impl Eq for TableSchema {}

/// Checks a database name: 1 to [`MAX_DATABASE_NAME`] of `A-Z a-z 0-9 _ -`, not starting with `-`
/// or `_`.
///
/// # Errors
/// [`SchemaError::Name`] with the broken rule.
pub fn check_database_name(name: &str) -> Result<(), SchemaError> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_DATABASE_NAME {
        "is longer than 64 bytes"
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
        "may have only letters, digits, '_' and '-'"
    } else if name.starts_with(['-', '_']) || name.eq_ignore_ascii_case("information_schema") {
        "must not start with '-' or '_', nor be information_schema"
    } else {
        return Ok(());
    };
    Err(SchemaError::name("database", name, reason))
}

/// Checks a table name: 1 to [`MAX_NAME`] bytes without control characters.
///
/// # Errors
/// [`SchemaError::Name`] with the broken rule.
pub fn check_table_name(name: &str) -> Result<(), SchemaError> {
    check_text("table", name)
}

/// Checks the name of a tag or field: as a table's, and not `time`.
///
/// # Errors
/// [`SchemaError::Name`] with the broken rule.
pub fn check_column_name(name: &str) -> Result<(), SchemaError> {
    if name == TIME {
        return Err(SchemaError::name("column", name, "is reserved: the time of a point has its own place"));
    }
    check_text("column", name)
}

fn check_text(what: &'static str, name: &str) -> Result<(), SchemaError> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME {
        "is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else {
        return Ok(());
    };
    Err(SchemaError::name(what, name, reason))
}

fn arrow_field(name: &str, data_type: DataType, nullable: bool, kind: &str) -> Field {
    Field::new(name, data_type, nullable).with_metadata([(KIND_METADATA.to_owned(), kind.to_owned())].into())
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

impl SchemaError {
    pub(super) fn mismatch(table: &str, column: &str, assigned: ColumnKind, given: ColumnKind) -> Self {
        Self::Mismatch { table: table.to_owned(), column: column.to_owned(), assigned, given }
    }

    /// [`SchemaError::of_table`] puts the name in.
    fn too_many_columns() -> Self {
        Self::Limit { what: "the table".into(), limit: MAX_COLUMNS, things: "columns" }
    }

    pub(super) fn too_many_tables(database: &str) -> Self {
        Self::Limit { what: format!("database {database:?}"), limit: MAX_TABLES, things: "tables" }
    }

    fn name(what: &'static str, name: &str, reason: &'static str) -> Self {
        Self::Name { what, name: name.chars().take(64).collect(), reason }
    }

    /// The same error, naming the table.
    #[must_use]
    pub fn of_table(self, name: &str) -> Self {
        match self {
            Self::Mismatch { column, assigned, given, .. } => Self::mismatch(name, &column, assigned, given),
            Self::Limit { limit, things: things @ "columns", .. } => {
                Self::Limit { what: format!("table {name:?}"), limit, things }
            }
            other => other,
        }
    }
}

impl TryFrom<Vec<(String, ColumnKind)>> for TableSchema {
    type Error = SchemaError;

    fn try_from(columns: Vec<(String, ColumnKind)>) -> Result<Self, SchemaError> {
        Self::new(columns)
    }
}

impl From<TableSchema> for Vec<(String, ColumnKind)> {
    fn from(schema: TableSchema) -> Self {
        schema.columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOAT: ColumnKind = ColumnKind::Field(FieldType::Float);
    const INT: ColumnKind = ColumnKind::Field(FieldType::Int);

    fn schema(columns: &[(&str, ColumnKind)]) -> TableSchema {
        TableSchema::new(columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind))).unwrap()
    }

    #[test]
    fn tags_come_first_and_columns_are_found_after_inserts() {
        let mut table =
            schema(&[("u", FLOAT), ("host", ColumnKind::Tag), ("a", INT), ("b", ColumnKind::Tag)]);
        let twice = [("x".to_owned(), FLOAT), ("y".to_owned(), FLOAT), ("x".to_owned(), ColumnKind::Tag)];
        assert!(TableSchema::new(twice).is_err());
        assert!(TableSchema::new([("time".to_owned(), FLOAT)]).is_err());
        let names: Vec<_> = table.columns().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["host", "b", "u", "a"]);
        assert_eq!(table.tags(), 2);
        let before = table.fingerprint();
        let narrow = table.to_arrow();
        assert!(table.add("zone", ColumnKind::Tag).unwrap());
        assert_eq!(table.to_arrow().fields().len(), narrow.fields().len() + 1);
        assert!(!table.add("zone", ColumnKind::Tag).unwrap());
        assert_ne!(table.fingerprint(), before);
        for (at, (name, kind)) in table.columns().to_vec().into_iter().enumerate() {
            assert_eq!(table.position(&name), Some(at));
            assert_eq!(table.kind(&name), Some(kind));
        }
        assert_eq!(table.position("none"), None);
        assert!(matches!(
            table.add("u", INT),
            Err(SchemaError::Mismatch { assigned: FLOAT, given: INT, .. })
        ));
        assert!(table.add("host", FLOAT).is_err());
        assert!(table.add("time", FLOAT).is_err());
        assert!(table.add("", FLOAT).is_err());
        assert!(table.add("a\nb", FLOAT).is_err());
        assert!(table.add(&"x".repeat(256), FLOAT).is_err());
        assert!(table.add(&"x".repeat(255), FLOAT).unwrap());
    }

    #[test]
    fn the_fingerprint_ignores_order_and_never_changes() {
        let one = schema(&[("host", ColumnKind::Tag), ("u", FLOAT), ("v", INT)]);
        let two = schema(&[("v", INT), ("u", FLOAT), ("host", ColumnKind::Tag)]);
        assert_eq!(one.fingerprint(), two.fingerprint());
        assert_ne!(
            one.fingerprint(),
            schema(&[("host", ColumnKind::Tag), ("u", INT), ("v", INT)]).fingerprint()
        );
        // SHA-256 of nothing, first eight bytes.
        assert_eq!(TableSchema::default().fingerprint(), 0xe3b0_c442_98fc_1c14);
    }

    #[test]
    fn arrow_round_trips() {
        let kinds = (0..=5).map(|code| (format!("c{code}"), ColumnKind::try_from(code).unwrap()));
        let table = TableSchema::new(kinds).unwrap();
        let arrow = table.to_arrow();
        assert_eq!(arrow.field(0).name(), TIME);
        assert!(!arrow.field(0).is_nullable());
        assert_eq!(TableSchema::from_arrow(&arrow).unwrap(), table);
        assert!(TableSchema::from_arrow(&Schema::empty()).is_err());
    }
}
