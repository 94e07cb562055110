//! Users, their accounts and their sign-ins.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Request body of `POST /v1/auth/signup`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    pub email: String,
    /// Password of 8 to 256 characters. Passwords in common use are refused.
    pub password: String,
    /// Name of 1 to 100 characters.
    pub name: String,
}

/// Message about an accepted request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Message for people.
    pub message: String,
}

/// Request body of `POST /v1/auth/activate`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// Token from the mail.
    pub token: String,
    /// Password of the sign-up, or a new password for an account that has none. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// New name of 1 to 100 characters. By default, the name stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// True to receive the session's token in the answer, as in `LogIn`.
    #[serde(default)]
    pub program: bool,
}

/// Request body of `POST /v1/auth/login`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    pub email: String,
    pub password: String,
    /// True to receive the session's token in the answer, for a program. False sets a cookie
    /// instead.
    #[serde(default)]
    pub program: bool,
}

/// A user's new session.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    pub user_id: String,
    pub email: String,
    pub name: String,
    /// Id of the user's default team. Requests without a team apply to this team. Absent when the
    /// user has no team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// Token to send as `X-CSRF-Token` with every change, beside the cookie.
    pub csrf_token: String,
    /// Session token for a program to send as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    /// End of the session.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// A short-lived signed token of a session, for `Authorization: Bearer`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserToken {
    /// Signed token, sent as `Authorization: Bearer`.
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Request body of `POST /v1/auth/password/reset`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPassword {
    pub email: String,
}

/// Request body of `POST /v1/auth/password/confirm`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmPassword {
    /// Token from the mail.
    pub token: String,
    /// New password of 8 to 256 characters.
    pub new_password: String,
}

/// Sign-up policy, and the external providers that users may sign in with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Providers {
    /// Policy for sign-ups: `open`, `invited` or `off`.
    pub signup: String,
    /// Names of sign-in providers, for `GET /v1/auth/oauth/{provider}`.
    pub providers: Vec<String>,
}

/// The signed-in user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Me {
    pub id: String,
    pub email: String,
    pub name: String,
    /// True for an admin of the platform.
    pub admin: bool,
    /// True if the user can sign in with a password.
    pub has_password: bool,
    /// Providers whose accounts the user may sign in with.
    pub providers: Vec<String>,
    /// Token to send as `X-CSRF-Token` with every change. Absent unless the session is in a cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csrf_token: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Request body of `PATCH /v1/me`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMe {
    pub name: Option<String>,
    /// Id of the team for requests that name no team.
    pub default_team: Option<String>,
}

/// Request body of `DELETE /v1/me`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteMe {
    /// The user's e-mail, as a confirmation.
    pub confirmation: String,
}

/// Request body of `POST /v1/me/password`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// Current password. A user without a password leaves it out.
    pub current_password: Option<String>,
    /// New password of 8 to 256 characters.
    pub new_password: String,
}

/// A session of the user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub id: String,
    /// Kind of client: `browser` or `program`.
    pub kind: String,
    /// Network address that the sign-in came from.
    pub address: String,
    /// The client's `User-Agent` header at the sign-in.
    pub agent: String,
    /// True for the session that this request belongs to.
    pub current: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_used_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Answer to `GET /v1/me/sessions`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    pub items: Vec<Session>,
}

/// Address of a sign-in at a provider.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuthUrl {
    /// URL for the user's browser.
    pub auth_url: String,
}

/// A user as platform admins see them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub id: String,
    pub email: String,
    pub name: String,
    /// True for an admin of the platform.
    pub admin: bool,
    /// State of the account: `inactive`, `active` or `disabled`.
    pub status: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of users, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserPage {
    pub items: Vec<User>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Request body of `POST /v1/admin/users`. The user receives a mail and sets a password with it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteUser {
    pub email: String,
    pub name: Option<String>,
}

/// Request body of `PATCH /v1/admin/users/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUser {
    /// True to make the user an admin of the platform, false to take the role away.
    pub admin: Option<bool>,
    /// New state of the account: `active` or `disabled`.
    pub status: Option<String>,
}
