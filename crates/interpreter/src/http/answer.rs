//! Answers: errors as text, with the text as the reason phrase too, and streams of lines. E2B's SDK
//! for JavaScript shows its users nothing of an error but the reason phrase.

use crate::error::Error;
use crate::execution::{Next, Subscription};
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::header;
use hyper::ext::ReasonPhrase;
use std::io;

/// Most characters of a reason phrase.
const REASON_MAX: usize = 200;

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let reason = reason(&self.text);
        let mut response = (self.status, self.text).into_response();
        if let Ok(reason) = ReasonPhrase::try_from(reason) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

/// Returns a text as a reason phrase, which has one line of ASCII.
fn reason(text: &str) -> String {
    let shown = text.chars().take(REASON_MAX);
    shown.map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect()
}

/// Answers with the lines of an execution. A stream that is cut has no last chunk, so that no
/// client takes it for complete.
pub(super) fn lines(subscription: Subscription) -> Response {
    let stream = stream::unfold(Some(subscription), |subscription| async move {
        let mut subscription = subscription?;
        match subscription.next().await {
            Next::Lines(lines) => Some((Ok::<Bytes, io::Error>(lines), Some(subscription))),
            Next::Cut => Some((Err(io::Error::other("the stream was cut")), None)),
            Next::Ended => None,
        }
    });
    let headers =
        [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(stream)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_one_short_line_of_ascii() {
        assert_eq!(reason("Context a not found"), "Context a not found");
        assert_eq!(reason("a\r\nb: é"), "a  b:  ");
        assert_eq!(reason(&"x".repeat(500)).len(), REASON_MAX);
        assert!(ReasonPhrase::try_from(reason("\u{0}\u{7f}\u{2028}")).is_ok());
    }
}
