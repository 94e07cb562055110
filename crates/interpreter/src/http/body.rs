//! Bodies of requests, within limits of size, time and memory.

use crate::contexts::Contexts;
use crate::error::{Error, Result};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Largest body with code, in bytes.
const CODE_MAX: u32 = 16 << 20;
/// Largest body of other calls, in bytes.
const OTHER_MAX: u32 = 1 << 20;
/// Longest time of a body.
const TIME: Duration = Duration::from_secs(60);
/// Longest wait for memory.
const WAIT: Duration = Duration::from_secs(10);

/// Reads a body with code. The permit is its share of the memory for code.
pub(super) async fn code<T: DeserializeOwned>(
    contexts: &Contexts,
    request: Request,
) -> Result<(T, OwnedSemaphorePermit)> {
    let size = size(request.headers(), CODE_MAX)?;
    let waiting = Arc::clone(&contexts.services.code).acquire_many_owned(size);
    let Ok(Ok(mut permit)) = tokio::time::timeout(WAIT, waiting).await else {
        return Err(Error::too_many("too much code waits in this capsule"));
    };
    let bytes = read(request.into_body(), CODE_MAX).await?;
    // A body of unknown size had the share of the largest one, and code runs for long.
    drop(permit.split(permit.num_permits().saturating_sub(bytes.len())));
    Ok((parse(&bytes)?, permit))
}

/// Reads another body. An empty one is as `{}`.
pub(super) async fn other<T: DeserializeOwned>(request: Request) -> Result<T> {
    size(request.headers(), OTHER_MAX)?;
    parse(&read(request.into_body(), OTHER_MAX).await?)
}

/// Returns the size that a body may have: its own, or the largest one.
fn size(headers: &HeaderMap, most: u32) -> Result<u32> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(most) };
    let length = length.to_str().ok().and_then(|length| length.parse::<u32>().ok());
    length.filter(|length| *length <= most).ok_or_else(|| too_large(most))
}

fn too_large(most: u32) -> Error {
    let text = format!("body: it has more than {most} bytes");
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn read(body: Body, most: u32) -> Result<Bytes> {
    let reading = axum::body::to_bytes(body, most as usize);
    let Ok(read) = tokio::time::timeout(TIME, reading).await else {
        return Err(Error::new(StatusCode::REQUEST_TIMEOUT, "body: it did not arrive in time"));
    };
    read.map_err(|error| Error::unprocessable(format!("body: {error}")))
}

/// Parses a body. An empty one is as `{}`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes[..] };
    serde_json::from_slice(text).map_err(|error| Error::unprocessable(format!("body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::script::Script;
    use futures::stream;
    use serde_json::Value;

    #[tokio::test]
    async fn body_of_unknown_size_keeps_a_share_of_its_own_size() {
        let script = Script::default();
        let contexts = Contexts::new(script.services());
        let piece = Ok::<_, std::io::Error>(Bytes::from_static(br#"{"a":1}"#));
        let request = Request::new(Body::from_stream(stream::iter([piece])));
        let (value, permit) = code::<Value>(&contexts, request).await.unwrap();
        assert_eq!((value["a"].as_u64(), permit.num_permits()), (Some(1), 7));
        let all = crate::services::CODE_MAX;
        assert_eq!(contexts.services.code.available_permits(), all - 7);
    }
}
