//! The client commands' way to the API: one request each, errors as the server words them.

use crate::cli::Api;
use crate::client_file::ClientFile;
use anyhow::Context;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

const KEY: &str = "X-API-Key";

/// A platform, and the right to use it.
pub(crate) struct Client {
    base: String,
    key: String,
    http: reqwest::Client,
}

impl Client {
    /// Takes what was given, and the rest from this machine's own platform.
    ///
    /// # Errors
    /// When neither says where the platform is.
    pub(crate) fn new(api: &Api, file: &Path) -> anyhow::Result<Self> {
        let kept = ClientFile::load(file);
        let url = api.url.clone().or_else(|| kept.as_ref().map(|k| k.url.clone()));
        let key = api.api_key.clone().or_else(|| kept.map(|k| k.api_key));
        let (Some(url), Some(key)) = (url, key) else {
            anyhow::bail!(
                "no platform is known: start one with `wrenn up`, or set WRENN_BASE_URL and \
                 WRENN_API_KEY"
            );
        };
        // A second call, as in tests, keeps the first one's choice.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { base: url.trim_end_matches('/').to_owned(), key, http })
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header(KEY, &self.key)
    }

    /// Sends a request; an answer that is no success becomes the server's error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| {
            format!("asking the platform at {}; does it run? (`wrenn up`)", self.base)
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.unwrap_or_default();
        match serde_json::from_str::<api::ErrorBody>(&text) {
            Ok(body) => anyhow::bail!("{} ({})", body.error.message, body.error.code),
            Err(_) => anyhow::bail!("the platform answered {status}"),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        Ok(self.send(self.request(Method::POST, path).json(body)).await?.json().await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path)).await.map(|_| ())
    }
}
