//! What writers told this edge of columns that are not applied here yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use super::schema::{SchemaError, Schemas, TableSchema};

/// How long a word about a table is believed: by then the records it was about have been applied, or
/// never will be.
const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// The last word about each table, and when it came: one that is renewed keeps no other alive.
#[derive(Debug, Default)]
pub(super) struct Absorbed(BTreeMap<(String, String), (Arc<TableSchema>, Instant)>);

impl Absorbed {
    /// The newest word counts: it comes from the writer now in office, and is all it has of a table.
    pub(super) fn absorb(&mut self, told: &Schemas) {
        self.forget_old();
        for (database, tables) in told.databases() {
            for (table, schema) in tables.sorted() {
                let name = (database.to_owned(), table.to_owned());
                self.0.insert(name, (schema.clone(), Instant::now()));
            }
        }
    }

    /// Adds what was told to what is applied here, which is certain: what was told may never have come
    /// to be.
    pub(super) fn add_to(&mut self, schemas: &mut Schemas) {
        self.forget_old();
        for ((database, table), (schema, _)) in &self.0 {
            // A word that contradicts is worth nothing.
            let _ = schemas.merge(database, table, schema);
        }
    }

    /// What was told of the old tables must not type the new ones.
    pub(super) fn dropped(&mut self, database: &str) {
        self.0.retain(|name, _| name.0 != database);
    }

    fn forget_old(&mut self) {
        self.0.retain(|_, (_, at)| at.elapsed() <= BELIEVED_FOR);
    }
}

/// What an edge without data knows of columns: what writers told it in the last seconds, and no more.
#[derive(Debug, Default)]
pub struct ToldSchemas(Mutex<Absorbed>);

impl ToldSchemas {
    /// The columns of every table it was told of, to parse against.
    pub fn schemas(&self) -> Schemas {
        let mut schemas = Schemas::default();
        self.lock().add_to(&mut schemas);
        schemas
    }

    /// Takes over the bytes of [`Refused::SchemaChanged`](crate::engine::Refused::SchemaChanged).
    ///
    /// # Errors
    /// They are not schemas.
    pub fn absorb(&self, bytes: &[u8]) -> Result<(), SchemaError> {
        let told = Schemas::from_bytes(bytes)?;
        self.lock().absorb(&told);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Absorbed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::columnar::schema::{ColumnKind, FieldType};

    fn told(table: &str, kind: FieldType) -> Schemas {
        let schema = TableSchema::new([("v".to_owned(), ColumnKind::Field(kind))]).unwrap();
        let mut schemas = Schemas::default();
        schemas.merge("db", table, &schema.into()).unwrap();
        schemas
    }

    fn kind(absorbed: &mut Absorbed, table: &str) -> Option<ColumnKind> {
        let mut schemas = Schemas::default();
        absorbed.add_to(&mut schemas);
        schemas.get("db", table).and_then(|schema| schema.kind("v"))
    }

    #[tokio::test(start_paused = true)]
    async fn each_table_is_forgotten_in_its_own_time() {
        let (float, int) = (ColumnKind::Field(FieldType::Float), ColumnKind::Field(FieldType::Int));
        let mut absorbed = Absorbed::default();
        absorbed.absorb(&told("cpu", FieldType::Float));
        tokio::time::advance(Duration::from_secs(6)).await;
        absorbed.absorb(&told("mem", FieldType::Int));
        assert_eq!((kind(&mut absorbed, "cpu"), kind(&mut absorbed, "mem")), (Some(float), Some(int)));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!((kind(&mut absorbed, "cpu"), kind(&mut absorbed, "mem")), (None, Some(int)));
        // The newest word about a table replaces an older one.
        absorbed.absorb(&told("mem", FieldType::Float));
        assert_eq!(kind(&mut absorbed, "mem"), Some(float));
        absorbed.dropped("db");
        assert_eq!(kind(&mut absorbed, "mem"), None);
    }
}
