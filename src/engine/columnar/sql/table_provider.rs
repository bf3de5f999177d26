//! One table for DataFusion: which of its files and rows a query needs, and where points may be in
//! several of them and must be merged.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::DFSchema,
    datasource::TableType,
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_expr::{
        PhysicalExpr,
        utils::{collect_columns, conjunction_opt},
    },
    physical_plan::ExecutionPlan,
};

use super::{codes::Texts, scan::Scan};
use crate::{
    disk::Disk,
    engine::columnar::{latest::Digests, merge::tags, state::TableView},
};

/// A table as of the query's position.
#[derive(Debug)]
pub(super) struct SqlTable {
    pub(super) disk: Arc<dyn Disk>,
    /// With text for tags.
    pub(super) schema: SchemaRef,
    /// What it holds; not there for a table that the query only asks about.
    view: Option<TableView>,
    /// Of its files.
    pub(super) digests: Arc<Digests>,
    /// Only what each series was last is asked for.
    only_newest: bool,
    /// Tags that are to come as numbers.
    pub(super) in_codes: BTreeMap<usize, Arc<Texts>>,
}

impl SqlTable {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        digests: Arc<Digests>,
        schema: SchemaRef,
        view: Option<TableView>,
    ) -> Self {
        Self { disk, schema, view, digests, only_newest: false, in_codes: BTreeMap::new() }
    }

    /// This table for a query that asks no more than what each series was last: its scans may leave
    /// out rows that are older than another of their series.
    pub(super) fn of_digests(&self) -> Self {
        Self { only_newest: true, ..self.again() }
    }

    /// Whether tags may come as numbers: of digests there is nothing to be gained.
    pub(super) fn may_code(&self) -> bool {
        !self.only_newest && self.in_codes.is_empty()
    }

    /// This table with numbers in the place of these tags.
    pub(super) fn in_codes(&self, in_codes: BTreeMap<usize, Arc<Texts>>) -> Self {
        Self { in_codes, ..self.again() }
    }

    /// The table's columns as its scans give them.
    pub(super) fn given(&self) -> SchemaRef {
        if self.in_codes.is_empty() {
            return self.schema.clone();
        }
        let field = |(at, field): (usize, &Arc<Field>)| match self.in_codes.contains_key(&at) {
            true => Arc::new(field.as_ref().clone().with_data_type(DataType::UInt32)),
            false => field.clone(),
        };
        let fields = self.schema.fields().iter().enumerate().map(field).collect::<Vec<_>>();
        Arc::new(Schema::new(fields).with_metadata(self.schema.metadata().clone()))
    }

    fn again(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            schema: self.schema.clone(),
            view: self.view.clone(),
            digests: self.digests.clone(),
            only_newest: self.only_newest,
            in_codes: self.in_codes.clone(),
        }
    }
}

#[async_trait]
impl TableProvider for SqlTable {
    fn schema(&self) -> SchemaRef {
        self.given()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // They only leave out parts and pages; every row is judged again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(view) = &self.view else {
            return Err(DataFusionError::Internal("a table is read that the statement does not name".into()));
        };
        let columns = DFSchema::try_from(self.schema.clone())?;
        let filters = filters.iter().map(|filter| state.create_physical_expr(filter.clone(), &columns));
        let filters = filters.collect::<Result<Vec<_>>>()?;
        let identity: HashSet<usize> = tags(&self.schema).chain([0]).collect();
        let on_identity = |filter: &&Arc<dyn PhysicalExpr>| {
            collect_columns(filter).iter().all(|column| identity.contains(&column.index()))
        };
        let scan = Scan {
            table: self,
            projection: projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect()),
            identity: conjunction_opt(filters.iter().filter(on_identity).cloned()),
            all: conjunction_opt(filters),
            limit,
            partitions: state.config().target_partitions().max(1),
        };
        scan.run(view, self.only_newest, &state.task_ctx()).await
    }
}
