//! The listings of Flight SQL, by which drivers find out what there is: databases as schemas of one
//! catalog, their tables, and what this server can do.

use std::sync::OnceLock;

use arrow_array::{RecordBatch, cast::AsArray};
use arrow_flight::{
    error::FlightError,
    sql::{
        Command, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTables, SqlInfo, SqlSupportedTransaction,
        metadata::{GetCatalogsBuilder, GetTablesBuilder, SqlInfoData, SqlInfoDataBuilder},
    },
};
use arrow_schema::{Schema, SchemaRef};

use crate::{
    engine::columnar::{
        schema::{Schemas, Tables},
        sql::CATALOG,
    },
    http::error::{ApiError, Fault},
};

/// What kind of table all of them are.
const TABLE: &str = "TABLE";
/// Columns, of all tables together, that one listing describes.
const MAX_COLUMNS: usize = 1_000_000;
/// Tables of one listing.
const MAX_TABLES: usize = 100_000;
/// Entries of a list in a request.
const MAX_NAMED: usize = 1_000;

/// The columns of a listing.
pub(super) fn columns(command: Command) -> Result<SchemaRef, ApiError> {
    Ok(match command {
        Command::CommandGetCatalogs(_) => GetCatalogsBuilder::new().schema(),
        Command::CommandGetDbSchemas(asked) => asked.into_builder().schema(),
        Command::CommandGetTables(asked) => tables(asked)?.schema(),
        Command::CommandGetTableTypes(asked) => asked.into_builder().schema(),
        Command::CommandGetSqlInfo(_) => abilities()?.schema(),
        other => return Err(unknown(&other)),
    })
}

/// A listing.
pub(super) fn rows(command: Command, schemas: &Schemas) -> Result<RecordBatch, ApiError> {
    let listed = match command {
        Command::CommandGetCatalogs(_) => {
            let mut builder = GetCatalogsBuilder::new();
            builder.append(CATALOG);
            builder.build()
        }
        Command::CommandGetDbSchemas(asked) => databases(asked, schemas),
        Command::CommandGetTables(asked) => return list_tables(asked, schemas),
        Command::CommandGetTableTypes(asked) => {
            let mut builder = asked.into_builder();
            builder.append(TABLE);
            builder.build()
        }
        Command::CommandGetSqlInfo(CommandGetSqlInfo { info }) => {
            if info.len() > MAX_NAMED {
                return Err(too_many("properties"));
            }
            abilities()?.record_batch(info)
        }
        other => return Err(unknown(&other)),
    };
    listed.map_err(|error| ApiError::invalid(format!("this cannot be listed: {error}")))
}

fn databases(asked: CommandGetDbSchemas, schemas: &Schemas) -> Result<RecordBatch, FlightError> {
    let mut builder = asked.into_builder();
    for (database, _) in schemas.databases() {
        builder.append(CATALOG, database);
    }
    builder.build()
}

fn tables(asked: CommandGetTables) -> Result<GetTablesBuilder, ApiError> {
    if asked.table_types.len() > MAX_NAMED {
        return Err(too_many("table types"));
    }
    Ok(asked.into_builder())
}

/// The builder leaves out what was not asked for, but only once it has all: the databases are chosen
/// ahead of it, and there is an end to what it gets of them.
fn list_tables(asked: CommandGetTables, schemas: &Schemas) -> Result<RecordBatch, ApiError> {
    let unlisted = |error: FlightError| ApiError::invalid(format!("the tables cannot be listed: {error}"));
    let chosen = CommandGetDbSchemas {
        catalog: asked.catalog.clone(),
        db_schema_filter_pattern: asked.db_schema_filter_pattern.clone(),
    };
    let chosen = databases(chosen, schemas).map_err(unlisted)?;
    let names = chosen.column(1).as_string_opt::<i32>();
    let with_columns = asked.include_schema;
    let mut builder = tables(asked)?;
    let (mut tables, mut columns) = (0, 0);
    for database in names.into_iter().flatten().flatten() {
        for (table, schema) in schemas.tables(database).into_iter().flat_map(Tables::sorted) {
            tables += 1;
            columns += if with_columns { schema.columns().len() } else { 0 };
            if tables > MAX_TABLES || columns > MAX_COLUMNS {
                return Err(too_many("tables and columns"));
            }
            let columns = if with_columns { schema.to_arrow() } else { Schema::empty().into() };
            builder.append(CATALOG, database, table, TABLE, &columns).map_err(unlisted)?;
        }
    }
    builder.build().map_err(unlisted)
}

