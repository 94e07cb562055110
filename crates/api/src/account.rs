//! Users, and how they sign in.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// `POST /v1/auth/signup`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    pub email: String,
    /// 8 to 256 characters, and none that many use.
    pub password: String,
    /// 1 to 100 characters.
    pub name: String,
}

/// What is said of a thing that is told by mail alone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Message {
    pub message: String,
}

/// `POST /v1/auth/activate`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// From the mail.
    pub token: String,
    /// For an account that has none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// As in a sign-in.
    #[serde(default)]
    pub program: bool,
}

/// `POST /v1/auth/login`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    pub email: String,
    pub password: String,
    /// The session's token is answered, for a program to keep, instead of set as a cookie.
    #[serde(default)]
    pub program: bool,
}

/// A user has signed in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    pub user_id: String,
    pub email: String,
    pub name: String,
    /// The team that requests are for which name none; none when the user is in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// To be sent as `X-CSRF-Token` with every change, beside the cookie.
    pub csrf_token: String,
    /// For programs: to be sent as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// A short-lived signed token of a session's, for `Authorization: Bearer`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserToken {
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// `POST /v1/auth/password/reset`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPassword {
    pub email: String,
}

/// `POST /v1/auth/password/confirm`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmPassword {
    /// From the mail.
    pub token: String,
    pub new_password: String,
}

/// How people may come in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Providers {
    /// `open`, `invited` or `off`.
    pub signup: String,
    /// Names for `GET /v1/auth/oauth/{provider}`.
    pub providers: Vec<String>,
}

/// The user who asks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Me {
    pub id: String,
    pub email: String,
    pub name: String,
    /// Whether they are an admin of the platform.
    pub admin: bool,
    pub has_password: bool,
    /// Accounts elsewhere by which they sign in.
    pub providers: Vec<String>,
    /// For a session in a cookie: to be sent as `X-CSRF-Token` with every change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csrf_token: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `PATCH /v1/me`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMe {
    pub name: Option<String>,
    /// The team that requests are for which name none.
    pub default_team: Option<String>,
}

/// `DELETE /v1/me`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteMe {
    /// The user's e-mail, to be sure.
    pub confirmation: String,
}

/// `POST /v1/me/password`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// Left out by who has none yet.
    pub current_password: Option<String>,
    pub new_password: String,
}

/// A place where the user is signed in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub id: String,
    /// `browser` or `program`.
    pub kind: String,
    /// Address that the sign-in came from.
    pub address: String,
    /// What the client said that it is.
    pub agent: String,
    /// Whether it is the one that asks.
    pub current: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_used_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// `GET /v1/me/sessions`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    pub items: Vec<Session>,
}

/// Where to go on to sign in elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuthUrl {
    pub auth_url: String,
}

/// A user as admins see them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub id: String,
    pub email: String,
    pub name: String,
    pub admin: bool,
    /// `inactive`, `active` or `disabled`.
    pub status: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of users, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserPage {
    pub items: Vec<User>,
    /// `before` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/admin/users`: they are sent a mail by which they set their password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteUser {
    pub email: String,
    pub name: Option<String>,
}

/// `PATCH /v1/admin/users/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUser {
    pub admin: Option<bool>,
    /// `active` or `disabled`.
    pub status: Option<String>,
}
