//! Tokens by which hosts identify themselves. A secret that the replicas share through the database
//! signs them.

use crate::auth::token;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::HostId;

/// Lifetime of a host's token.
pub(super) const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
const AUDIENCE: &str = "wrenn-host";

#[derive(Debug, Serialize, Deserialize)]
struct Own {
    /// Enrolment that the token belongs to.
    enrolment: i32,
}

/// A host, as identified by its token, and its enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enrolled {
    pub host: HostId,
    pub enrolment: i32,
}

/// Signs the tokens of hosts, and checks them.
pub(crate) struct Signer(token::Signer);

impl Signer {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self(token::Signer::new(secret, AUDIENCE))
    }

    pub(crate) fn sign(&self, who: Enrolled) -> Result<String> {
        self.0.sign(who.host.to_string(), Own { enrolment: who.enrolment }, LIFE)
    }

    /// Returns the host and enrolment of a token; `None` when its signature is wrong or it has
    /// expired.
    pub(crate) fn check(&self, token: &str) -> Option<Enrolled> {
        let (host, Own { enrolment }) = self.0.check(token)?;
        Some(Enrolled { host: host.parse().ok()?, enrolment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_token_names_its_host_and_cannot_be_forged() {
        let (ours, others) = (Signer::new(&[1; 32]), Signer::new(&[2; 32]));
        let who = Enrolled { host: HostId::new(), enrolment: 3 };
        let token = ours.sign(who).unwrap();
        assert_eq!(ours.check(&token), Some(who));
        assert_eq!(others.check(&token), None);
        let mut parts: Vec<&str> = token.split('.').collect();
        // The header is `{"alg":"none"}`.
        parts[0] = "eyJhbGciOiJub25lIn0";
        assert_eq!(ours.check(&parts.join(".")), None);
        parts[2] = "";
        assert_eq!(ours.check(&parts.join(".")), None);
        assert_eq!(ours.check(""), None);
    }

    #[test]
    fn clock_skew_is_tolerated_up_to_a_minute() {
        let signer = Signer::new(&[1; 32]);
        let expired = |seconds: i64| {
            let now = time::OffsetDateTime::now_utc().unix_timestamp();
            let (host, own) = (HostId::new().to_string(), Own { enrolment: 1 });
            signer.0.sign_until(host, own, now - seconds).unwrap()
        };
        assert!(signer.check(&expired(50)).is_some());
        assert!(signer.check(&expired(70)).is_none());
    }
}
