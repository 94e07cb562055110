//! Conversions between the messages of `wrenn.host.v1` and the agent's own types. All are pure.

use crate::capsule::create::{Source, VersionRef};
use crate::capsule::fetch::Placed;
use crate::capsule::lifetime::{Lifetime, OnTimeout};
use crate::capsule::record::CapsuleRecord;
use crate::capsule::registry::{Listed, StartKind, Started};
use crate::capsule::resume::ResumeRequest;
use crate::capsule::stored_snapshot::StoredSnapshot;
use crate::capsule::{Error, State, chain};
use crate::log::LogMode;
use crate::network;
use connectrpc::ConnectError;
use protocol::host::{self, Failure, FailureReason};
use std::io;
use std::str::FromStr;
use types::egress::{Egress, Rule};
use types::resources::Resources;

/// Parses a field of a request. The error names the field.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, Error>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Error::Invalid(format!("{field}: {error}")))
}

/// Returns the source of a capsule: its snapshot, version and build.
pub(super) fn source_of(request: &host::CreateCapsuleRequest) -> Result<Source, Error> {
    let version = match (&request.version_id, &request.version_team_id) {
        (None, None) => None,
        (Some(id), Some(team)) => {
            Some(VersionRef { id: parse("version_id", id)?, team: team.clone() })
        }
        _ => {
            let why = "version_id and version_team_id: give both or neither";
            return Err(Error::Invalid(why.to_owned()));
        }
    };
    let snapshot = request.snapshot_id.as_deref().map(|id| parse("snapshot_id", id));
    let build = request.build_id.as_deref().map(|id| parse("build_id", id));
    Ok(Source { snapshot: snapshot.transpose()?, version, build: build.transpose()? })
}

impl TryFrom<host::CreateCapsuleRequest> for CapsuleRecord {
    type Error = Error;

    fn try_from(request: host::CreateCapsuleRequest) -> Result<Self, Error> {
        Ok(Self {
            generation: request.generation,
            team: request.team_id,
            template: request.template,
            resources: Resources {
                vcpus: request.vcpus,
                memory_mib: request.memory_mib,
                disk_mib: request.disk_mib,
            },
            envd_token: request.envd_token,
            envs: request.envs.into_iter().collect(),
            egress: egress(request.egress.into_option())?,
            life: request.lifetime.into_option().unwrap_or_default().try_into()?,
            logs: log_mode(&request.logs)?,
            ..Self::new(parse("capsule_id", &request.capsule_id)?)
        })
    }
}

impl TryFrom<host::ResumeCapsuleRequest> for ResumeRequest {
    type Error = Error;

    fn try_from(request: host::ResumeCapsuleRequest) -> Result<Self, Error> {
        Ok(Self {
            id: parse("capsule_id", &request.capsule_id)?,
            generation: request.generation,
            life: request.lifetime.into_option().unwrap_or_default().try_into()?,
            egress: egress(request.egress.into_option())?,
            logs: log_mode(&request.logs)?,
            number: request.snapshot,
            cold: request.cold,
        })
    }
}

/// Reads the choice of a log's output.
pub(super) fn log_mode(text: &str) -> Result<LogMode, Error> {
    let unknown = || Error::Invalid("logs: must be none, background or all".to_owned());
    LogMode::parse(text).ok_or_else(unknown)
}

/// Copy of a capsule in the store.
pub(super) struct StoredCapsule {
    pub team: String,
    pub snapshot: StoredSnapshot,
    pub placed: Placed,
}

impl StoredCapsule {
    /// Returns the copy that a resume may fetch, if any.
    pub(super) fn of(request: &host::ResumeCapsuleRequest) -> Result<Option<Self>, Error> {
        let Some(stored) = request.stored.as_option() else { return Ok(None) };
        let snapshot = stored.snapshot.as_option().cloned().unwrap_or_default().try_into()?;
        // When the placing command is unknown, any copy on this host counts as new.
        let since = stored.placed.unwrap_or_default();
        let placed = Placed { generation: request.generation, since };
        Ok(Some(Self { team: stored.team_id.clone(), snapshot, placed }))
    }
}

