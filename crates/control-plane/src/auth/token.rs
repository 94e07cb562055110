//! Signed tokens (JWT) that prove an identity to one audience for a limited time. Each audience
//! adds claims of its own. No token says which actions its holder may do.

use crate::error::{Error, Result};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use time::OffsetDateTime;

/// Tolerated error of a clock, in seconds.
const SKEW: u64 = 60;
const ISSUER: &str = "wrenn";

#[derive(Debug, Serialize, Deserialize)]
struct Claims<T> {
    iss: String,
    aud: String,
    sub: String,
    #[serde(flatten)]
    own: T,
    iat: i64,
    exp: i64,
}

/// Signs tokens for one audience, and checks them.
pub(crate) struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    audience: &'static str,
}

impl Signer {
    pub(crate) fn new(secret: &[u8], audience: &'static str) -> Self {
        let encoding = EncodingKey::from_secret(secret);
        Self { encoding, decoding: DecodingKey::from_secret(secret), audience }
    }

    /// Signs a token for the subject `who` with a lifetime of `life`.
    pub(crate) fn sign<T: Serialize>(&self, who: String, own: T, life: Duration) -> Result<String> {
        self.sign_until(who, own, (OffsetDateTime::now_utc() + life).unix_timestamp())
    }

    /// Signs a token for the subject `who` that expires at `exp`, in seconds since 1970.
    pub(crate) fn sign_until<T: Serialize>(&self, who: String, own: T, exp: i64) -> Result<String> {
        let iat = OffsetDateTime::now_utc().unix_timestamp();
        let (iss, aud) = (ISSUER.to_owned(), self.audience.to_owned());
        let claims = Claims { iss, aud, sub: who, own, iat, exp };
        let signed = encode(&Header::new(Algorithm::HS256), &claims, &self.encoding);
        signed.map_err(|e| Error::Internal(e.into()))
    }

    /// Returns a token's subject and its audience's own claims. Returns `None` when the signature
    /// or the audience is wrong, or the token has expired.
    pub(crate) fn check<T: DeserializeOwned>(&self, word: &str) -> Option<(String, T)> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = SKEW;
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(&[self.audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims<T>>(word, &self.decoding, &rules).ok()?.claims;
        Some((claims.sub, claims.own))
    }
}
