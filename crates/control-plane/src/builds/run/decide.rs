//! Chooses the next act of a build from its row. Pure: whatever process died, the next leader reads
//! the same row and goes on from there.
//!
//! | death after | row | next leader |
//! |---|---|---|
//! | request | `building`, no host | places the build |
//! | placement, before or after `BeginBuild` | host, no event seen | begins again, which is success |
//! | some events | `events_seen` | watches from there, since a transaction stored them whole |
//! | `Prepared` | names a capsule that has no row | creates that capsule |
//! | insert of the capsule | capsule `starting` | waits; `reconcile` removes it if the host lacks it, and the build names another |
//! | create on the host | capsule `running` | sends `RunBuild` again, which is success |
//! | `Built` with a start command | provenance, names a new capsule | creates that capsule; the former one is left over |
//! | start and ready | that capsule is `running` | completes |
//! | completion or failure | `ready` or `error` | `list_left_capsules` names the capsules to remove, and `versions` has the host forget the build |
//!
//! A capsule that works for a build is left over unless the build is under way and names it. The
//! insert of a capsule locks the build's row. No capsule therefore begins after its build's end.

use crate::db::build_runs::Around;
use crate::db::builds::{Build, Reason};
use crate::error::Error;
use std::time::Duration;
use types::{CapsuleId, CapsuleState, HostId, HostState};

/// Most capsules that are tried for one part of a build.
pub(super) const CAPSULES_MAX: u32 = 5;

/// State of a runner that no row has.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Set once `BeginBuild` succeeded.
    pub begun: bool,
    /// Set once `RunBuild` succeeded.
    pub ran: bool,
    /// Set while a create is under way.
    pub creating: bool,
    /// Capsules that never ran.
    pub lost_capsules: u32,
}

/// Reason to end a build.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// The host reported the failure, and wrote it to the log.
    Reported(Reason),
    /// The platform found the failure.
    Failed(Reason),
    Cancelled,
}

impl End {
    pub(super) fn because(message: impl Into<String>) -> Self {
        Self::Failed(Reason { message: message.into(), ..Reason::default() })
    }

    /// Makes the end of a build whose capsule could not be created. `starts` is true for the capsule
    /// that runs the start command. A host tells a failed command in one line, and its last output
    /// in the lines after it.
    pub(super) fn of_create(error: Error, starts: bool) -> Self {
        let told = if let Error::StartFailed(why) = error { why } else { error.to_string() };
        let mut lines = told.lines().map(str::to_owned);
        let message = lines.next().unwrap_or_default();
        let step = starts.then(|| "finalize".to_owned());
        Self::Failed(Reason { message, step, output: lines.collect() })
    }

    /// Returns the reason that the build's row keeps.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Reported(reason) | Self::Failed(reason) => reason.clone(),
            Self::Cancelled => {
                Reason { message: "The build was canceled.".to_owned(), ..Reason::default() }
            }
        }
    }

    /// Reports whether the build's log lacks the reason.
    pub(super) fn is_news(&self) -> bool {
        !matches!(self, Self::Reported(_))
    }
}

/// Next act of a runner.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    End(End),
    /// Takes the snapshot of a capsule, which becomes the version.
    Capture(CapsuleId),
    /// Chooses a host.
    Place,
    Begin(HostId),
    /// Creates the capsule that the row names.
    Create(HostId, CapsuleId),
    /// Has the host run the steps in that capsule.
    RunSteps(HostId, CapsuleId),
    /// Names another capsule, since the present one never ran.
    Replan,
    Watch(HostId),
    Complete(HostId),
}

/// Chooses the next act.
pub(super) fn next(build: &Build, around: &Around, progress: &Progress) -> Next {
    if let Some(end) = end(build, around) {
        return Next::End(end);
    }
    if build.spec.is_none() {
        let gone = || Next::End(End::because("the build names neither steps nor a capsule"));
        return build.capsule_id.map_or_else(gone, Next::Capture);
    }
    let Some(host) = build.host_id else { return Next::Place };
    let begun = progress.begun || build.events_seen > 0;
    match around.host {
        Some(HostState::Online) => {}
        Some(HostState::Pending | HostState::Unreachable) | None if !begun => return Next::Place,
        Some(HostState::Pending | HostState::Unreachable) | None => {
            let why = "the host that built the template is lost; build again";
            return Next::End(End::because(why));
        }
    }
    if !begun {
        return Next::Begin(host);
    }
    let is_built = build.provenance.is_some();
    match build.capsule_id {
        None if is_built => Next::Complete(host),
        None => Next::Watch(host),
        Some(_) if progress.creating => Next::Watch(host),
        Some(id) => with_capsule(host, id, is_built, around, progress),
    }
}

/// Chooses the next act of a build that names a capsule.
fn with_capsule(
    host: HostId,
    id: CapsuleId,
    is_built: bool,
    around: &Around,
    progress: &Progress,
) -> Next {
    match around.capsule {
        None => Next::Create(host, id),
        // The reconciler settles a create whose control plane died.
        Some(CapsuleState::Starting) => Next::Watch(host),
        // The start command has run, and the machine is saved.
        Some(_) if around.capsule_ran && is_built => Next::Complete(host),
        // The host's events tell the end of the steps. The capsule's state does not, since the host
        // ends the machine itself.
        Some(_) if around.capsule_ran && progress.ran => Next::Watch(host),
        Some(_) if around.capsule_ran => Next::RunSteps(host, id),
        Some(_) if progress.lost_capsules < CAPSULES_MAX => Next::Replan,
        Some(_) => Next::End(End::because("the capsule for the build could not be started")),
    }
}

/// Returns the reason to end a build now, if there is one.
fn end(build: &Build, around: &Around) -> Option<End> {
    if let Some(reason) = &build.reason {
        return Some(End::Reported(reason.0.clone()));
    }
    if build.cancelled {
        return Some(End::Cancelled);
    }
    if around.team_deleted {
        return Some(End::because("the team was deleted"));
    }
    if around.key_revoked {
        return Some(End::because("the key that asked for the build was revoked"));
    }
    let limit = limit(build);
    let phase = build.phase.map_or("queued", |phase| phase.as_str());
    let late = around.age() > limit;
    late.then(|| {
        let limit = limit.as_secs();
        End::because(format!("the build took longer than {limit} s; it was in phase `{phase}`"))
    })
}

/// Returns the time that a build may take.
pub(super) fn limit(build: &Build) -> Duration {
    let seconds = build.spec.as_ref().map_or(recipe::spec::WITHIN_SEC, |spec| spec.within_sec);
    Duration::from_secs(seconds.into())
}
