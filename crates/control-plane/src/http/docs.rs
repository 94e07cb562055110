//! The OpenAPI document, and a page that shows it without the internet.

use axum::Json;
use axum::response::Html;
use http::HeaderValue;
use http::header::CONTENT_SECURITY_POLICY;
use std::sync::OnceLock;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};

const PAGE: &str = include_str!("docs.html");
/// The page's own script and style alone; it asks nothing of other hosts.
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
    security(("api_key" = []))
)]
struct Head;

/// The document without its routes.
pub(super) fn head() -> OpenApi {
    let mut document = Head::openapi();
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("api_key", key);
    document
}

/// The OpenAPI document of this API.
#[utoipa::path(
    get, path = "/openapi.json", tag = "platform", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub(crate) async fn document() -> Json<&'static OpenApi> {
    static ONE: OnceLock<OpenApi> = OnceLock::new();
    Json(ONE.get_or_init(super::openapi))
}

/// This API as a page for people.
#[utoipa::path(
    get, path = "/docs", tag = "platform", security(()),
    responses((status = 200, description = "a page", content_type = "text/html"))
)]
pub(crate) async fn page() -> ([(http::HeaderName, HeaderValue); 1], Html<&'static str>) {
    ([(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))], Html(PAGE))
}
