//! Routes of the API in one list, each with its place in the OpenAPI document.

mod admin;
mod api_keys;
mod archive;
mod audit;
mod auth;
mod capsules;
mod channels;
pub(crate) mod compat_e2b;
pub(crate) mod compat_wrenn_v0;
mod contents;
mod docs;
mod events;
mod exec;
mod exec_stream;
mod extract;
mod files;
mod hosts;
mod lifecycle;
mod me;
mod paging;
mod ports;
mod processes;
mod pty;
mod respond;
pub(crate) mod rules;
mod snapshots;
mod socket;
mod status;
mod teams;
mod templates;
mod usage;

use crate::app::App;
use crate::auth::authorize::authorize;
use crate::error::Error;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use axum::{Router, middleware};
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Returns the routes, with their OpenAPI document.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(docs::head())
        .routes(routes!(status::health))
        .routes(routes!(status::version))
        .routes(routes!(status::metrics))
        .routes(routes!(docs::document))
        .routes(routes!(docs::page))
        .routes(routes!(capsules::create, capsules::list))
        .routes(routes!(capsules::get, capsules::delete))
        .routes(routes!(capsules::logs))
        .routes(routes!(lifecycle::pause))
        .routes(routes!(lifecycle::resume))
        .routes(routes!(lifecycle::fork))
        .routes(routes!(lifecycle::timeout))
        .routes(routes!(lifecycle::network))
        .routes(routes!(lifecycle::ping))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::get, snapshots::delete))
        .routes(routes!(exec::exec))
        .routes(routes!(exec_stream::exec))
        .routes(routes!(pty::open))
        .routes(routes!(processes::list))
        .routes(routes!(processes::kill))
        .routes(routes!(exec_stream::attach))
        .routes(routes!(contents::get, contents::put))
        .routes(routes!(contents::read))
        .routes(routes!(contents::write))
        .routes(routes!(archive::get, archive::put))
        .routes(routes!(files::list))
        .routes(routes!(files::stat))
        .routes(routes!(files::mkdir))
        .routes(routes!(files::rename))
        .routes(routes!(files::remove))
        .routes(routes!(ports::list))
        .routes(routes!(ports::get, ports::set))
        .routes(routes!(ports::link))
        .routes(routes!(ports::connect))
        .routes(routes!(ports::rotate_token))
        .routes(routes!(ports::rotate_links))
        .routes(routes!(templates::list))
        .routes(routes!(templates::change))
        .routes(routes!(hosts::list, hosts::add))
        .routes(routes!(hosts::get, hosts::delete))
        .routes(routes!(hosts::token))
        .routes(routes!(hosts::drain))
        .routes(routes!(hosts::tags))
        .routes(routes!(hosts::preview))
        .routes(routes!(hosts::metrics))
        .routes(routes!(hosts::register))
        .routes(routes!(hosts::refresh))
        .routes(routes!(hosts::heartbeat))
        .merge(accounts())
}

/// Returns the routes of users, teams, keys, the audit log, usage and events.
fn accounts() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(auth::sign_up))
        .routes(routes!(auth::activate))
        .routes(routes!(auth::log_in))
        .routes(routes!(auth::log_out))
        .routes(routes!(auth::token))
        .routes(routes!(auth::reset))
        .routes(routes!(auth::confirm))
        .routes(routes!(auth::providers))
        .routes(routes!(auth::oauth))
        .routes(routes!(auth::callback))
        .routes(routes!(me::get, me::change, me::delete))
        .routes(routes!(me::password))
        .routes(routes!(me::sessions, me::end_others))
        .routes(routes!(me::end_session))
        .routes(routes!(me::add_provider, me::remove_provider))
        .routes(routes!(teams::list, teams::create))
        .routes(routes!(teams::get, teams::change, teams::delete))
        .routes(routes!(teams::members))
        .routes(routes!(teams::set_role, teams::remove))
        .routes(routes!(teams::leave))
        .routes(routes!(teams::transfer))
        .routes(routes!(teams::invitations, teams::invite))
        .routes(routes!(teams::uninvite))
        .routes(routes!(teams::accept))
        .routes(routes!(teams::limits))
        .routes(routes!(api_keys::create, api_keys::list))
        .routes(routes!(api_keys::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(audit::export))
        .routes(routes!(audit::list_all))
        .routes(routes!(usage::get))
        .routes(routes!(events::stream))
        .routes(routes!(channels::create, channels::list))
        .routes(routes!(channels::get, channels::change, channels::delete))
        .routes(routes!(channels::renew))
        .routes(routes!(channels::test))
        .routes(routes!(channels::deliveries))
        .routes(routes!(admin::users, admin::invite))
        .routes(routes!(admin::change, admin::erase))
        .routes(routes!(admin::teams))
        .routes(routes!(admin::limits, admin::set_limits))
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .merge(compat_e2b::router())
        .merge(compat_wrenn_v0::router())
        // Clients of the earlier system know the same handlers by these names.
        .route("/v1/capsules/{id}/files/stream/read", post(contents::read))
        .route("/v1/capsules/{id}/files/stream/write", post(contents::write))
        // Each extractor has a limit of its own; file contents have none.
        .layer(DefaultBodyLimit::disable())
        .fallback(|| async { Error::NotFound("route") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), authorize))
        .layer(middleware::from_fn(respond::respond))
        .with_state(app)
}

/// Lists the routes that serve other systems' clients and are absent from the OpenAPI document.
/// Each entry is a method and a pattern.
#[must_use]
pub fn routes_of_others() -> Vec<String> {
    rules::of_others()
}

/// Returns the OpenAPI document of the API.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = routes().into_openapi();
    docs::describe(&mut document);
    document
}
