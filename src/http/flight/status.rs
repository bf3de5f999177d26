//! What is wrong, in the words of gRPC.

use axum::{
    body::Body,
    extract::Request,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use tonic::{Code, Status};

use crate::http::error::{ApiError, Fault, Told};

/// Longest text of an error: it travels as a header, of which clients take little.
const MESSAGE_LIMIT: usize = 2_000;

/// An error as the handlers of gRPC give it.
pub(super) fn status(error: ApiError) -> Status {
    of(error.told())
}

fn of(told: Told) -> Status {
    let Told { fault, mut message } = told;
    message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
    Status::new(code(fault), message)
}

const fn code(fault: Fault) -> Code {
    match fault {
        Fault::Invalid => Code::InvalidArgument,
        Fault::Unauthorized => Code::Unauthenticated,
        Fault::Forbidden => Code::PermissionDenied,
        Fault::NotFound => Code::NotFound,
        Fault::Method => Code::Unimplemented,
        Fault::Slow => Code::DeadlineExceeded,
        Fault::Conflict => Code::Aborted,
        Fault::Gone => Code::OutOfRange,
        Fault::TooLarge | Fault::Limit | Fault::Full => Code::ResourceExhausted,
        // Clients send it again.
        Fault::Busy | Fault::Unavailable => Code::Unavailable,
        Fault::Unknown => Code::Unknown,
        Fault::Internal => Code::Internal,
    }
}

/// Answers a client that speaks gRPC in gRPC, also where the request did not come as far as a handler
/// that does.
pub(in crate::http) async fn answer_in_grpc<F: Future<Output = Response>>(
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let kind = request.headers().get(CONTENT_TYPE);
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let response = next(request).await;
    match response.extensions().get::<Told>() {
        Some(told) if grpc => of(told.clone()).into_http::<Body>().into_response(),
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_short_enough_for_a_header() {
        let long = status(ApiError::new(Fault::Gone, "ä".repeat(5_000)));
        assert_eq!((long.code(), long.message().len()), (Code::OutOfRange, MESSAGE_LIMIT));
    }
}
