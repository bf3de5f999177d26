//! What a call asks for: a statement, or one of the listings that Flight SQL knows.

use arrow_flight::sql::{Any, Command, CommandPreparedStatementQuery};
use axum::http::HeaderMap;
use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::{
    engine::columnar::sql::Parameters,
    http::{
        error::{ApiError, Fault},
        params::{shown, text_header},
    },
};

/// The path of every call, as the route table has it.
pub(in crate::http) const SERVICE: &str = "/arrow.flight.protocol.FlightService/{call}";

/// Headers that name a database, as InfluxDB 3 takes them.
const DATABASE: [&str; 4] = ["database", "bucket", "bucket-name", "iox-namespace-name"];

/// What a call asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ask {
    Statement {
        sql: String,
        database: Option<String>,
        values: Parameters,
    },
    /// Databases, tables and the like.
    Listing(Command),
}

/// InfluxDB 3's ticket, and ours: a statement and where it is asked.
#[derive(Debug, Serialize, Deserialize)]
struct JsonTicket {
    #[serde(alias = "namespace_name", skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    sql_query: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_type: Option<String>,
    /// For the parameters of the statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Parameters>,
}

impl Ask {
    /// Of a descriptor.
    pub(super) fn of_command(command: &[u8], headers: &HeaderMap) -> Result<Self, ApiError> {
        let wrong = || ApiError::invalid("this is no command of Flight SQL");
        let any = Any::decode(command).ok().filter(|any| !any.type_url.is_empty()).ok_or_else(wrong)?;
        let command = Command::try_from(any).map_err(|_| wrong())?;
        match command {
            Command::CommandStatementQuery(asked) => {
                Self::of_statement(asked.query, asked.transaction_id.is_some(), headers)
            }
            Command::CommandPreparedStatementQuery(asked) => {
                Self::of_json(&asked.prepared_statement_handle, headers)
            }
            Command::TicketStatementQuery(asked) => Self::of_json(&asked.statement_handle, headers),
            Command::CommandGetCatalogs(_)
            | Command::CommandGetDbSchemas(_)
            | Command::CommandGetTables(_)
            | Command::CommandGetTableTypes(_)
            | Command::CommandGetSqlInfo(_) => Ok(Self::Listing(command)),
            other => {
                let name = other.type_url().rsplit('.').next().unwrap_or_default();
                Err(ApiError::new(Fault::Method, format!("{} is not offered here", shown(name))))
            }
        }
    }

    /// Of a ticket: InfluxDB 3's, or a command.
    pub(super) fn of_ticket(ticket: &[u8], headers: &HeaderMap) -> Result<Self, ApiError> {
        if ticket.trim_ascii_start().first() == Some(&b'{') {
            Self::of_json(ticket, headers)
        } else {
            Self::of_command(ticket, headers)
        }
    }

    /// Of a statement alone.
    pub(super) fn of_statement(
        sql: String,
        in_transaction: bool,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        if in_transaction {
            return Err(ApiError::new(Fault::Method, "there are no transactions here"));
        }
        Ok(Self::Statement { sql, database: database(headers)?, values: Parameters::default() })
    }

    /// Of the handle of a prepared statement that gets values.
    pub(super) fn to_bind(command: &[u8], headers: &HeaderMap) -> Result<Self, ApiError> {
        let any = Any::decode(command).ok();
        match any.and_then(|any| any.unpack::<CommandPreparedStatementQuery>().ok()?) {
            Some(prepared) => Self::of_json(&prepared.prepared_statement_handle, headers),
            None => Err(ApiError::new(
                Fault::Method,
                "Flight only reads here: write points as line protocol to /api/v3/write_lp",
            )),
        }
    }

    /// The same with these values for the parameters of the statement.
    pub(super) fn bound(self, values: Parameters) -> Self {
        match self {
            Self::Statement { sql, database, .. } => Self::Statement { sql, database, values },
            listing @ Self::Listing(_) => listing,
        }
    }

    fn of_json(ticket: &[u8], headers: &HeaderMap) -> Result<Self, ApiError> {
        let ticket: JsonTicket = serde_json::from_slice(ticket)
            .map_err(|e| ApiError::invalid(format!("the ticket is no query in JSON: {e}")))?;
        match ticket.query_type.as_deref() {
            None | Some("sql") => {}
            Some(other) => {
                let other = shown(other);
                return Err(ApiError::invalid(format!("query_type {other} is not spoken here: ask in SQL")));
            }
        }
        let database = match ticket.database.filter(|name| !name.is_empty()) {
            Some(name) => Some(name),
            None => database(headers)?,
        };
        Ok(Self::Statement { sql: ticket.sql_query, database, values: ticket.params.unwrap_or_default() })
    }

