//! The control plane's one error type. No other file maps errors to status codes. `http/respond.rs`
//! writes the body, since only it knows the request's id.

use axum::response::{IntoResponse, Response};
use connectrpc::{ConnectError, ErrorCode};
use http::{HeaderValue, StatusCode};
use protocol::{ENVD_PORT, INTERPRETER_PORT, Refusal};
use std::sync::Arc;
use std::time::Duration;
use types::resources::OutOfRange;
use types::{CapsuleState, TeamId, UserId};

/// SQLSTATEs of a text with a NUL, as plain text and in JSON.
const NUL: [&str; 2] = ["22021", "22P05"];
/// SQLSTATEs of time limits: of a statement, of the wait for a lock, and of an idle transaction.
const TOO_LATE: [&str; 3] = ["57014", "55P03", "25P03"];

/// SQLSTATE of a full disk.
const FULL: &str = "53100";
/// Longest text of a guest that an error repeats, in characters.
const GUEST_TEXT_MAX: usize = 500;

/// Reason that a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} not found")]
    NotFound(&'static str),
    #[error("the route does not support this method")]
    MethodNotAllowed,
    #[error("{0}")]
    Conflict(String),
    #[error("this Idempotency-Key was already used for a different request")]
    KeyReused,
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    #[error(
        "last-event-id is too old, and events after it are no longer kept; read the present state, \
         and open a stream without it"
    )]
    CursorExpired,
    #[error("{field} {message}")]
    Invalid { field: String, message: String },
    #[error("the request body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the request needs `{0}`, which your role or key does not have")]
    Forbidden(&'static str),
    #[error("sign-up is off here; ask an admin of the platform for an invitation")]
    SignUpOff,
    #[error("the template belongs to another team")]
    OthersTemplate,
    #[error("the template is common to all teams, so only operators of the platform change it")]
    CommonTemplate,
    #[error("this key is restricted to a capsule or a template, and the request goes beyond it")]
    Confined,
    #[error("this route needs a signed-in user; API keys are not accepted")]
    UserOnly,
    #[error("you are not in any team; create a team first")]
    NoTeam,
    #[error(
        "a request with a session cookie must come from a page of this platform and carry its \
         X-CSRF-Token"
    )]
    NotOurPage,
    #[error("the e-mail or the password is wrong")]
    WrongCredentials,
    #[error("too many {0}; try again in {seconds} s", seconds = .1.as_secs() + 1)]
    TooManyRequests(&'static str, Duration),
    #[error("the limit of {0} is reached; try again")]
    TooManyAtOnce(&'static str),
    #[error("the control plane is at its limit of concurrent work; try again")]
    Overloaded,
    #[error("the request body did not arrive in time")]
    BodyTooSlow,
    #[error("{0} has reached its limit: {1}")]
    LimitReached(&'static str, String),
    /// Builds that a team may have under way. E2B's clients wait when they see these words.
    #[error(
        "you have reached the maximum number of concurrent template builds ({0}); wait until one ends"
    )]
    TooManyBuilds(u64),
    #[error("tag '{tag}' does not exist for template '{template}', or has no ready build")]
    NoVersion { template: String, tag: String },
    #[error("template '{0}' not found")]
    NoTemplate(String),
    #[error("the files with the hash {0} are not uploaded, or not on the same host as the others")]
    FilesMissing(String),
    #[error("the name '{0}' belongs to the platform; choose another one")]
    NameReserved(String),
    #[error("name is taken: another living capsule of the team has the name '{0}'")]
    NameTaken(String),
    /// A template that something needs. `uses` are for people, and `kinds` for E2B's clients.
    #[error("the template '{name}' is in use by {uses}; remove that first")]
    TemplateInUse { name: String, uses: String, kinds: Vec<String> },
    #[error(
        "{team} has {capsules} capsules, {snapshots} snapshots and {hosts} hosts; delete them first"
    )]
    TeamNotEmpty { team: TeamId, capsules: i64, snapshots: i64, hosts: i64 },
    #[error("{0} is the last admin of the platform; make another user an admin first")]
    LastAdmin(UserId),
    #[error("{0} has other members; transfer the team or remove them first")]
    OwnsTeam(TeamId),
    #[error("this platform cannot send mail; set WRENN_SMTP_URL or WRENN_MAIL_OUTBOX")]
    NoMail,
    #[error("the e-mail could not be sent; see the control plane's log")]
    MailFailed,
    #[error("{0}")]
    SignInFailed(String),
    #[error("{0} is invalid, used or expired")]
    InvalidToken(&'static str),
    #[error(
        "the host has {0} capsules and {1} snapshots, and {2} versions of templates that are nowhere \
         else; drain it first, or delete it by force"
    )]
    HostNotEmpty(usize, i64, i64),
    #[error("the request has no valid X-API-Key header, bearer token or session")]
    Unauthenticated,
    #[error(
        "the port is private; send the owner's X-API-Key, the capsule's traffic token or a preview \
         link"
    )]
    PrivatePort,
    #[error("{0}")]
    BadSignature(&'static str),
    #[error("the preview link has expired")]
    LinkExpired,
    #[error("the preview link was revoked, or its creator may no longer reach the port")]
    LinkRevoked,
    #[error("the credential that opened this connection has ended or no longer allows it")]
    AccessRevoked,
    #[error("the capsule is {0}, not running")]
    NotRunning(CapsuleState),
    #[error("the capsule was paused during the request; resume it to continue its programs")]
    Interrupted,
    #[error("the capsule could not be paused and keeps running: {0}")]
    PauseFailed(String),
    #[error("the snapshot could not be taken: {0}")]
    SnapshotFailed(String),
    /// Damage of a snapshot. `snapshots` are the numbers of all of the capsule's snapshots.
    #[error("{why}{}", list(.snapshots))]
    SnapshotDamaged { why: String, snapshots: Vec<u64> },
    #[error("{0}; resume it with `memory` false to boot on its disk")]
    SnapshotIncompatible(String),
    #[error("the capsule has reached its limit of concurrent requests; try again")]
    TooManyConnections,
    #[error("the capsule is running but nothing listens on its port {0} (port is not open)")]
    PortClosed(u16),
    #[error("the program in the capsule {0}")]
    BadAnswer(&'static str),
    #[error(
        "the capsule has no code interpreter; create it from a template that has it, such as \
         code-interpreter"
    )]
    NoCodeInterpreter,
    /// Failure in a code interpreter, in the interpreter's words.
    #[error("the code interpreter failed: {0}")]
    InterpreterFailed(String),
    #[error("the program in the capsule sent nothing for {} s", hop::SILENCE.as_secs())]
    GuestSilent,
    #[error("no capacity: {0}")]
    NoCapacity(String),
    #[error("the database does not answer in time; try again")]
    DatabaseUnavailable,
    #[error("the capsule's host does not answer; try again")]
    HostUnavailable,
    #[error("the capsule's guest does not answer; it may have just ended")]
    GuestUnavailable,
    #[error("the capsule's disk is full; free some space in it")]
    DiskFull,
    #[error("the command did not end within {0} s and was killed")]
    TimedOut(u32),
    #[error("{0}")]
    CommandNotFound(String),
    #[error("{0}")]
    CommandNotExecutable(String),
    #[error("the connection did not read the program's output in time")]
    OutputNotRead,
    #[error("64 connections already read this program's output; close one")]
    TooManyReaders,
    #[error("the capsule could not be started: {0}")]
    StartFailed(String),
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Formats the numbers of a capsule's snapshots for the end of a message.
fn list(snapshots: &[u64]) -> String {
    let numbers: Vec<String> = snapshots.iter().map(u64::to_string).collect();
    if numbers.is_empty() {
        String::new()
    } else {
        format!("; its snapshots are {}", numbers.join(", "))
    }
}

