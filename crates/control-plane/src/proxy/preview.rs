//! Preview links: a port of a capsule for a browser, until a moment. Signed with the capsule's
//! traffic token, so that nothing is stored, a link ends with its capsule, and none is good for
//! another port or capsule. The link's first use becomes a cookie of that host name alone.

use super::target::Target;
use crate::auth::origin::Transport;
use crate::auth::session;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;

/// Name of the query's field.
pub(crate) const FIELD: &str = "wrenn-preview";
/// Names of the cookie. The first, of a secure connection, is one that no other host can set
/// (RFC 6265bis, 4.1.3).
const COOKIES: [&str; 2] = ["__Host-wrenn-preview", "wrenn-preview"];

/// What a link says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Good for so many seconds more.
    Good(i64),
    Expired,
    /// Not ours, or not for this.
    Bad,
}

fn mac(secret: &str, target: Target, until: i64) -> Hmac<Sha256> {
    // An HMAC's key may have any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .unwrap_or_else(|_| Hmac::new(&hmac::digest::Key::<Hmac<Sha256>>::default()));
    let what = format!("wrenn preview\n{}\n{}\n{until}", target.capsule, target.port);
    mac.update(what.as_bytes());
    mac
}

/// Signs a link's token; `until` is in seconds since 1970.
pub(crate) fn sign(secret: &str, target: Target, until: i64) -> String {
    let tag = mac(secret, target, until).finalize().into_bytes();
    format!("{until}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Reads a token, at a moment in seconds since 1970.
pub(crate) fn check(secret: &str, target: Target, token: &str, now: i64) -> Checked {
    let parsed = token.split_once('.').and_then(|(until, tag)| {
        Some((until.parse::<i64>().ok()?, URL_SAFE_NO_PAD.decode(tag).ok()?))
    });
    let Some((until, tag)) = parsed else { return Checked::Bad };
    if mac(secret, target, until).verify_slice(&tag).is_err() {
        return Checked::Bad;
    }
    if until <= now { Checked::Expired } else { Checked::Good(until.saturating_sub(now)) }
}

/// Takes our field out of a query; the token, and what is left of the path with its query.
pub(crate) fn from_link(path: &str) -> Option<(String, String)> {
    let (path, query) = path.split_once('?')?;
    let mut token = None;
    let mut rest = Vec::new();
    for field in query.split('&') {
        match field.split_once('=') {
            Some((FIELD, value)) => token = Some(value.to_owned()),
            _ => rest.push(field),
        }
    }
    let rest = rest.join("&");
    let rest = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
    Some((token?, rest))
}

/// The tokens in a request's cookies of the one name that counts.
pub(crate) fn from_cookies(headers: &HeaderMap, transport: Transport) -> Vec<&str> {
    let ours = session::cookies(headers).filter(|(name, _)| *name == transport.name(COOKIES));
    ours.map(|(_, value)| value).collect()
}

/// What is in every name of ours.
const OURS: &str = "wrenn-";

/// Whether a cookie is the platform's: a link's, a session's or a sign-in's.
fn is_ours(cookie: &str) -> bool {
    let name = cookie.split_once('=').map_or("", |(name, _)| name.trim());
    COOKIES.contains(&name) || session::is_ours(name)
}

/// Takes our cookies out of a request and leaves the rest as it is.
pub(crate) fn strip_cookies(headers: &mut HeaderMap) {
    // Every name of ours begins alike, but for what a browser puts before it.
    let has_ours = |value: &HeaderValue| {
        value.as_bytes().windows(OURS.len()).any(|part| part == OURS.as_bytes())
    };
    if !headers.get_all(COOKIE).iter().any(has_ours) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| {
            let Ok(text) = value.to_str() else { return Some(value.clone()) };
            let rest: Vec<&str> = text.split(';').filter(|c| !is_ours(c)).collect();
            let rest = rest.join(";");
            HeaderValue::from_str(rest.trim()).ok().filter(|rest| !rest.is_empty())
        })
        .collect();
    headers.remove(COOKIE);
    for value in kept {
        headers.append(COOKIE, value);
    }
}

/// The cookie that a link becomes.
pub(crate) fn cookie(token: &str, seconds: i64, transport: Transport) -> HeaderValue {
    transport.cookie(COOKIES, Some(token), seconds.unsigned_abs())
}

/// Keeps what a guest sets to its own host name: with a domain, a cookie would reach the names
/// of other capsules. One that has the name of ours is dropped.
pub(crate) fn confine_cookies(headers: &mut HeaderMap) {
    if !headers.contains_key(SET_COOKIE) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|value| HeaderValue::from_bytes(&confined(value.as_bytes())?).ok())
        .collect();
    headers.remove(SET_COOKIE);
    for value in kept {
        headers.append(SET_COOKIE, value);
    }
}

