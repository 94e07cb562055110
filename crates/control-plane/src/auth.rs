//! Who calls: the API key, looked up by its hash; for hosts, their token.

use crate::app::App;
use crate::db;
use crate::error::Error;
use crate::hosts::Enrolled;
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
    /// Whether what concerns the whole platform is theirs to do.
    pub operator: bool,
}

impl Caller {
    /// A team, for what is done on its behalf.
    pub(crate) fn of(team: TeamId) -> Self {
        Self { team, operator: false }
    }
}

/// An authenticated caller who may do what concerns the whole platform.
pub(crate) struct Operator;

/// A host that has shown its token. That the enrolment still stands, the database says.
pub(crate) struct HostCaller(pub Enrolled);

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
        let caller = db::keys::caller(&app.db, &hash(key)).await?;
        caller.ok_or(Error::Unauthenticated)
    }
}

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, app).await?;
        if caller.operator { Ok(Self) } else { Err(Error::Forbidden) }
    }
}

impl FromRequestParts<Arc<App>> for HostCaller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let enrolled = token.and_then(|token| app.signer.check(token));
        enrolled.map(Self).ok_or_else(|| Error::InvalidToken("the host's token"))
    }
}
