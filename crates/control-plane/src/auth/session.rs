//! Proofs that a user has signed in. A session has a random token, in a cookie or kept by a
//! program; the database has its hash. A short-lived signed token (JWT) can stand for a session. No
//! proof is ever in a URL.

use super::origin::Transport;
use super::token;
use crate::error::Result;
use http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;
use subtle::ConstantTimeEq;
use types::{UserId, hex};

/// Prefix of a session's token, by which it is recognized.
pub(crate) const PREFIX: &str = "wrs_";
/// Lifetimes of a browser's session, and of a program's.
pub(crate) const BROWSER: Duration = Duration::from_secs(14 * 24 * 3600);
pub(crate) const PROGRAM: Duration = Duration::from_secs(90 * 24 * 3600);
/// Lifetime of a signed token.
pub(crate) const TOKEN: Duration = Duration::from_secs(15 * 60);
const AUDIENCE: &str = "wrenn-user";
/// Header by which a page of this platform proves its origin.
pub(crate) const CSRF: &str = "x-csrf-token";
/// Names of the session's cookie, by TLS and in plain text.
const COOKIES: [&str; 2] = ["__Host-wrenn-session", "wrenn-session"];
/// Names of the cookie that binds a sign-in elsewhere to the browser that began it.
const STATES: [&str; 2] = ["__Host-wrenn-oauth", "wrenn-oauth"];
/// Lifetime of the cookie that binds a sign-in elsewhere.
const STATE_AGE: Duration = Duration::from_secs(600);

/// Makes a session's token.
pub(crate) fn new_token() -> String {
    format!("{PREFIX}{}", crate::secret::random_hex(32))
}

/// Returns the proof that a page must send beside the cookie. It is made of the session's token,
/// which pages of other sites cannot read.
pub(crate) fn csrf(token: &str) -> String {
    hex::encode(&Sha256::digest(format!("csrf:{token}")))
}

/// Reports whether a request carries the proof that belongs to its cookie.
pub(crate) fn shows_csrf(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(CSRF).map(HeaderValue::as_bytes).unwrap_or_default();
    shown.ct_eq(csrf(token).as_bytes()).into()
}

/// Removes from a request the proof that belongs to a session's cookie in it. Any other value of
/// this header stays, since programs in guests use the same name.
pub(crate) fn strip_csrf(headers: &mut HeaderMap) {
    let is_ours = |shown: &HeaderValue| {
        cookies(headers).any(|(name, token)| {
            COOKIES.contains(&name) && shown.as_bytes() == csrf(token).as_bytes()
        })
    };
    let ours = headers.get_all(CSRF).iter().any(is_ours);
    if ours {
        headers.remove(CSRF);
    }
}

/// Reports whether the requesting page is of this very host.
pub(crate) fn same_origin(parts: &Parts) -> bool {
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    // HTTP/2 names the host only in the request's URI.
    let host = parts.uri.authority().map(Authority::as_str).or_else(|| text(HOST));
    let origin = text(ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, authority)| host == Some(authority))
}

/// Returns the token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Returns a request's cookies, as names and values.
pub(crate) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// Returns the session's token from a request's cookie. Only the name for the request's transport
/// counts.
pub(crate) fn from_cookie(headers: &HeaderMap, transport: Transport) -> Option<&str> {
    let ours = cookies(headers).filter(|(name, _)| *name == transport.name(COOKIES));
    ours.map(|(_, value)| value).find(|value| value.starts_with(PREFIX))
}

/// Returns the state of a sign-in elsewhere from a request's cookie.
pub(crate) fn state_from_cookie(headers: &HeaderMap, transport: Transport) -> Option<&str> {
    cookies(headers).find(|(name, _)| *name == transport.name(STATES)).map(|(_, value)| value)
}

/// Reports whether a cookie is the platform's own, for which no guest has a use.
pub(crate) fn is_ours(name: &str) -> bool {
    COOKIES.contains(&name) || STATES.contains(&name)
}

/// Returns the header that sets the session's cookie. Without a token, the header removes the
/// cookie.
pub(crate) fn cookie(transport: Transport, token: Option<&str>) -> HeaderValue {
    transport.cookie(COOKIES, token, BROWSER.as_secs())
}

