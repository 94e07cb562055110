//! The host that a connection or a request asks for: TLS's server name, or HTTP's host. Pure. A
//! guest may write any name. Callers check that the address belongs to that host.

use http::uri::Authority;
use http::{HeaderMap, Uri, header};
use types::Egress;

/// Most headers of a request that are examined.
const HEADERS_MAX: usize = 100;

/// A host as a connection or a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// The only host in the request: a name in lower case, or an address.
    Host(String),
    /// A host that may stand in for another, whose name is encrypted (ECH, RFC 9849).
    Cover(String),
    /// No host can be read.
    Unreadable,
}

impl Asked {
    /// Returns the name, if one can be read.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Host(name) | Self::Cover(name) => Some(name),
            Self::Unreadable => None,
        }
    }
}

/// Decision on a connection or request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The name is allowed, so the address must belong to that name.
    IfItsOwn,
    Yes,
    No,
}

/// Decides by the requested host and the destination address. Rules that deny any name also deny
/// everything that may hide a name.
pub(super) fn decide(egress: &Egress, asked: &Asked, to: std::net::Ipv4Addr) -> Verdict {
    let hides = matches!(asked, Asked::Cover(_) | Asked::Unreadable);
    if hides && egress.denies_names() {
        return Verdict::No;
    }
    match asked.name().and_then(|name| egress.admits_name(name)) {
        Some(true) => Verdict::IfItsOwn,
        Some(false) => Verdict::No,
        None if egress.admits_address(to) => Verdict::Yes,
        None => Verdict::No,
    }
}

/// Returns the host that a request asks for. Exactly one `Host` line must name it, and a target in
/// absolute form must agree with that line.
pub(super) fn of_request(target: &Uri, headers: &HeaderMap) -> Asked {
    let hosts = headers.get_all(header::HOST).iter().map(http::HeaderValue::as_bytes);
    agreed(hosts, target.authority())
}

/// Returns the host that the first bytes of a connection ask for by HTTP/1; `None` while more bytes
/// are needed.
pub(super) fn of_head(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some(Asked::Unreadable),
    }
    let hosts = request.headers.iter().filter(|one| one.name.eq_ignore_ascii_case("host"));
    let Some(Ok(target)) = request.path.map(str::parse::<Uri>) else {
        return Some(Asked::Unreadable);
    };
    Some(agreed(hosts.map(|host| host.value), target.authority()))
}

fn agreed<'a>(mut hosts: impl Iterator<Item = &'a [u8]>, target: Option<&Authority>) -> Asked {
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Asked::Unreadable };
    let Some(host) = std::str::from_utf8(host).ok().and_then(plain) else {
        return Asked::Unreadable;
    };
    match target.map(|target| plain(target.as_str())) {
        None => Asked::Host(host),
        Some(Some(target)) if target == host => Asked::Host(host),
        Some(_) => Asked::Unreadable,
    }
}

/// Returns a host's name or address without its port. Servers differ in reading anything else.
fn plain(text: &str) -> Option<String> {
    let authority = text.trim_matches([' ', '\t']).parse::<Authority>().ok()?;
    let host = authority.host().to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?;
        return Some(format!("[{address}]"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| !label.is_empty() && label.bytes().all(legal);
    (!text.contains('@') && host.split('.').all(label)).then(|| host.to_owned())
}

/// Counts a connection or a request that was refused by name.
pub(super) fn count_refused() {
    metrics::counter!("wrenn_egress_refused_total").increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_rules_precede_address_rules_and_allowed_names_are_verified() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let ip = "9.9.9.9".parse().unwrap();
        let host = |name: &str| Asked::Host(name.to_owned());
        let closed = Egress { allow: read(&["*.a.com"]), deny: read(&["0.0.0.0/0"]), revision: 0 };
        assert_eq!(decide(&closed, &host("x.a.com"), ip), Verdict::IfItsOwn);
        assert_eq!(decide(&closed, &Asked::Cover("x.a.com".to_owned()), ip), Verdict::IfItsOwn);
        assert_eq!(decide(&closed, &host("a.com"), ip), Verdict::No);
        assert_eq!(decide(&closed, &Asked::Unreadable, ip), Verdict::No);
        let some = Egress { allow: read(&["a.com"]), deny: read(&["8.0.0.0/8"]), revision: 0 };
        assert_eq!(decide(&some, &Asked::Unreadable, ip), Verdict::Yes);
    }

    #[test]
    fn unreadable_host_is_denied_where_any_name_is_denied() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let ip = "9.9.9.9".parse().unwrap();
        let host = |name: &str| Asked::Host(name.to_owned());
        let open = Egress { deny: read(&["b.com"]), ..Egress::default() };
        assert_eq!(decide(&open, &host("b.com"), ip), Verdict::No);
        assert_eq!(decide(&open, &host("a.com"), ip), Verdict::Yes);
        assert_eq!(decide(&open, &host("9.9.9.9"), ip), Verdict::Yes);
        assert_eq!(decide(&open, &Asked::Unreadable, ip), Verdict::No);
        assert_eq!(decide(&open, &Asked::Cover("a.com".to_owned()), ip), Verdict::No);
    }

    #[test]
    fn request_host_is_parsed_and_two_hosts_are_refused() {
        let host = |text: &str| of_head(text.as_bytes());
        let wanted = Some(Asked::Host("example.com".to_owned()));
        assert_eq!(host("GET / HTTP/1.1\r\nhost: Example.com:80\r\n\r\n"), wanted);
        assert_eq!(host("GET / HTTP/1.1\r\nA: b\r\nHost: example.com.\r\n\r\n"), wanted);
        assert_eq!(host("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"), wanted);
        assert_eq!(host("GET / HTTP/1.1\r\nHost: exam"), None);
        for none in [
            "GET http://x.org/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: a.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x@example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: ex%61mple.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example..com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: example.com, b.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\n b.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\n",
            "SSH-2.0-x\r\n",
            "\0\0",
        ] {
            assert_eq!(host(none), Some(Asked::Unreadable), "{none}");
        }
    }
}
