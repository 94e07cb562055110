//! Who calls: the API key, looked up by its hash.

use crate::app::App;
use crate::db;
use crate::error::Error;
use axum::extract::FromRequestParts;
use http::request::Parts;
use rand::RngCore;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use types::TeamId;

/// An authenticated caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub team: TeamId,
}

/// Makes a key: `e2b_` and 40 hexadecimal digits, a form that every SDK takes.
#[must_use]
pub fn new_api_key() -> String {
    format!("e2b_{}", random_hex(20))
}

/// Random bytes as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What of a key is stored.
pub(crate) fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let key = parts.headers.get("x-api-key").and_then(|v| v.to_str().ok());
        let key = key.filter(|k| k.len() <= 200).ok_or(Error::Unauthenticated)?;
        let team = db::keys::team_of(&app.db, &hash(key)).await?;
        Ok(Self { team: team.ok_or(Error::Unauthenticated)? })
    }
}
