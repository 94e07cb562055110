//! Types of the public REST API, shared by the control plane and the client commands. Ids are their
//! wire texts; times are RFC 3339. A duration is in seconds and a size in bytes, unless the field's
//! name has a unit. `renamed.rs` handles former names of fields; nothing else here has behaviour.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

mod account;
mod bulk;
mod capabilities;
mod capsule_list;
mod code;
mod event;
mod hosts;
mod keep;
mod logs;
mod network;
mod port;
mod process;
mod renamed;
mod stats;
mod stream;
mod team;
mod template;

pub use account::{
    Activate, AuthUrl, ChangeMe, ChangePassword, ChangeUser, ConfirmPassword, DeleteMe, InviteUser,
    LogIn, LoggedIn, Me, Message, Providers, ResetPassword, Session, SessionList, SignUp, User,
    UserPage, UserToken,
};
pub use bulk::{BulkChange, BulkError, BulkFilter, BulkItem, BulkResult};
pub use capabilities::{Capabilities, CapabilityLimits, CapabilitySize};
pub use capsule_list::{
    CapsuleParent, CapsuleSummary, ChangeCapsule, Creator, Lineage, LineageEntry,
};
pub use code::{
    CodeCompletion, CodeContext, CodeContextList, CodeVariable, CodeVariableList, CompleteCode,
    CreateCodeContext, RunCode,
};
pub use event::{
    AuditLog, AuditLogPage, ChangeChannel, Channel, ChannelList, DailyUsage, Delivery,
    DeliveryPage, Event, EventActor, EventPage, NewChannel, Usage,
};
pub use hosts::{
    DrainHost, Heartbeat, HeartbeatAnswer, Host, HostCredentials, HostList, HostLoad, HostLoss,
    HostSpecs, HostTags, HostToken, LostCapsule, NewHost, RefreshHost, RegisterHost,
};
pub use keep::{
    CreateSnapshot, Fork, ForkError, Forked, Pause, Resume, SetTimeout, Snapshot, SnapshotPage,
};
pub use logs::{LogEntry, LogPage};
pub use network::Network;
pub use port::{Link, ListeningPort, MakeLink, Port, SetPort, TrafficToken};
pub use process::{
    GuestProcess, GuestProcessList, Process, ProcessList, Processes, Terminal, TerminalList,
};
pub use renamed::{RENAMED, Rename, former_name};
pub use stats::{
    HostMetrics, HostMetricsPoint, LatestMetrics, LatestMetricsMap, MetricsPoint, MetricsSeries,
    TeamMetrics, TeamMetricsPoint,
};
pub use stream::{PtyEvent, PtyRequest, StreamEvent, StreamRequest};
pub use team::{
    AcceptInvitation, AdminTeam, AdminTeamPage, ApiKey, ApiKeyPage, ChangeMember, ChangeTeam,
    Invitation, InvitationList, InviteMember, Limits, Member, MemberList, NameTeam, NewKey, Team,
    TeamLimits, TeamList, TransferTeam,
};
pub use template::{
    AssignTags, Build, BuildError, BuildFiles, BuildImage, BuildLine, BuildLog, BuildPage,
    BuildSource, ChangeTemplate, CreateBuild, PutRegistryLogin, RegistryLogin, RegistryLogins,
    Template, TemplateList, TemplateTag, TemplateTags,
};

/// Body of every error answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// Code, message and request id of an error.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable code for programs.
    pub code: String,
    /// Message for people. The message names the invalid field.
    pub message: String,
    /// Id of the request, as in the server's log.
    pub request_id: String,
}

