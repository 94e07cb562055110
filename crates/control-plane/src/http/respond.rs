//! Middleware around every request: its id and trace, the body of an error, its log line and its
//! metrics.

use super::compat_e2b;
use super::compat_wrenn_v0::CompatRequest;
use crate::error::Failure;
use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use daemon::trace::{TRACEPARENT, Trace, TraceParent};
use http::header::{self, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method};
use std::time::Instant;

const REQUEST_ID: &str = "x-request-id";

/// Returns the metric label of a method. Unknown methods share one label, since the number of
/// labels must be bounded.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Adds the headers that restrict browsers. A browser must take the content type as it is, and show
/// no answer in a frame.
fn protect(headers: &mut HeaderMap) {
    let policy = "default-src 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, policy),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// Returns the trace that a client names, if its header is valid. Several headers name none.
fn given(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(first), None) = (given.next(), given.next()) else { return None };
    TraceParent::parse(first.to_str().ok()?)
}

/// Answers a request in its trace.
pub(super) async fn respond(request: Request, next: Next) -> Response {
    let method = method_label(request.method());
    // The label is the pattern, never the path: a path may hold ids, and the number of labels must
    // be bounded.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let trace = Trace::begin(&format!("{method} {route}"), given(request.headers()));
    Box::pin(trace.scope(answer(request, next, (method, route)))).await
}

async fn answer(request: Request, next: Next, (method, route): (&'static str, String)) -> Response {
    let started = Instant::now();
    let id = uuid::Uuid::new_v4().simple().to_string();
    let (asked, of_e2b) = (request.method().clone(), compat_e2b::serves(request.uri().path()));
    let of_compat = request.extensions().get::<CompatRequest>().is_some();
    let mut response = next.run(request).await;
    if let Some(Failure(error)) = response.extensions_mut().remove::<Failure>() {
        error.log(&id);
        let (status, wait) = (response.status(), error.retry_after());
        response = match of_e2b {
            true => compat_e2b::refuse(&asked, &error, status),
            false => {
                let detail = api::ErrorDetail {
                    code: error.code().to_owned(),
                    message: match of_compat {
                        true => error.by_former_name(),
                        false => error.to_string(),
                    },
                    request_id: id.clone(),
                };
                (status, Json(api::ErrorBody { error: detail })).into_response()
            }
        };
        if let Some(wait) = wait {
            response.headers_mut().insert(RETRY_AFTER, wait.into());
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    protect(response.headers_mut());
    let (status, took) = (response.status().as_u16(), started.elapsed());
    tracing::debug!(request_id = id, method, route, status, ?took, "answered a request");
    let labels = [("method", method.to_string()), ("route", route), ("status", status.to_string())];
    metrics::counter!("wrenn_http_requests_total", &labels).increment(1);
    metrics::histogram!("wrenn_http_request_seconds", &labels[..2]).record(took.as_secs_f64());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_valid_header_names_a_trace_and_others_name_none() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
            }
            given(&headers).map(|given| given.to_string())
        };
        assert_eq!(of(&[valid]).as_deref(), Some(valid));
        for other in [&[][..], &["x"], &[valid, valid], &["00-0-0-00"]] {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
