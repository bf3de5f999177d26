//! Databases as DataFusion wants them: one catalog, a schema per database. Made for each query.

use std::{collections::HashMap, fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    error::DataFusionError,
};

use super::table_provider::SqlTable;
use crate::{
    disk::Disk,
    engine::columnar::{
        latest::Digests,
        schema::{Schemas, Tables},
        state::TableView,
    },
    types::Lsn,
};

/// Name of the one catalog.
pub const CATALOG: &str = "skein";

/// All databases, with what the tables of this query hold.
#[derive(Clone)]
pub(super) struct Databases {
    disk: Arc<dyn Disk>,
    digests: Arc<Digests>,
    applied: Lsn,
    schemas: Schemas,
    views: HashMap<(String, String), TableView>,
}

impl Databases {
    /// No table of this query yet.
    pub(super) fn new(disk: Arc<dyn Disk>, digests: Arc<Digests>, applied: Lsn, schemas: Schemas) -> Self {
        Self { disk, digests, applied, schemas, views: HashMap::new() }
    }

    /// The record that all of this is as of.
    pub(super) fn applied(&self) -> Lsn {
        self.applied
    }

    /// Adds what a table holds.
    pub(super) fn add(&mut self, database: String, table: String, view: TableView) {
        self.views.insert((database, table), view);
    }
}

impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Databases").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl CatalogProviderList for Databases {
    fn register_catalog(
        &self,
        _name: String,
        _catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for Databases {
    fn schema_names(&self) -> Vec<String> {
        self.schemas.databases().map(|(name, _)| name.to_owned()).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.schemas.tables(name)?;
        Some(Arc::new(Database { name: name.to_owned(), all: self.clone() }))
    }
}

/// One database.
#[derive(Debug)]
struct Database {
    name: String,
    all: Databases,
}

#[async_trait]
impl SchemaProvider for Database {
    fn table_names(&self) -> Vec<String> {
        self.all.schemas.tables(&self.name).map(Tables::names).unwrap_or_default()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(schema) = self.all.schemas.get(&self.name, name) else { return Ok(None) };
        let view = self.all.views.get(&(self.name.clone(), name.to_owned())).cloned();
        Ok(Some(Arc::new(SqlTable::new(
            self.all.disk.clone(),
            self.all.digests.clone(),
            schema.to_arrow(),
            view,
        ))))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.all.schemas.get(&self.name, name).is_some()
    }
}
