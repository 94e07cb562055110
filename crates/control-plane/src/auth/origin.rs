//! Finds a request's client address and transport. Only a proxy on this machine is believed about
//! them.

use crate::domains::PublicUrl;
use http::header::HeaderName;
use http::{Extensions, HeaderMap, HeaderValue};
use std::net::{IpAddr, SocketAddr};

pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Marks a request that came by TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByTls;

/// The other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub SocketAddr);

impl Peer {
    /// Reports whether the peer is believed about other addresses.
    pub(crate) fn is_proxy(self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }

    /// Returns the client's address. A proxy adds the address that it saw at the end. Everything
    /// before that, in this header line or an earlier one, is the client's own claim.
    pub(crate) fn client(self, headers: &HeaderMap) -> IpAddr {
        let own = self.0.ip().to_canonical();
        let last = headers.get_all(FORWARDED_FOR).iter().next_back().filter(|_| self.is_proxy());
        let last = last.and_then(|line| line.to_str().ok()?.rsplit(',').next());
        last.and_then(|word| address(word.trim())).unwrap_or(own)
    }

    /// Reports whether the client came by TLS, to this process or to the proxy.
    pub(crate) fn came_by_tls(self, headers: &HeaderMap, extensions: &Extensions) -> bool {
        let said = headers.get_all(FORWARDED_PROTO).iter().next_back();
        let said = said.filter(|_| self.is_proxy()).map(HeaderValue::as_bytes);
        extensions.get::<ByTls>().is_some() || said == Some(b"https")
    }
}

/// Reads an address as proxies write it: with or without a port, IPv6 in brackets or not.
fn address(word: &str) -> Option<IpAddr> {
    let bare = word.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse().ok();
    let address: Option<IpAddr> = address.or_else(|| Some(word.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

/// Transport of a browser's request, which decides the names of our cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tls,
    Plain,
}

impl Transport {
    /// Returns the transport of a request. With an HTTPS public URL, every request counts as TLS.
    pub(crate) fn of(public: &PublicUrl, by_tls: bool) -> Self {
        if by_tls || public.is_https() { Self::Tls } else { Self::Plain }
    }

    /// Returns the name of a cookie. By TLS, no other host can set it, in particular no capsule's
    /// page. Browsers accept `__Host-` names only from their own host (RFC 6265bis, 4.1.3.2).
    pub(crate) fn name(self, names: [&'static str; 2]) -> &'static str {
        let [tls, plain] = names;
        match self {
            Self::Tls => tls,
            Self::Plain => plain,
        }
    }

    /// Writes a cookie of this host alone; without a value, a cookie that expires at once.
    pub(crate) fn cookie(
        self,
        names: [&'static str; 2],
        value: Option<&str>,
        seconds: u64,
    ) -> HeaderValue {
        let (name, value) = (self.name(names), value.unwrap_or(""));
        let age = if value.is_empty() { 0 } else { seconds };
        let mark = if self == Self::Tls { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{mark}");
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_last_forwarded_for_of_loopback_proxy_is_trusted() {
        let client = |peer: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            Peer(peer.parse().unwrap()).client(&headers).to_string()
        };
        for (peer, lines, wanted) in [
            ("127.0.0.1:9", &["192.0.2.1"][..], "192.0.2.1"),
            ("[::ffff:127.0.0.1]:9", &["192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1:9", &["198.51.100.9, 192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1:9", &["198.51.100.9", "192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1:9", &["198.51.100.9, 203.0.113.5", "203.0.113.6, 192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1:9", &["192.0.2.1:4711"], "192.0.2.1"),
            ("127.0.0.1:9", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("127.0.0.1:9", &["[2001:db8::1]"], "2001:db8::1"),
            ("127.0.0.1:9", &["::ffff:192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1:9", &["192.0.2.1, unknown"], "127.0.0.1"),
            ("127.0.0.1:9", &[], "127.0.0.1"),
            ("192.0.2.9:9", &["198.51.100.9"], "192.0.2.9"),
        ] {
            assert_eq!(client(peer, lines), wanted, "{peer} {lines:?}");
        }
    }

    #[test]
    fn only_last_forwarded_proto_of_loopback_proxy_is_trusted() {
        let tls = |peer: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_PROTO, HeaderValue::from_static(line));
            }
            Peer(peer.parse().unwrap()).came_by_tls(&headers, &Extensions::new())
        };
        assert!(tls("127.0.0.1:9", &["https"]) && tls("127.0.0.1:9", &["http", "https"]));
        assert!(!tls("127.0.0.1:9", &["https", "http"]) && !tls("127.0.0.1:9", &[]));
        assert!(!tls("192.0.2.9:9", &["https"]));
        let mut own = Extensions::new();
        own.insert(ByTls);
        let peer = Peer("192.0.2.9:9".parse().unwrap());
        assert!(peer.came_by_tls(&HeaderMap::new(), &own));
    }

    #[test]
    fn tls_cookies_have_the_host_prefix() {
        let names = ["__Host-a", "a"];
        assert_eq!(
            Transport::Tls.cookie(names, Some("1"), 5),
            "__Host-a=1; Path=/; Max-Age=5; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(
            Transport::Plain.cookie(names, None, 5),
            "a=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"
        );
    }
}
