//! `/v1/auth`: sign-up and sign-in. Answers never reveal the existence of an account.

use super::extract::{Json as Body, Path, Query};
use crate::app::App;
use crate::auth::origin::Transport;
use crate::auth::session::{self, TOKEN};
use crate::auth::{Anonymous, Session};
use crate::error::{Error, Result};
use crate::secret::hash;
use crate::users::{self, Entered, Origin, oauth};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{LOCATION, SET_COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use utoipa::IntoParams;

fn origin(anonymous: Anonymous, headers: &HeaderMap, program: bool) -> Origin {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("");
    Origin { by: anonymous.0, agent: agent.to_owned(), program }
}

/// Answers a sign-in: with the session's token for a program, otherwise with a cookie.
async fn entered(
    app: &App,
    transport: Transport,
    entered: Entered,
    program: bool,
) -> Result<Response> {
    let team = users::default_team(app, entered.user.id).await?;
    let body = api::LoggedIn {
        user_id: entered.user.id.to_string(),
        email: entered.user.email,
        name: entered.user.name,
        team_id: team.map(|team| team.to_string()),
        csrf_token: session::csrf(&entered.token),
        session_token: program.then(|| entered.token.clone()),
        expires_at: entered.expires_at,
    };
    let mut answer = Json(body).into_response();
    if !program {
        let cookie = session::cookie(transport, Some(&entered.token));
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

fn accepted(message: &str) -> (StatusCode, Json<api::Message>) {
    (StatusCode::ACCEPTED, Json(api::Message { message: message.to_owned() }))
}

/// Requests an account. The next step arrives by mail.
#[utoipa::path(
    operation_id = "sign_up",
    post, path = "/v1/auth/signup", tag = "auth", request_body = api::SignUp, security(()),
    responses((status = 202, body = api::Message), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn sign_up(
    State(app): State<Arc<App>>,
    Anonymous(by): Anonymous,
    Body(wanted): Body<api::SignUp>,
) -> Result<(StatusCode, Json<api::Message>)> {
    users::sign_up(&app, by, wanted).await?;
    Ok(accepted("if this e-mail may have an account, a mail with instructions was sent"))
}

/// Activates an account with the mailed token, and signs in. The request contains the password of
/// the sign-up, or a new password if the account has none.
#[utoipa::path(
    operation_id = "activate",
    post, path = "/v1/auth/activate", tag = "auth", request_body = api::Activate, security(()),
    responses((status = 200, body = api::LoggedIn), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn activate(
    State(app): State<Arc<App>>,
    (anonymous, transport): (Anonymous, Transport),
    headers: HeaderMap,
    Body(wanted): Body<api::Activate>,
) -> Result<Response> {
    let program = wanted.program;
    let came = users::activate(&app, origin(anonymous, &headers, program), wanted).await?;
    entered(&app, transport, came, program).await
}

/// Signs in with an e-mail and a password.
#[utoipa::path(
    operation_id = "log_in",
    post, path = "/v1/auth/login", tag = "auth", request_body = api::LogIn, security(()),
    responses(
        (status = 200, body = api::LoggedIn),
        (status = 401, description = "The e-mail or the password is wrong", body = api::ErrorBody),
        (status = 429, description = "Too many failed sign-ins; `Retry-After` has the seconds to wait", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn log_in(
    State(app): State<Arc<App>>,
    (anonymous, transport): (Anonymous, Transport),
    headers: HeaderMap,
    Body(wanted): Body<api::LogIn>,
) -> Result<Response> {
    let program = wanted.program;
    let came = users::log_in(&app, origin(anonymous, &headers, program), wanted).await?;
    entered(&app, transport, came, program).await
}

/// Ends the session of this request.
#[utoipa::path(
    operation_id = "log_out",
    post, path = "/v1/auth/logout", tag = "auth", security(("user" = [])),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn log_out(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
) -> Result<Response> {
    users::log_out(&app, who).await?;
    let mut answer = StatusCode::NO_CONTENT.into_response();
    answer.headers_mut().append(SET_COOKIE, session::cookie(transport, None));
    Ok(answer)
}

/// Creates a signed token of the session, valid for 15 minutes. The token ends with the session.
#[utoipa::path(
    operation_id = "create_user_token",
    post, path = "/v1/auth/token", tag = "auth", security(("user" = [])),
    responses((status = 200, body = api::UserToken), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn token(
    State(app): State<Arc<App>>,
    who: Session,
    transport: Transport,
    headers: HeaderMap,
) -> Result<Json<api::UserToken>> {
    let bearer = session::bearer(&headers).filter(|token| token.starts_with(session::PREFIX));
    let token = bearer.or_else(|| session::from_cookie(&headers, transport));
    let token = token.ok_or_else(|| {
        Error::invalid("authorization", "must be a session; a token cannot create tokens")
    })?;
    let token = app.user_signer.sign(who.user, &hash(token))?;
    Ok(Json(api::UserToken { token, expires_at: OffsetDateTime::now_utc() + TOKEN }))
}

/// Requests a mail with a token for setting a new password.
#[utoipa::path(
    operation_id = "reset_password",
    post, path = "/v1/auth/password/reset", tag = "auth", request_body = api::ResetPassword,
    security(()),
    responses((status = 202, body = api::Message), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn reset(
    State(app): State<Arc<App>>,
    Anonymous(by): Anonymous,
    Body(wanted): Body<api::ResetPassword>,
) -> Result<(StatusCode, Json<api::Message>)> {
    users::ask_reset(&app, by, &wanted.email).await?;
    Ok(accepted("if this e-mail has an account, a mail with instructions was sent"))
}

/// Sets a new password with the mailed token. Every session of the user ends.
#[utoipa::path(
    operation_id = "confirm_password",
    post, path = "/v1/auth/password/confirm", tag = "auth", request_body = api::ConfirmPassword,
    security(()),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn confirm(
    State(app): State<Arc<App>>,
    Anonymous(by): Anonymous,
    Body(wanted): Body<api::ConfirmPassword>,
) -> Result<StatusCode> {
    users::reset(&app, by, wanted).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the ways to sign up and to sign in.
#[utoipa::path(
    operation_id = "list_providers",
    get, path = "/v1/auth/providers", tag = "auth", security(()),
    responses((status = 200, body = api::Providers))
)]
pub(crate) async fn providers(State(app): State<Arc<App>>) -> Json<api::Providers> {
    let providers = app.accounts.providers.iter().map(|provider| provider.name.clone());
    let signup = app.accounts.sign_up.as_str().to_owned();
    Json(api::Providers { signup, providers: providers.collect() })
}

/// Prepares a redirect to a provider. Returns the provider's URL, and the cookie that the browser
/// must return with.
pub(super) async fn begin(
    app: &App,
    transport: Transport,
    name: &str,
    adds: Option<Session>,
) -> Result<(String, HeaderValue)> {
    let (url, state) = oauth::begin(app, name, adds).await?;
    Ok((url, session::state_cookie(transport, Some(&state))))
}

/// Redirects a browser to GitHub or an OpenID Connect provider for a sign-in.
#[utoipa::path(
    operation_id = "begin_oauth",
    get, path = "/v1/auth/oauth/{provider}", tag = "auth", security(()),
    params(("provider" = String, Path, description = "Name of the provider from `GET /v1/auth/providers`")),
    responses((status = 303), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn oauth(
    State(app): State<Arc<App>>,
    transport: Transport,
    Path(name): Path<String>,
) -> Result<Response> {
    let (url, cookie) = begin(&app, transport, &name, None).await?;
    let url = HeaderValue::from_str(&url).map_err(|e| Error::Internal(e.into()))?;
    Ok((StatusCode::SEE_OTHER, [(LOCATION, url), (SET_COOKIE, cookie)]).into_response())
}

/// Query with which a provider sends a browser back.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Callback {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
}

/// Completes a sign-in at a provider. The answer sets the session's cookie and redirects the
/// browser to `/`.
#[utoipa::path(
    operation_id = "end_oauth",
    get, path = "/v1/auth/oauth/{provider}/callback", tag = "auth", security(()),
    params(("provider" = String, Path, description = "Name of the provider"), Callback),
    responses((status = 303), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn callback(
    State(app): State<Arc<App>>,
    (anonymous, transport): (Anonymous, Transport),
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(came): Query<Callback>,
) -> Result<Response> {
    let state = came.state.unwrap_or_default();
    let bound = session::state_from_cookie(&headers, transport).unwrap_or("");
    if state.is_empty() || !bool::from(bound.as_bytes().ct_eq(state.as_bytes())) {
        return Err(Error::InvalidToken("the state of the sign-in"));
    }
    let Some(code) = came.code else {
        let why = came.error.unwrap_or_else(|| "no code was sent".to_owned());
        let why: String = why.chars().filter(|c| !c.is_control()).take(100).collect();
        return Err(Error::SignInFailed(format!("the provider refused: {why}")));
    };
    let shown = match session::from_cookie(&headers, transport) {
        Some(token) => app.directory.session(&hash(token), anonymous.0.from).await?,
        None => None,
    };
    let shown = shown.map(|session| session.id);
    let origin = origin(anonymous, &headers, false);
    let came = oauth::end(&app, origin, &name, (&state, code), shown).await?;
    let session = session::cookie(transport, Some(&came.token));
    let mut answer = (StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response();
    answer.headers_mut().append(SET_COOKIE, session);
    answer.headers_mut().append(SET_COOKIE, session::state_cookie(transport, None));
    Ok(answer)
}
