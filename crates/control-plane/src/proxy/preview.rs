//! Preview links: access to one port of a capsule for a browser, until a set time. The platform
//! signs them with a secret of its own, so nothing is stored. A link is good for no other port or
//! capsule. Each link names its maker and the capsule's generation of links, and ends with either.
//! Its first use exchanges it for a cookie of that host name alone.

use super::target::Target;
use crate::auth::origin::Transport;
use crate::auth::session;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;
use std::fmt;
use std::str::FromStr;
use types::{ApiKeyId, UserId};

/// Name of the query's field.
pub(crate) const FIELD: &str = "wrenn-preview";
/// Names of the cookie, by TLS and in plain text. No other host can set the first one (RFC 6265bis,
/// 4.1.3).
const COOKIES: [&str; 2] = ["__Host-wrenn-preview", "wrenn-preview"];

/// Maker whose right a link passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    User(UserId),
    Key(ApiKeyId),
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => id.fmt(f),
            Self::Key(id) => id.fmt(f),
        }
    }
}

impl FromStr for Maker {
    type Err = types::ids::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::User).or_else(|_| text.parse().map(Self::Key))
    }
}

/// Contents of a link, beside the port and the capsule that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// End of the link, in seconds since 1970.
    pub until: i64,
    /// The capsule's generation of links when the link was made.
    pub generation: i64,
    pub maker: Maker,
}

impl Link {
    fn mac(&self, secret: &[u8], target: Target) -> Hmac<Sha256> {
        // An HMAC's key may have any length, so this cannot fail.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret)
            .unwrap_or_else(|_| Hmac::new(&hmac::digest::Key::<Hmac<Sha256>>::default()));
        let (Target { capsule, port }, Self { until, generation, maker }) = (target, self);
        let text = format!("wrenn preview 2\n{capsule}\n{port}\n{until}\n{generation}\n{maker}");
        mac.update(text.as_bytes());
        mac
    }

    /// Signs the link's token.
    pub(crate) fn sign(&self, secret: &[u8], target: Target) -> String {
        let tag = URL_SAFE_NO_PAD.encode(self.mac(secret, target).finalize().into_bytes());
        format!("{}.{}.{}.{tag}", self.until, self.generation, self.maker)
    }

    /// Reads a token; `None` when it is not ours, or for another capsule or port.
    pub(crate) fn read(secret: &[u8], target: Target, token: &str) -> Option<Self> {
        let mut parts = token.splitn(4, '.');
        let (until, generation) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let link = Self { until, generation, maker: parts.next()?.parse().ok()? };
        let tag = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
        link.mac(secret, target).verify_slice(&tag).ok().map(|()| link)
    }
}

/// Removes the link's field from a query. Returns the token, and the path with the rest of the
/// query.
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

/// Returns the tokens in a request's cookies of the only name that counts.
pub(crate) fn from_cookies(headers: &HeaderMap, transport: Transport) -> Vec<&str> {
    let ours = session::cookies(headers).filter(|(name, _)| *name == transport.name(COOKIES));
    ours.map(|(_, value)| value).collect()
}

/// Common part of the names of the platform's cookies.
const OURS: &str = "wrenn-";

/// Reports whether a cookie is the platform's: a link's, a session's or a sign-in's.
fn is_ours(cookie: &str) -> bool {
    let name = cookie.split_once('=').map_or("", |(name, _)| name.trim());
    COOKIES.contains(&name) || session::is_ours(name)
}

/// Removes the platform's cookies from a request, and leaves the others unchanged.
pub(crate) fn strip_cookies(headers: &mut HeaderMap) {
    // Every such name contains `wrenn-`, so most requests need no parsing.
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

/// Returns the header that sets the cookie for a link.
pub(crate) fn cookie(token: &str, seconds: i64, transport: Transport) -> HeaderValue {
    transport.cookie(COOKIES, Some(token), seconds.unsigned_abs())
}

/// Confines a guest's cookies to its own host name. With a domain, a cookie would reach the names
/// of other capsules. A cookie with the name of the preview cookie is dropped.
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
    fn preview_link_is_valid_only_for_its_secret_port_and_capsule() {
        let target = Target { capsule: CapsuleId::new(), port: 80 };
        for maker in [Maker::User(UserId::new()), Maker::Key(ApiKeyId::new())] {
            let link = Link { until: 1000, generation: 2, maker };
            let token = link.sign(b"secret", target);
            assert_eq!(Link::read(b"secret", target, &token), Some(link));
            let port = Target { port: 81, ..target };
            let capsule = Target { capsule: CapsuleId::new(), ..target };
            assert_eq!(Link::read(b"secret", port, &token), None);
            assert_eq!(Link::read(b"secret", capsule, &token), None);
            assert_eq!(Link::read(b"other", target, &token), None);
            let later = token.replacen("1000.", "9999.", 1);
            let newer = token.replacen(".2.", ".3.", 1);
            let others = token.replace(&maker.to_string(), &UserId::new().to_string());
            let before = format!("1000.{}", token.rsplit('.').next().unwrap());
            for bad in ["", ".", "1000.", "x.y", "...", &later, &newer, &others, &before] {
                assert_eq!(Link::read(b"secret", target, bad), None, "{bad}");
            }
        }
    }

    #[test]
    fn preview_field_is_removed_and_rest_of_query_is_unchanged() {
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
    fn only_preview_cookies_are_read_and_stripped() {
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
    fn guest_cookies_lose_domain_and_cannot_set_preview_cookie() {
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
