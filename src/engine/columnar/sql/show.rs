//! `SHOW DATABASES`, `SHOW TABLES`, `SHOW COLUMNS`, `DESCRIBE`: answered from the schemas.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{ObjectName, ShowStatementOptions, Statement as Sql},
};

use super::error::QueryError;
use crate::engine::columnar::schema::{ColumnKind, Schemas, TIME};

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// Every database.
    Databases,
    /// The tables of this database, or of the request's.
    Tables(Option<String>),
    /// The columns of a table: its database, if named, and its name.
    Columns(Option<String>, String),
}

impl Show {
    /// What a statement asks for, if it is one of these.
    pub(super) fn recognize(statement: &Statement) -> Result<Option<Self>, QueryError> {
        let Statement::Statement(sql) = statement else { return Ok(None) };
        let show = match &**sql {
            Sql::ShowDatabases { show_options, .. } | Sql::ShowSchemas { show_options, .. } => {
                match name(show_options)? {
                    None => Self::Databases,
                    Some(_) => return Err(unsupported()),
                }
            }
            Sql::ShowTables { show_options, .. } => match name(show_options)?.map(parts).transpose()? {
                None => Self::Tables(None),
                Some((None, database)) => Self::Tables(Some(database)),
                Some(_) => return Err(unsupported()),
            },
            Sql::ShowColumns { show_options, .. } => {
                let (database, table) = parts(name(show_options)?.ok_or_else(unsupported)?)?;
                Self::Columns(database, table)
            }
            Sql::ExplainTable { table_name, .. } => {
                let (database, table) = parts(table_name)?;
                Self::Columns(database, table)
            }
            _ => return Ok(None),
        };
        Ok(Some(show))
    }

    /// The database that is asked about, if it is one.
    pub(super) fn database<'a>(&'a self, request: Option<&'a str>) -> Option<&'a str> {
        match self {
            Self::Databases => None,
            Self::Tables(named) | Self::Columns(named, _) => named.as_deref().or(request),
        }
    }

    /// The answer.
    pub(super) fn rows(self, schemas: &Schemas, request: Option<&str>) -> Result<RecordBatch, QueryError> {
        let request = || {
            let none = || QueryError::Invalid("name a database with the request or in the statement".into());
            request.map(str::to_owned).ok_or_else(none)
        };
        match self {
            Self::Databases => {
                table([("database", schemas.databases().map(|(name, _)| name.to_owned()).collect())])
            }
            Self::Tables(database) => {
                let database = database.map_or_else(request, Ok)?;
                let Some(tables) = schemas.tables(&database) else {
                    return Err(QueryError::UnknownDatabase(database));
                };
                let names = tables.names();
                table([("database", vec![database; names.len()]), ("table_name", names)])
            }
            Self::Columns(database, name) => {
                let database = database.map_or_else(request, Ok)?;
                if schemas.tables(&database).is_none() {
                    return Err(QueryError::UnknownDatabase(database));
                }
                let Some(schema) = schemas.get(&database, &name) else {
                    return Err(QueryError::UnknownTable { database, table: name });
                };
                let (mut names, mut types, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
                for field in schema.to_arrow().fields() {
                    names.push(field.name().clone());
                    types.push(field.data_type().to_string());
                    let kind = schema.kind(field.name());
                    kinds.push(match kind {
                        Some(ColumnKind::Tag) => "tag".to_owned(),
                        Some(ColumnKind::Field(_)) => "field".to_owned(),
                        None => TIME.to_owned(),
                    });
                }
                table([("column_name", names), ("data_type", types), ("kind", kinds)])
            }
        }
    }
}

fn table<const N: usize>(columns: [(&str, Vec<String>); N]) -> Result<RecordBatch, QueryError> {
    let columns =
        columns.map(|(name, values)| (name, Arc::new(StringArray::from_iter_values(values)) as ArrayRef));
    RecordBatch::try_from_iter(columns).map_err(|e| QueryError::Internal(e.to_string()))
}

/// What follows IN or FROM, nothing else being there.
fn name(options: &ShowStatementOptions) -> Result<Option<&ObjectName>, QueryError> {
    let extra = options.starts_with.is_some()
        || options.limit.is_some()
        || options.limit_from.is_some()
        || options.filter_position.is_some();
    match &options.show_in {
        _ if extra => Err(unsupported()),
        None => Ok(None),
        Some(within) => within.parent_name.as_ref().map(Some).ok_or_else(unsupported),
    }
}

fn parts(name: &ObjectName) -> Result<(Option<String>, String), QueryError> {
    let idents: Option<Vec<_>> = name.0.iter().map(|part| part.as_ident().map(|i| i.value.clone())).collect();
    match idents.unwrap_or_default().as_slice() {
        [name] => Ok((None, name.clone())),
        [database, name] => Ok((Some(database.clone()), name.clone())),
        _ => Err(unsupported()),
    }
}

fn unsupported() -> QueryError {
    let forms = "SHOW DATABASES, SHOW TABLES [FROM db], SHOW COLUMNS FROM [db.]table, DESCRIBE [db.]table";
    QueryError::Invalid(format!("understood are {forms}; for more, query information_schema"))
}
