//! Decisions of the runner, over rows as each death leaves them.

use super::decide::{CAPSULES_MAX, End, Next, Progress, next};
use crate::db::build_runs::Around;
use crate::db::builds::{Build, BuildPhase, BuildState, Reason};
use crate::error::Error;
use recipe::{BuildSpec, Dialect, Provenance, Pull, Recipe};
use sqlx::types::Json;
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;
use types::resources::Resources;
use types::{BuildId, CapsuleId, CapsuleState, HostId, HostState, TeamId, TemplateId};

fn spec() -> BuildSpec {
    BuildSpec {
        recipe: Recipe { dialect: Dialect::Steps, escape: Default::default(), stages: Vec::new() },
        commands: Default::default(),
        start_each: false,
        start_from_image: false,
        ready_within_sec: None,
        env: BTreeMap::new(),
        user: None,
        workdir: None,
        env_at_run: false,
        force: false,
        pull: Pull::Always,
        resources: Resources::default(),
        within_sec: 100,
    }
}

/// Makes a build under way that has just been requested.
pub(super) fn build() -> Build {
    Build {
        id: BuildId::new(),
        team_id: TeamId::new(),
        template_id: TemplateId::new(),
        state: BuildState::Building,
        generation: 1,
        phase: Some(BuildPhase::Queued),
        step: 0,
        steps: 0,
        spec: Some(Json(spec())),
        provenance: None,
        snapshot_id: None,
        bases: Json(BTreeMap::new()),
        vcpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        host_id: None,
        capsule_id: None,
        events_seen: 0,
        bytes: 0,
        reason: None,
        requested_by: String::new(),
        created_by_key: None,
        cancelled: false,
        created_at: OffsetDateTime::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
    }
}

/// Makes a build whose host has told some events.
fn begun() -> (Build, HostId) {
    let host = HostId::new();
    (Build { host_id: Some(host), events_seen: 3, ..build() }, host)
}

fn around() -> Around {
    Around::of_online_host()
}

fn with(capsule: CapsuleState, capsule_ran: bool) -> Around {
    Around { capsule: Some(capsule), capsule_ran, ..around() }
}

fn fresh() -> Progress {
    Progress::default()
}

fn ends(next: Next, part: &str) -> bool {
    matches!(next, Next::End(end) if end.reason().message.contains(part))
}

#[test]
fn new_build_is_placed_and_begun() {
    let row = build();
    assert_eq!(next(&row, &Around { host: None, ..around() }, &fresh()), Next::Place);
    let host = HostId::new();
    let placed = Build { host_id: Some(host), ..build() };
    assert_eq!(next(&placed, &around(), &fresh()), Next::Begin(host));
    let progress = Progress { begun: true, ..fresh() };
    assert_eq!(next(&placed, &around(), &progress), Next::Watch(host));
}

#[test]
fn next_leader_watches_a_build_whose_events_it_finds() {
    let (row, host) = begun();
    assert_eq!(next(&row, &around(), &fresh()), Next::Watch(host));
}

#[test]
fn lost_host_ends_a_build_unless_it_has_told_nothing() {
    let (row, _) = begun();
    for host in [None, Some(HostState::Unreachable)] {
        let lost = Around { host, ..around() };
        assert!(ends(next(&row, &lost, &fresh()), "host"), "{host:?}");
        let early = Build { events_seen: 0, ..row.clone() };
        assert_eq!(next(&early, &lost, &fresh()), Next::Place);
    }
}

#[test]
fn named_capsule_is_created_and_runs_the_steps_once() {
    let (row, host) = begun();
    let id = CapsuleId::new();
    let row = Build { capsule_id: Some(id), ..row };
    assert_eq!(next(&row, &around(), &fresh()), Next::Create(host, id));
    let creating = Progress { creating: true, ..fresh() };
    assert_eq!(next(&row, &around(), &creating), Next::Watch(host));
    let starting = with(CapsuleState::Starting, false);
    assert_eq!(next(&row, &starting, &fresh()), Next::Watch(host));
    let running = with(CapsuleState::Running, true);
    assert_eq!(next(&row, &running, &fresh()), Next::RunSteps(host, id));
    let ran = Progress { ran: true, ..fresh() };
    // The host ends the machine before it tells that the version is built.
    for state in [CapsuleState::Running, CapsuleState::Error, CapsuleState::Stopped] {
        assert_eq!(next(&row, &with(state, true), &ran), Next::Watch(host), "{state}");
    }
}

