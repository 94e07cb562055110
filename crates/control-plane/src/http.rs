//! Routes of the API in one list, each with its access rule and its place in the OpenAPI document.

mod admin;
mod api_keys;
mod archive;
mod audit;
mod auth;
mod build_logs;
mod builds;
mod bulk;
mod capabilities;
mod capsule_list;
mod capsules;
mod channels;
mod code;
pub(crate) mod compat_e2b;
pub(crate) mod compat_wrenn_v0;
mod contents;
mod docs;
mod events;
mod exec;
mod exec_stream;
mod extract;
mod files;
mod follow;
mod hosts;
mod lifecycle;
mod logs;
mod me;
mod named;
mod paging;
mod passive;
mod ports;
mod processes;
mod pty;
mod registries;
mod respond;
mod routes;
mod rules;
mod snapshots;
mod socket;
mod stats;
mod status;
mod teams;
mod templates;
mod terminals;
mod usage;

use self::routes::Routes;
use self::rules::{ADMIN, CHANGE, CHANGE_ALL, EXEC, KEYS, OWNER, READ, READ_ALL, TEAM};
use crate::app::App;
use crate::auth::authorize::authorize;
use crate::auth::rule::Rule;
use crate::error::Error;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use std::sync::{Arc, OnceLock};
use utoipa::openapi::OpenApi;
use utoipa_axum::routes;

/// Functions that add the routes of one part of the API each.
const PARTS: [fn(Routes) -> Routes; 10] = [
    with_capsules,
    with_names,
    with_looks,
    with_stats,
    with_code,
    with_templates,
    with_hosts,
    with_accounts,
    with_events,
    with_logs,
];

/// Returns the routes of the OpenAPI document.
fn documented() -> Routes {
    let routes = Routes::new(docs::head())
        .route(Rule::Open, routes!(status::health))
        .route(Rule::Open, routes!(status::version))
        .route(Rule::Open, routes!(capabilities::get))
        .route(Rule::Platform, routes!(status::metrics))
        .route(Rule::Open, routes!(document))
        .route(Rule::Open, routes!(docs::page));
    PARTS.into_iter().fold(routes, |routes, add| add(routes))
}

/// Adds the routes of metrics series.
fn with_stats(routes: Routes) -> Routes {
    routes
        .route(READ, routes!(stats::history))
        .route(READ, routes!(stats::latest))
        .route(READ_ALL, routes!(stats::team))
        .route(Rule::Platform, routes!(stats::host))
}

/// Adds the routes of capsules, their contents and snapshots.
fn with_capsules(routes: Routes) -> Routes {
    routes
        .route(CHANGE, routes!(capsules::create))
        .route(READ, routes!(capsule_list::list))
        .route(READ, routes!(capsules::get))
        .route(CHANGE, routes!(capsules::delete))
        .route(CHANGE, routes!(lifecycle::pause))
        .route(CHANGE, routes!(lifecycle::resume))
        .route(CHANGE, routes!(lifecycle::fork))
        .route(CHANGE, routes!(lifecycle::timeout))
        .route(CHANGE, routes!(lifecycle::network))
        .route(EXEC, routes!(lifecycle::ping))
        .route(EXEC, routes!(exec::exec))
        .route(EXEC, routes!(exec_stream::exec))
        .route(EXEC, routes!(pty::open))
        .route(EXEC, routes!(processes::list))
        .route(EXEC, routes!(processes::kill))
        .route(EXEC, routes!(exec_stream::attach))
        .route(EXEC, routes!(contents::get, contents::put))
        .route(EXEC, routes!(contents::read))
        .route(EXEC, routes!(contents::write))
        .route(EXEC, routes!(archive::get, archive::put))
        .route(EXEC, routes!(files::list))
        .route(EXEC, routes!(files::stat))
        .route(EXEC, routes!(files::mkdir))
        .route(EXEC, routes!(files::rename))
        .route(EXEC, routes!(files::remove))
        .route(READ, routes!(ports::list))
        .route(READ, routes!(ports::get))
        .route(CHANGE, routes!(ports::set))
        .route(EXEC, routes!(ports::link))
        .route(EXEC, routes!(ports::connect))
        .route(CHANGE, routes!(ports::rotate_token))
        .route(CHANGE, routes!(ports::rotate_links))
        .route(CHANGE_ALL, routes!(snapshots::create))
        .route(READ_ALL, routes!(snapshots::list))
        .route(READ_ALL, routes!(snapshots::get))
        .route(CHANGE_ALL, routes!(snapshots::delete))
}

