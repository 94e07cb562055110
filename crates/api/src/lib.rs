//! The shapes of the public REST API, shared by the control plane and the client commands.
//! Ids are their wire texts; times are RFC 3339. Holds no behaviour.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

mod account;
mod event;
mod hosts;
mod keep;
mod network;
mod port;
mod stream;
mod team;

pub use account::{
    Activate, AuthUrl, ChangeMe, ChangePassword, ChangeUser, ConfirmPassword, DeleteMe, InviteUser,
    LogIn, LoggedIn, Me, Message, Providers, ResetPassword, Session, SessionList, SignUp, User,
    UserPage, UserToken,
};
pub use event::{
    AuditLog, AuditLogPage, ChangeChannel, Channel, ChannelList, DailyUsage, Delivery,
    DeliveryPage, Event, NewChannel, Usage,
};
pub use hosts::{
    DrainHost, Heartbeat, HeartbeatAnswer, Host, HostCredentials, HostList, HostLoad, HostLoss,
    HostSpecs, HostTags, HostToken, LostCapsule, NewHost, RefreshHost, RegisterHost,
};
pub use keep::{
    CreateSnapshot, Fork, ForkError, Forked, Pause, Resume, SetTimeout, Snapshot, SnapshotPage,
};
pub use network::Network;
pub use port::{Link, ListeningPort, MakeLink, Port, SetPort, TrafficToken};
pub use stream::{PtyEvent, PtyRequest, StreamEvent, StreamRequest};
pub use team::{
    AcceptInvitation, AdminTeam, AdminTeamPage, ApiKey, ApiKeyPage, ChangeMember, ChangeTeam,
    Invitation, InvitationList, InviteMember, Limits, Member, MemberList, NameTeam, NewKey, Team,
    TeamLimits, TeamList, TransferTeam,
};

/// What every error answers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// Why a request was not done.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: String,
    /// For people; names the field that is wrong.
    pub message: String,
    /// Finds the request in the server's log.
    pub request_id: String,
}

/// `POST /v1/capsules`. Sizes that are left out are the template's.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCapsule {
    /// Name of a template or a snapshot, or a snapshot's id; `base` when left out.
    pub template: Option<String>,
    /// 1 to 32.
    pub vcpus: Option<u32>,
    /// 128 to 65,536 MiB.
    pub memory_mb: Option<u32>,
    /// 64 to 102,400 MiB.
    pub disk_mb: Option<u32>,
    /// Seconds of inactivity until the capsule is paused, at most 30 days; 0, as when left out, is
    /// never. Commands, terminals, files and traffic to its ports are activity.
    pub timeout_sec: Option<u32>,
    /// Seconds from when the capsule runs until its time is over, at most 30 days; never when left
    /// out.
    pub timeout: Option<u32>,
    /// What is done when its time is over: `pause`, as when left out, `pause_disk`, which keeps no
    /// memory, or `kill`.
    pub on_timeout: Option<String>,
    /// Whether a paused capsule is resumed when something is asked of it.
    #[serde(default)]
    pub auto_resume: bool,
    /// Ports that anyone may reach by their host names, at most 64.
    #[serde(default)]
    pub public_ports: Vec<u16>,
    /// Whether anyone may reach all of its ports, but envd's.
    #[serde(default)]
    pub public_traffic: bool,
    /// The name that programs in it are asked by, in which `${PORT}` stands for the port; the
    /// public one when left out.
    pub host_header: Option<String>,
    /// What it may reach outside.
    #[serde(default)]
    pub network: Network,
    /// Tags that its host must bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_tags: Vec<String>,
    /// Given to every process in the capsule.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Kept with the capsule; means nothing to the platform.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A capsule as its owner sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Capsule {
    pub id: String,
    /// `starting`, `running`, `pausing`, `paused`, `resuming`, `missing`, `error`, `stopping`.
    pub status: String,
    /// Name of the template that it was made from.
    pub template: String,
    pub vcpus: i32,
    pub memory_mb: i32,
    pub disk_mb: i32,
    /// Id of the snapshot that it began from, which may be gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Seconds of inactivity until it is paused; 0 is never.
    pub timeout_sec: i32,
    /// When its time is over, or was, for one that is paused.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub ends_at: Option<OffsetDateTime>,
    /// What is done then: `pause`, `pause_disk` or `kill`.
    pub on_timeout: String,
    /// Whether it is resumed when something is asked of it.
    pub auto_resume: bool,
    /// In the answer to a create or a resume, whether the guest was booted, which takes seconds:
    /// the first of its template and size is, and whoever has no memory to come back from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub booted: bool,
    /// Whether the platform's store has a snapshot of it, so that it outlives its host.
    #[serde(default)]
    pub stored: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Set while the guest stands still because the host's disk has too little room. The status
    /// stays `running`, and the guest goes on by itself when there is room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
    /// Why it failed, when its status is `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Ports that anyone may reach.
    #[serde(default)]
    pub public_ports: Vec<i32>,
    /// Whether anyone may reach all of them, but envd's.
    #[serde(default)]
    pub public_traffic: bool,
    /// Token that admits to every port but envd's, in the header `E2b-Traffic-Access-Token`. Only
    /// answers to create and fork have it, for callers with `capsules:exec`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic_token: Option<String>,
    /// The name that its programs are asked by; the public one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_header: Option<String>,
    /// What it may reach outside.
    #[serde(default)]
    pub network: Network,
    pub metadata: BTreeMap<String, String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub last_updated: OffsetDateTime,
}

