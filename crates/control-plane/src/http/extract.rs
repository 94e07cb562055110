//! Extractors of handlers, with errors that name the field.

use super::named;
use crate::app::App;
use crate::auth::admission::Admission;
use crate::capsules::IdempotencyKey;
use crate::error::{Error, Result};
use crate::load::{Payer, Room, UnderWay};
use axum::body::{Body, Bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequest, FromRequestParts, Request};
use hop::Standing;
use http::request::Parts;
use http::{HeaderMap, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use types::CapsuleId;

/// A JSON body. An empty body counts as `{}`.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        read(app, request, false).await.map(|(value, _)| Self(value))
    }
}

/// A JSON body that carries the input of a command, and may be large.
pub(super) struct WithInput<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for WithInput<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        read(app, request, true).await.map(|(value, _)| Self(value))
    }
}

/// A JSON body, and the bytes that it was sent as.
pub(super) struct Sent<T>(pub T, pub Bytes);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Sent<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        read(app, request, false).await.map(|(value, body)| Self(value, body))
    }
}

/// A JSON body that may be large, such as a recipe, and the bytes that it was sent as.
pub(super) struct LargeSent<T>(pub T, pub Bytes);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for LargeSent<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        read(app, request, true).await.map(|(value, body)| Self(value, body))
    }
}

/// Reads a body, for which it takes room as the body comes. The room is given back when the answer
/// has ended.
async fn read<T: DeserializeOwned>(app: &App, request: Request, input: bool) -> Result<(T, Bytes)> {
    let payer =
        request.extensions().get().copied().unwrap_or(Payer::Network(None, Standing::Stranger));
    let under_way = request.extensions().get().cloned().unwrap_or_else(UnderWay::default);
    let (most, time) = payer.allowance(input);
    let body: Body = request.into_body();
    let said = body.size_hint();
    if said.lower() > u64::try_from(most).unwrap_or(u64::MAX) {
        return Err(Error::TooLarge(most));
    }
    let mut room = app.load.body(payer)?;
    let body = tokio::time::timeout(time, collect(body, most, &mut room)).await;
    let body = body.map_err(|_| Error::BodyTooSlow)??;
    under_way.hold(room);
    let value = parse(if body.is_empty() { b"{}" } else { &body })?;
    Ok((value, body))
}

/// Reads a body to its end.
async fn collect(mut body: Body, most: usize, room: &mut Room) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match hop::Stalled::is_cause_of(&error) {
            true => Error::BodyTooSlow,
            false => Error::broken_body(),
        })?;
        let Ok(part) = frame.into_data() else { continue };
        if all.len() + part.len() > most {
            return Err(Error::TooLarge(most));
        }
        room.grow_to(all.len() + part.len())?;
        all.extend_from_slice(&part);
    }
    Ok(all.into())
}

/// Returns the idempotency key of a request, if it has one.
pub(super) fn idempotency_key(headers: &HeaderMap, body: &[u8]) -> Result<Option<IdempotencyKey>> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    IdempotencyKey::new(key.to_str().unwrap_or(""), body).map(Some)
}

/// Parses a JSON object. An error names the wrong field and its position.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    // Serde would accept an array in place of an object, with the fields in order.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::invalid("body", "must be a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { "body".to_owned() } else { field };
        Error::invalid(field, format!("is invalid: {}", error.into_inner()))
    })?;
    reader.end().map_err(|e| Error::invalid("body", format!("is invalid: {e}")))?;
    Ok(value)
}

/// Fields of the query.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self> {
        read_query(&parts.uri).map(Self)
    }
}

/// Reads the fields of a URI's query.
pub(super) fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T> {
    // The parser would replace invalid UTF-8 by a placeholder.
    let raw = percent_encoding::percent_decode_str(uri.query().unwrap_or(""));
    raw.decode_utf8().map_err(|_| Error::invalid("query", "must be UTF-8"))?;
    let query = axum::extract::Query::<T>::try_from_uri(uri);
    let wrong = |e: axum::extract::rejection::QueryRejection| {
        let text = e.body_text();
        let reason = text.rsplit_once("string: ").map_or(text.as_str(), |(_, reason)| reason);
        Error::invalid("query", format!("is invalid: {reason}"))
    };
    query.map(|query| query.0).map_err(wrong)
}

/// Parameters of the path. The name of a living capsule stands for its id. A parameter that cannot
/// be parsed leads to 404.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        if let Some(named) = named::parameters(parts, app).await? {
            return Ok(Self(named));
        }
        let path = axum::extract::Path::<T>::from_request_parts(parts, app).await;
        path.map(|path| Self(path.0)).map_err(|_| Error::NotFound("resource"))
    }
}

/// Parses a capsule's id from a path. Any other text is a capsule that does not exist.
pub(super) fn capsule_id(text: &str) -> Result<CapsuleId> {
    text.parse().map_err(|_| Error::NotFound("capsule"))
}

/// A request to speak WebSocket, with its admission.
pub(super) struct Upgrade {
    pub upgrade: WebSocketUpgrade,
    pub admission: Admission,
}

impl FromRequestParts<Arc<App>> for Upgrade {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, app).await;
        let wrong = |_| Error::invalid("upgrade", "must request a WebSocket (RFC 6455)");
        let admission = Admission::from_request_parts(parts, app).await?;
        Ok(Self { upgrade: upgrade.map_err(wrong)?, admission })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_error_names_the_wrong_field() {
        let wrong = |body: &[u8]| parse::<api::CreateCapsule>(body).err().map(|e| e.to_string());
        let told = wrong(br#"{"vcpus":"two"}"#).unwrap();
        assert!(told.starts_with("vcpus is invalid: invalid type"), "{told}");
        let told = wrong(br#"{"envs":{"A":1}}"#).unwrap();
        assert!(told.starts_with("envs.A is invalid"), "{told}");
        assert!(wrong(br#"{"colour":1}"#).unwrap().contains("colour"));
        for garbage in [&b"\xff"[..], b"[]", b"{} {}", b"{", b"null"] {
            assert!(wrong(garbage).is_some(), "{garbage:?}");
        }
        assert!(wrong(b"{}").is_none());
        let told = wrong(br#"{"memory_mb":"two"}"#).unwrap();
        assert!(told.starts_with("memory_mb is invalid: invalid type"), "{told}");
        let told = wrong(br#"{"memory_mb":1,"memory_mib":2}"#).unwrap();
        assert!(
            told.starts_with("memory_mib is invalid: memory_mib differs from memory_mb"),
            "{told}"
        );
        let told =
            parse::<api::NewKey>(br#"{"name":"k","limits":{"memory_mb":-1}}"#).err().unwrap();
        assert!(told.to_string().starts_with("limits.memory_mb is invalid"), "{told}");
    }
}
