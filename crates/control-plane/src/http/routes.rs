//! The builder by which routes are registered, each with its access rule. The gate refuses every
//! route that was registered in another way, since such a route has no rule.

use super::docs;
use crate::app::App;
use crate::auth::rule::{Rule, Rules};
use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use http::Method;
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

/// Registered routes with their rules and their OpenAPI document. `S` is the state of the handlers.
pub(super) struct Routes<S = Arc<App>> {
    router: OpenApiRouter<S>,
    rules: Rules,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self { router: OpenApiRouter::default(), rules: Rules::default() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Starts with a document without routes.
    pub(super) fn new(document: OpenApi) -> Self {
        Self { router: OpenApiRouter::with_openapi(document), rules: Rules::default() }
    }

    /// Registers the documented handlers of one path under a rule, which the document then shows.
    /// Handlers of the same path with another rule are registered by another call.
    pub(super) fn route(
        mut self,
        rule: Rule,
        (schemas, mut paths, handlers): UtoipaMethodRouter<S>,
    ) -> Self {
        for (pattern, item) in &mut paths.paths {
            for (method, operation) in docs::operations(item) {
                docs::show_access(operation, rule);
                self.rules.insert(method, pattern, rule);
            }
        }
        Self { router: self.router.routes((schemas, paths, handlers)), ..self }
    }

    /// Registers a handler of `GET` and `HEAD` that the document leaves out.
    pub(super) fn get<H, T>(self, pattern: &str, rule: Rule, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.undocumented(Method::GET, pattern, rule, routing::get(handler))
    }

    /// Registers a handler of `POST` that the document leaves out.
    pub(super) fn post<H, T>(self, pattern: &str, rule: Rule, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.undocumented(Method::POST, pattern, rule, routing::post(handler))
    }

    /// Registers a handler of `PUT` that the document leaves out.
    pub(super) fn put<H, T>(self, pattern: &str, rule: Rule, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.undocumented(Method::PUT, pattern, rule, routing::put(handler))
    }

    /// Registers a handler of `PATCH` that the document leaves out.
    pub(super) fn patch<H, T>(self, pattern: &str, rule: Rule, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.undocumented(Method::PATCH, pattern, rule, routing::patch(handler))
    }

    /// Registers a handler of `DELETE` that the document leaves out.
    pub(super) fn delete<H, T>(self, pattern: &str, rule: Rule, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.undocumented(Method::DELETE, pattern, rule, routing::delete(handler))
    }

    fn undocumented(
        mut self,
        method: Method,
        pattern: &str,
        rule: Rule,
        handler: MethodRouter<S>,
    ) -> Self {
        self.rules.insert(method, pattern, rule);
        Self { router: self.router.route(pattern, handler), ..self }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the handlers, and the rules by which the gate admits callers to them.
    pub(super) fn into_parts(self) -> (Router<S>, Rules) {
        (self.router.into(), self.rules)
    }

    pub(super) fn into_document(self) -> OpenApi {
        self.router.into_openapi()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{MatchedPath, Request, State};
    use axum::middleware::{self, Next};
    use http::StatusCode;
    use tower::ServiceExt;

    async fn pass_with_rule(
        State(rules): State<Arc<Rules>>,
        pattern: MatchedPath,
        request: Request,
        next: Next,
    ) -> Result<axum::response::Response, StatusCode> {
        match rules.of(request.method(), pattern.as_str()) {
            Some(_) => Ok(next.run(request).await),
            None => Err(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    #[tokio::test]
    async fn route_that_was_registered_around_the_builder_has_no_rule() {
        let routes = Routes::<()>::default()
            .get("/registered/{id}", Rule::Open, || async { "there" })
            .post("/registered/{id}", Rule::User, || async { "there" });
        let (router, rules) = routes.into_parts();
        let router = router
            .route("/around/{id}", routing::get(|| async { "there" }))
            .route("/registered/{id}", routing::delete(|| async { "there" }))
            .layer(middleware::from_fn_with_state(Arc::new(rules), pass_with_rule));
        for (method, path, status) in [
            (Method::GET, "/registered/1", StatusCode::OK),
            (Method::HEAD, "/registered/1", StatusCode::OK),
            (Method::POST, "/registered/1", StatusCode::OK),
            (Method::DELETE, "/registered/1", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "/around/1", StatusCode::METHOD_NOT_ALLOWED),
        ] {
            let request = http::Request::builder().method(method.clone()).uri(path);
            let request = request.body(axum::body::Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{method} {path}");
        }
    }
}