/// Returns the header that sets the cookie of a sign-in elsewhere. Without a state, the header
/// removes the cookie.
pub(crate) fn state_cookie(transport: Transport, state: Option<&str>) -> HeaderValue {
    transport.cookie(STATES, state, STATE_AGE.as_secs())
}

#[derive(Debug, Serialize, Deserialize)]
struct Own {
    /// Hash of the session's token, since the signed token ends with the session.
    sid: String,
}

/// Signs tokens for sessions, and checks them.
pub(crate) struct Signer(token::Signer);

impl Signer {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self(token::Signer::new(secret, AUDIENCE))
    }

    pub(crate) fn sign(&self, user: UserId, session: &[u8; 32]) -> Result<String> {
        self.0.sign(user.to_string(), Own { sid: hex::encode(session) }, TOKEN)
    }

    /// Returns the hash of the session's token; `None` when the signed token is invalid or has
    /// expired.
    pub(crate) fn check(&self, word: &str) -> Option<[u8; 32]> {
        let (_, Own { sid }) = self.0.check(word)?;
        hex::decode(&sid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn session_token_expires_and_is_valid_only_for_users() {
        let (ours, others) = (Signer::new(&[1; 32]), Signer::new(&[2; 32]));
        let word = ours.sign(UserId::new(), &[7; 32]).unwrap();
        assert_eq!(ours.check(&word), Some([7; 32]));
        assert_eq!(others.check(&word), None);
        let signed = |audience, exp| {
            let own = Own { sid: hex::encode(&[7; 32]) };
            let signer = token::Signer::new(&[1; 32], audience);
            signer.sign_until(UserId::new().to_string(), own, exp).unwrap()
        };
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        assert!(ours.check(&signed(AUDIENCE, now - 30)).is_some());
        assert!(ours.check(&signed(AUDIENCE, now - 90)).is_none());
        assert!(ours.check(&signed("wrenn-host", now + 90)).is_none());
    }

    #[test]
    fn session_token_is_read_only_from_cookie_of_its_transport() {
        let cookie = headers(&[("cookie", "a=b; wrenn-session=wrs_1; c=d")]);
        let (tls, plain) = (Transport::Tls, Transport::Plain);
        assert_eq!(from_cookie(&cookie, plain), Some("wrs_1"));
        let none = headers(&[("cookie", "wrenn-session=x; wrenn-sessions=wrs_2")]);
        assert_eq!(from_cookie(&none, plain), None);
        // By TLS, a cookie that a capsule's page can set must not count, even when it comes first.
        assert_eq!(from_cookie(&cookie, tls), None);
        let both = "wrenn-session=wrs_tossed; __Host-wrenn-session=wrs_own; wrenn-oauth=t";
        let both = headers(&[("cookie", both)]);
        assert_eq!(from_cookie(&both, tls), Some("wrs_own"));
        assert_eq!(state_from_cookie(&both, tls), None);
        assert_eq!(state_from_cookie(&both, plain), Some("t"));
        assert_eq!(bearer(&headers(&[("authorization", "bearer  x ")])), Some("x"));
        assert_eq!(bearer(&headers(&[("authorization", "Basic x")])), None);
        let shown = HeaderValue::from_str(&csrf("wrs_1")).unwrap();
        let mut with = HeaderMap::new();
        assert!(!shows_csrf(&with, "wrs_1"));
        with.insert(CSRF, shown);
        assert!(shows_csrf(&with, "wrs_1") && !shows_csrf(&with, "wrs_2"));
    }

    #[test]
    fn same_origin_requires_the_requested_host() {
        let parts = |uri: &str, pairs: &[(&'static str, &'static str)]| {
            let (mut parts, ()) = http::Request::get(uri).body(()).unwrap().into_parts();
            parts.headers = headers(pairs);
            parts
        };
        let from =
            |origin| same_origin(&parts("/", &[("host", "w.example:1"), ("origin", origin)]));
        assert!(from("https://w.example:1"));
        assert!(!from("https://80-cl-x.w.example:1") && !from("null") && !from("w.example:1"));
        assert!(!same_origin(&parts("/", &[("host", "w.example")])));
        let ours = [("origin", "https://w.example")];
        assert!(same_origin(&parts("https://w.example/", &ours)));
        assert!(!same_origin(&parts("https://80-cl-x.w.example/", &ours)));
    }
}
