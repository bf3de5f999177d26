//! Which types columns have by now or will have: what was applied, and what batches that were let
//! in bring with them.

use super::{
    batch::{Header, Points},
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
    /// How many of those have to be applied until everything is that is reserved.
    unsettled: u64,
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

    /// Lets a batch in that brings nothing to `known`, and says so, if those are still what [`Self::known`] gives.
    pub(super) fn admit_known(&mut self, known: &Schemas) -> bool {
        let still = known.is(&self.schemas);
        if still {
            self.before = Some(self.schemas.clone());
            self.in_flight += 1;
        }
        still
    }

    /// Lets a batch in and reserves what it brings, or changes nothing.
    pub(super) fn admit(&mut self, header: &Header) -> Result<(), Refused> {
        let (mut next, mut brings) = (self.schemas.clone(), false);
        for table in &header.tables {
            match next.merge(&header.database, &table.name, &table.schema) {
                Ok(new) => brings |= new,
                Err(SchemaError::Mismatch { .. }) => return Err(self.changed(header)),
                Err(error) => return Err(Refused::Invalid(error.to_string())),
            }
        }
        self.before = Some(std::mem::replace(&mut self.schemas, next));
        self.in_flight += 1;
        if brings {
            self.unsettled = self.in_flight;
        }
        Ok(())
    }

    /// The batch let in last did not become a record.
    pub(super) fn withdraw(&mut self, applied: &Schemas) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unsettled = self.unsettled.min(self.in_flight);
        match self.before.take() {
            Some(before) => self.schemas = before,
            None => self.stale = true,
        }
        if self.stale && self.in_flight == 0 {
            self.share(applied);
        }
    }

    /// A record was applied, and brought something to what is applied or not; `applied` is what holds now.
    pub(super) fn applied(&mut self, points: &Points<'_>, brought: bool, applied: &Schemas) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unsettled = self.unsettled.saturating_sub(1);
        let settled = self.in_flight == 0 || self.unsettled == 0 && !self.stale;
        // Whoever changes what is shared copies it, so that waits for a record that brings nothing.
        if settled && (self.stale || !brought) {
            return self.share(applied);
        }
        let mut merged =
            points.tables.iter().map(|t| self.schemas.merge(points.database, t.table, &t.schema));
        // What was let in is reserved already. What is not belongs to a former term of office, and a
        // clash means that its reservations were never made good.
        match merged.try_fold(false, |any, merged| merged.map(|new| any || new)) {
            Ok(false) => {}
            Ok(true) => self.before = None,
            Err(_) => (self.schemas, self.before) = (applied.clone(), None),
        }
    }

    /// Where no batch on its way brings anything, nothing is reserved but what is applied: from here on both are one
    /// snapshot, until one does.
    fn share(&mut self, applied: &Schemas) {
        self.schemas = applied.clone();
        // If it is known what was before the last one on its way, that was the same.
        self.before = self.before.take().filter(|_| self.in_flight > 0).map(|_| applied.clone());
        self.stale = false;
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
        batch::{TableHeader, TablePoints},
        schema::{ColumnKind, FieldType, TableSchema},
    };

    fn header(column: &str, kind: FieldType) -> Header {
        let schema = TableSchema::new([(column.to_owned(), ColumnKind::Field(kind))]).unwrap().into();
        let table = TableHeader { name: "t".into(), schema, assigned: 0, rows: 1, ipc_len: 0 };
        Header { database: "db".into(), tables: vec![table] }
    }

    fn points(header: &Header) -> Points<'static> {
        let table = TablePoints::of("t", header.tables[0].schema.clone(), Vec::new());
        Points { database: "db", all_known: false, tables: vec![table] }
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
        assigned.applied(&points(&other), true, &applied(&[&other]));
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
        assigned.applied(&points(&other), true, &applied(&[&other]));
        assigned.admit(&int).unwrap();
    }

    #[test]
    fn types_of_a_dropped_database_hold_until_nothing_is_on_its_way() {
        let float = header("v", FieldType::Float);
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        assigned.applied(&points(&float), true, &applied(&[&float]));
        assigned.admit(&float).unwrap();
        assigned.dropped("db");
        assert!(assigned.admit(&header("v", FieldType::Int)).is_err(), "a float is on its way");
        assigned.applied(&points(&float), true, &applied(&[&float]));
        assigned.dropped("db");
        assigned.admit(&header("v", FieldType::Int)).unwrap();
    }

    #[test]
    fn what_brings_nothing_is_let_in_without_a_look_as_long_as_that_is_so() {
        let float = header("v", FieldType::Float);
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        let known = assigned.known();
        assert!(assigned.admit_known(&known));
        assert_eq!(assigned.in_flight, 2);
        assigned.withdraw(&Schemas::default());
        assert!(assigned.admit(&header("v", FieldType::Int)).is_err(), "the first is on its way");
        assigned.admit(&header("w", FieldType::Bool)).unwrap();
        assert!(!assigned.admit_known(&known), "there is something new since");
        assert_eq!(assigned.in_flight, 2);
    }

    #[test]
    fn once_nothing_on_its_way_is_new_what_is_applied_and_what_is_reserved_are_one_snapshot() {
        let float = header("v", FieldType::Float);
        let there = applied(&[&float]);
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        assigned.admit(&float).unwrap();
        assigned.admit(&header("w", FieldType::Int)).unwrap();
        assigned.admit(&float).unwrap();
        for on_their_way in [3, 2] {
            assigned.applied(&points(&float), false, &there);
            assert_eq!(assigned.in_flight, on_their_way);
            assert!(!assigned.known().is(&there), "one of them brings a column");
        }
        let (int, last) = (header("w", FieldType::Int), header("x", FieldType::Int));
        let wider = applied(&[&float, &int]);
        assigned.applied(&points(&int), true, &wider);
        assert!(!assigned.known().is(&wider), "one that brings something may follow the other");
        assigned.admit(&float).unwrap();
        assigned.applied(&points(&float), false, &wider);
        assert!(assigned.known().is(&wider), "the one on its way brings nothing");
        // It did not become a record, and then one that brings something did not either.
        assigned.withdraw(&wider);
        assert!(assigned.known().is(&wider));
        assigned.admit(&last).unwrap();
        assigned.withdraw(&wider);
        assert!(assigned.known().is(&wider) && !assigned.stale);
        // One is on its way while what is known of the last one is taken back.
        assigned.admit(&float).unwrap();
        assigned.admit(&last).unwrap();
        assigned.applied(&points(&float), false, &wider);
        assert!(assigned.admit(&header("x", FieldType::Float)).is_err(), "it is still reserved");
        assigned.withdraw(&wider);
        assigned.admit(&header("x", FieldType::Float)).unwrap();
    }

    #[test]
    fn what_is_applied_beats_stale_reservations() {
        let (float, int) = (header("v", FieldType::Float), header("v", FieldType::Int));
        let mut assigned = Assigned::default();
        assigned.admit(&float).unwrap();
        assigned.applied(&points(&int), true, &applied(&[&int]));
        assigned.admit(&int).unwrap();
    }
}