/// What drivers may rely on.
fn abilities() -> Result<&'static SqlInfoData, ApiError> {
    static ABILITIES: OnceLock<Option<SqlInfoData>> = OnceLock::new();
    let made = ABILITIES.get_or_init(|| {
        let mut builder = SqlInfoDataBuilder::new();
        builder.append(SqlInfo::FlightSqlServerName, "skein");
        builder.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
        // Of the format, not of a library.
        builder.append(SqlInfo::FlightSqlServerArrowVersion, "1.5");
        builder.append(SqlInfo::FlightSqlServerReadOnly, true);
        builder.append(SqlInfo::FlightSqlServerSql, true);
        builder.append(SqlInfo::FlightSqlServerSubstrait, false);
        builder.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
        builder.append(SqlInfo::FlightSqlServerCancel, false);
        builder.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
        builder.build().ok()
    });
    made.as_ref().ok_or_else(|| ApiError::new(Fault::Internal, "what this server can do cannot be listed"))
}

fn too_many(what: &str) -> ApiError {
    ApiError::new(Fault::Limit, format!("too many {what} for one listing: ask for fewer, by a pattern"))
}

fn unknown(command: &Command) -> ApiError {
    ApiError::new(Fault::Method, format!("{} is not offered here", command.type_url()))
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{CommandGetCatalogs, CommandGetPrimaryKeys, CommandGetTableTypes};

    use super::*;
    use crate::engine::columnar::schema::{ColumnKind, FieldType, TableSchema};

    fn schemas(tables: usize, fields: usize) -> Schemas {
        let fields = (0..fields).map(|n| (format!("f{n}"), ColumnKind::Field(FieldType::Float)));
        let schema = TableSchema::new(fields).unwrap().into();
        let mut schemas = Schemas::default();
        for database in ["home", "office"] {
            for table in 0..tables {
                schemas.merge(database, &format!("t{table}"), &schema).unwrap();
            }
        }
        schemas
    }

    fn first_column(listed: &RecordBatch, at: usize) -> Vec<&str> {
        listed.column(at).as_string::<i32>().iter().flatten().collect()
    }

    #[test]
    fn every_listing_has_the_columns_it_says() {
        let schemas = schemas(2, 1);
        let commands = [
            Command::CommandGetCatalogs(CommandGetCatalogs {}),
            Command::CommandGetDbSchemas(CommandGetDbSchemas::default()),
            Command::CommandGetTables(CommandGetTables::default()),
            Command::CommandGetTables(CommandGetTables { include_schema: true, ..Default::default() }),
            Command::CommandGetTableTypes(CommandGetTableTypes {}),
            Command::CommandGetSqlInfo(CommandGetSqlInfo { info: vec![] }),
        ];
        for (command, wanted) in commands.into_iter().zip([1, 2, 4, 4, 1, 9]) {
            let listed = rows(command.clone(), &schemas).unwrap();
            assert_eq!(listed.schema(), columns(command.clone()).unwrap(), "{command:?}");
            assert_eq!(listed.num_rows(), wanted, "{command:?}");
        }
        let keys = Command::CommandGetPrimaryKeys(CommandGetPrimaryKeys::default());
        assert_eq!(columns(keys.clone()).unwrap_err().told().fault, Fault::Method);
        assert_eq!(rows(keys, &schemas).unwrap_err().told().fault, Fault::Method);
    }

    #[test]
    fn patterns_choose() {
        let schemas = schemas(12, 1);
        let asked = CommandGetTables {
            db_schema_filter_pattern: Some("off%".into()),
            table_name_filter_pattern: Some("t1_".into()),
            ..CommandGetTables::default()
        };
        let listed = rows(Command::CommandGetTables(asked), &schemas).unwrap();
        assert_eq!(first_column(&listed, 1), ["office", "office"]);
        assert_eq!(first_column(&listed, 2), ["t10", "t11"]);
    }

    #[test]
    fn a_listing_has_an_end() {
        let asked = |include_schema, pattern: Option<&str>| {
            let db_schema_filter_pattern = pattern.map(str::to_owned);
            let asked = CommandGetTables { include_schema, db_schema_filter_pattern, ..Default::default() };
            rows(Command::CommandGetTables(asked), &schemas(700, 1_000)).map(|listed| listed.num_rows())
        };
        assert_eq!(asked(true, None).unwrap_err().told().fault, Fault::Limit);
        assert_eq!(asked(true, Some("home")).unwrap(), 700);
        assert_eq!(asked(false, None).unwrap(), 1_400);
        let info = vec![0; MAX_NAMED + 1];
        assert!(rows(Command::CommandGetSqlInfo(CommandGetSqlInfo { info }), &Schemas::default()).is_err());
    }
}
