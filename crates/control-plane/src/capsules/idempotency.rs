//! Idempotency keys of creates. A repeated request gets the capsule that the first one made. The
//! capsule's own state shows how far the first one got, so a create that died needs no cleanup
//! here.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::CapsuleState;

/// Longest key, in bytes.
const KEY_MAX: usize = 255;

/// Idempotency key of a create.
pub(crate) struct IdempotencyKey {
    pub key: String,
    /// Hash of the request's body.
    pub request: [u8; 32],
}

impl IdempotencyKey {
    /// Makes a key from the header `Idempotency-Key` and a request's body.
    pub(crate) fn new(key: &str, body: &[u8]) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=KEY_MAX).contains(&key.len()) || !key.bytes().all(legal) {
            let must = "must be 1 to 255 lower-case letters, digits and hyphens";
            return Err(Error::invalid("Idempotency-Key", must));
        }
        Ok(Self { key: key.to_owned(), request: crate::secret::hash_bytes(body) })
    }
}

/// Returns the capsule that the key made before; `None` if it made none that ever ran.
pub(super) async fn find_previous(
    app: &App,
    caller: Caller,
    key: &IdempotencyKey,
) -> Result<Option<Capsule>> {
    let found = db::idempotency::find(&app.db, caller.team, &key.key).await?;
    let Some((request, capsule)) = found else { return Ok(None) };
    if request != key.request || !caller.sees(&capsule) {
        return Err(Error::KeyReused);
    }
    let state = capsule.state;
    if state == CapsuleState::Starting {
        return Err(in_flight());
    }
    let gone = matches!(state, CapsuleState::Stopping | CapsuleState::Stopped);
    if gone && capsule.started_at.is_none() {
        // The first create failed, and left nothing.
        db::idempotency::forget(&app.db, caller.team, &key.key, capsule.id).await?;
        return Ok(None);
    }
    Ok(Some(capsule))
}

/// Makes the error of a request whose key is in use by another request.
pub(super) fn in_flight() -> Error {
    Error::Conflict("a request with this Idempotency-Key is still under way; try again".to_owned())
}