    /// The database of table names without one.
    pub(super) fn database(&self) -> Option<&str> {
        match self {
            Self::Statement { database, .. } => database.as_deref(),
            Self::Listing(_) => None,
        }
    }

    /// A ticket for the same.
    pub(super) fn ticket(&self) -> Bytes {
        match self {
            Self::Statement { sql, database, values } => {
                let ticket = JsonTicket {
                    database: database.clone(),
                    sql_query: sql.clone(),
                    query_type: None,
                    params: Some(values.clone()).filter(|values| !values.is_empty()),
                };
                // Strings and finite numbers: there is no way for it to fail.
                serde_json::to_vec(&ticket).unwrap_or_default().into()
            }
            Self::Listing(command) => command.clone().into_any().encode_to_vec().into(),
        }
    }
}

fn database(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    for name in DATABASE {
        if let Some(database) = text_header(headers, name)? {
            return Ok(Some(database.to_owned()).filter(|name| !name.is_empty()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{
        CommandGetTables, CommandStatementQuery, CommandStatementUpdate, ProstMessageExt,
    };

    use super::*;

    fn statement(sql: &str, database: Option<&str>) -> Ask {
        let database = database.map(str::to_owned);
        Ask::Statement { sql: sql.into(), database, values: Parameters::default() }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn tickets_of_influxdb_3() {
        let named = headers(&[("bucket-name", "other")]);
        for (ticket, want) in [
            (
                r#"{"database":"home","sql_query":"SELECT 1","query_type":"sql"}"#,
                statement("SELECT 1", Some("home")),
            ),
            (r#" {"namespace_name":"home","sql_query":"SELECT 1"}"#, statement("SELECT 1", Some("home"))),
            (
                r#"{"database":"home","sql_query":"SELECT $a","params":{"a":2}}"#,
                Ask::Statement {
                    sql: "SELECT $a".into(),
                    database: Some("home".into()),
                    values: Parameters::from_json(r#"{"a":2}"#).unwrap(),
                },
            ),
            (r#"{"sql_query":"SELECT 1","params":{},"is_debug":true}"#, statement("SELECT 1", Some("other"))),
        ] {
            let asked = Ask::of_ticket(ticket.as_bytes(), &named).unwrap();
            assert_eq!(asked, want);
            // At another node, and without the header.
            assert_eq!(Ask::of_ticket(&asked.ticket(), &HeaderMap::new()).unwrap(), asked);
        }
        for wrong in [
            "",
            "{}",
            r#"{"database":"home","sql_query":"SHOW TABLES","query_type":"influxql"}"#,
            r#"{"database":"home","sql_query":"SELECT $1","params":{"1":[2]}}"#,
            r#"{"database":"home","sql_query":"SELECT $1","params":[2]}"#,
            r#"{"database":7,"sql_query":"SELECT 1"}"#,
            "SELECT 1",
        ] {
            let error = Ask::of_ticket(wrong.as_bytes(), &named).unwrap_err();
            assert_eq!(error.told().fault, Fault::Invalid, "{wrong}");
        }
    }

    #[test]
    fn commands_become_tickets_that_say_the_same() {
        let named = headers(&[("database", "home")]);
        let query = CommandStatementQuery { query: "SELECT \"a\"".into(), transaction_id: None };
        let asked = Ask::of_command(&query.as_any().encode_to_vec(), &named).unwrap();
        assert_eq!(asked, statement("SELECT \"a\"", Some("home")));
        // At another node, and without the header.
        assert_eq!(Ask::of_ticket(&asked.ticket(), &HeaderMap::new()).unwrap(), asked);
        let tables = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let asked = Ask::of_command(&tables.as_any().encode_to_vec(), &named).unwrap();
        assert_eq!(asked, Ask::Listing(Command::CommandGetTables(tables)));
        assert_eq!(Ask::of_ticket(&asked.ticket(), &named).unwrap(), asked);

        let within = CommandStatementQuery { transaction_id: Some(Bytes::from("t")), ..query };
        let update = CommandStatementUpdate { query: "DELETE".into(), transaction_id: None };
        for other in [within.as_any(), update.as_any()] {
            let error = Ask::of_command(&other.encode_to_vec(), &named).unwrap_err();
            assert_eq!(error.told().fault, Fault::Method);
        }
    }
}
