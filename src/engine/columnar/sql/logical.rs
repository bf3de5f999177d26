//! From a statement to the plan that DataFusion makes of it, over the tables as they are now.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    error::DataFusionError,
    execution::{
        SessionState, SessionStateBuilder,
        context::QueryPlanner,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::MemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::LogicalPlan,
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
    prelude::SessionConfig,
    sql::parser::Statement,
};

use super::{
    CATALOG, NO_DATABASE, SqlOptions,
    catalog::Databases,
    check_mended, check_visible,
    error::QueryError,
    functions,
    gaps::{self, GapsPlanner},
    memory::QueryPool,
    reader::only_ours,
    sandbox,
    text::{Concatenation, bound_functions},
};
use crate::{
    engine::columnar::{ColumnarEngine, data_file::DataFile},
    types::Lsn,
};

/// A plan of nothing but what is allowed. Its parameters have no values yet.
pub(super) struct Logical {
    pub(super) plan: LogicalPlan,
    /// What it is to run with.
    pub(super) state: SessionState,
    pub(super) pool: Arc<dyn MemoryPool>,
    pub(super) applied: Lsn,
    /// The files it may read.
    pub(super) files: Vec<Arc<DataFile>>,
}

/// DataFusion's planner, and what it does not know.
#[derive(Debug)]
struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(GapsPlanner)]);
        planner.create_physical_plan(plan, session).await
    }
}

/// Plans a statement that only reads.
pub(super) async fn plan(
    engine: &ColumnarEngine,
    statement: Statement,
    options: &SqlOptions,
) -> Result<Logical, QueryError> {
    sandbox::check_statement(&statement)?;
    let (databases, files) = databases(engine, &statement, options)?;
    let applied = databases.applied();
    let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(options.memory_limit, options.memory.clone()));
    let state = session(databases, options, &pool)?;
    let plan = gaps::fill_gaps(state.statement_to_plan(statement).await?)?;
    sandbox::check_plan(&plan)?;
    functions::check(&plan)?;
    Ok(Logical { plan, state, pool, applied, files })
}

/// The tables a statement names as they are now, all at one position, and their files.
fn databases(
    engine: &ColumnarEngine,
    statement: &Statement,
    options: &SqlOptions,
) -> Result<(Databases, Vec<Arc<DataFile>>), QueryError> {
    let database = options.database.as_deref();
    let (tables, _) = datafusion::sql::resolve::resolve_table_references(statement, false)?;
    let mut names = Vec::with_capacity(tables.len());
    for table in tables {
        let resolved = table.resolve(CATALOG, database.unwrap_or(NO_DATABASE));
        if *resolved.catalog != *CATALOG {
            let why = format!("{resolved} names a catalog; tables are named TABLE or DATABASE.TABLE");
            return Err(QueryError::Invalid(why));
        }
        if *resolved.schema != *sandbox::INFORMATION_SCHEMA {
            names.push((resolved.schema.to_string(), resolved.table.to_string()));
        }
    }
    for (database, _) in names.iter().filter(|(database, _)| database != NO_DATABASE) {
        check_visible(&options.databases, database)?;
    }
    let mut state = engine.inner.state();
    check_mended(&state)?;
    let mut files = Vec::new();
    // What is not in these schemas is not there for any part of the query.
    let schemas = state.schemas.only(&options.databases);
    let mut databases =
        Databases::new(engine.inner.disk.clone(), engine.inner.digests.clone(), state.applied, schemas);
    for (database, table) in names {
        if database == NO_DATABASE {
            return Err(QueryError::Invalid(format!(
                "table {table:?} is in no database: name one with the request, or write DATABASE.{table}"
            )));
        }
        if state.schemas.tables(&database).is_none() {
            return Err(QueryError::UnknownDatabase(database));
        }
        match state.view(&database, &table).map_err(|e| QueryError::Internal(e.to_string()))? {
            Some(view) => {
                files.extend(view.files.iter().cloned());
                databases.add(database, table, view);
            }
            None => return Err(QueryError::UnknownTable { database, table }),
        }
    }
    Ok((databases, files))
}

fn session(
    databases: Databases,
    options: &SqlOptions,
    pool: &Arc<dyn MemoryPool>,
) -> Result<SessionState, QueryError> {
    // Functions and optimiser rules are many and always the same.
    static BASE: OnceLock<SessionState> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let mut base =
            SessionStateBuilder::new().with_default_features().with_table_functions(Default::default());
        functions::keep_known(&mut base);
        if let Some(functions) = base.scalar_functions() {
            functions.extend(gaps::functions());
        }
        base.with_query_planner(Arc::new(Planner)).build()
    });
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, options.database.as_deref().unwrap_or(NO_DATABASE));
    config.options_mut().sql_parser.enable_ident_normalization = false;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(pool.clone())
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .with_object_store_registry(only_ours()?)
        .build_arc()?;
    let mut builder = SessionStateBuilder::new_from_existing(base.clone())
        .with_config(config)
        .with_runtime_env(runtime)
        .with_catalog_list(Arc::new(databases));
    if let Some(functions) = builder.scalar_functions() {
        bound_functions(functions, pool);
    }
    if let Some(planners) = builder.expr_planners() {
        planners.insert(0, Arc::new(Concatenation::new(pool)));
    }
    Ok(builder.build())
}
