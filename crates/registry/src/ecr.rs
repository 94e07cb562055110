//! Passwords of Amazon ECR. A key of AWS is exchanged for a password of 12 hours.

use crate::error::{Error, Result};
use crate::login::Login;
use crate::secret::Secret;
use crate::sigv4::{self, Scope};
use crate::transport::{Request, Sender, Transport};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use time::OffsetDateTime;

/// Name of the call, by ECR's API reference of 2015-09-21.
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const JSON: &str = "application/x-amz-json-1.1";
/// Largest answer, in bytes. Real ones have about 3 KiB.
const ANSWER_MAX: u64 = 64 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    /// Base64 of user and password, as the `Basic` scheme sends them.
    authorization_token: Secret,
}

/// Exchanges an AWS key for the credentials of the `Basic` scheme.
///
/// # Errors
/// Returns `Login` for registries other than ECR's, `AccessDenied` when AWS refuses the key, and
/// errors of the request.
pub(crate) async fn basic(transport: &Transport, login: &Login, by: &Sender<'_>) -> Result<Secret> {
    let Login::Aws { access_key_id, secret_access_key, region, session_token } = login else {
        return Err(wrong(by, "it is no key of AWS"));
    };
    let url = match &transport.settings().ecr_endpoint {
        Some(url) => url.clone(),
        // A password is good for all registries of the account, so no other server gets it.
        None if !is_ecr(by.registry) => {
            return Err(wrong(by, "an AWS key is for Amazon's ECR alone"));
        }
        None if region.starts_with("cn-") => format!("https://api.ecr.{region}.amazonaws.com.cn/"),
        None => format!("https://api.ecr.{region}.amazonaws.com/"),
    };
    let url = Url::parse(&url).map_err(|_| wrong(by, "`ecr_endpoint` is no URL"))?;
    let scope = Scope { region, service: "ecr", at: OffsetDateTime::now_utc() };
    let (host, date) = (crate::guard::authority(&url), scope.date_time());
    let mut headers = vec![("content-type", JSON), ("host", host.as_str()), ("x-amz-date", &date)];
    if let Some(token) = session_token {
        headers.push(("x-amz-security-token", token.expose()));
    }
    headers.push(("x-amz-target", TARGET));
    let signed = sigv4::Request { method: "POST", headers: &headers, body: b"{}" };
    let authorization = sigv4::authorization(&signed, &scope, access_key_id, secret_access_key);
    let mut request = Request::get(url, "ECR's API");
    request.method = Method::POST;
    request.authorization = Some(authorization);
    request.body = Some("{}".into());
    for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_str(value)) else {
            return Err(wrong(by, "its session token fits in no header"));
        };
        value.set_sensitive(name != CONTENT_TYPE);
        request.headers.insert(name, value);
    }
    let answer = transport.send(request, by).await?.response;
    let status = answer.status().as_u16();
    if matches!(status, 400 | 401 | 403) {
        let hint = "; AWS refuses the login's key".to_owned();
        return Err(Error::AccessDenied { image: by.image.to_owned(), hint });
    }
    if status != 200 {
        let text = " (ECR's GetAuthorizationToken)".to_owned();
        return Err(Error::Status { registry: by.registry.to_owned(), status, text });
    }
    let body = transport.body(answer, ("the answer of ECR's API", ANSWER_MAX), by).await?;
    let malformed = || Error::Protocol {
        registry: by.registry.to_owned(),
        why: "ECR's API gives no authorization token".to_owned(),
    };
    let parsed: Answer = serde_json::from_slice(&body).map_err(|_| malformed())?;
    let first = parsed.authorization_data.into_iter().next().ok_or_else(malformed)?;
    let token = first.authorization_token;
    // Anything else than Base64 would not fit in the header.
    STANDARD.decode(token.expose()).map_err(|_| malformed())?;
    Ok(token)
}

/// Reports whether a host is a private registry of ECR: an account's number, `dkr.ecr`, a region.
fn is_ecr(host: &str) -> bool {
    let mut parts = host.split('.');
    let account = parts.next().unwrap_or("");
    account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && parts.next() == Some("dkr")
        && matches!(parts.next(), Some("ecr" | "ecr-fips"))
        && parts.next().is_some()
        && matches!(
            parts.collect::<Vec<_>>().join(".").as_str(),
            "amazonaws.com" | "amazonaws.com.cn"
        )
}

fn wrong(by: &Sender<'_>, why: &'static str) -> Error {
    Error::Login { registry: by.registry.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_registries_of_ecr_get_a_password() {
        assert!(is_ecr("123456789012.dkr.ecr.eu-west-1.amazonaws.com"));
        assert!(is_ecr("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com"));
        assert!(is_ecr("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"));
        for other in [
            "evil.example",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "12345.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "public.ecr.aws",
        ] {
            assert!(!is_ecr(other), "{other}");
        }
    }
}
