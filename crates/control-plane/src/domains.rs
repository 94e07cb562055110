//! Names that capsules' ports have: domains that lead to them, and the platform's public URL.

use anyhow::Context;
use types::CapsuleId;

/// First label of the API's own name.
const API: &str = "api.";

/// Domains whose names lead to capsules; any domain when none is configured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Domains(Vec<String>);

impl Domains {
    pub(crate) fn new(names: &[String]) -> Self {
        let plain = |name: &String| name.trim_matches('.').to_ascii_lowercase();
        Self(names.iter().map(plain).filter(|name| !name.is_empty()).collect())
    }

    /// Returns the configured domains.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// Reports whether a capsule may have its name below a domain.
    pub(crate) fn hold(&self, domain: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|one| one == domain)
    }

    /// Reports whether a host name, with or without a port, is `api.` before a configured domain.
    pub(crate) fn name_api(&self, host: &str) -> bool {
        let label = host.get(..API.len()).filter(|label| label.eq_ignore_ascii_case(API));
        let domain = label.and(host.get(API.len()..)).map(plain_name);
        domain.is_some_and(|domain| self.0.iter().any(|one| one.eq_ignore_ascii_case(domain)))
    }
}

/// Strips the port and the final dot from a host name.
pub(crate) fn plain_name(host: &str) -> &str {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

/// URL whose host is the domain of the capsules' names.
#[derive(Debug, Clone)]
pub(crate) struct PublicUrl {
    scheme: String,
    /// Host, with a port if the configured URL has one.
    authority: String,
}

impl PublicUrl {
    pub(crate) fn parse(url: &str) -> anyhow::Result<Self> {
        let wrong =
            || format!("WRENN_PUBLIC_URL `{url}` must have the form https://sandbox.example.com");
        let (scheme, authority) =
            url.trim_end_matches('/').split_once("://").with_context(wrong)?;
        let known = matches!(scheme, "http" | "https");
        let parsed = authority.parse::<http::uri::Authority>().with_context(wrong)?;
        anyhow::ensure!(known && !parsed.host().is_empty() && !authority.contains('@'), wrong());
        Ok(Self { scheme: scheme.to_owned(), authority: authority.to_owned() })
    }

    /// Returns the domain of the capsules' names, with its port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// Reports whether `host` is the platform's public name or a name below it, served by HTTPS.
    pub(crate) fn is_https_of(&self, host: &str) -> bool {
        let (host, public) = (host.to_ascii_lowercase(), self.authority.to_ascii_lowercase());
        let above = host.strip_suffix(&public);
        self.is_https() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }

    /// Returns the URL of a capsule's port.
    pub(crate) fn of(&self, capsule: CapsuleId, port: u16) -> String {
        format!("{}://{port}-{capsule}.{}", self.scheme, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_counts_for_the_public_name_and_names_below_it() {
        let public = PublicUrl::parse("https://Sandbox.example.com:8443").unwrap();
        for host in ["sandbox.example.com:8443", "API.sandbox.example.com:8443"] {
            assert!(public.is_https_of(host), "{host}");
        }
        for host in ["127.0.0.1:80", "sandbox.example.com", "othersandbox.example.com:8443"] {
            assert!(!public.is_https_of(host), "{host}");
        }
        let plain = PublicUrl::parse("http://sandbox.example.com").unwrap();
        assert!(!plain.is_https_of("sandbox.example.com"));
    }
}
