//! Statements whose parameters have no values yet: which they have, and what will come of them.

use std::sync::Arc;

use arrow_schema::{DataType, SchemaRef};
use tokio::time::{Instant, timeout_at};

use super::{SqlOptions, error::QueryError, logical, on_large_stack, sandbox};
use crate::engine::columnar::ColumnarEngine;

/// A statement that waits for values.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Its parameters, with the type of what each is compared with or put into; text where that does
    /// not say.
    pub parameters: Vec<(String, DataType)>,
    /// The columns of its answer, as far as they do not depend on values.
    pub columns: SchemaRef,
}

/// The names of a statement's parameters in order of appearance; those of `?` are `1`, `2` and so on.
///
/// # Errors
/// It is too long, or not made of words.
pub fn parameter_names(sql: &str) -> Result<Vec<String>, QueryError> {
    sandbox::tokens(sql).map(|(_, names)| names)
}

impl ColumnarEngine {
    /// What a statement with parameters is. Cancel-safe.
    ///
    /// # Errors
    /// As [`ColumnarEngine::query`]; values are not asked for.
    pub async fn prepare(self: &Arc<Self>, sql: &str, options: SqlOptions) -> Result<Prepared, QueryError> {
        let timeout = options.timeout;
        let deadline = Instant::now() + timeout;
        let (engine, sql) = (self.clone(), sql.to_owned());
        let prepared = on_large_stack(async move {
            let (statement, names) = sandbox::parse(&sql)?;
            let plan = logical::plan(&engine, statement, &options).await?.plan;
            let types = plan.get_parameter_fields()?;
            let typed = names.into_iter().map(|name| {
                let field = types.get(&format!("${name}")).cloned().flatten();
                let data_type = field.map_or(DataType::Utf8, |field| field.data_type().clone());
                (name, if data_type.is_null() { DataType::Utf8 } else { data_type })
            });
            Ok(Prepared { parameters: typed.collect(), columns: plan.schema().inner().clone() })
        });
        timeout_at(deadline, prepared).await.map_err(|_| QueryError::TimedOut(timeout))?
    }
}
