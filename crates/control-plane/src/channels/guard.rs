//! Keeps deliveries away from special addresses: loopback, link-local (the cloud's metadata),
//! private and others. Only the platform itself may reach such addresses. The client connects to
//! the very addresses that were checked here.

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::sync::Arc;
use std::time::Duration;
use types::only_public;

/// Time limit of a delivery's request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Creates a client for deliveries. The client connects only to public addresses, unless `private`
/// is set, follows no redirect and uses no proxy.
pub(crate) fn client(private: bool) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("wrenn/", env!("CARGO_PKG_VERSION")));
    if private { builder.build() } else { builder.dns_resolver(Arc::new(Public)).build() }
}

/// Reports whether a URL's host is a private IP address. Such an address involves no resolver, so
/// it is checked here.
pub(super) fn is_private_literal(url: &Url) -> bool {
    url.host_str().is_some_and(types::is_private_literal)
}

struct Public;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(only_public(found)?.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_address_is_recognized_in_every_notation() {
        let private = |url: &str| is_private_literal(&Url::parse(url).unwrap());
        for url in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]:80/",
            "http://[::ffff:10.1.1.1]/",
            "https://169.254.169.254/latest",
        ] {
            assert!(private(url), "{url}");
        }
        assert!(!private("https://example.com/") && !private("https://1.1.1.1/"));
    }

    #[tokio::test]
    async fn name_resolving_to_private_address_is_not_contacted() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("http://localhost:{port}/");
        let refused = client(false).unwrap().get(&url).send().await.unwrap_err();
        let told = format!("{:#}", anyhow::Error::from(refused));
        assert!(told.contains("no public address"), "{told}");
        let allowed = client(true).unwrap();
        tokio::select! {
            asked = allowed.get(&url).send() => panic!("answered by nobody: {asked:?}"),
            came = tokio::time::timeout(PATIENCE, listener.accept()) => assert!(came.is_ok()),
        }
    }
}