/// Returns the part of a hostile guest's text that an error may repeat. Pure.
pub(crate) fn printable(text: &str) -> String {
    printable_to(text, GUEST_TEXT_MAX)
}

/// Removes control characters and direction marks from a guest's text, and cuts it after `most`
/// characters.
pub(crate) fn printable_to(text: &str, most: usize) -> String {
    // Direction marks would show text in another order.
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !c.is_control() && !turns(*c)).take(most).collect()
}

impl Error {
    /// Words the error for a client that knows only the former names of renamed fields.
    pub(crate) fn by_former_name(&self) -> String {
        let Self::Invalid { field, message } = self else { return self.to_string() };
        format!("{} {message}", api::former_name(field).unwrap_or(field))
    }

    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// Makes the error of an invalid value in E2B's form, `Invalid name: …`. E2B's clients look for
    /// its begin, so the field stands after the word.
    pub(crate) fn invalid_as_e2b(what: impl Into<String>) -> Self {
        Self::invalid("Invalid", what)
    }

    /// Makes the error of a request that the guest refused, in the guest's words.
    pub(crate) fn refused_by_guest(message: &str) -> Self {
        Self::invalid("the guest refused the request:", printable(message))
    }

    /// Makes the error of a request whose own body could not be read to its end.
    pub(crate) fn broken_body() -> Self {
        Self::invalid("body", "is malformed or incomplete")
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) | Self::NoVersion { .. } | Self::NoTemplate(_) => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Forbidden(_)
            | Self::SignUpOff
            | Self::OthersTemplate
            | Self::CommonTemplate
            | Self::Confined
            | Self::UserOnly
            | Self::NoTeam
            | Self::NotOurPage => StatusCode::FORBIDDEN,
            Self::Conflict(_)
            | Self::NameReserved(_)
            | Self::NameTaken(_)
            | Self::TemplateInUse { .. }
            | Self::HostNotEmpty(..)
            | Self::TeamNotEmpty { .. }
            | Self::LastAdmin(_)
            | Self::OwnsTeam(_)
            | Self::NotRunning(_)
            | Self::Interrupted
            | Self::NoCodeInterpreter
            | Self::SnapshotDamaged { .. }
            | Self::SnapshotIncompatible(_) => StatusCode::CONFLICT,
            Self::Invalid { .. }
            | Self::FilesMissing(_)
            | Self::CommandNotFound(_)
            | Self::CommandNotExecutable(_) => StatusCode::BAD_REQUEST,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotSupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::CursorExpired => StatusCode::GONE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow | Self::OutputNotRead => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthenticated
            | Self::WrongCredentials
            | Self::SignInFailed(_)
            | Self::InvalidToken(_)
            | Self::PrivatePort
            | Self::BadSignature(_)
            | Self::LinkExpired
            | Self::LinkRevoked
            | Self::AccessRevoked => StatusCode::UNAUTHORIZED,
            Self::NoCapacity(_)
            | Self::NoMail
            | Self::Overloaded
            | Self::DatabaseUnavailable
            | Self::HostUnavailable
            | Self::GuestUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut(_) | Self::GuestSilent => StatusCode::GATEWAY_TIMEOUT,
            Self::PortClosed(_)
            | Self::BadAnswer(_)
            | Self::InterpreterFailed(_)
            | Self::MailFailed => StatusCode::BAD_GATEWAY,
            Self::TooManyConnections
            | Self::TooManyAtOnce(_)
            | Self::TooManyReaders
            | Self::TooManyRequests(..)
            | Self::TooManyBuilds(_)
            | Self::LimitReached(..) => StatusCode::TOO_MANY_REQUESTS,
            Self::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::StartFailed(_)
            | Self::PauseFailed(_)
            | Self::SnapshotFailed(_)
            | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the error's stable code, for programs. `docs/errors.md` lists all codes.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict(_) => "conflict",
            Self::Invalid { .. } => "invalid_request",
            Self::KeyReused => "idempotency_key_reused",
            Self::NotSupported(_) => "not_supported",
            Self::CursorExpired => "cursor_expired",
            Self::TooLarge(_) => "too_large",
            Self::Unauthenticated => "unauthorized",
            Self::Forbidden(_)
            | Self::SignUpOff
            | Self::OthersTemplate
            | Self::CommonTemplate
            | Self::Confined => "forbidden",
            Self::UserOnly => "user_only",
            Self::NoTeam => "no_team",
            Self::NotOurPage => "csrf",
            Self::WrongCredentials => "wrong_credentials",
            Self::TooManyRequests(..) => "too_many_requests",
            Self::TooManyAtOnce(_) | Self::TooManyReaders => "too_many_at_once",
            Self::Overloaded => "overloaded",
            Self::BodyTooSlow => "body_timeout",
            Self::LimitReached(..) => "limit_reached",
            Self::TooManyBuilds(_) => "too_many_builds",
            Self::NoVersion { .. } => "no_version",
            Self::NoTemplate(_) => "not_found",
            Self::FilesMissing(_) => "files_missing",
            Self::NameReserved(_) => "name_reserved",
            Self::NameTaken(_) => "name_taken",
            Self::TemplateInUse { .. } => "template_in_use",
            Self::MailFailed => "mail_failed",
            Self::NoMail => "no_mail",
            Self::TeamNotEmpty { .. } => "team_not_empty",
            Self::LastAdmin(_) => "last_admin",
            Self::OwnsTeam(_) => "owns_team_with_members",
            Self::SignInFailed(_) => "sign_in_failed",
            Self::InvalidToken(_) => "invalid_token",
            Self::HostNotEmpty(..) => "host_not_empty",
            Self::PrivatePort => "private_port",
            Self::BadSignature(_) => "bad_signature",
            Self::LinkExpired => "link_expired",
            Self::LinkRevoked => "link_revoked",
            Self::AccessRevoked => "access_revoked",
            Self::NotRunning(CapsuleState::Paused) => "capsule_paused",
            Self::NotRunning(_) => "capsule_not_running",
            Self::Interrupted => "capsule_interrupted",
            Self::PauseFailed(_) => "pause_failed",
            Self::SnapshotFailed(_) => "snapshot_failed",
            Self::SnapshotDamaged { .. } => "snapshot_damaged",
            Self::SnapshotIncompatible(_) => "snapshot_incompatible",
            Self::TooManyConnections => "too_many_connections",
            Self::PortClosed(_) => "port_closed",
            Self::BadAnswer(_) => "bad_answer",
            Self::NoCodeInterpreter => "no_code_interpreter",
            Self::InterpreterFailed(_) => "interpreter_failed",
            Self::GuestSilent => "guest_silent",
            Self::NoCapacity(_) => "no_capacity",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::HostUnavailable => "host_unavailable",
            Self::GuestUnavailable => "guest_unavailable",
            Self::DiskFull => "disk_full",
            Self::TimedOut(_) => "timeout",
            Self::CommandNotFound(_) => "command_not_found",
            Self::CommandNotExecutable(_) => "command_not_executable",
            Self::OutputNotRead => "output_not_read",
            Self::StartFailed(_) => "start_failed",
            Self::Internal(_) => "internal",
        }
    }

    /// Reports whether the error refuses a caller, as opposed to a fault. `true` for a team that
    /// the caller does not belong to.
    pub(crate) fn is_refusal(&self) -> bool {
        let status = self.status();
        let team = matches!(self, Self::NotFound("team"));
        team || status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
    }

    /// Returns the seconds after which the client may try again.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "all others are not about time")]
        match self {
            Self::TooManyRequests(_, wait) => Some(wait.as_secs() + 1),
            Self::TooManyAtOnce(_)
            | Self::TooManyReaders
            | Self::TooManyConnections
            | Self::Overloaded
            | Self::DatabaseUnavailable => Some(1),
            _ => None,
        }
    }

    /// Makes the same error for another request that waited for the same event.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is told as what it says")]
    pub(crate) fn repeated(&self) -> Self {
        match self {
            Self::NotFound(what) => Self::NotFound(what),
            Self::Conflict(why) => Self::Conflict(why.clone()),
            Self::NotRunning(state) => Self::NotRunning(*state),
            Self::LimitReached(who, why) => Self::LimitReached(who, why.clone()),
            Self::NoCapacity(why) => Self::NoCapacity(why.clone()),
            Self::StartFailed(why) => Self::StartFailed(why.clone()),
            Self::SnapshotDamaged { why, snapshots } => {
                Self::SnapshotDamaged { why: why.clone(), snapshots: snapshots.clone() }
            }
            Self::SnapshotIncompatible(why) => Self::SnapshotIncompatible(why.clone()),
            Self::DatabaseUnavailable => Self::DatabaseUnavailable,
            Self::HostUnavailable => Self::HostUnavailable,
            Self::GuestUnavailable => Self::GuestUnavailable,
            Self::TooManyRequests(what, wait) => Self::TooManyRequests(what, *wait),
            other => Self::Internal(anyhow::anyhow!("{other:?}")),
        }
    }

    /// Converts an error of envd into one of the platform's.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
    pub(crate) fn from_guest(error: &ConnectError) -> Self {
        let message = printable(error.message.as_deref().unwrap_or_default());
        match error.code {
            ErrorCode::NotFound => Self::NotFound("path"),
            ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition => Self::Conflict(message),
            ErrorCode::InvalidArgument
            | ErrorCode::OutOfRange
            | ErrorCode::Unauthenticated
            | ErrorCode::PermissionDenied => Self::refused_by_guest(&message),
            ErrorCode::ResourceExhausted => Self::DiskFull,
            ErrorCode::Unavailable | ErrorCode::DeadlineExceeded => Self::GuestUnavailable,
            code => Self::Internal(anyhow::anyhow!("envd answered {code:?}: {message}")),
        }
    }

    /// Converts a host agent's refusal of a request to a guest's port.
    pub(crate) fn from_refusal(refusal: Option<Refusal>, port: u16) -> Self {
        match refusal {
            Some(Refusal::TooMany) => Self::TooManyConnections,
            Some(Refusal::PortClosed) => Self::PortClosed(port),
            Some(Refusal::Silent) => Self::GuestSilent,
            Some(Refusal::Closed) => Self::BadAnswer("closed the connection without an answer"),
            Some(Refusal::Garbage) => Self::BadAnswer("did not answer with HTTP"),
            Some(Refusal::Paused) => Self::NotRunning(CapsuleState::Paused),
            Some(Refusal::Draining) => Self::NotRunning(CapsuleState::Pausing),
            Some(Refusal::NotRunning | Refusal::Unreachable) | None => Self::GuestUnavailable,
        }
    }

    /// Makes the error of a request for envd that the host's agent refused.
    pub(crate) fn from_envd_refusal(refusal: &HeaderValue) -> Self {
        match Refusal::parse(refusal.as_bytes()) {
            // The closed or silent port is envd's own, which is no concern of the caller.
            Some(Refusal::PortClosed | Refusal::Silent | Refusal::Closed | Refusal::Garbage) => {
                Self::GuestUnavailable
            }
            refusal => Self::from_refusal(refusal, ENVD_PORT),
        }
    }

    /// Makes the error of a request for a code interpreter that the host's agent refused.
    pub(crate) fn from_interpreter_refusal(refusal: &HeaderValue) -> Self {
        match Refusal::parse(refusal.as_bytes()) {
            // envd holds the port open wherever the capsule's image has the interpreter.
            Some(Refusal::PortClosed) => Self::NoCodeInterpreter,
            refusal => Self::from_refusal(refusal, INTERPRETER_PORT),
        }
    }

    /// Logs the details of an internal error, which the client does not get.
    pub(crate) fn log(&self, request_id: &str) {
        if let Self::Internal(source) = self {
            tracing::error!(request_id, error = format!("{source:#}"), "internal error");
        }
    }
}

impl From<sqlx::Error> for Error {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add kinds")]
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                tracing::warn!(%error, "the database does not answer");
                Self::DatabaseUnavailable
            }
            sqlx::Error::Database(error) if error.code().is_some_and(|code| code == FULL) => {
                tracing::error!(%error, "the disk of the database is full");
                Self::NoCapacity("the disk of the platform's database is full".to_owned())
            }
            sqlx::Error::Database(error)
                if error.code().is_some_and(|code| NUL.contains(&&*code)) =>
            {
                Self::invalid("the request", "must not contain NUL characters")
            }
            sqlx::Error::Database(error)
                if error.code().is_some_and(|code| TOO_LATE.contains(&&*code)) =>
            {
                tracing::warn!(%error, "the database took too long");
                Self::DatabaseUnavailable
            }
            other => Self::Internal(other.into()),
        }
    }
}

impl From<OutOfRange> for Error {
    fn from(error: OutOfRange) -> Self {
        Self::Invalid { field: error.field.to_owned(), message: error.message }
    }
}

/// Carries an error to `http/respond.rs`.
#[derive(Clone)]
pub(crate) struct Failure(pub Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Failure(Arc::new(self)));
        response
    }
}
