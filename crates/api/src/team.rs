//! Teams, their members, keys and limits.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A team as a member sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Team {
    pub id: String,
    pub name: String,
    /// What the caller is in it: `owner`, `admin`, `member`, `viewer`; `key` for a key.
    pub role: String,
    /// Whether requests are for it that name none.
    pub default: bool,
    /// The least tier of isolation that its capsules begin on: `none`, `tcg`, `kvm` or `jailed`.
    pub isolation: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Teams, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TeamList {
    pub items: Vec<Team>,
}

/// `POST /v1/teams`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NameTeam {
    /// 1 to 100 characters.
    pub name: String,
}

/// `PATCH /v1/teams/{id}`; what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTeam {
    /// 1 to 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The least tier of isolation that capsules begin on from now on: `none`, `tcg`, `kvm` or
    /// `jailed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
}

/// A member of a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Member {
    pub user_id: String,
    pub name: String,
    pub email: String,
    pub role: String,
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
}

/// The members of a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MemberList {
    pub items: Vec<Member>,
}

/// `PATCH /v1/teams/{id}/members/{user}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMember {
    /// `admin`, `member` or `viewer`.
    pub role: String,
}

/// `POST /v1/teams/{id}/transfer`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferTeam {
    /// A member, who becomes the owner; who was, becomes an admin.
    pub user_id: String,
}

/// `POST /v1/teams/{id}/invitations`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteMember {
    pub email: String,
    /// `admin`, `member` or `viewer`.
    pub role: String,
}

/// Somebody is invited to a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    pub id: String,
    pub email: String,
    pub role: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Invitations that are not taken yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct InvitationList {
    pub items: Vec<Invitation>,
}

/// `POST /v1/invitations/accept`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitation {
    /// From the mail.
    pub token: String,
}

/// What a team, or a key, may have; 0 is no limit, and what is left out is the default: of a key,
/// none but the team's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Capsules that are not gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsules: Option<u32>,
    /// Virtual processors of capsules that are neither paused nor failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory of the same, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Number of named snapshots. A limit of teams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// Storage of snapshots and paused capsules, in MiB, by their blocks on the hosts' disks. A
    /// limit of teams alone. Beyond it, snapshots and forks are refused, but no pause is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_mb: Option<u64>,
    /// By each control plane, and twice as many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates_per_sec: Option<u32>,
    /// By each control plane, and twice as many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_sec: Option<u32>,
}

/// What a team may have, and what it has.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TeamLimits {
    /// What holds; 0 is no limit.
    pub limits: Limits,
    pub capsules: i64,
    pub vcpus: i64,
    pub memory_mb: i64,
    /// Number of named snapshots.
    pub snapshots: i64,
    /// Storage of snapshots and paused capsules, in MiB, as of the hosts' last count.
    pub storage_mb: i64,
}

/// A team as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminTeam {
    pub id: String,
    pub name: String,
    pub members: i64,
    /// Capsules that are not gone.
    pub capsules: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of teams, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminTeamPage {
    pub items: Vec<AdminTeam>,
    /// `before` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// 1 to 100 characters.
    pub name: String,
    /// `wrn`, or `e2b` as when left out, which E2B's SDKs take too.
    pub form: Option<String>,
    /// Any of `capsules:read`, `capsules:exec`, `capsules:admin`, `team:read`, `team:admin`; each
    /// of capsules holds those before it. None: all with capsules, and the team is seen.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Name of the one template that it may start capsules from, and whose capsules it sees.
    pub template: Option<String>,
    /// Id of the one capsule that it sees.
    pub capsule: Option<String>,
    /// Seconds from now until the key expires. Without it, the key never expires, or expires with
    /// the key that makes it.
    pub expires_sec: Option<u64>,
    /// Whether what concerns the whole platform may be done with it; for admins to give.
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
    /// Its first ten characters.
    pub key_prefix: String,
    pub scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsule_id: Option<String>,
    pub operator: bool,
    pub limits: Limits,
    /// The user who made it, and whose powers it never exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub expires_at: Option<OffsetDateTime>,
    /// To some minutes.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub last_used_at: Option<OffsetDateTime>,
    /// The key itself, in the answer to its making alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
}

/// A page of keys, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyPage {
    pub items: Vec<ApiKey>,
    /// `before` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
