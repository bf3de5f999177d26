//! Flight: statements over gRPC, on the same port and by the same path as every other query.
//!
//! A ticket is InfluxDB 3's JSON. Flight SQL wraps its statements, prepared or not, into the same
//! tickets, so that nothing is kept here between two calls and any node can answer the second.

mod ask;
mod bind;
mod listing;
mod status;

use std::{pin::Pin, sync::Arc};

use arrow_array::RecordBatch;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_server::{FlightService, FlightServiceServer},
    sql::{
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any,
        DoPutPreparedStatementResult, ProstMessageExt,
    },
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{ArrowError, Field, Schema, SchemaRef};
use async_trait::async_trait;
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Version},
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http_body_util::Full;
use prost::Message;
use tonic::{
    Status, Streaming,
    codegen::Service,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use self::{ask::Ask, status::status};
pub(super) use self::{ask::SERVICE, status::answer_in_grpc};
use super::{
    Edge,
    auth::Principal,
    body::{self, Taken},
    error::{ApiError, Fault},
    params::{self, Params},
    query::{
        Asked, Head, explain,
        stream::{self, Piece},
    },
};
use crate::engine::columnar::sql::{Prepared, QueryError, parameter_names};

/// Longest message that a client may send: a statement, its database and what is around them.
const MESSAGE_LIMIT: usize = 1 << 20;
/// Makes a ticket of a statement, and says what columns it will give.
const PREPARE: &str = "CreatePreparedStatement";
/// Ends what [`PREPARE`] began, which is nothing.
const CLOSE: &str = "ClosePreparedStatement";

/// Every call of Flight.
pub(super) async fn call(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    if request.version() != Version::HTTP_2 {
        return Err(ApiError::invalid("Flight is gRPC, which needs HTTP/2"));
    }
    let (head, body) = request.into_parts();
    let caller = Principal::of(&head.extensions)?;
    // In whole: no call here takes more than one message.
    let Taken { bytes, share } =
        body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    let mut server =
        FlightServiceServer::new(Flight { edge, caller }).max_decoding_message_size(MESSAGE_LIMIT);
    let answer = server.call(Request::from_parts(head, Full::new(bytes))).await;
    drop(share);
    Ok(answer.unwrap_or_else(|never| match never {}).map(Body::new))
}

/// The calls.
struct Flight {
    edge: Arc<Edge>,
    caller: Principal,
}

type Answer<T> = Result<tonic::Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Rows = Pin<Box<dyn Stream<Item = Result<RecordBatch, QueryError>> + Send>>;

#[async_trait]
impl FlightService for Flight {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    /// Clients that have a name and a password change them for a token: here the password is one.
    async fn handshake(
        &self,
        request: tonic::Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Self::HandshakeStream> {
        let secret = params::credentials(request.metadata().as_ref(), &Params::default());
        let mut answer = tonic::Response::new(only(HandshakeResponse::default()));
        if let Some(secret) = secret {
            let wrong = |_| status(ApiError::invalid("the credentials are not text"));
            let mut bearer: AsciiMetadataValue = format!("Bearer {secret}").parse().map_err(wrong)?;
            // Neither to be shown nor to be kept in a table of headers.
            bearer.set_sensitive(true);
            answer.metadata_mut().insert("authorization", bearer);
        }
        Ok(answer)
    }

    /// The columns of an answer, and the ticket for its rows.
    async fn get_flight_info(&self, request: tonic::Request<FlightDescriptor>) -> Answer<FlightInfo> {
        let (metadata, _, descriptor) = request.into_parts();
        let headers = metadata.into_headers();
        let ask = Ask::of_command(&descriptor.cmd, &headers).map_err(status)?;
        let (columns, head) = self.columns(&ask, &headers).await.map_err(status)?;
        let place = FlightEndpoint::new().with_ticket(Ticket::new(ask.ticket()));
        let info = FlightInfo::new().try_with_schema(&columns).map_err(no_schema)?;
        Ok(with_head(info.with_endpoint(place).with_descriptor(descriptor), &head))
    }

    async fn get_schema(&self, request: tonic::Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let (metadata, _, descriptor) = request.into_parts();
        let headers = metadata.into_headers();
        let ask = Ask::of_command(&descriptor.cmd, &headers).map_err(status)?;
        let (columns, head) = self.columns(&ask, &headers).await.map_err(status)?;
        let options = IpcWriteOptions::default();
        let schema = SchemaResult::try_from(SchemaAsIpc::new(&columns, &options)).map_err(no_schema)?;
        Ok(with_head(schema, &head))
    }

    /// The rows, as they come.
    async fn do_get(&self, request: tonic::Request<Ticket>) -> Answer<Self::DoGetStream> {
        let (metadata, _, ticket) = request.into_parts();
        let headers = metadata.into_headers();
        let ask = Ask::of_ticket(&ticket.ticket, &headers).map_err(status)?;
        let (columns, rows, head) = self.rows(ask, &headers).await.map_err(status)?;
        let rows = rows.map_err(|error| FlightError::ExternalError(Box::new(error)));
        let messages = FlightDataEncoderBuilder::new().with_schema(columns).build(rows).map_err(broken);
        let answer = with_head((), &head);
        let bounded = stream::bounded(Box::pin(messages), head.bounds(&self.edge), head.permits);
        let edge = self.edge.clone();
        let bounded: Self::DoGetStream =
            Box::pin(bounded.map_err(move |error| status(explain(&edge, error))));
        Ok(answer.map(|()| bounded))
    }

    async fn do_action(&self, request: tonic::Request<Action>) -> Answer<Self::DoActionStream> {
        let (metadata, _, action) = request.into_parts();
        let headers = metadata.into_headers();
        match action.r#type.as_str() {
            PREPARE => {
                let asked = Any::decode(action.body).ok().and_then(|any| any.unpack().ok()?);
                let asked: ActionCreatePreparedStatementRequest =
                    asked.ok_or_else(|| status(ApiError::invalid("the action holds no statement")))?;
                let ask = Ask::of_statement(asked.query, asked.transaction_id.is_some(), &headers);
                let ask = ask.map_err(status)?;
                let (prepared, head) = self.prepared(&ask, &headers).await.map_err(status)?;
                Ok(with_head(only(arrow_flight::Result::new(prepared.as_any().encode_to_vec())), &head))
            }
            CLOSE => Ok(tonic::Response::new(Box::pin(futures::stream::empty()))),
            other => Err(unknown(format!("action {:?}", params::shown(other)))),
        }
    }

    async fn list_actions(&self, _: tonic::Request<Empty>) -> Answer<Self::ListActionsStream> {
        let action = |name: &str, description: &str| {
            Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() })
        };
        let actions = [
            action(PREPARE, "makes a handle of a statement"),
            action(CLOSE, "ends a handle; it keeps nothing"),
        ];
        Ok(tonic::Response::new(Box::pin(futures::stream::iter(actions))))
    }

    async fn list_flights(&self, _: tonic::Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        Err(unknown("ListFlights"))
    }

    async fn poll_flight_info(&self, _: tonic::Request<FlightDescriptor>) -> Answer<PollInfo> {
        Err(unknown("PollFlightInfo"))
    }

    /// Values for the parameters of a prepared statement. They go into its handle, so that nothing is
    /// kept here.
    async fn do_put(&self, request: tonic::Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let (metadata, _, messages) = request.into_parts();
        let headers = metadata.into_headers();
        let (command, given) = bind::take(messages).await?;
        let ask = Ask::to_bind(&command, &headers).map_err(status)?;
        // Who may not ask is told so here.
        self.asked(ask.database(), &headers).map_err(status)?;
        let Ask::Statement { sql, .. } = &ask else { return Err(unknown("a listing with values")) };
        let names = parameter_names(sql).map_err(|error| status(error.into()))?;
        let values = bind::values(&given, &names).map_err(|why| status(ApiError::invalid(why)))?;
        let handle =
            DoPutPreparedStatementResult { prepared_statement_handle: Some(ask.bound(values).ticket()) };
        let result = PutResult { app_metadata: handle.encode_to_vec().into() };
        Ok(tonic::Response::new(only(result)))
    }

    async fn do_exchange(&self, _: tonic::Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        Err(unknown("DoExchange"))
    }
}

