//! The OpenAPI document, and a page that shows it without the internet.

use super::rules;
use axum::body::Bytes;
use axum::response::Html;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use std::sync::OnceLock;
use utoipa::OpenApi as _;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr};

/// Extension of an operation in the document that holds its access rule.
const ACCESS: &str = "x-wrenn-access";
const PAGE: &str = include_str!("docs.html");
/// Content security policy of the page. The policy allows the page's own script and style, and no
/// other host.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Runs untrusted programs, each in a microVM of its own.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(api::StreamRequest, api::StreamEvent, api::PtyRequest, api::PtyEvent)),
    security(("api_key" = []), ("user" = []))
)]
struct Head;

/// Returns the document without its routes.
pub(super) fn head() -> OpenApi {
    let mut document = Head::openapi();
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("api_key", key);
    let host = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("host", host);
    let user = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("user", user);
    document
}

/// Adds the access rule to every operation, and a description to every answer that lacks one.
/// OpenAPI requires the description; the default is HTTP's reason phrase for the status.
pub(super) fn describe(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
            (Method::PATCH, &mut item.patch),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            if let Some(rule) = rules::of(&method, path) {
                let access = serde_json::json!(rule.as_str());
                operation.extensions.get_or_insert_default().insert(ACCESS.to_owned(), access);
            }
            for (status, answer) in &mut operation.responses.responses {
                if let RefOr::T(answer) = answer
                    && answer.description.is_empty()
                {
                    answer.description = words_for(status).to_owned();
                }
            }
        }
    }
}

fn words_for(status: &str) -> &'static str {
    match status {
        "4XX" => "The request is wrong, or not allowed",
        "5XX" => "The platform cannot do it now",
        status => {
            let status = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            status.and_then(|status| status.canonical_reason()).unwrap_or("Done")
        }
    }
}

/// Returns the OpenAPI document of this API.
#[utoipa::path(
    operation_id = "get_openapi",
    get, path = "/openapi.json", tag = "platform", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(crate) async fn document() -> ([(http::HeaderName, HeaderValue); 1], Bytes) {
    // The document is written only once, since anybody may request it at any rate.
    static ONE: OnceLock<Bytes> = OnceLock::new();
    let written = ONE.get_or_init(|| super::openapi().to_json().unwrap_or_default().into());
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], written.clone())
}

/// Returns a page for people that shows this API.
#[utoipa::path(
    operation_id = "get_docs",
    get, path = "/docs", tag = "platform", security(()),
    responses((status = 200, description = "a page", content_type = "text/html"))
)]
pub(crate) async fn page() -> ([(http::HeaderName, HeaderValue); 1], Html<&'static str>) {
    ([(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))], Html(PAGE))
}
