//! Creates that may be repeated: whoever gave a key before is answered by what that made, and
//! nothing is made again. How far the first one got is how far its capsule is, so that one that
//! died half-way needs no clearing up of its own.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::CapsuleState;

/// Longest key, in characters.
const KEY_MAX: usize = 255;

/// A create by the key that its caller gave it.
pub(crate) struct Once {
    pub key: String,
    /// Of what was asked for.
    pub request: [u8; 32],
}

impl Once {
    /// One by the header `Idempotency-Key`, of a request's body.
    pub(crate) fn new(key: &str, body: &[u8]) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=KEY_MAX).contains(&key.len()) || !key.bytes().all(legal) {
            let must = "must be 1 to 255 lower-case letters, digits and hyphens";
            return Err(Error::invalid("Idempotency-Key", must));
        }
        Ok(Self { key: key.to_owned(), request: crate::auth::hash_bytes(body) })
    }
}

/// What the key made before; none when it has made nothing that ever ran.
pub(super) async fn earlier(app: &App, caller: Caller, once: &Once) -> Result<Option<Capsule>> {
    let found = db::idempotency::find(&app.db, caller.team, &once.key).await?;
    let Some((request, capsule)) = found else { return Ok(None) };
    if request != once.request || !caller.sees(&capsule) {
        return Err(Error::KeyReused);
    }
    let state = capsule.state();
    if state == CapsuleState::Starting {
        return Err(in_flight());
    }
    let gone = matches!(state, CapsuleState::Stopping | CapsuleState::Stopped);
    if gone && capsule.started_at.is_none() {
        // It failed, and nothing is left of it.
        db::idempotency::forget(&app.db, caller.team, &once.key, capsule.id()).await?;
        return Ok(None);
    }
    Ok(Some(capsule))
}

/// Another request by the same key is under way.
pub(super) fn in_flight() -> Error {
    Error::Conflict("a request with this Idempotency-Key is under way; ask again".to_owned())
}
