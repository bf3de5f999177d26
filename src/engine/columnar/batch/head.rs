//! The head of a payload in MessagePack:
//! `[database, [[table, [[column, kind], ..], assigned, rows, length of its message], ..]]`.
//!
//! A body may name a thousand tables, and columns seldom change. So the columns of a table are written as
//! the bytes that its schema keeps, and those of a table that is known are not read but compared.

use std::{collections::HashSet, sync::Arc};

use rmp::{decode, encode};

use super::{
    super::schema::{ColumnKind, MAX_COLUMNS, MAX_NAME, MAX_TABLES, Schemas, TableSchema},
    BatchError, Header, TableHeader, check_database_name, check_table_name,
    encode::Table,
    length, malformed,
};

/// The bytes of a head. `lengths` are those of the tables' messages.
pub(super) fn write<T: Table>(database: &str, tables: &[T], lengths: &[u32]) -> Result<Vec<u8>, BatchError> {
    let columns = |table: &T| table.name().len() + table.schema().encoded().len() + 32;
    let mut head = Vec::with_capacity(80 + tables.iter().map(columns).sum::<usize>());
    let failed = |error: encode::ValueWriteError| malformed(error.to_string());
    encode::write_array_len(&mut head, 2).map_err(failed)?;
    encode::write_str(&mut head, database).map_err(failed)?;
    encode::write_array_len(&mut head, length(tables.len())?).map_err(failed)?;
    for (table, ipc_len) in tables.iter().zip(lengths) {
        encode::write_array_len(&mut head, 5).map_err(failed)?;
        encode::write_str(&mut head, table.name()).map_err(failed)?;
        head.extend_from_slice(table.schema().encoded());
        encode::write_uint(&mut head, table.assigned()).map_err(failed)?;
        encode::write_uint(&mut head, length(table.rows())?.into()).map_err(failed)?;
        encode::write_uint(&mut head, (*ipc_len).into()).map_err(failed)?;
    }
    Ok(head)
}

/// A head as it was read, with names from there.
#[derive(Debug, PartialEq)]
pub(super) struct Head<'a> {
    pub(super) database: &'a str,
    pub(super) tables: Vec<TableHead<'a>>,
    /// Every table has just the columns that are known of it.
    pub(super) all_known: bool,
}

/// See [`TableHeader`].
#[derive(Debug, PartialEq)]
pub(super) struct TableHead<'a> {
    pub(super) name: &'a str,
    pub(super) schema: Arc<TableSchema>,
    pub(super) assigned: u64,
    pub(super) rows: u32,
    pub(super) ipc_len: u32,
}

impl From<Head<'_>> for Header {
    fn from(head: Head<'_>) -> Self {
        let tables = head.tables.into_iter().map(|TableHead { name, schema, assigned, rows, ipc_len }| {
            TableHeader { name: name.to_owned(), schema, assigned, rows, ipc_len }
        });
        Self { database: head.database.to_owned(), tables: tables.collect() }
    }
}

/// Reads a head, and the schema of a table that has just these columns in `known` from there.
///
/// # Errors
/// Anything that [`write`] would not have made.
pub(super) fn read<'a>(head: &'a [u8], known: &Schemas) -> Result<Head<'a>, BatchError> {
    let (mut head, mut all_known) = (head, true);
    array_of(&mut head, 2)?;
    let database = text(&mut head)?;
    check_database_name(database)?;
    let known = known.tables(database);
    let count = decode::read_array_len(&mut head).map_err(wrong)? as usize;
    // Each takes 8 bytes or more, whatever is said about their number.
    if count > MAX_TABLES.min(head.len() / 8) {
        return Err(malformed(format!("its head cannot tell of {count} tables")));
    }
    let mut tables = Vec::with_capacity(count);
    let mut names = HashSet::with_capacity(if count > 1 { count } else { 0 });
    for _ in 0..count {
        array_of(&mut head, 5)?;
        let name = text(&mut head)?;
        let known = known.and_then(|tables| tables.get(name));
        let schema = match known.map(|known| (known, head.strip_prefix(known.encoded()))) {
            Some((known, Some(rest))) => {
                head = rest;
                Arc::clone(known)
            }
            _ => {
                all_known = false;
                check_table_name(name)?;
                Arc::new(columns(&mut head)?)
            }
        };
        let table = TableHead {
            name,
            schema,
            assigned: decode::read_int(&mut head).map_err(wrong)?,
            rows: decode::read_int(&mut head).map_err(wrong)?,
            ipc_len: decode::read_int(&mut head).map_err(wrong)?,
        };
        if table.rows == 0 || (count > 1 && !names.insert(name)) {
            return Err(malformed(format!("table {name:?} is empty or appears twice")));
        }
        tables.push(table);
    }
    if !head.is_empty() {
        return Err(malformed("its head is longer than what it says"));
    }
    Ok(Head { database, tables, all_known })
}

