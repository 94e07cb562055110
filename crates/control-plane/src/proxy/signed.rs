//! Signed links to files. The proxy checks them before it wakes the capsule. envd checks them
//! again, but must be awake for that. Pure.

use super::routes::Route;
use crate::error::Error;
use axum::extract::Query;
use http::{Method, Uri};
use protocol::{Operation, SignedFile};
use subtle::ConstantTimeEq;

const PATH: &str = "/files";

/// Parts of a signed link.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Signed {
    #[serde(default)]
    path: String,
    username: Option<String>,
    signature: String,
    signature_expiration: Option<i64>,
    #[serde(skip)]
    writes: bool,
}

impl Signed {
    /// Reads the link of a request to envd's port, if it has one.
    pub(super) fn of(method: &Method, path: &str, query: &str) -> Option<Self> {
        let may_be = path == PATH && query.contains("signature=");
        let uri = may_be.then(|| format!("{PATH}?{query}").parse::<Uri>().ok()).flatten()?;
        let Query(signed) = Query::<Self>::try_from_uri(&uri).ok()?;
        Some(Self { writes: !method.is_safe(), ..signed })
    }

    /// Checks the signature and the expiry. A missing capsule gives the same error as a wrong
    /// signature.
    pub(super) fn check(&self, route: Option<&Route>, now: i64) -> Result<(), Error> {
        let operation = if self.writes { Operation::Write } else { Operation::Read };
        let until = self.signature_expiration;
        let link = SignedFile { path: &self.path, user: self.username.as_deref(), until };
        let signs = |route: &Route| {
            let wanted = link.sign(operation, &route.envd_token);
            bool::from(self.signature.as_bytes().ct_eq(wanted.as_bytes()))
        };
        if !route.is_some_and(signs) {
            return Err(Error::BadSignature("invalid signature"));
        }
        match until {
            Some(until) if until < now => Err(Error::BadSignature("signature is already expired")),
            _ => Ok(()),
        }
    }
}