impl TryFrom<host::StoredSnapshot> for StoredSnapshot {
    type Error = Error;

    fn try_from(wire: host::StoredSnapshot) -> Result<Self, Error> {
        let parsed = Self::parse(&wire.name).filter(|stored| stored.number == wire.number);
        parsed.ok_or_else(|| Error::Invalid("stored snapshot: number and name differ".to_owned()))
    }
}

impl From<&StoredSnapshot> for host::StoredSnapshot {
    fn from(stored: &StoredSnapshot) -> Self {
        Self { number: stored.number, name: stored.name().to_owned(), ..Default::default() }
    }
}

/// Converts rules for outgoing connections. An absent message stands for no rules.
pub(super) fn egress(wire: Option<host::Egress>) -> Result<Egress, Error> {
    let wire = wire.unwrap_or_default();
    let rules = |texts: Vec<String>| -> Result<Vec<Rule>, Error> {
        texts.iter().map(|text| parse("egress", text)).collect()
    };
    Ok(Egress { allow: rules(wire.allow)?, deny: rules(wire.deny)?, revision: wire.revision })
}

impl TryFrom<host::Lifetime> for Lifetime {
    type Error = Error;

    fn try_from(wire: host::Lifetime) -> Result<Self, Error> {
        let on_timeout = match wire.on_timeout.as_known() {
            Some(host::OnTimeout::ON_TIMEOUT_UNSPECIFIED | host::OnTimeout::ON_TIMEOUT_PAUSE) => {
                OnTimeout::Pause
            }
            Some(host::OnTimeout::ON_TIMEOUT_PAUSE_DISK) => OnTimeout::PauseDisk,
            Some(host::OnTimeout::ON_TIMEOUT_KILL) => OnTimeout::Kill,
            None => return Err(Error::Invalid("on_timeout: unknown".to_owned())),
        };
        Ok(Self {
            ends_at_ms: None,
            on_timeout,
            // In the record's file, 0 means never. A lifetime of 0 ends a moment later.
            lasts_ms: wire.lasts_ms.map(|ms| ms.max(1)),
            idle_sec: wire.idle_sec.map(|sec| sec.max(1)),
        })
    }
}

impl From<StartKind> for host::StartKind {
    fn from(kind: StartKind) -> Self {
        match kind {
            StartKind::Booted => Self::START_KIND_BOOTED,
            StartKind::Forked => Self::START_KIND_FORKED,
            StartKind::Resumed => Self::START_KIND_RESUMED,
        }
    }
}

impl From<Started> for host::Started {
    fn from(started: Started) -> Self {
        let kind = started.kind.map(host::StartKind::from).unwrap_or_default();
        Self { kind: kind.into(), left_ms: started.left_ms, ..Default::default() }
    }
}

impl From<&State> for host::CapsuleState {
    fn from(state: &State) -> Self {
        match state {
            State::Starting => Self::CAPSULE_STATE_STARTING,
            State::Running => Self::CAPSULE_STATE_RUNNING,
            State::Pausing => Self::CAPSULE_STATE_PAUSING,
            State::Paused => Self::CAPSULE_STATE_PAUSED,
            State::Resuming => Self::CAPSULE_STATE_RESUMING,
            State::Expired => Self::CAPSULE_STATE_EXPIRED,
            State::Stopping => Self::CAPSULE_STATE_STOPPING,
            State::Dead(_) => Self::CAPSULE_STATE_DEAD,
        }
    }
}

impl From<Listed> for host::CapsuleInfo {
    fn from(listed: Listed) -> Self {
        Self {
            capsule_id: listed.id.to_string(),
            state: host::CapsuleState::from(&listed.state).into(),
            // The record of a command has a generation of at least 1.
            generation: Some(listed.generation).filter(|generation| *generation > 0),
            reason: if let State::Dead(reason) = listed.state { Some(reason) } else { None },
            stored: listed.stored.as_ref().map(host::StoredSnapshot::from).into(),
            egress_revision: listed.egress,
            waits_for_room: listed.waits_for_room,
            storage_bytes: listed.snapshot_bytes,
            idle_ms: listed.idle.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)),
            logs: listed.logs.as_str().to_owned(),
            ..Default::default()
        }
    }
}

