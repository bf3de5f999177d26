//! Which types columns have by now or will have: what was applied, and what batches that were let
//! in bring with them.

use super::{
    batch::{Batch, Header},
    schema::{SchemaError, Schemas},
};
use crate::engine::Refused;

/// The registry that batches are judged against before they get a position.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// Applied and reserved.
    schemas: Schemas,
    /// Batches let in since the reservations were last forgotten and not applied yet.
    in_flight: u64,
    /// Something is reserved that no batch on its way brings, or that belongs to a database that was
    /// dropped: begin anew from what is applied as soon as none is on its way.
    stale: bool,
    /// What `schemas` was before the last batch was let in, unless it was changed otherwise since.
    before: Option<Schemas>,
}

impl Assigned {
    /// Applied and reserved.
    pub(super) fn known(&self) -> Schemas {
        self.schemas.clone()
    }

    /// Lets a batch in and reserves what it brings, or changes nothing.
    pub(super) fn admit(&mut self, header: &Header) -> Result<(), Refused> {
        let mut next = self.schemas.clone();
        for table in &header.tables {
            match next.merge(&header.database, &table.name, &table.schema) {
                Ok(_) => {}
                Err(SchemaError::Mismatch { .. }) => return Err(self.changed(header)),
                Err(error) => return Err(Refused::Invalid(error.to_string())),
            }
        }
        self.before = Some(std::mem::replace(&mut self.schemas, next));
        self.in_flight += 1;
        Ok(())
    }

