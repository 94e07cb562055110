//! Headers that concern a single hop (RFC 9110, 7.6.1), and requests to switch protocols.

use http::{HeaderMap, HeaderName, HeaderValue, header};

const HOP_BY_HOP: [HeaderName; 7] = [
    // Each hop asks for a body when it is ready for it.
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Returns the protocol that a request or an answer switches to.
#[must_use]
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked =
        listed(headers, &header::CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Removes headers that concern the hop that a message came over. Sets `TE: trailers` anew, since
/// the next hop can take trailers too.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = listed(headers, &header::CONNECTION)
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .collect();
        for name in named {
            // Headers about the body's framing and the message's target are no option of a hop.
            if !matches!(name, header::CONTENT_LENGTH | header::HOST | header::TE) {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    // A message with both kinds of length has the transfer coding's (RFC 9112, 6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        let trailers =
            listed(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, TRAILERS);
        }
    }
}

/// Joins several `Cookie` headers, which HTTP/2 may send, into the single header of HTTP/1.1 (RFC
/// 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), true) = (cookies.next(), cookies.next().is_some()) else { return };
    let mut all = first.as_bytes().to_vec();
    for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(header::COOKIE, all);
    }
}

/// Sets the headers that ask for a switch to a protocol, or confirm it.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Yields the elements of a list header.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn strip_removes_hop_by_hop_headers_and_those_named_by_connection() {
        let mut headers = map(&[
            ("connection", "Keep-Alive, X-Mine"),
            ("connection", "close"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("x-other", "2"),
        ]);
        strip(&mut headers);
        assert_eq!(headers, map(&[("trailer", "x-sum"), ("x-other", "2"), ("te", "trailers")]));
    }

    #[test]
    fn connection_header_cannot_remove_content_length_or_host() {
        let mut headers =
            map(&[("connection", "content-length, host"), ("content-length", "3"), ("host", "x")]);
        strip(&mut headers);
        assert_eq!(headers, map(&[("content-length", "3"), ("host", "x")]));
    }

    #[test]
    fn strip_removes_content_length_beside_transfer_encoding() {
        let mut headers = map(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        strip(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn cookies_are_joined_into_one_header() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3"), ("x", "y")]));
        let mut one = map(&[("cookie", "a=1")]);
        join_cookies(&mut one);
        assert_eq!(one, map(&[("cookie", "a=1")]));
    }

    #[test]
    fn upgrade_requires_connection_and_upgrade_headers() {
        let asked = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(&asked).unwrap(), "websocket");
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&map(&[("connection", "upgrade")])).is_none());
    }
}