impl Flight {
    fn asked(&self, database: Option<&str>, headers: &HeaderMap) -> Result<Asked, ApiError> {
        Asked::of(&self.edge, &self.caller, headers, &Params::default(), (database, None))
    }

    /// The columns that an answer will have.
    async fn columns(&self, ask: &Ask, headers: &HeaderMap) -> Result<(SchemaRef, Head), ApiError> {
        let asked = self.asked(ask.database(), headers)?;
        match ask {
            Ask::Statement { sql, values, .. } => {
                let asked = asked.with(values.clone());
                let (columns, head) = asked.describe(&self.edge, sql).await?;
                Ok((as_sent(columns), head))
            }
            Ask::Listing(command) => Ok((listing::columns(command.clone())?, asked.enter(&self.edge).await?)),
        }
    }

    /// A handle for a statement, and what may be known of its parameters and columns.
    async fn prepared(
        &self,
        ask: &Ask,
        headers: &HeaderMap,
    ) -> Result<(ActionCreatePreparedStatementResult, Head), ApiError> {
        let parameters = match ask {
            Ask::Statement { sql, .. } => parameter_names(sql)?,
            Ask::Listing(_) => Vec::new(),
        };
        let (columns, parameters, head) = match ask {
            Ask::Statement { sql, .. } if !parameters.is_empty() => {
                let asked = self.asked(ask.database(), headers)?;
                let (Prepared { parameters, columns }, head) = asked.prepare(&self.edge, sql).await?;
                let fields = parameters.into_iter().map(|(name, kind)| Field::new(name, kind, true));
                (as_sent(columns), in_ipc(&Schema::new(fields.collect::<Vec<_>>()))?, head)
            }
            _ => {
                let (columns, head) = self.columns(ask, headers).await?;
                (columns, Bytes::new(), head)
            }
        };
        let prepared = ActionCreatePreparedStatementResult {
            prepared_statement_handle: ask.ticket(),
            dataset_schema: in_ipc(&columns)?,
            parameter_schema: parameters,
        };
        Ok((prepared, head))
    }

