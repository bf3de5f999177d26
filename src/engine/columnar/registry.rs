//! The registry of all tables and their columns.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use super::schema::{
    MAX_DATABASES, MAX_TABLES, SchemaError, TableSchema, check_database_name, check_table_name,
};
use crate::types::Databases;

/// All tables of all databases. A clone is a snapshot and costs one reference count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schemas {
    databases: Arc<BTreeMap<String, Tables>>,
}

/// The tables of one database. A clone costs one reference count.
///
/// A body may name a thousand of ten thousand tables, and each of them is looked up several times on its way: by a
/// hash that costs the same however many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Tables(Arc<HashMap<String, Arc<TableSchema>>>);

impl Tables {
    /// The schema of a table.
    #[must_use]
    pub fn get(&self, table: &str) -> Option<&Arc<TableSchema>> {
        self.0.get(table)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All by name, in order.
    #[must_use]
    pub fn sorted(&self) -> BTreeMap<&str, &Arc<TableSchema>> {
        self.0.iter().map(|(name, schema)| (name.as_str(), schema)).collect()
    }

    /// Their names in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.sorted().into_keys().map(str::to_owned).collect()
    }
}

impl Serialize for Tables {
    /// In order: equal registries have equal bytes.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.sorted())
    }
}

impl Schemas {
    /// Whether these are one snapshot: equal without a look at what is in them.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.databases, &other.databases)
    }

    /// The schema of a table.
    #[must_use]
    pub fn get(&self, database: &str, table: &str) -> Option<&Arc<TableSchema>> {
        self.databases.get(database)?.get(table)
    }

    /// The tables of a database; None if there is no such database.
    #[must_use]
    pub fn tables(&self, database: &str) -> Option<&Tables> {
        self.databases.get(database)
    }

    /// All databases by name.
    pub fn databases(&self) -> impl Iterator<Item = (&str, &Tables)> {
        self.databases.iter().map(|(name, tables)| (name.as_str(), tables))
    }

    /// Only the databases among `visible`.
    #[must_use]
    pub fn only(&self, visible: &Databases) -> Self {
        match visible {
            Databases::Every => self.clone(),
            Databases::Only(_) => {
                let seen = self.databases.iter().filter(|(name, _)| visible.contains(name));
                let seen = seen.map(|(name, tables)| (name.clone(), tables.clone()));
                Self { databases: Arc::new(seen.collect()) }
            }
        }
    }

    /// Why a batch with these columns cannot go into this table (which may be new): a column of
    /// another kind, a bad name, a limit. None if it can.
    #[must_use]
    pub fn conflict(&self, database: &str, table: &str, schema: &TableSchema) -> Option<SchemaError> {
        if let Some(assigned) = self.get(database, table) {
            return assigned.conflict(schema).map(|error| error.of_table(table));
        }
        self.check_new_table(database, table).err()
    }

    /// Whether a batch with these columns brings any to this table, which may be new.
    ///
    /// # Errors
    /// As [`Schemas::conflict`].
    pub(super) fn brings(
        &self,
        database: &str,
        table: &str,
        schema: &TableSchema,
    ) -> Result<bool, SchemaError> {
        if self.get(database, table).is_some_and(|assigned| assigned.covers(schema)) {
            return Ok(false);
        }
        self.conflict(database, table, schema).map_or(Ok(true), Err)
    }

    /// Whether there may be such a database: there is one, or a new one would have a good name
    /// and room.
    ///
    /// # Errors
    /// The broken rule or limit.
    pub fn check_database(&self, database: &str) -> Result<(), SchemaError> {
        check_database_name(database)?;
        if self.databases.len() < MAX_DATABASES || self.databases.contains_key(database) {
            return Ok(());
        }
        Err(SchemaError::Limit { what: "the cluster".into(), limit: MAX_DATABASES, things: "databases" })
    }

    fn check_new_table(&self, database: &str, table: &str) -> Result<(), SchemaError> {
        self.check_database(database)?;
        check_table_name(table)?;
        if self.tables(database).is_none_or(|tables| tables.len() < MAX_TABLES) {
            return Ok(());
        }
        Err(SchemaError::too_many_tables(database))
    }

    /// Adds what is new in these columns, table and database included. True if anything was.
    ///
    /// # Errors
    /// As [`Schemas::conflict`]; nothing was changed.
    pub fn merge(
        &mut self,
        database: &str,
        table: &str,
        schema: &Arc<TableSchema>,
    ) -> Result<bool, SchemaError> {
        let merged = match self.get(database, table) {
            Some(assigned) if Arc::ptr_eq(assigned, schema) || assigned.covers(schema) => return Ok(false),
            Some(assigned) => {
                if let Some(error) = assigned.conflict(schema) {
                    return Err(error.of_table(table));
                }
                let mut merged = TableSchema::clone(assigned);
                for (name, kind) in schema.columns() {
                    merged.add(name, *kind).map_err(|error| error.of_table(table))?;
                }
                Arc::new(merged)
            }
            None => {
                self.check_new_table(database, table)?;
                Arc::clone(schema)
            }
        };
        let tables = Arc::make_mut(&mut self.databases).entry(database.to_owned()).or_default();
        Arc::make_mut(&mut tables.0).insert(table.to_owned(), merged);
        Ok(true)
    }

    /// [`Schemas::merge`] for everything in `other`: how an edge takes over what the writer told it.
    ///
    /// # Errors
    /// The first conflict; tables before it were merged.
    pub fn merge_all(&mut self, other: &Self) -> Result<(), SchemaError> {
        for (database, tables) in other.databases() {
            for (table, schema) in tables.sorted() {
                self.merge(database, table, schema)?;
            }
        }
        Ok(())
    }

    /// Forgets a database. True if there was one.
    pub fn remove_database(&mut self, database: &str) -> bool {
        self.databases.contains_key(database) && Arc::make_mut(&mut self.databases).remove(database).is_some()
    }

    /// As bytes, for a manifest or for `Refused::SchemaChanged`.
    ///
    /// # Errors
    /// None that input can cause.
    pub fn to_bytes(&self) -> Result<Bytes, SchemaError> {
        rmp_serde::to_vec(self).map(Bytes::from).map_err(|error| SchemaError::Malformed(error.to_string()))
    }

    /// From [`Schemas::to_bytes`].
    ///
    /// # Errors
    /// The bytes are not that, or names or limits do not hold.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SchemaError> {
        let read: Self =
            rmp_serde::from_slice(bytes).map_err(|error| SchemaError::Malformed(error.to_string()))?;
        let mut checked = Self::default();
        checked.merge_all(&read)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::schema::{ColumnKind, FieldType, MAX_COLUMNS},
        *,
    };

    const FLOAT: ColumnKind = ColumnKind::Field(FieldType::Float);
    const INT: ColumnKind = ColumnKind::Field(FieldType::Int);

    fn schema(columns: &[(&str, ColumnKind)]) -> Arc<TableSchema> {
        let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind));
        Arc::new(TableSchema::new(columns).unwrap())
    }

    #[test]
    fn the_registry_merges_and_a_snapshot_stays() {
        let mut schemas = Schemas::default();
        assert!(schemas.merge("home", "cpu", &schema(&[("u", FLOAT)])).unwrap());
        let snapshot = schemas.clone();
        assert!(schemas.merge("home", "cpu", &schema(&[("v", INT), ("h", ColumnKind::Tag)])).unwrap());
        assert!(!schemas.merge("home", "cpu", &schema(&[("u", FLOAT), ("v", INT)])).unwrap());
        assert_eq!(snapshot.get("home", "cpu").unwrap().columns().len(), 1);
        assert_eq!(schemas.get("home", "cpu").unwrap().columns().len(), 3);
        let error = schemas.conflict("home", "cpu", &schema(&[("u", INT)])).unwrap();
        assert_eq!(
            error.to_string(),
            "column \"u\" of table \"cpu\" is a float field and cannot take an int field"
        );
        assert!(schemas.merge("-home", "cpu", &schema(&[("u", INT)])).is_err());
        assert!(schemas.merge("a.b", "cpu", &schema(&[("u", INT)])).is_err());
        assert!(schemas.merge(&"x".repeat(65), "cpu", &schema(&[("u", INT)])).is_err());
        let other = snapshot.clone();
        assert!(schemas.remove_database("home") && !schemas.remove_database("home"));
        schemas.merge_all(&other).unwrap();
        assert_eq!(schemas, snapshot);
    }

    #[test]
    fn limits_hold() {
        let wide: Vec<_> = (0..MAX_COLUMNS).map(|at| (format!("c{at}"), FLOAT)).collect();
        let mut schemas = Schemas::default();
        schemas.merge("home", "cpu", &Arc::new(TableSchema::new(wide.clone()).unwrap())).unwrap();
        assert!(TableSchema::new(wide.into_iter().chain([("one".into(), FLOAT)])).is_err());
        let error = schemas.conflict("home", "cpu", &schema(&[("one", FLOAT)])).unwrap();
        assert_eq!(error.to_string(), "table \"cpu\" would have more than 1000 columns");
        for at in 0..MAX_DATABASES {
            let _ = schemas.merge(&format!("d{at}"), "t", &schema(&[("u", FLOAT)]));
        }
        assert!(matches!(
            schemas.merge("more", "t", &schema(&[("u", FLOAT)])),
            Err(SchemaError::Limit { limit: MAX_DATABASES, .. })
        ));
    }

    #[test]
    fn bytes_round_trip() {
        let mut schemas = Schemas::default();
        schemas.merge("home", "cpu", &schema(&[("u", FLOAT), ("h", ColumnKind::Tag)])).unwrap();
        schemas.merge("work", "mem", &schema(&[("v", INT)])).unwrap();
        assert_eq!(Schemas::from_bytes(&schemas.to_bytes().unwrap()).unwrap(), schemas);
        let mut other = Schemas::default();
        for at in (0..100).rev() {
            schemas.merge("many", &format!("t{at}"), &schema(&[("v", INT)])).unwrap();
        }
        for (database, tables) in schemas.databases() {
            for (name, schema) in tables.sorted().into_iter().rev() {
                other.merge(database, name, schema).unwrap();
            }
        }
        assert_eq!(other.to_bytes().unwrap(), schemas.to_bytes().unwrap(), "whatever came first");
        let by_name: BTreeMap<_, BTreeMap<_, _>> =
            schemas.databases().map(|(name, tables)| (name, tables.sorted())).collect();
        let expected = rmp_serde::to_vec(&(by_name,)).unwrap();
        assert_eq!(
            schemas.to_bytes().unwrap(),
            expected,
            "as maps in order, which is how older versions write it"
        );
        assert!(Schemas::from_bytes(&[0xff, 0x00]).is_err());
    }
}