impl From<&Error> for FailureReason {
    fn from(error: &Error) -> Self {
        match error {
            Error::Invalid(_) => Self::FAILURE_REASON_INVALID,
            Error::NotFound(_) => Self::FAILURE_REASON_NOT_FOUND,
            Error::State(_) => Self::FAILURE_REASON_STATE,
            Error::Stale => Self::FAILURE_REASON_STALE,
            Error::Stopping => Self::FAILURE_REASON_STOPPING,
            Error::NoCapacity(_) | Error::Network(network::Error::Full(_)) => {
                Self::FAILURE_REASON_NO_CAPACITY
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::FAILURE_REASON_NO_CAPACITY
            }
            Error::NoTemplate(_) => Self::FAILURE_REASON_NO_TEMPLATE,
            Error::Start(_) => Self::FAILURE_REASON_START,
            Error::Damaged(_) => Self::FAILURE_REASON_DAMAGED,
            Error::Incompatible { .. } => Self::FAILURE_REASON_INCOMPATIBLE,
            Error::Silent | Error::GuestSilent { .. } => Self::FAILURE_REASON_SILENT,
            Error::Died { .. }
            | Error::Unsaved(_)
            | Error::Ended(_)
            | Error::Io { .. }
            | Error::Network(
                network::Error::Range(_) | network::Error::Clash { .. } | network::Error::Io { .. },
            )
            | Error::Vmm(_) => Self::FAILURE_REASON_INTERNAL,
        }
    }
}

/// Converts an error. `snapshots` are the numbers of the capsule's snapshots, if one is damaged.
pub(super) fn failure(error: &Error, snapshots: Vec<u64>) -> ConnectError {
    let reason = FailureReason::from(error).into();
    Failure { reason, snapshots, ..Default::default() }.into_error(message(error))
}

/// Returns the text for the control plane. The last words of a silent guest stay in the log.
fn message(error: &Error) -> String {
    match (error, FailureReason::from(error)) {
        (Error::NoCapacity(why), _) => why.clone(),
        (_, FailureReason::FAILURE_REASON_SILENT) => Error::Silent.to_string(),
        _ => chain(error),
    }
}

