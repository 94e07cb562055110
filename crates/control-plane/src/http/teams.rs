//! `/v1/teams`: translates between the wire and the domain. The caller's team comes from the path.

use super::extract::{Json as Body, Path};
use crate::app::App;
use crate::auth::{Caller, Session};
use crate::db::teams::Member;
use crate::error::{Error, Result};
use crate::teams;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;
use types::UserId;

fn user_id(text: &str) -> Result<UserId> {
    text.parse().map_err(|_| Error::NotFound("member"))
}

/// Lists the caller's teams. For an API key, the list contains only the team of the key.
#[utoipa::path(
    operation_id = "list_teams",
    get, path = "/v1/teams", tag = "teams",
    responses((status = 200, body = api::TeamList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::TeamList>> {
    Ok(Json(api::TeamList { items: teams::list(&app, caller).await? }))
}

/// Creates a team that the user owns.
#[utoipa::path(
    operation_id = "create_team",
    post, path = "/v1/teams", tag = "teams", request_body = api::NameTeam,
    security(("user" = [])),
    responses((status = 201, body = api::Team), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    who: Session,
    Body(wanted): Body<api::NameTeam>,
) -> Result<(StatusCode, Json<api::Team>)> {
    Ok((StatusCode::CREATED, Json(teams::create(&app, who, &wanted.name).await?)))
}

/// Returns a team.
#[utoipa::path(
    operation_id = "get_team",
    get, path = "/v1/teams/{id}", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::Team), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<api::Team>> {
    Ok(Json(teams::show(&app, caller).await?))
}

/// Changes a team's name, or the lowest isolation tier on which its capsules start.
#[utoipa::path(
    operation_id = "change_team",
    patch, path = "/v1/teams/{id}", tag = "teams", request_body = api::ChangeTeam,
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::Team), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::ChangeTeam>,
) -> Result<Json<api::Team>> {
    Ok(Json(teams::change(&app, caller, wanted).await?))
}

/// Deletes a team without capsules, snapshots and hosts. Its keys, invitations and channels end
/// with it.
#[utoipa::path(
    operation_id = "delete_team",
    delete, path = "/v1/teams/{id}", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses(
        (status = 204), (status = 409, body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(State(app): State<Arc<App>>, caller: Caller) -> Result<StatusCode> {
    teams::delete(&app, caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists a team's members.
#[utoipa::path(
    operation_id = "list_members",
    get, path = "/v1/teams/{id}/members", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::MemberList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn members(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::MemberList>> {
    let rows = teams::members(&app, caller).await?;
    let to_api = |row: Member| api::Member {
        user_id: row.user_id.to_string(),
        name: row.name,
        email: row.email,
        role: row.role.to_string(),
        joined_at: row.created_at,
    };
    Ok(Json(api::MemberList { items: rows.into_iter().map(to_api).collect() }))
}

/// Changes a member's role in the team.
#[utoipa::path(
    operation_id = "set_member_role",
    patch, path = "/v1/teams/{id}/members/{user}", tag = "teams",
    request_body = api::ChangeMember,
    params(
        ("id" = String, Path, description = "Id of the team"),
        ("user" = String, Path, description = "Id of the member"),
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn set_role(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Body(wanted): Body<api::ChangeMember>,
) -> Result<StatusCode> {
    teams::set_role(&app, caller, user_id(&path.1)?, &wanted.role).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a member from the team. Keys and invitations that the member created for the team end,
/// and the member's channels are disabled. The member's capsules stay with the team.
#[utoipa::path(
    operation_id = "remove_member",
    delete, path = "/v1/teams/{id}/members/{user}", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team"),
        ("user" = String, Path, description = "Id of the member"),
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<StatusCode> {
    teams::remove_member(&app, caller, user_id(&path.1)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leaves a team. An owner cannot leave. Keys and invitations that the member created for the team
/// end, and the member's channels are disabled.
#[utoipa::path(
    operation_id = "leave_team",
    post, path = "/v1/teams/{id}/leave", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn leave(State(app): State<Arc<App>>, caller: Caller) -> Result<StatusCode> {
    teams::leave(&app, caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes another member the owner. The previous owner becomes an admin.
#[utoipa::path(
    operation_id = "transfer_team",
    post, path = "/v1/teams/{id}/transfer", tag = "teams", request_body = api::TransferTeam,
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn transfer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::TransferTeam>,
) -> Result<StatusCode> {
    teams::transfer(&app, caller, user_id(&wanted.user_id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the invitations that nobody has accepted yet.
#[utoipa::path(
    operation_id = "list_invitations",
    get, path = "/v1/teams/{id}/invitations", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::InvitationList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn invitations(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::InvitationList>> {
    let rows = teams::invitations(&app, caller).await?;
    Ok(Json(api::InvitationList { items: rows.into_iter().map(teams::invitation_shown).collect() }))
}

/// Invites a person by mail. An earlier invitation to the same e-mail is replaced.
#[utoipa::path(
    operation_id = "invite_member",
    post, path = "/v1/teams/{id}/invitations", tag = "teams", request_body = api::InviteMember,
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 201, body = api::Invitation), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn invite(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::InviteMember>,
) -> Result<(StatusCode, Json<api::Invitation>)> {
    Ok((StatusCode::CREATED, Json(teams::invite(&app, caller, wanted).await?)))
}

/// Deletes an invitation.
#[utoipa::path(
    operation_id = "delete_invitation",
    delete, path = "/v1/teams/{id}/invitations/{invitation}", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team"),
        ("invitation" = String, Path, description = "Id of the invitation"),
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn uninvite(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<StatusCode> {
    let id = path.1.parse().map_err(|_| Error::NotFound("invitation"))?;
    teams::uninvite(&app, caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Joins a team with the mailed token of an invitation to the user's own e-mail.
#[utoipa::path(
    operation_id = "accept_invitation",
    post, path = "/v1/invitations/accept", tag = "teams", request_body = api::AcceptInvitation,
    security(("user" = [])),
    responses((status = 200, body = api::Team), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn accept(
    State(app): State<Arc<App>>,
    who: Session,
    Body(wanted): Body<api::AcceptInvitation>,
) -> Result<Json<api::Team>> {
    Ok(Json(teams::accept(&app, who, &wanted.token).await?))
}

/// Returns a team's limits and their current use.
#[utoipa::path(
    operation_id = "get_limits",
    get, path = "/v1/teams/{id}/limits", tag = "teams",
    params(("id" = String, Path, description = "Id of the team")),
    responses((status = 200, body = api::TeamLimits), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn limits(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::TeamLimits>> {
    Ok(Json(teams::limits(&app, caller.team).await?))
}