fn confined(cookie: &[u8]) -> Option<Vec<u8>> {
    let mut parts = cookie.split(|byte| *byte == b';');
    let pair = parts.next()?;
    let name = pair.split(|byte| *byte == b'=').next()?.trim_ascii();
    if COOKIES.iter().any(|ours| ours.as_bytes().eq_ignore_ascii_case(name)) {
        return None;
    }
    let mut out = pair.to_vec();
    for part in parts {
        let attribute = part.split(|byte| *byte == b'=').next()?.trim_ascii();
        if !attribute.eq_ignore_ascii_case(b"domain") {
            out.push(b';');
            out.extend_from_slice(part);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::CapsuleId;

    #[test]
    fn a_link_is_good_for_one_port_of_one_capsule_until_it_expires() {
        let target = Target { capsule: CapsuleId::new(), port: 80 };
        let token = sign("secret", target, 1000);
        assert_eq!(check("secret", target, &token, 900), Checked::Good(100));
        assert_eq!(check("secret", target, &token, 1000), Checked::Expired);
        let other = Target { port: 81, ..target };
        assert_eq!(check("secret", other, &token, 900), Checked::Bad);
        let other = Target { capsule: CapsuleId::new(), ..target };
        assert_eq!(check("secret", other, &token, 900), Checked::Bad);
        assert_eq!(check("other", target, &token, 900), Checked::Bad);
        let later = token.replace("1000.", "9999.");
        for bad in ["", ".", "1000.", "x.y", "9999999999999999999999.AA", &later] {
            assert_eq!(check("secret", target, bad, 900), Checked::Bad, "{bad}");
        }
    }

    #[test]
    fn the_field_is_taken_out_of_a_query_and_the_rest_stays_as_it_is() {
        let taken = |path| from_link(path).unwrap();
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(taken("/a%2F?wrenn-preview=1.x"), own("1.x", "/a%2F"));
        assert_eq!(taken("/?b=%20&wrenn-preview=1.x&&c"), own("1.x", "/?b=%20&&c"));
        assert!(from_link("/wrenn-preview=1").is_none());
        assert!(from_link("/?wrenn-previews=1").is_none());
    }

    fn cookies(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(COOKIE, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn our_cookies_are_read_and_taken_off_alone() {
        let mut headers =
            cookies(&["a=1; wrenn-preview=x; b=2", "__Host-wrenn-preview=y", "c=wrenn-preview"]);
        assert_eq!(from_cookies(&headers, Transport::Plain), ["x"]);
        assert_eq!(from_cookies(&headers, Transport::Tls), ["y"]);
        strip_cookies(&mut headers);
        assert_eq!(headers, cookies(&["a=1; b=2", "c=wrenn-preview"]));
        let mut alone = cookies(&["wrenn-preview=x"]);
        strip_cookies(&mut alone);
        assert!(alone.is_empty());
    }

    #[test]
    fn a_guests_cookies_stay_its_own() {
        let mut headers = HeaderMap::new();
        for value in
            ["a=1; Path=/; Domain=.localhost; HttpOnly", "b=2;domain = x", "wrenn-preview=z", "c"]
        {
            headers.append(SET_COOKIE, HeaderValue::from_static(value));
        }
        confine_cookies(&mut headers);
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1; Path=/; HttpOnly", "b=2", "c"]);
    }
}
