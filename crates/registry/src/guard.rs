//! Keeps requests away from special addresses: loopback, link-local (the cloud's metadata), private
//! and others. A registry chooses redirects and token servers, and whoever builds a template chooses
//! the registry. A connection goes to the very address that was checked.

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use types::is_public;

/// Resolves names to their public addresses alone.
pub(crate) struct Public;

/// The reason why the resolver gave no address.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
pub(crate) struct NoPublicAddress;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|at| is_public(at.ip())).collect();
            if public.is_empty() {
                return Err(NoPublicAddress.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Reports whether a URL's host is a private IP address. Such an address involves no resolver.
pub(crate) fn is_private_literal(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("").trim_matches(['[', ']']);
    host.parse::<IpAddr>().is_ok_and(|ip| !is_public(ip))
}

/// Returns a URL's host, with its port unless that is the scheme's.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or("");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "203.0.113.9",
            "::1",
            "::",
            "fe80::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn private_literal_is_recognized_in_every_notation() {
        let private = |url: &str| is_private_literal(&Url::parse(url).unwrap());
        for url in
            ["http://2130706433/", "http://0x7f.1/", "http://[::1]:80/", "https://169.254.169.254/"]
        {
            assert!(private(url), "{url}");
        }
        assert!(!private("https://example.com/") && !private("https://1.1.1.1/"));
    }

    #[test]
    fn authority_leaves_out_the_usual_port() {
        let of = |url: &str| authority(&Url::parse(url).unwrap());
        assert_eq!(of("https://A.example:443/x"), "a.example");
        assert_eq!(of("https://a.example:5000/x"), "a.example:5000");
        assert_eq!(of("http://[::1]:5000/x"), "[::1]:5000");
    }
}