/// Adds the routes of capsules' logs.
fn with_logs(routes: Routes) -> Routes {
    routes.route(READ, routes!(logs::get)).route(CHANGE, routes!(logs::erase))
}

/// Adds the routes that show the state of a guest.
fn with_looks(routes: Routes) -> Routes {
    routes.route(EXEC, routes!(terminals::list))
}

/// Adds the routes of counts, changes and lineage of capsules.
fn with_names(routes: Routes) -> Routes {
    routes
        .route(READ_ALL, routes!(capsule_list::summary))
        .route(CHANGE, routes!(capsules::change))
        .route(CHANGE, routes!(bulk::change))
        .route(READ, routes!(capsules::lineage))
}

/// Adds the routes of the code interpreter.
fn with_code(routes: Routes) -> Routes {
    routes
        .route(EXEC, routes!(code::run))
        .route(EXEC, routes!(code::attach))
        .route(EXEC, routes!(code::interrupt))
        .route(EXEC, routes!(code::list, code::create))
        .route(EXEC, routes!(code::get, code::delete))
        .route(EXEC, routes!(code::restart))
        .route(EXEC, routes!(code::interrupt_context))
        .route(EXEC, routes!(code::complete))
        .route(EXEC, routes!(code::variables))
}

/// Adds the routes of templates and their builds. The rules let keys pass that are confined to a
/// template; the use cases check the template.
fn with_templates(routes: Routes) -> Routes {
    routes
        .route(READ, routes!(templates::list))
        .route(READ, routes!(templates::get))
        .route(Rule::Anyone, routes!(templates::change))
        .route(CHANGE, routes!(templates::delete))
        .route(READ, routes!(templates::versions))
        .route(READ, routes!(templates::list_tags))
        .route(CHANGE, routes!(templates::assign_tags))
        .route(CHANGE, routes!(templates::delete_tag))
        .route(CHANGE, routes!(builds::create))
        .route(READ, routes!(builds::list))
        .route(READ, routes!(builds::get))
        .route(CHANGE, routes!(builds::cancel))
        .route(READ, routes!(build_logs::logs))
        .route(CHANGE, routes!(builds::files, builds::put_files))
        .route(ADMIN, routes!(registries::list))
        .route(ADMIN, routes!(registries::set, registries::delete))
}

/// Adds the routes of hosts.
fn with_hosts(routes: Routes) -> Routes {
    routes
        .route(READ_ALL, routes!(hosts::list))
        .route(Rule::Platform, routes!(hosts::add))
        .route(Rule::Platform, routes!(hosts::get, hosts::delete))
        .route(Rule::Platform, routes!(hosts::token))
        .route(Rule::Platform, routes!(hosts::drain))
        .route(Rule::Platform, routes!(hosts::tags))
        .route(Rule::Platform, routes!(hosts::preview))
        .route(Rule::Platform, routes!(hosts::metrics))
        .route(Rule::Open, routes!(hosts::register))
        .route(Rule::Open, routes!(hosts::refresh))
        .route(Rule::Host, routes!(hosts::heartbeat))
}

/// Adds the routes of users, teams, keys, the audit log, usage and webhooks.
fn with_accounts(routes: Routes) -> Routes {
    routes
        .route(Rule::Open, routes!(auth::sign_up))
        .route(Rule::Open, routes!(auth::activate))
        .route(Rule::Open, routes!(auth::log_in))
        .route(Rule::User, routes!(auth::log_out))
        .route(Rule::User, routes!(auth::token))
        .route(Rule::Open, routes!(auth::reset))
        .route(Rule::Open, routes!(auth::confirm))
        .route(Rule::Open, routes!(auth::providers))
        .route(Rule::Open, routes!(auth::oauth))
        .route(Rule::Open, routes!(auth::callback))
        .route(Rule::User, routes!(me::get, me::change, me::delete))
        .route(Rule::User, routes!(me::password))
        .route(Rule::User, routes!(me::sessions, me::end_others))
        .route(Rule::User, routes!(me::end_session))
        .route(Rule::User, routes!(me::add_provider, me::remove_provider))
        .route(Rule::Anyone, routes!(teams::list))
        .route(Rule::User, routes!(teams::create))
        .route(TEAM, routes!(teams::get))
        .route(ADMIN, routes!(teams::change))
        .route(OWNER, routes!(teams::delete))
        .route(TEAM, routes!(teams::members))
        .route(ADMIN, routes!(teams::set_role, teams::remove))
        .route(TEAM, routes!(teams::leave))
        .route(OWNER, routes!(teams::transfer))
        .route(ADMIN, routes!(teams::invitations, teams::invite))
        .route(ADMIN, routes!(teams::uninvite))
        .route(Rule::User, routes!(teams::accept))
        .route(TEAM, routes!(teams::limits))
        .route(KEYS, routes!(api_keys::create))
        .route(TEAM, routes!(api_keys::list))
        .route(KEYS, routes!(api_keys::revoke))
        .route(ADMIN, routes!(audit::list))
        .route(ADMIN, routes!(audit::export))
        .route(Rule::Platform, routes!(audit::list_all))
        .route(READ_ALL, routes!(usage::get))
        .route(ADMIN, routes!(channels::create, channels::list))
        .route(ADMIN, routes!(channels::get, channels::change, channels::delete))
        .route(ADMIN, routes!(channels::renew))
        .route(ADMIN, routes!(channels::test))
        .route(ADMIN, routes!(channels::deliveries))
        .route(Rule::Platform, routes!(admin::users, admin::invite))
        .route(Rule::Platform, routes!(admin::change, admin::erase))
        .route(Rule::Platform, routes!(admin::teams))
        .route(Rule::Platform, routes!(admin::limits, admin::set_limits))
}

