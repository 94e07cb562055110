//! Paths that name a capsule. In a path, the name of a living capsule of the caller's team stands
//! for the capsule's id. Handlers and use cases know ids alone.

use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, SeqDeserializer, StringDeserializer};
use std::sync::Arc;
use types::CapsuleId;

/// Part of the patterns whose parameter `id` is a capsule.
const CAPSULE: &str = "/v1/capsules/{id}";

/// Returns the parameters of a path, with the capsule's id in place of its name. Returns `None` for
/// a path without the name of a capsule that the caller may see.
pub(super) async fn parameters<T: DeserializeOwned>(
    parts: &mut Parts,
    app: &Arc<App>,
) -> Result<Option<T>> {
    let is_capsule =
        parts.extensions.get::<MatchedPath>().is_some_and(|path| path.as_str().contains(CAPSULE));
    let Some(caller) = parts.extensions.get::<Caller>().copied().filter(|_| is_capsule) else {
        return Ok(None);
    };
    let Ok(raw) = RawPathParams::from_request_parts(parts, app).await else { return Ok(None) };
    let given = raw.iter().find(|(key, _)| *key == "id").map(|(_, value)| value.to_owned());
    // An id needs no look-up.
    let Some(name) = given.filter(|text| text.parse::<CapsuleId>().is_err()) else {
        return Ok(None);
    };
    let Some(id) = capsules::find_id(app, caller, &name).await? else { return Ok(None) };
    let filled = raw.iter().map(|(key, value)| match key {
        "id" => id.to_string(),
        _ => value.to_owned(),
    });
    read(filled.collect()).map(Some)
}

/// Reads parameters as a single text, or as a tuple of texts.
fn read<T: DeserializeOwned>(mut values: Vec<String>) -> Result<T> {
    let read = match values.len() {
        1 => T::deserialize(StringDeserializer::<ValueError>::new(values.remove(0))),
        _ => T::deserialize(SeqDeserializer::<_, ValueError>::new(values.into_iter())),
    };
    read.map_err(|_| Error::NotFound("resource"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_text_or_tuple() {
        let values = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(read::<String>(values(&["a"])).unwrap(), "a");
        let pair = read::<(String, String)>(values(&["a", "80"])).unwrap();
        assert_eq!(pair, ("a".to_owned(), "80".to_owned()));
        assert!(read::<(String, String)>(values(&["a"])).is_err());
        assert!(read::<String>(values(&["a", "b"])).is_err());
    }
}