#[test]
fn capsule_that_never_ran_is_replaced_a_few_times() {
    let (row, _) = begun();
    let row = Build { capsule_id: Some(CapsuleId::new()), ..row };
    for state in [CapsuleState::Stopping, CapsuleState::Stopped, CapsuleState::Error] {
        let lost = with(state, false);
        assert_eq!(next(&row, &lost, &fresh()), Next::Replan, "{state}");
        let often = Progress { lost_capsules: CAPSULES_MAX, ..fresh() };
        assert!(ends(next(&row, &lost, &often), "could not be started"), "{state}");
    }
}

#[test]
fn built_version_completes_at_once_or_after_its_start() {
    let (row, host) = begun();
    let row = Build { provenance: Some(Json(Provenance::default())), ..row };
    assert_eq!(next(&row, &around(), &fresh()), Next::Complete(host));
    let id = CapsuleId::new();
    let row = Build { capsule_id: Some(id), ..row };
    // The steps' capsule ran under this runner, and another one is named now.
    let ran = Progress { ran: true, ..fresh() };
    assert_eq!(next(&row, &around(), &ran), Next::Create(host, id));
    let starting = with(CapsuleState::Starting, false);
    assert_eq!(next(&row, &starting, &ran), Next::Watch(host));
    for state in [CapsuleState::Running, CapsuleState::Stopped] {
        assert_eq!(next(&row, &with(state, true), &ran), Next::Complete(host), "{state}");
    }
}

#[test]
fn reported_failure_and_cancel_end_a_build_in_every_state() {
    let (told, _) = begun();
    let capsule_id = Some(CapsuleId::new());
    for row in [build(), told.clone(), Build { capsule_id, ..told }] {
        let reason = Reason { message: "step 3".to_owned(), ..Reason::default() };
        let failed = Build { reason: Some(Json(reason.clone())), cancelled: true, ..row.clone() };
        let end = Next::End(End::Reported(reason));
        assert_eq!(next(&failed, &around(), &fresh()), end);
        let cancelled = Build { cancelled: true, ..row };
        assert_eq!(next(&cancelled, &around(), &fresh()), Next::End(End::Cancelled));
    }
    assert!(End::Cancelled.is_news() && !End::Reported(Reason::default()).is_news());
}

#[test]
fn failed_start_command_is_told_in_the_hosts_words() {
    let error = Error::StartFailed("start command failed: exit status 3\na\nb".to_owned());
    let reason = End::of_create(error, true).reason();
    assert_eq!(reason.message, "start command failed: exit status 3");
    assert_eq!(
        (reason.step.as_deref(), reason.output.join(" ")),
        (Some("finalize"), "a b".to_owned())
    );
    let full = Error::LimitReached("the team", "9 of 9 capsules are in use".to_owned());
    let reason = End::of_create(full, false).reason();
    assert!(reason.message.contains("9 of 9") && reason.step.is_none());
}

#[test]
fn build_ends_with_its_key_its_team_and_its_time() {
    let row = build();
    let of = |around| next(&row, &around, &fresh());
    assert!(ends(of(Around { key_revoked: true, ..around() }), "key"));
    assert!(ends(of(Around { team_deleted: true, ..around() }), "team"));
    let late = around().aged(Duration::from_secs(101));
    assert!(ends(of(late), "longer than 100 s; it was in phase `queued`"));
}

#[test]
fn build_of_a_capsule_takes_its_snapshot() {
    let id = CapsuleId::new();
    let row = Build { spec: None, capsule_id: Some(id), ..build() };
    assert_eq!(next(&row, &around(), &fresh()), Next::Capture(id));
    let row = Build { spec: None, ..build() };
    assert!(ends(next(&row, &around(), &fresh()), "neither"));
}
