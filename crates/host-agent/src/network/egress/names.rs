//! Which host a connection is for, by its first bytes: the server name of TLS, the host of HTTP.
//! Pure. What they say is the guest's word; whether the address is that host's, others look.

use rustls::server::Acceptor;

/// Most of a connection's first bytes that is looked at.
pub(super) const HEAD_MAX: usize = 16 * 1024;
/// Headers of a request that are looked at.
const HEADERS_MAX: usize = 100;

/// What the first bytes say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The host that is asked for.
    Host(String),
    /// None.
    Nothing,
    /// More bytes are needed.
    More,
}

/// Of a connection to the port of HTTPS.
pub(super) fn of_tls(bytes: &[u8]) -> Said {
    // The type of a record with a handshake in it.
    if bytes.first().is_some_and(|first| *first != 22) {
        return Said::Nothing;
    }
    let (mut acceptor, mut left) = (Acceptor::default(), bytes);
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Said::Nothing, Said::Host);
            }
            Ok(None) if left.is_empty() => return Said::More,
            Ok(None) => match acceptor.read_tls(&mut left) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Said::Nothing,
            },
            Err(_) => return Said::Nothing,
        }
    }
}

/// Of a connection to the port of HTTP: of its first request. One that names two hosts names none.
pub(super) fn of_http(bytes: &[u8]) -> Said {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Said::More,
        Err(_) => return Said::Nothing,
    }
    let mut hosts = request.headers.iter().filter(|one| one.name.eq_ignore_ascii_case("host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Said::Nothing };
    let Some(host) = std::str::from_utf8(host.value).ok().and_then(plain) else {
        return Said::Nothing;
    };
    let uri = request.path.and_then(|path| path.parse::<http::Uri>().ok());
    let other = uri.as_ref().and_then(|uri| uri.authority()).map(|one| one.as_str());
    match other.map(plain) {
        None => Said::Host(host),
        Some(Some(other)) if other == host => Said::Host(host),
        Some(_) => Said::Nothing,
    }
}

/// A host's name without its port.
fn plain(text: &str) -> Option<String> {
    let authority = text.trim().parse::<http::uri::Authority>().ok()?;
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    (!host.is_empty() && !text.contains('@')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty());
        let name = name.to_owned().try_into().unwrap();
        let config = Arc::new(config.with_no_client_auth());
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_server_name_is_read_however_few_bytes_came_at_first() {
        let bytes = hello("api.example.com");
        assert_eq!(of_tls(&bytes), Said::Host("api.example.com".to_owned()));
        for cut in [0, 1, 5, 40, bytes.len() - 1] {
            assert_eq!(of_tls(&bytes[..cut]), Said::More, "{cut}");
        }
        assert_eq!(of_tls(&hello("1.2.3.4")), Said::Nothing, "an address is no name");
        assert_eq!(of_tls(b"GET / HTTP/1.1\r\n"), Said::Nothing);
        assert_eq!(of_tls(&[22, 3, 1, 0, 4, 9, 9, 9, 9]), Said::Nothing);
    }

    #[test]
    fn the_host_of_a_request_is_read_and_two_are_none() {
        let host = |text: &str| of_http(text.as_bytes());
        let wanted = Said::Host("example.com".to_owned());
        assert_eq!(host("GET / HTTP/1.1\r\nhost: Example.com:80\r\n\r\n"), wanted);
        assert_eq!(host("GET / HTTP/1.1\r\nA: b\r\nHost: example.com.\r\n\r\n"), wanted);
        assert_eq!(host("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"), wanted);
        assert_eq!(host("GET / HTTP/1.1\r\nHost: exam"), Said::More);
        for none in [
            "GET http://x.org/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x@example.com\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "SSH-2.0-x\r\n",
            "\0\0",
        ] {
            assert_eq!(host(none), Said::Nothing, "{none}");
        }
    }
}
