//! `/v1/me`: the signed-in user, their sessions and their ways to sign in.

use super::auth::begin;
use super::extract::{Json as Body, Path};
use crate::app::App;
use crate::auth::origin::Transport;
use crate::auth::{Session, session};
use crate::db::sessions::SessionRow;
use crate::error::{Error, Result};
use crate::users::{self, admin, oauth};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::SET_COOKIE;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use types::SessionId;

/// Returns the signed-in user.
#[utoipa::path(
    operation_id = "get_me",
    get, path = "/v1/me", tag = "me", security(("user" = [])),
    responses((status = 200, body = api::Me), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
    headers: HeaderMap,
) -> Result<Json<api::Me>> {
    load_me(&app, who, transport, &headers).await
}

async fn load_me(
    app: &App,
    who: Session,
    transport: Transport,
    headers: &HeaderMap,
) -> Result<Json<api::Me>> {
    let user = users::me(app, who).await?;
    let providers = users::providers(app, who).await?;
    let by_cookie = session::bearer(headers).is_none();
    let in_cookie = by_cookie.then(|| session::from_cookie(headers, transport));
    Ok(Json(api::Me {
        id: user.id.to_string(),
        email: user.email,
        name: user.name,
        admin: user.is_admin,
        has_password: user.password_hash.is_some(),
        providers,
        csrf_token: in_cookie.flatten().map(session::csrf),
        created_at: user.created_at,
    }))
}

/// Changes the user's name or default team. Requests that name no team apply to the default team.
#[utoipa::path(
    operation_id = "change_me",
    patch, path = "/v1/me", tag = "me", request_body = api::ChangeMe, security(("user" = [])),
    responses((status = 200, body = api::Me), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
    headers: HeaderMap,
    Body(wanted): Body<api::ChangeMe>,
) -> Result<Json<api::Me>> {
    users::change(&app, who, wanted).await?;
    load_me(&app, who, transport, &headers).await
}

/// Erases the user. Teams that the user owns are deleted. Such teams must be empty and have no
/// other member. Sessions and keys end. The audit log no longer identifies the user.
#[utoipa::path(
    operation_id = "delete_me",
    delete, path = "/v1/me", tag = "me", request_body = api::DeleteMe, security(("user" = [])),
    responses(
        (status = 204), (status = 409, body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
    Body(wanted): Body<api::DeleteMe>,
) -> Result<Response> {
    let user = users::me(&app, who).await?;
    if wanted.confirmation.trim().to_lowercase() != user.email {
        return Err(Error::invalid("confirmation", "must be your e-mail"));
    }
    admin::erase(&app, admin::Eraser::Themselves(who), who.user).await?;
    let mut answer = StatusCode::NO_CONTENT.into_response();
    answer.headers_mut().append(SET_COOKIE, session::cookie(transport, None));
    Ok(answer)
}

/// Sets a new password. The user's other sessions end.
#[utoipa::path(
    operation_id = "change_password",
    post, path = "/v1/me/password", tag = "me", request_body = api::ChangePassword,
    security(("user" = [])),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn password(
    State(app): State<Arc<App>>,
    who: Session,
    Body(wanted): Body<api::ChangePassword>,
) -> Result<StatusCode> {
    users::change_password(&app, who, wanted).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the user's sessions, newest first.
#[utoipa::path(
    operation_id = "list_sessions",
    get, path = "/v1/me/sessions", tag = "me", security(("user" = [])),
    responses((status = 200, body = api::SessionList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn sessions(
    State(app): State<Arc<App>>,
    who: Session,
) -> Result<Json<api::SessionList>> {
    let rows = users::sessions(&app, who).await?;
    let to_api = |row: SessionRow| api::Session {
        id: row.id.to_string(),
        kind: row.kind.to_string(),
        address: row.address,
        agent: row.agent,
        current: row.id == who.session,
        created_at: row.created_at,
        last_used_at: row.last_used_at,
        expires_at: row.expires_at,
    };
    Ok(Json(api::SessionList { items: rows.into_iter().map(to_api).collect() }))
}

/// Ends one of the user's sessions immediately.
#[utoipa::path(
    operation_id = "end_session",
    delete, path = "/v1/me/sessions/{id}", tag = "me", security(("user" = [])),
    params(("id" = String, Path, description = "Id of the session")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn end_session(
    State(app): State<Arc<App>>,
    who: Session,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    let id: SessionId = id.parse().map_err(|_| Error::NotFound("session"))?;
    match users::end_session(&app, who, id, "user.end_session").await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::NotFound("session")),
    }
}

/// Ends every session of the user except the one of this request.
#[utoipa::path(
    operation_id = "end_other_sessions",
    delete, path = "/v1/me/sessions", tag = "me", security(("user" = [])),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn end_others(State(app): State<Arc<App>>, who: Session) -> Result<StatusCode> {
    users::end_others(&app, who).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts to add a provider's account for sign-ins, from a signed-in browser. The answer contains
/// the address to visit. The browser must return in the same session.
#[utoipa::path(
    operation_id = "add_provider",
    post, path = "/v1/me/providers/{provider}", tag = "me", security(("user" = [])),
    params(("provider" = String, Path, description = "Name of the provider from `GET /v1/auth/providers`")),
    responses((status = 200, body = api::AuthUrl), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn add_provider(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Response> {
    if session::bearer(&headers).is_some() {
        let message = "must be absent; only a browser with a session cookie can add a provider";
        return Err(Error::invalid("authorization", message));
    }
    let (auth_url, cookie) = begin(&app, transport, &name, Some(who)).await?;
    Ok(([(SET_COOKIE, cookie)], Json(api::AuthUrl { auth_url })).into_response())
}

/// Removes a provider's account from the user.
#[utoipa::path(
    operation_id = "remove_provider",
    delete, path = "/v1/me/providers/{provider}", tag = "me", security(("user" = [])),
    params(("provider" = String, Path, description = "Name of the provider")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn remove_provider(
    State(app): State<Arc<App>>,
    who: Session,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    oauth::remove(&app, who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