/// Request body of `POST /v1/capsules`. Sizes that are absent come from the template.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateCapsule {
    /// Name of the capsule: 1 to 63 small letters, digits and `-`, and never in the form of an id.
    /// No other living capsule of the team may have the name. By default, the capsule has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of a template or a snapshot, or id of a snapshot. The default is `base`.
    pub template: Option<String>,
    /// Number of virtual CPUs, 1 to 32.
    pub vcpus: Option<u32>,
    /// Memory in MiB, 128 to 65,536.
    pub memory_mib: Option<u32>,
    /// Disk size in MiB, 64 to 102,400.
    pub disk_mib: Option<u32>,
    /// Seconds of inactivity until the capsule is paused, at most 30 days. 0, the default, means
    /// never. Commands, terminals, files and traffic to the capsule's ports are activity.
    pub idle_timeout: Option<u32>,
    /// Lifetime in seconds from the moment the capsule runs, at most 30 days. By default, the
    /// lifetime has no end.
    pub lifetime: Option<u32>,
    /// Action at the end of the lifetime. `pause` is the default, `pause_disk` keeps no memory, and
    /// `kill` removes the capsule.
    pub on_timeout: Option<String>,
    /// True if a request for the paused capsule resumes it.
    #[serde(default)]
    pub auto_resume: bool,
    /// Ports that anyone may reach by their host names, at most 64.
    #[serde(default)]
    pub public_ports: Vec<u16>,
    /// True if anyone may reach every port except envd's and the code interpreter's.
    #[serde(default)]
    pub public_traffic: bool,
    /// Value of the `Host` header that programs in the capsule receive. `${PORT}` stands for the
    /// port. The default is the public name.
    pub host_header: Option<String>,
    /// Rules for outbound connections.
    #[serde(default)]
    pub network: Network,
    /// Tags that the capsule's host must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_tags: Vec<String>,
    /// Output that the capsule's log keeps: `none`, `background` (console, state changes, start
    /// commands and background processes) or `all` (foreground commands too). The default is the
    /// team's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<String>,
    /// Environment variables of every process in the capsule.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Key-value pairs stored with the capsule. The platform does not interpret the pairs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A capsule as its owner sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct Capsule {
    pub id: String,
    /// Name that the team chose. The API takes the name of a living capsule in place of its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State: `starting`, `running`, `pausing`, `paused`, `resuming`, `missing`, `error` or
    /// `stopping`. An ended capsule is `stopped`.
    pub status: String,
    /// Name of the template or snapshot that the capsule was created from.
    pub template: String,
    /// Number of virtual CPUs.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i32,
    /// Disk size in MiB.
    pub disk_mib: i32,
    /// Id of the snapshot that the capsule was created from. The snapshot may no longer exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Origin of the capsule, which may no longer exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<CapsuleParent>,
    /// User or key that created the capsule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<Creator>,
    /// Seconds of inactivity until the capsule is paused; 0 means never.
    pub idle_timeout: i32,
    /// End of the lifetime. For a paused capsule, the end that applied while it ran.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub ends_at: Option<OffsetDateTime>,
    /// Action at the end of the lifetime: `pause`, `pause_disk` or `kill`.
    pub on_timeout: String,
    /// True if a request for the paused capsule resumes it.
    pub auto_resume: bool,
    /// True if a create or resume booted the guest, which takes seconds. The first capsule of a
    /// template and size boots. A resume without stored memory boots too. Other answers omit the
    /// field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub booted: bool,
    /// True if the platform's store has the capsule's latest snapshot, which then outlives the
    /// host.
    #[serde(default)]
    pub stored: bool,
    /// Id of the capsule's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Isolation tier of the capsule's host: `none`, `tcg`, `kvm` or `jailed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// True while the guest stands still because the host's disk has too little room. The status
    /// stays `running`, and the guest continues by itself once there is room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
    /// Reason of the failure, when the status is `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Ports that anyone may reach.
    #[serde(default)]
    pub public_ports: Vec<i32>,
    /// True if anyone may reach every port except envd's and the code interpreter's.
    #[serde(default)]
    pub public_traffic: bool,
    /// Token that admits clients to every port except envd's, in the header
    /// `E2b-Traffic-Access-Token`. Only answers to create and fork contain the token, for callers
    /// with `capsules:exec`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic_token: Option<String>,
    /// Value of the `Host` header that programs in the capsule receive. By default, programs
    /// receive the public name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_header: Option<String>,
    /// Rules for outbound connections.
    #[serde(default)]
    pub network: Network,
    /// Key-value pairs stored with the capsule.
    pub metadata: BTreeMap<String, String>,
    /// Output that the capsule's log keeps: `none`, `background` or `all`.
    #[serde(default)]
    pub logs: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Time when the capsule first ran. Absent until then.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub started_at: Option<OffsetDateTime>,
    /// Time of the last change of the capsule.
    #[serde(with = "time::serde::rfc3339")]
    pub last_updated: OffsetDateTime,
    /// Begin of the present state.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub state_since: Option<OffsetDateTime>,
    /// Begin of the present pause.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub paused_at: Option<OffsetDateTime>,
    /// Time of the last activity in the capsule, or of its last start. It may lag by a minute.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub last_active_at: Option<OffsetDateTime>,
    /// End of the capsule. Only ended capsules have it.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub ended_at: Option<OffsetDateTime>,
}