    /// The batch let in last did not become a record.
    pub(super) fn withdraw(&mut self, applied: &Schemas) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match self.before.take() {
            Some(before) => self.schemas = before,
            None => self.stale = true,
        }
        self.renew(applied);
    }

    /// A batch was applied; `applied` is what holds now.
    pub(super) fn applied(&mut self, batch: &Batch, applied: &Schemas) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let mut merged =
            batch.tables.iter().map(|t| self.schemas.merge(&batch.database, &t.table, &t.schema));
        // What was let in is reserved already. What is not belongs to a former term of office, and a
        // clash means that its reservations were never made good.
        match merged.try_fold(false, |any, merged| merged.map(|new| any || new)) {
            Ok(false) => {}
            Ok(true) => self.before = None,
            Err(_) => (self.schemas, self.before) = (applied.clone(), None),
        }
        self.renew(applied);
    }

    fn renew(&mut self, applied: &Schemas) {
        if self.stale && self.in_flight == 0 {
            (self.schemas, self.before, self.stale) = (applied.clone(), None, false);
        }
    }

    /// A database was dropped. Its columns stay reserved while batches may be on their way that
    /// were judged with them: two of them must not bring different types.
    pub(super) fn dropped(&mut self, database: &str) {
        self.before = None;
        if self.in_flight == 0 {
            self.schemas.remove_database(database);
        } else {
            self.stale = true;
        }
    }

    /// Forgets every reservation.
    pub(super) fn reset(&mut self, applied: &Schemas) {
        *self = Self { schemas: applied.clone(), ..Self::default() };
    }

    /// The tables of a batch as they are assigned.
    fn changed(&self, header: &Header) -> Refused {
        let mut concerned = Schemas::default();
        for table in &header.tables {
            if let Some(schema) = self.schemas.get(&header.database, &table.name)
                && let Err(error) = concerned.merge(&header.database, &table.name, schema)
            {
                return Refused::Invalid(error.to_string());
            }
        }
        match concerned.to_bytes() {
            Ok(bytes) => Refused::SchemaChanged(bytes),
            Err(error) => Refused::Invalid(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::columnar::{
        batch::{TableBatch, TableHeader},
        schema::{ColumnKind, FieldType, TableSchema},
    };

    fn header(column: &str, kind: FieldType) -> Header {
        let schema = TableSchema::new([(column.to_owned(), ColumnKind::Field(kind))]).unwrap().into();
        let table = TableHeader { name: "t".into(), schema, assigned: 0, rows: 1, ipc_len: 0 };
        Header { database: "db".into(), tables: vec![table] }
    }

    fn batch(header: &Header) -> Batch {
        let schema = header.tables[0].schema.clone();
        let rows = arrow_array::RecordBatch::new_empty(schema.to_arrow());
        let table = TableBatch { table: "t".into(), schema, assigned: 0, rows };
        Batch { database: "db".into(), tables: vec![table] }
    }

    fn applied(headers: &[&Header]) -> Schemas {
        let mut schemas = Schemas::default();
        for header in headers {
            schemas.merge("db", "t", &header.tables[0].schema).unwrap();
        }
        schemas
    }

    #[test]
    fn a_later_batch_is_judged_against_what_is_reserved() {
        let mut assigned = Assigned::default();
        assigned.admit(&header("v", FieldType::Float)).unwrap();
        let Err(Refused::SchemaChanged(bytes)) = assigned.admit(&header("v", FieldType::Int)) else {
            panic!("int clashes with the reserved float");
        };
        let told = Schemas::from_bytes(&bytes).unwrap();
        assert_eq!(told.get("db", "t").unwrap().kind("v"), Some(ColumnKind::Field(FieldType::Float)));
        assigned.reset(&Schemas::default());
        assigned.admit(&header("v", FieldType::Int)).unwrap();
    }

    #[test]
    fn a_refused_batch_reserves_nothing() {
        let mut assigned = Assigned::default();
        assigned.admit(&header("v", FieldType::Float)).unwrap();
        let mut two = header("new", FieldType::Int);
        two.tables[0].name = "other".into();
        two.tables.push(header("v", FieldType::Int).tables.remove(0));
        assert!(assigned.admit(&two).is_err());
        let mut other = header("new", FieldType::Bool);
        other.tables[0].name = "other".into();
        assigned.admit(&other).unwrap();
    }

    #[test]
    fn what_is_withdrawn_reserves_nothing() {
        let (float, int) = (header("v", FieldType::Float), header("v", FieldType::Int));
        let other = header("w", FieldType::Bool);
        let mut assigned = Assigned::default();
        assigned.admit(&other).unwrap();
        assigned.admit(&float).unwrap();
        // One that was let in before is applied meanwhile, and stays.
        assigned.applied(&batch(&other), &applied(&[&other]));
        assigned.withdraw(&applied(&[&other]));
        assigned.admit(&int).unwrap();
        assert!(assigned.admit(&header("w", FieldType::Int)).is_err());
        assert_eq!(assigned.in_flight, 1);
    }

    #[test]
    fn what_is_withdrawn_after_a_drop_goes_with_the_last_on_its_way() {
        let (float, int) = (header("v", FieldType::Float), header("v", FieldType::Int));
        let other = header("w", FieldType::Bool);
        let mut assigned = Assigned::default();
        assigned.admit(&other).unwrap();
        assigned.admit(&float).unwrap();
        assigned.dropped("db");
        assigned.withdraw(&Schemas::default());
        assert!(assigned.admit(&int).is_err(), "the drop came between: not before nothing is on its way");
        assigned.applied(&batch(&other), &applied(&[&other]));
        assigned.admit(&int).unwrap();
    }

    #[test]
    fn types_of_a_dropped_database_hold_until_nothing_is_on_its_way() {
        let float = header("v", FieldType::Float);
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        assigned.applied(&batch(&float), &applied(&[&float]));
        assigned.admit(&float).unwrap();
        assigned.dropped("db");
        assert!(assigned.admit(&header("v", FieldType::Int)).is_err(), "a float is on its way");
        assigned.applied(&batch(&float), &applied(&[&float]));
        assigned.dropped("db");
        assigned.admit(&header("v", FieldType::Int)).unwrap();
    }

    #[test]
    fn what_is_applied_beats_stale_reservations() {
        let (float, int) = (header("v", FieldType::Float), header("v", FieldType::Int));
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        assigned.applied(&batch(&int), &applied(&[&int]));
        assigned.admit(&int).unwrap();
    }
}
