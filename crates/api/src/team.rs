//! Teams, their members, keys and limits.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A team as a member sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Team {
    pub id: String,
    pub name: String,
    /// Role of the caller: `owner`, `admin`, `member` or `viewer`, or `key` for an API key.
    pub role: String,
    /// True for the user's default team, to which requests without a team apply.
    pub default: bool,
    /// Lowest isolation tier on which the team's capsules start: `none`, `tcg`, `kvm` or `jailed`.
    pub isolation: String,
    /// Output that the logs of the team's new capsules keep: `none`, `background` or `all`.
    #[serde(default)]
    pub logs: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Teams, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TeamList {
    pub items: Vec<Team>,
}

/// Request body of `POST /v1/teams`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NameTeam {
    /// Name of 1 to 100 characters.
    pub name: String,
}

/// Request body of `PATCH /v1/teams/{id}`. Absent fields stay as they are.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTeam {
    /// Name of 1 to 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lowest isolation tier on which the team's new capsules start: `none`, `tcg`, `kvm` or
    /// `jailed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Output that the logs of the team's new capsules keep, unless their creator chooses: `none`,
    /// `background` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<String>,
}

/// A member of a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Member {
    pub user_id: String,
    pub name: String,
    pub email: String,
    /// Role in the team: `owner`, `admin`, `member` or `viewer`.
    pub role: String,
    /// Time when the user joined the team.
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
}

/// The members of a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MemberList {
    pub items: Vec<Member>,
}

/// Request body of `PATCH /v1/teams/{id}/members/{user}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMember {
    /// New role: `admin`, `member` or `viewer`.
    pub role: String,
}

/// Request body of `POST /v1/teams/{id}/transfer`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferTeam {
    /// Id of the member who becomes the owner. The previous owner becomes an admin.
    pub user_id: String,
}

/// Request body of `POST /v1/teams/{id}/invitations`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteMember {
    pub email: String,
    /// Role of the new member: `admin`, `member` or `viewer`.
    pub role: String,
}

/// An open invitation to a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    pub id: String,
    pub email: String,
    /// Role of the new member: `admin`, `member` or `viewer`.
    pub role: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Invitations that nobody has accepted yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct InvitationList {
    pub items: Vec<Invitation>,
}

/// Request body of `POST /v1/invitations/accept`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitation {
    /// Token from the mail.
    pub token: String,
}

/// Limits of a team or a key; 0 means no limit. An absent field selects the default. A key's
/// default is its team's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Limits {
    /// Number of capsules that have not been removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsules: Option<u32>,
    /// Virtual CPUs of capsules that are neither paused nor failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory of capsules that are neither paused nor failed, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Number of named snapshots. Only teams have this limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// Storage of snapshots and paused capsules in MiB, measured as blocks on the hosts' disks.
    /// Only teams have this limit. Beyond the limit, snapshots and forks are refused, but pauses
    /// are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_mib: Option<u64>,
    /// Number of templates. Only teams have this limit. Absent from a request, it stays as it is,
    /// and so do the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<u32>,
    /// Number of builds of templates at once. Only teams have this limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builds: Option<u32>,
    /// Storage of the versions of templates in MiB, counted once for each version. Only teams have
    /// this limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_mib: Option<u64>,
    /// Capsules created per second. Each control plane counts alone, and a burst may be twice as
    /// large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates_per_sec: Option<u32>,
    /// Requests per second. Each control plane counts alone, and a burst may be twice as large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_sec: Option<u32>,
}

/// Limits of a team, and their current use.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct TeamLimits {
    /// Limits in force; 0 means no limit.
    pub limits: Limits,
    /// Number of capsules that have not been removed.
    pub capsules: i64,
    /// Virtual CPUs of capsules that are neither paused nor failed.
    pub vcpus: i64,
    /// Memory of capsules that are neither paused nor failed, in MiB.
    pub memory_mib: i64,
    /// Number of named snapshots.
    pub snapshots: i64,
    /// Storage of snapshots and paused capsules in MiB, as of the hosts' last count.
    pub storage_mib: i64,
    /// Number of templates.
    #[serde(default)]
    pub templates: i64,
    /// Number of builds of templates under way.
    #[serde(default)]
    pub builds: i64,
    /// Storage of the versions of templates in MiB.
    #[serde(default)]
    pub template_mib: i64,
}

/// A team as platform admins see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminTeam {
    pub id: String,
    pub name: String,
    /// Number of members.
    pub members: i64,
    /// Number of capsules that have not been removed.
    pub capsules: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of teams, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminTeamPage {
    pub items: Vec<AdminTeam>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Request body of `POST /v1/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct NewKey {
    /// Name of 1 to 100 characters.
    pub name: String,
    /// Form of the key: `wrn` or `e2b`. E2B's SDKs accept `e2b`, the default.
    pub form: Option<String>,
    /// Scopes: `capsules:read`, `capsules:exec`, `capsules:admin`, `team:read`, `team:admin`.
    /// - Each scope includes the scopes before it with the same prefix.
    /// - An empty list grants all capsule scopes and `team:read`.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Name of the only template that the key may start capsules from. The key sees only that
    /// template's capsules.
    pub template: Option<String>,
    /// Id of the only capsule that the key sees.
    pub capsule: Option<String>,
    /// Seconds from now until the key expires. By default, the key never expires, or expires with
    /// the key that creates it.
    pub expires_in: Option<u64>,
    /// True to let the key act on the whole platform. Only platform admins and operators may set
    /// this field.
    #[serde(default)]
    pub operator: bool,
    pub limits: Option<Limits>,
}

/// A key as its team sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    pub id: String,
    pub team_id: String,
    pub name: String,
    /// The key's first ten characters.
    pub key_prefix: String,
    /// Scopes of the key, as in `NewKey`.
    pub scopes: Vec<String>,
    /// Id of the only template that the key may start capsules from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Id of the only capsule that the key sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsule_id: Option<String>,
    /// True if the key may act on the whole platform.
    pub operator: bool,
    pub limits: Limits,
    /// Id of the user who created the key. The key never exceeds that user's permissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Expiry of the key. Absent for a key that never expires.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub expires_at: Option<OffsetDateTime>,
    /// Time of the last use, exact to some minutes.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub last_used_at: Option<OffsetDateTime>,
    /// The key itself. Only the answer to the create contains it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
}

/// A page of keys, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyPage {
    pub items: Vec<ApiKey>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