/// Converts an error of reading a request, which the log leaves out.
impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        failure(&error, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm;
    use connectrpc::ErrorCode;
    use types::{BuildId, CapsuleId};

    fn other() -> io::Error {
        io::Error::other("cause")
    }

    #[test]
    fn every_error_has_a_reason_and_a_code() {
        use FailureReason as Reason;
        let io_error = |kind: io::ErrorKind| Error::Io { what: "writing", source: kind.into() };
        let clash = network::Error::Clash { range: "r".into(), other: "o".into() };
        let vmm = vmm::Error { what: "no start".into(), source: None };
        let (taken, here) = ("one".to_owned(), "other".to_owned());
        let console = "secret".to_owned();
        let table = [
            (Error::Invalid("x".into()), Reason::FAILURE_REASON_INVALID),
            (Error::NotFound("capsule x".into()), Reason::FAILURE_REASON_NOT_FOUND),
            (Error::State(State::Pausing), Reason::FAILURE_REASON_STATE),
            (Error::Stale, Reason::FAILURE_REASON_STALE),
            (Error::Stopping, Reason::FAILURE_REASON_STOPPING),
            (Error::NoCapacity("x".into()), Reason::FAILURE_REASON_NO_CAPACITY),
            (Error::Network(network::Error::Full(8)), Reason::FAILURE_REASON_NO_CAPACITY),
            (io_error(io::ErrorKind::StorageFull), Reason::FAILURE_REASON_NO_CAPACITY),
            (Error::NoTemplate("x".into()), Reason::FAILURE_REASON_NO_TEMPLATE),
            (Error::Damaged(other()), Reason::FAILURE_REASON_DAMAGED),
            (Error::Incompatible { taken, here }, Reason::FAILURE_REASON_INCOMPATIBLE),
            (Error::Silent, Reason::FAILURE_REASON_SILENT),
            (
                Error::GuestSilent { seconds: 9, console: console.clone() },
                Reason::FAILURE_REASON_SILENT,
            ),
            (Error::Died { reason: "x".into(), console }, Reason::FAILURE_REASON_INTERNAL),
            (Error::Start("x".into()), Reason::FAILURE_REASON_START),
            (Error::Unsaved(other()), Reason::FAILURE_REASON_INTERNAL),
            (Error::Ended("x".into()), Reason::FAILURE_REASON_INTERNAL),
            (io_error(io::ErrorKind::NotFound), Reason::FAILURE_REASON_INTERNAL),
            (Error::Network(clash), Reason::FAILURE_REASON_INTERNAL),
            (Error::Vmm(vmm), Reason::FAILURE_REASON_INTERNAL),
        ];
        for (error, reason) in table {
            let sent = failure(&error, vec![1, 2]);
            let read = Failure::from_error(&sent).unwrap();
            assert_eq!(
                (sent.code, read.reason.as_known()),
                (reason.code(), Some(reason)),
                "{error}"
            );
            assert_eq!(read.snapshots, [1, 2], "{error}");
        }
    }

    #[test]
    fn message_keeps_console_and_prefix_to_the_log() {
        let silent = Error::GuestSilent { seconds: 9, console: "secret".into() };
        let told = ConnectError::from(silent);
        assert_eq!(told.message.as_deref(), Some("the capsule's envd does not answer"));
        let full = ConnectError::from(Error::NoCapacity("no room".into()));
        assert_eq!(full.message.as_deref(), Some("no room"));
        let damaged = ConnectError::from(Error::Damaged(other()));
        assert_eq!(damaged.message.as_deref(), Some("the snapshot is damaged: cause"));
    }

    #[test]
    fn absent_lifetime_never_ends_and_zero_ends_at_once() {
        let read = |wire: host::Lifetime| Lifetime::try_from(wire);
        assert_eq!(read(host::Lifetime::default()).unwrap(), Lifetime::default());
        let wire = host::Lifetime {
            lasts_ms: Some(0),
            on_timeout: host::OnTimeout::ON_TIMEOUT_PAUSE_DISK.into(),
            idle_sec: Some(7),
            ..Default::default()
        };
        let life = read(wire).unwrap();
        assert_eq!((life.lasts_ms, life.idle_sec), (Some(1), Some(7)));
        assert_eq!(life.on_timeout, OnTimeout::PauseDisk);
        let unknown = host::Lifetime { on_timeout: 99_i32.into(), ..Default::default() };
        assert!(matches!(read(unknown), Err(Error::Invalid(_))));
    }

    #[test]
    fn create_request_becomes_record() {
        let id = CapsuleId::new();
        let request = host::CreateCapsuleRequest {
            capsule_id: id.to_string(),
            template: "base".into(),
            vcpus: 2,
            memory_mib: 128,
            disk_mib: 64,
            envd_token: "t".into(),
            generation: 3,
            team_id: "team".into(),
            ..Default::default()
        };
        assert_eq!(source_of(&request).unwrap(), Source::default());
        let wanted = CapsuleRecord {
            generation: 3,
            team: "team".into(),
            template: "base".into(),
            resources: Resources { vcpus: 2, memory_mib: 128, disk_mib: 64 },
            envd_token: "t".into(),
            ..CapsuleRecord::new(id)
        };
        assert_eq!(CapsuleRecord::try_from(request.clone()).unwrap(), wanted);
        let wrong = host::CreateCapsuleRequest { capsule_id: "x".into(), ..request.clone() };
        let refused = ConnectError::from(CapsuleRecord::try_from(wrong).unwrap_err());
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
        let wrong =
            host::CreateCapsuleRequest { snapshot_id: Some(String::new()), ..request.clone() };
        assert!(matches!(source_of(&wrong), Err(Error::Invalid(_))));
    }

    #[test]
    fn create_request_names_version_with_its_team_and_build() {
        let (version, build) = (BuildId::new(), BuildId::new());
        let request = host::CreateCapsuleRequest {
            version_id: Some(version.to_string()),
            version_team_id: Some("owners".into()),
            build_id: Some(build.to_string()),
            ..Default::default()
        };
        let wanted = Source {
            snapshot: None,
            version: Some(VersionRef { id: version, team: "owners".into() }),
            build: Some(build),
        };
        assert_eq!(source_of(&request).unwrap(), wanted);
        for wrong in [
            host::CreateCapsuleRequest { version_team_id: None, ..request.clone() },
            host::CreateCapsuleRequest { version_id: None, ..request.clone() },
            host::CreateCapsuleRequest { version_id: Some("../x".into()), ..request.clone() },
            host::CreateCapsuleRequest { build_id: Some("bld-".into()), ..request },
        ] {
            assert!(matches!(source_of(&wrong), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn resume_request_reads_absent_fields_as_none() {
        let request = host::ResumeCapsuleRequest {
            capsule_id: CapsuleId::new().to_string(),
            generation: 5,
            ..Default::default()
        };
        assert!(StoredCapsule::of(&request).unwrap().is_none());
        assert_eq!(ResumeRequest::try_from(request.clone()).unwrap().number, None);
        let with = |number: u64, name: &str, placed: Option<u64>| {
            let snapshot =
                host::StoredSnapshot { number, name: name.to_owned(), ..Default::default() };
            let stored = host::StoredCapsule {
                snapshot: snapshot.into(),
                team_id: "team".into(),
                placed,
                ..Default::default()
            };
            host::ResumeCapsuleRequest { stored: stored.into(), ..request.clone() }
        };
        let named = with(7, "7-0123456789abcdef", Some(4));
        let stored = StoredCapsule::of(&named).unwrap().unwrap();
        assert_eq!((stored.snapshot.number, stored.team.as_str()), (7, "team"));
        assert_eq!((stored.placed.generation, stored.placed.since), (5, 4));
        let back = host::StoredSnapshot::from(&stored.snapshot);
        assert_eq!((back.number, back.name.as_str()), (7, "7-0123456789abcdef"));
        let by_number = StoredCapsule::of(&with(7, "7", None)).unwrap().unwrap();
        assert_eq!((by_number.snapshot.number, by_number.placed.since), (7, 0));
        for (number, name) in [(8, "7-0123456789abcdef"), (0, ""), (7, ""), (7, "../7")] {
            assert!(StoredCapsule::of(&with(number, name, None)).is_err(), "{number} {name}");
        }
    }

    #[test]
    fn unreadable_record_is_listed_without_generation() {
        let listed = |generation: u64, state: State| Listed {
            id: CapsuleId::new(),
            state,
            generation,
            stored: None,
            egress: 0,
            waits_for_room: false,
            snapshot_bytes: 0,
            idle: None,
            logs: LogMode::All,
        };
        let dead = host::CapsuleInfo::from(listed(0, State::Dead("lost".into())));
        assert_eq!((dead.generation, dead.reason.as_deref()), (None, Some("lost")));
        assert_eq!(dead.state, host::CapsuleState::CAPSULE_STATE_DEAD);
        let runs = host::CapsuleInfo::from(listed(2, State::Running));
        assert_eq!((runs.generation, runs.reason, runs.stored.is_set()), (Some(2), None, false));
        assert_eq!((runs.logs.as_str(), runs.idle_ms), ("all", None));
    }

    #[test]
    fn start_kind_is_carried() {
        for (kind, wanted) in [
            (None, host::StartKind::START_KIND_UNSPECIFIED),
            (Some(StartKind::Booted), host::StartKind::START_KIND_BOOTED),
            (Some(StartKind::Forked), host::StartKind::START_KIND_FORKED),
            (Some(StartKind::Resumed), host::StartKind::START_KIND_RESUMED),
        ] {
            let sent = host::Started::from(Started { kind, left_ms: Some(3) });
            assert_eq!(sent.kind, wanted);
            assert_eq!(sent.left_ms, Some(3));
        }
    }
}
