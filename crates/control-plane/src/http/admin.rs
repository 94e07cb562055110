//! `/v1/admin`: users, teams and limits of the whole platform.

use super::extract::{Json as Body, Path, Query};
use super::paging::{Page, paged};
use crate::app::App;
use crate::auth::Operator;
use crate::db::teams::Overview;
use crate::error::{Error, Result};
use crate::teams;
use crate::users::admin::{self, Eraser};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;
use types::{TeamId, UserId};

fn user_id(text: &str) -> Result<UserId> {
    text.parse().map_err(|_| Error::NotFound("user"))
}

fn team_id(text: &str) -> Result<TeamId> {
    text.parse().map_err(|_| Error::NotFound("team"))
}

/// Lists all users, newest first.
#[utoipa::path(
    operation_id = "list_users",
    get, path = "/v1/admin/users", tag = "admin", params(Page),
    responses((status = 200, body = api::UserPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn users(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(page): Query<Page>,
) -> Result<Json<api::UserPage>> {
    let (before, limit) = page.read("a user")?;
    let rows = admin::list(&app, operator, before, limit + 1).await?;
    let (items, next) = paged(rows, limit, admin::to_api, |user| user.id.clone());
    Ok(Json(api::UserPage { items, next }))
}

/// Invites a user to the platform by mail. Until the user has activated the account, a repeated
/// request sends another mail.
#[utoipa::path(
    operation_id = "invite_user",
    post, path = "/v1/admin/users", tag = "admin", request_body = api::InviteUser,
    responses((status = 201, body = api::User), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn invite(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Body(wanted): Body<api::InviteUser>,
) -> Result<(StatusCode, Json<api::User>)> {
    let user = admin::invite(&app, by, wanted).await?;
    Ok((StatusCode::CREATED, Json(admin::to_api(user))))
}

/// Changes whether a user is an admin, or whether the user is active. A disabled user's sessions
/// end, and their keys stop working.
#[utoipa::path(
    operation_id = "change_user",
    patch, path = "/v1/admin/users/{id}", tag = "admin", request_body = api::ChangeUser,
    params(("id" = String, Path, description = "Id of the user")),
    responses((status = 200, body = api::User), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
    Body(wanted): Body<api::ChangeUser>,
) -> Result<Json<api::User>> {
    Ok(Json(admin::to_api(admin::change(&app, by, user_id(&id)?, wanted).await?)))
}

/// Erases a user, as `DELETE /v1/me` does. Teams that the user owns are deleted. Such teams must be
/// empty and have no other member. Sessions and keys end. The audit log no longer identifies the
/// user.
#[utoipa::path(
    operation_id = "erase_user",
    delete, path = "/v1/admin/users/{id}", tag = "admin",
    params(("id" = String, Path, description = "Id of the user")),
    responses(
        (status = 204), (status = 409, body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn erase(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    admin::erase(&app, Eraser::Operator(by), user_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists all teams, newest first.
#[utoipa::path(
    operation_id = "list_all_teams",
    get, path = "/v1/admin/teams", tag = "admin", params(Page),
    responses((status = 200, body = api::AdminTeamPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn teams(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(page): Query<Page>,
) -> Result<Json<api::AdminTeamPage>> {
    let (before, limit) = page.read("a team")?;
    let rows = teams::list_all(&app, operator, before, limit + 1).await?;
    let to_api = |row: Overview| api::AdminTeam {
        id: row.id.to_string(),
        name: row.name,
        members: row.members,
        capsules: row.capsules,
        created_at: row.created_at,
    };
    let (items, next) = paged(rows, limit, to_api, |team| team.id.clone());
    Ok(Json(api::AdminTeamPage { items, next }))
}

/// Returns a team's limits and their current use.
#[utoipa::path(
    operation_id = "get_team_limits",
    get, path = "/v1/admin/teams/{id}/limits", tag = "admin",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::TeamLimits), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn limits(
    State(app): State<Arc<App>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<api::TeamLimits>> {
    Ok(Json(teams::limits_of_any(&app, operator, team_id(&id)?).await?))
}

/// Replaces a team's limits. The limits of the platform team (id all zeroes) are the default for
/// teams that have none.
#[utoipa::path(
    operation_id = "set_team_limits",
    put, path = "/v1/admin/teams/{id}/limits", tag = "admin", request_body = api::Limits,
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::TeamLimits), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn set_limits(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
    Body(wanted): Body<api::Limits>,
) -> Result<Json<api::TeamLimits>> {
    Ok(Json(teams::set_limits(&app, team_id(&id)?, wanted, by).await?))
}