    /// The answer.
    async fn rows(&self, ask: Ask, headers: &HeaderMap) -> Result<(SchemaRef, Rows, Head), ApiError> {
        let asked = self.asked(ask.database(), headers)?;
        match ask {
            Ask::Statement { sql, values, .. } => {
                let (rows, head) = asked.with(values).run(&self.edge, &sql).await?;
                Ok((rows.schema(), Box::pin(rows), head))
            }
            Ask::Listing(command) => {
                let head = asked.enter(&self.edge).await?;
                let schemas = self.edge.app.engine.schemas().only(&self.caller.databases());
                let listed = body::off_thread(usize::MAX, move || listing::rows(command, &schemas)).await??;
                Ok((listed.schema(), Box::pin(futures::stream::iter([Ok(listed)])), head))
            }
        }
    }
}

impl Piece for FlightData {
    fn bytes(&self) -> usize {
        self.data_header.len() + self.data_body.len()
    }
}

/// What is sent has no dictionaries: their values stand in their place.
fn as_sent(columns: SchemaRef) -> SchemaRef {
    let none = futures::stream::empty::<Result<RecordBatch, FlightError>>();
    FlightDataEncoderBuilder::new().with_schema(columns.clone()).build(none).known_schema().unwrap_or(columns)
}

fn with_head<T>(message: T, head: &Head) -> tonic::Response<T> {
    let mut answer = tonic::Response::new(message);
    *answer.metadata_mut() = MetadataMap::from_headers(head.headers.clone());
    answer
}

fn only<T: Send + 'static>(message: T) -> Answers<T> {
    Box::pin(futures::stream::iter([Ok(message)]))
}

fn broken(error: FlightError) -> QueryError {
    match error {
        FlightError::ExternalError(error) => match error.downcast() {
            Ok(query) => *query,
            Err(error) => QueryError::Internal(error.to_string()),
        },
        error => QueryError::Invalid(format!("the answer cannot be sent as Arrow: {error}")),
    }
}

fn in_ipc(columns: &Schema) -> Result<Bytes, ApiError> {
    let message = IpcMessage::try_from(SchemaAsIpc::new(columns, &IpcWriteOptions::default()));
    message.map(|message| message.0).map_err(cannot_be_sent)
}

fn cannot_be_sent(error: ArrowError) -> ApiError {
    ApiError::new(Fault::Internal, format!("the columns cannot be sent: {error}"))
}

fn no_schema(error: ArrowError) -> Status {
    status(cannot_be_sent(error))
}

fn unknown(what: impl std::fmt::Display) -> Status {
    status(ApiError::new(Fault::Method, format!("{what} is not offered here")))
}