/// Answer to `GET /v1/capsules`: one page.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CapsulePage {
    pub items: Vec<Capsule>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Request body of `POST /v1/capsules/{id}/exec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Exec {
    /// Name or path of a program. No shell interprets it.
    pub cmd: String,
    /// Arguments of the program.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables of the command, in addition to the capsule's own.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Working directory. The default is the account's home.
    pub cwd: Option<String>,
    /// Account in the guest. The default is the guest's default account.
    pub user: Option<String>,
    /// Seconds until the whole process group is killed, at most one day. The default is 60, or no
    /// limit in the background.
    pub timeout: Option<u32>,
    /// Complete standard input.
    pub stdin: Option<String>,
    /// True to answer 202 at once while the command keeps running.
    #[serde(default)]
    pub background: bool,
    /// Tag that identifies the process besides its pid. The default for background commands is a
    /// generated tag.
    pub tag: Option<String>,
}

/// Output and exit code of a command.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Id of the capsule.
    pub sandbox_id: String,
    /// Program of the command.
    pub cmd: String,
    /// Standard output as text, or as base64 if `encoding` is `base64`.
    pub stdout: String,
    /// Standard error, in the form of `stdout`.
    pub stderr: String,
    /// Encoding of both streams: `utf-8`, or `base64` when either stream is not text.
    pub encoding: String,
    /// Exit code. For a command that a signal ended, 128 plus the signal's number.
    pub exit_code: i32,
    /// True if output is incomplete. Each stream ends at 8 MiB, or where the caller's share of the
    /// server's memory ends.
    pub truncated: bool,
    /// Duration of the command in milliseconds.
    pub duration_ms: u64,
}

/// A command started in the background.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecStarted {
    /// Id of the capsule.
    pub sandbox_id: String,
    /// Program of the command.
    pub cmd: String,
    /// Process id in the guest.
    pub pid: u32,
    /// Tag that identifies the process besides its pid.
    pub tag: String,
}

/// Request body that names one path.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Absolute path, or path relative to the home of the guest's default account.
    pub path: String,
}

/// Request body of `POST …/files/list`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Path of a directory.
    pub path: String,
    /// Number of levels to list. The default is 1.
    pub depth: Option<u32>,
}

/// Request body of `POST …/files/move`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Present path of the entry.
    pub source: String,
    /// New path of the entry.
    pub destination: String,
}

/// A file, directory or other entry at a path.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Last part of the path.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// Type of the entry: `file`, `directory`, `symlink` or `other`.
    pub r#type: String,
    /// Size in bytes.
    pub size: i64,
    /// Permission bits as a number, such as 420 for `0644`.
    pub mode: u32,
    /// Type and permissions in the form of `ls`, such as `-rw-r--r--`.
    pub permissions: String,
    /// Name of the user who owns the entry.
    pub owner: String,
    /// Name of the group that owns the entry.
    pub group: String,
    /// Time of the last change, in seconds since 1970.
    pub modified_at: i64,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// Answer with one entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryResult {
    pub entry: Entry,
}

/// Answer with several entries.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryList {
    pub entries: Vec<Entry>,
}

/// Answer to `GET /version`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Version of the control plane.
    pub version: String,
}

/// Answer to `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or the reason why the platform is not healthy.
    pub status: String,
    /// Version of the control plane.
    pub version: String,
}