/// Adds the routes of events.
fn with_events(routes: Routes) -> Routes {
    routes.route(READ_ALL, routes!(events::list)).route(READ_ALL, routes!(events::stream))
}

/// Adds the routes that serve other systems' clients.
fn with_others(routes: Routes) -> Routes {
    compat_wrenn_v0::register(compat_e2b::register(routes))
}

/// Returns the handler of all routes, behind the gate.
pub(crate) fn router(app: Arc<App>) -> Router {
    // Clients of the earlier system know the same handlers by these names.
    let routes = documented()
        .post("/v1/capsules/{id}/files/stream/read", EXEC, contents::read)
        .post("/v1/capsules/{id}/files/stream/write", EXEC, contents::write);
    let (router, rules) = with_others(routes).into_parts();
    let gate = (Arc::clone(&app), Arc::new(rules));
    router
        // Each extractor has a limit of its own; file contents have none.
        .layer(DefaultBodyLimit::disable())
        .fallback(|| async { Error::NotFound("route") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(gate, authorize))
        .layer(middleware::from_fn(respond::respond))
        .with_state(app)
}

/// Lists the routes that serve other systems' clients and are absent from the OpenAPI document.
/// Each entry is a method and a pattern.
#[must_use]
pub fn routes_of_others() -> Vec<String> {
    let routes = with_others(Routes::default());
    routes.rules().routes().map(|(method, pattern)| format!("{method} {pattern}")).collect()
}

/// Returns the OpenAPI document of the API.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = documented().into_document();
    docs::describe(&mut document);
    docs::add_former_names(&mut document);
    document
}

/// Returns the OpenAPI document of this API.
#[utoipa::path(
    operation_id = "get_openapi",
    get, path = "/openapi.json", tag = "platform", security(()),
    responses((status = 200, description = "OpenAPI 3.1 document", content_type = "application/json"))
)]
async fn document() -> ([(HeaderName, HeaderValue); 1], Bytes) {
    // The document is written only once, since anybody may request it at any rate.
    static ONE: OnceLock<Bytes> = OnceLock::new();
    let written = ONE.get_or_init(|| openapi().to_json().unwrap_or_default().into());
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], written.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_shows_the_rule_of_every_operation() {
        let document = serde_json::to_value(openapi()).unwrap();
        let routes = documented();
        let mut operations = 0;
        for (pattern, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let shown = operation["x-wrenn-access"].as_str();
                let method = method.to_uppercase().parse().unwrap();
                let rule = routes.rules().of(&method, pattern);
                assert_eq!(shown, rule.map(Rule::as_str), "{method} {pattern}");
                assert!(shown.is_some(), "{method} {pattern}");
                operations += 1;
            }
        }
        assert!(operations > 100 && operations == routes.rules().routes().count());
    }

    #[test]
    fn routes_of_others_are_registered_and_absent_from_the_document() {
        let others = routes_of_others();
        for route in ["POST /v2/sandboxes", "GET /teams", "GET /api/v1/capsules/stats"] {
            assert!(others.iter().any(|other| other == route), "{route}");
        }
        let documented = documented();
        let both = documented.rules().routes().map(|(method, path)| format!("{method} {path}"));
        assert_eq!(both.filter(|route| others.contains(route)).count(), 0);
    }
}
