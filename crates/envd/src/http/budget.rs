//! Bounds the memory that starts of programs take. A start is in memory several times: as the
//! request, as the texts for the kernel, and as the entry of the program. A guest whose envd takes
//! all memory ends, since the kernel may not kill envd.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::jobs;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use connectrpc::envelope::Envelope;
use connectrpc::{ConnectError, ErrorCode};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::Limited;
use std::sync::Arc;

/// Path of the call that starts a program.
const START: &str = "/process.Process/Start";
/// Largest request of a start, in bytes. The kernel accepts 2 MiB of arguments and environment.
const START_MAX: u32 = 2 << 20;
/// Requests up to this size, in bytes, are not counted.
const SMALL: u32 = 4 << 10;
/// Bytes of memory for each byte of a request. A list of one-letter arguments takes most.
const FACTOR: u32 = 40;
/// Lets a start through once there is memory for it. A start that needs more than the budget gets
/// the whole budget.
pub(super) async fn admit(
    State(guest): State<Arc<Guest>>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() != START {
        return next.run(request).await;
    }
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let weight = match weight(request.headers()) {
        Ok(weight) => weight.min(guest.budget.all()),
        Err(error) => return refuse(kind, error),
    };
    if weight == 0 {
        return next.run(request).await;
    }
    let permit = guest.budget.take(weight);
    let Ok(Ok(permit)) = tokio::time::timeout(jobs::LIMIT, permit).await else {
        let message = "too many programs with long arguments are being started";
        return refuse(kind, Error::new(ErrorCode::Unavailable, message));
    };
    let request = request.map(|body| Body::new(Limited::new(body, START_MAX as usize)));
    // The head of the answer comes when the program runs.
    let answer = next.run(request).await;
    drop(permit);
    answer
}

/// Answers a start with an error. A Connect stream tells errors in its last message; its status says
/// nothing.
fn refuse(kind: Option<HeaderValue>, error: Error) -> Response {
    let streams = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/connect+");
    let Some(kind) = kind.filter(streams) else { return error.into_response() };
    let error = ConnectError::from(error).to_json();
    let message = [b"{\"error\":".as_slice(), &error, b"}"].concat();
    let body = Envelope::end_stream(message.into()).encode();
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// Returns the memory that a start takes, in bytes, and 0 for a small start. A request of unknown
/// size counts as the largest.
fn weight(headers: &HeaderMap) -> Result<u32> {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(START_MAX);
    match length {
        0..=SMALL => Ok(0),
        length if length > START_MAX => {
            Err(Error::invalid("arguments and environment must be at most 2 MiB"))
        }
        length => Ok(length.saturating_mul(FACTOR)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn stream_refusal_is_sent_as_end_of_stream_message() {
        let kind = HeaderValue::from_static("application/connect+json");
        let answer = refuse(Some(kind), Error::invalid("too much"));
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let told: serde_json::Value = serde_json::from_slice(&body[5..]).unwrap();
        assert_eq!((body[0], told["error"]["code"].as_str()), (2, Some("invalid_argument")));
        let plain = HeaderValue::from_static("application/json");
        assert_eq!(refuse(Some(plain), Error::invalid("too much")).status(), 400);
    }

    #[test]
    fn start_requests_are_weighted_by_size_and_the_largest_refused() {
        let of = |length: u32| {
            weight(&HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from(length))]))
        };
        assert_eq!(of(SMALL).unwrap(), 0);
        assert_eq!(of(100_000).unwrap(), 4_000_000);
        assert_eq!(weight(&HeaderMap::new()).unwrap(), of(START_MAX).unwrap());
        assert!(of(START_MAX + 1).unwrap_err().message.contains("2 MiB"));
    }
}