/// `GET /v1/capsules`: one page, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CapsulePage {
    pub items: Vec<Capsule>,
    /// Pass it as `before` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/capsules/{id}/exec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// A program's name or path; no shell interprets it.
    pub cmd: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// The home of the account when left out.
    pub cwd: Option<String>,
    /// Account of the guest; its default when left out.
    pub user: Option<String>,
    /// Seconds until the whole process group is killed, at most a day; 60 when left out, or
    /// none in the background.
    pub timeout_sec: Option<u32>,
    /// Standard input, whole.
    pub stdin: Option<String>,
    /// Answers 202 at once; the command goes on.
    #[serde(default)]
    pub background: bool,
    /// Names the process beside its pid; made when left out in the background.
    pub tag: Option<String>,
}

/// How a command ended, and what it wrote.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Id of the capsule.
    pub sandbox_id: String,
    pub cmd: String,
    /// Text, or base64 when `encoding` says so.
    pub stdout: String,
    pub stderr: String,
    /// `utf-8`, or `base64` for both streams when either is not text.
    pub encoding: String,
    /// 128 and the signal's number when a signal ended it.
    pub exit_code: i32,
    /// Whether output was cut at 8 MiB a stream.
    pub truncated: bool,
    pub duration_ms: u64,
}

/// A command that was started in the background.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecStarted {
    /// Id of the capsule.
    pub sandbox_id: String,
    pub cmd: String,
    /// In the guest.
    pub pid: u32,
    pub tag: String,
}

/// A process that runs in a capsule.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub pid: u32,
    pub cmd: String,
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// `GET /v1/capsules/{id}/processes`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProcessList {
    pub processes: Vec<Process>,
}

/// Requests about one path.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Absolute, or relative to the home of the guest's default account.
    pub path: String,
}

/// `POST …/files/list`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// A directory.
    pub path: String,
    /// Levels to list; 1 when left out.
    pub depth: Option<u32>,
}

/// `POST …/files/move`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    pub source: String,
    pub destination: String,
}

/// What is at a path.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    pub name: String,
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    pub r#type: String,
    pub size: i64,
    pub mode: u32,
    pub permissions: String,
    pub owner: String,
    pub group: String,
    /// Seconds since 1970.
    pub modified_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// Answers with one entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryResult {
    pub entry: Entry,
}

/// Answers with entries.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryList {
    pub entries: Vec<Entry>,
}

/// What capsules start from.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Template {
    pub id: String,
    pub name: String,
    pub vcpus: i32,
    pub memory_mb: i32,
    pub disk_mb: i32,
    /// The least tier of isolation that its capsules begin on.
    pub isolation: String,
    /// Whether every team may use it.
    pub shared: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `PATCH /v1/templates/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTemplate {
    /// `none`, `tcg`, `kvm` or `jailed`: capsules begin on hosts of that tier, or a better one.
    pub isolation: String,
}

/// `GET /v1/templates`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    pub items: Vec<Template>,
}

/// `GET /version`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    pub version: String,
}

/// `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: String,
    pub version: String,
}
