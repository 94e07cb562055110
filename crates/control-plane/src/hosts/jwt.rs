//! Tokens by which hosts say who they are, signed with a secret that the replicas share through
//! the database.

use crate::error::{Error, Result};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use time::OffsetDateTime;
use types::HostId;

/// How long one is good.
pub(super) const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// By how much a clock may be wrong.
const SKEW: u64 = 60;
const ISSUER: &str = "wrenn";
const AUDIENCE: &str = "wrenn-host";

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    /// The enrolment that it belongs to.
    enrolment: i32,
    iat: i64,
    exp: i64,
}

/// A host that says who it is, by an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enrolled {
    pub host: HostId,
    pub enrolment: i32,
}

/// Signs and checks.
pub(crate) struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Signer {
    pub(crate) fn new(secret: &[u8]) -> Self {
        let encoding = EncodingKey::from_secret(secret);
        Self { encoding, decoding: DecodingKey::from_secret(secret) }
    }

    pub(crate) fn sign(&self, who: Enrolled) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: who.host.to_string(),
            enrolment: who.enrolment,
            iat: now.unix_timestamp(),
            exp: (now + LIFE).unix_timestamp(),
        };
        let signed = encode(&Header::new(Algorithm::HS256), &claims, &self.encoding);
        signed.map_err(|e| Error::Internal(e.into()))
    }

    /// Who says so; none when the token is not ours, or has expired.
    pub(crate) fn check(&self, token: &str) -> Option<Enrolled> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = SKEW;
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(&[AUDIENCE]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, &self.decoding, &rules).ok()?.claims;
        Some(Enrolled { host: claims.sub.parse().ok()?, enrolment: claims.enrolment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_who_and_cannot_be_made_or_changed() {
        let (ours, others) = (Signer::new(&[1; 32]), Signer::new(&[2; 32]));
        let who = Enrolled { host: HostId::new(), enrolment: 3 };
        let token = ours.sign(who).unwrap();
        assert_eq!(ours.check(&token), Some(who));
        assert_eq!(others.check(&token), None);
        let mut parts: Vec<&str> = token.split('.').collect();
        // `{"alg":"none"}`
        parts[0] = "eyJhbGciOiJub25lIn0";
        assert_eq!(ours.check(&parts.join(".")), None);
        parts[2] = "";
        assert_eq!(ours.check(&parts.join(".")), None);
        assert_eq!(ours.check(""), None);
    }

    #[test]
    fn a_minute_of_skew_is_tolerated_and_no_more() {
        let signer = Signer::new(&[1; 32]);
        let expired = |seconds: i64| {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            let claims = Claims {
                iss: ISSUER.to_owned(),
                aud: AUDIENCE.to_owned(),
                sub: HostId::new().to_string(),
                enrolment: 1,
                iat: now - 1000,
                exp: now - seconds,
            };
            encode(&Header::new(Algorithm::HS256), &claims, &signer.encoding).unwrap()
        };
        assert!(signer.check(&expired(50)).is_some());
        assert!(signer.check(&expired(70)).is_none());
    }
}
