//! Keeps requests away from special addresses: loopback, link-local (the cloud's metadata), private
//! and others. A registry chooses redirects and token servers, and whoever builds a template chooses
//! the registry. A connection goes to the very address that was checked.

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use types::only_public;

/// Resolves names to their public addresses alone.
pub(crate) struct Public;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(only_public(found)?.into_iter()) as Addrs)
        })
    }
}

/// Reports whether a URL's host is a private IP address. Such an address involves no resolver.
pub(crate) fn is_private_literal(url: &Url) -> bool {
    url.host_str().is_some_and(types::is_private_literal)
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
