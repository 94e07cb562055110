//! Parts of the OpenAPI document that no handler states, and a page that shows the document without
//! the internet.

use crate::auth::rule::Rule;
use axum::response::Html;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, Method, StatusCode};
use utoipa::OpenApi as _;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{Object, Schema};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Deprecated, OpenApi, RefOr};

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

/// Lists the operations of a path, each with its method.
pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let operations = [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
        (Method::PATCH, &mut item.patch),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Adds its access rule to an operation.
pub(super) fn show_access(operation: &mut Operation, rule: Rule) {
    let access = serde_json::json!(rule.as_str());
    operation.extensions.get_or_insert_default().insert(ACCESS.to_owned(), access);
}

/// Adds a description to every answer that lacks one. OpenAPI requires the description; the default
/// is HTTP's reason phrase for the status.
pub(super) fn describe(document: &mut OpenApi) {
    let operations = document.paths.paths.values_mut().flat_map(operations);
    for (status, answer) in operations.flat_map(|(_, of)| &mut of.responses.responses) {
        if let RefOr::T(answer) = answer
            && answer.description.is_empty()
        {
            answer.description = words_for(status).to_owned();
        }
    }
}

/// Adds the former name of each renamed field to its schema, as deprecated. A former name is never
/// required, not even in answers that always carry it, so that new clients can ignore it.
pub(super) fn add_former_names(document: &mut OpenApi) {
    let Some(components) = &mut document.components else { return };
    for (name, renames) in api::RENAMED {
        let schema = components.schemas.get_mut(*name);
        if let Some(RefOr::T(Schema::OneOf(frames))) = schema {
            for frame in &mut frames.items {
                if let RefOr::T(Schema::Object(frame)) = frame {
                    deprecate(frame, renames);
                }
            }
        } else if let Some(RefOr::T(Schema::Object(object))) = schema {
            deprecate(object, renames);
        }
    }
}

fn deprecate(object: &mut Object, renames: &[api::Rename]) {
    for api::Rename { former, current, .. } in renames {
        let field = object.properties.get(*current).cloned();
        let Some(RefOr::T(Schema::Object(mut field))) = field else { continue };
        let meaning = field.description.unwrap_or_default();
        field.description = Some(format!("Former name of `{current}`. {meaning}"));
        field.deprecated = Some(Deprecated::True);
        object.properties.insert((*former).to_owned(), RefOr::T(Schema::Object(field)));
    }
}

fn words_for(status: &str) -> &'static str {
    match status {
        "4XX" => "The request is invalid or not allowed",
        "5XX" => "The platform cannot complete the request now",
        status => {
            let status = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            status.and_then(|status| status.canonical_reason()).unwrap_or("Done")
        }
    }
}

/// Returns a web page that documents this API.
#[utoipa::path(
    operation_id = "get_docs",
    get, path = "/docs", tag = "platform", security(()),
    responses((status = 200, description = "Documentation page", content_type = "text/html"))
)]
pub(crate) async fn page() -> ([(http::HeaderName, HeaderValue); 1], Html<&'static str>) {
    ([(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))], Html(PAGE))
}