fn columns(head: &mut &[u8]) -> Result<TableSchema, BatchError> {
    let count = decode::read_array_len(head).map_err(wrong)? as usize;
    // Each takes 4 bytes or more.
    if count > MAX_COLUMNS.min(head.len() / 4) {
        return Err(malformed(format!("its head cannot tell of {count} columns of a table")));
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        array_of(head, 2)?;
        let name = text(head)?.to_owned();
        let kind: u8 = decode::read_int(head).map_err(wrong)?;
        columns.push((name, ColumnKind::try_from(kind)?));
    }
    Ok(TableSchema::new(columns)?)
}

fn array_of(head: &mut &[u8], len: u32) -> Result<(), BatchError> {
    match decode::read_array_len(head).map_err(wrong)? {
        found if found == len => Ok(()),
        found => Err(malformed(format!("{found} things in its head where {len} belong"))),
    }
}

/// A name, borrowed.
fn text<'a>(head: &mut &'a [u8]) -> Result<&'a str, BatchError> {
    let len = decode::read_str_len(head).map_err(wrong)? as usize;
    let cut = || malformed("a name in its head is cut off or too long");
    let (name, rest) = head.split_at_checked(len).filter(|_| len <= MAX_NAME).ok_or_else(cut)?;
    *head = rest;
    std::str::from_utf8(name).map_err(wrong)
}

fn wrong(error: impl std::fmt::Display) -> BatchError {
    malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Batch, TableBatch, tests::sample},
        *,
    };

    fn known(batch: &Batch) -> Schemas {
        let mut known = Schemas::default();
        for table in &batch.tables {
            known.merge(&batch.database, &table.table, &table.schema).unwrap();
        }
        known
    }

    /// As serde writes it, and as heads were written before there was [`write`].
    fn by_serde(batch: &Batch, lengths: &[u32]) -> Vec<u8> {
        let of = |(table, len): (&TableBatch, &u32)| {
            let schema = TableSchema::clone(&table.schema);
            (table.table.clone(), schema, table.assigned, table.rows.num_rows() as u32, *len)
        };
        let tables: Vec<_> = batch.tables.iter().zip(lengths).map(of).collect();
        rmp_serde::to_vec(&(&batch.database, tables)).unwrap()
    }

    #[test]
    fn heads_are_those_of_serde_byte_by_byte() {
        let batch = sample();
        for lengths in [[0, 127], [128, 65_535], [65_536, u32::MAX]] {
            let head = write(&batch.database, &batch.tables, &lengths).unwrap();
            assert_eq!(head, by_serde(&batch, &lengths));
            let read = read(&head, &Schemas::default()).unwrap();
            assert!(!read.all_known);
            assert_eq!(read.tables.iter().map(|table| table.ipc_len).collect::<Vec<_>>(), lengths);
        }
    }

    #[test]
    fn a_known_schema_is_taken_only_if_it_has_just_these_columns() {
        let batch = sample();
        let head = write(&batch.database, &batch.tables, &[8, 16]).unwrap();
        let same = read(&head, &known(&batch)).unwrap();
        assert!(same.all_known);
        assert!(Arc::ptr_eq(&same.tables[0].schema, &batch.tables[0].schema));
        let mut wider = batch.clone();
        for table in &mut wider.tables {
            Arc::make_mut(&mut table.schema).add("more", ColumnKind::Tag).unwrap();
        }
        assert_eq!(read(&head, &known(&wider)).unwrap(), Head { all_known: false, ..same });
        let none = Schemas::default();
        for cut in 0..head.len() {
            assert!(read(&head[..cut], &none).is_err() && read(&head[..cut], &known(&batch)).is_err());
        }
        assert!(read(&[&head[..], &[0]].concat(), &none).is_err(), "there is something behind it");
    }
}
