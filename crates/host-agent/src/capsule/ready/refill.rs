//! The refill of the pool. A task makes ready capsules, one at a time, and ends capsules that have
//! to go. The task waits for creates under way, and leaves room for a capsule beside each machine
//! that it makes.
//!
//! ```text
//!  create, or a second passed ─▶ outdated kinds ─▶ next step ─┬─▶ make ─▶ put, watch
//!                                                             └─▶ end the surplus
//! ```

use super::{Key, Kind, ReadyCapsule, Step};
use crate::capsule::boot;
use crate::capsule::host::Host;
use crate::capsule::record::CapsuleRecord;
use crate::capsule::registry::Running;
use crate::capsule::{Error, chain, files, io_error, teardown, template_snapshot, until};
use crate::context::AgentContext;
use crate::guest::Guest;
use crate::guest::program::Program;
use crate::log::LogMode;
use crate::snapshot::Snapshot;
use crate::vmm::Machine;
use connectrpc::ConnectError;
use daemon::blocking;
use futures::StreamExt;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, hex};

/// Period of the rounds without a create.
const TICK: Duration = Duration::from_secs(1);
/// Period of the checks for templates that changed.
const LOOK: Duration = Duration::from_secs(5);
/// Commands that warm a guest: a program alone, and the shells by which clients run commands. None
/// runs a script of the template, which could store the provisional identity.
const WARMING: [&[&str]; 3] = [&["true"], &["/bin/sh", "-c", "true"], &["/bin/bash", "-c", "true"]];
/// Times that each of these commands runs.
const ROUNDS: usize = 2;
/// Time limit for each of these commands. Its end must reach the agent within twice this time.
const WARM: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// Begins to fill the pool.
pub(in crate::capsule) fn spawn(host: &Host) {
    if !host.ready.is_on() {
        return;
    }
    let this = host.clone();
    host.context.tasks.spawn(async move {
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = this.context.tasks.stopping() => return,
                () = this.ready.wait_for_work(TICK) => {}
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                end_outdated(&this).await;
            }
            step(&this).await;
        }
    });
}

/// Takes the next step, if there is one.
pub(super) async fn step(host: &Host) {
    match host.ready.next_step() {
        None => {}
        Some(Step::End(capsule)) => {
            end(host, *capsule, "surplus").await;
            host.ready.wake();
        }
        Some(Step::Make(key, kind)) => {
            host.ready.quiet().await;
            let began = Instant::now();
            match Box::pin(make(host, &key, &kind)).await {
                Ok(()) => host.ready.note_made(&key, began.elapsed()),
                Err(error) => note_failure(host, &key, &kind, &error),
            }
        }
    }
}

fn note_failure(host: &Host, key: &Key, kind: &Kind, error: &Error) {
    host.ready.note_failure(key);
    metrics::counter!("wrenn_host_ready_failed_total", "step" => "make").increment(1);
    let (template, reason) = (&kind.template, chain(error));
    if matches!(error, Error::NoCapacity(_) | Error::Stopping) {
        tracing::debug!(template, reason, "no room for a ready capsule");
    } else {
        tracing::info!(template, reason, "cannot make a ready capsule now");
    }
}

/// Makes a ready capsule, and adds it to the pool. Leaves nothing when it fails.
///
/// # Errors
/// [`Error::NoCapacity`] without room for this machine and a capsule of its size.
/// [`Error::Stopping`] when a capsule needs the memory, or the agent stops.
async fn make(host: &Host, key: &Key, kind: &Kind) -> Result<(), Error> {
    let snapshot = snapshot(&host.context, key, kind).await?;
    let memory_mib = u64::from(kind.resources.memory_mib);
    let lease = host.begin_spare(memory_mib)?;
    let mut record = CapsuleRecord {
        team: key.team.clone(),
        template: kind.template.clone(),
        version: kind.version.clone(),
        resources: kind.resources,
        envd_token: hex::encode(&rand::random::<[u8; 32]>()),
        // The log begins with the capsule that takes the machine.
        logs: LogMode::None,
        ..CapsuleRecord::new(CapsuleId::new())
    };
    let prepared = Box::pin(prepare(&host.context, &mut record, snapshot, lease.token()));
    let prepared = host.in_background(&lease, prepared).await;
    match prepared {
        Ok(running) => {
            metrics::counter!("wrenn_host_ready_made_total").increment(1);
            put(host, key, ReadyCapsule::new(record, running, lease)).await;
            Ok(())
        }
        Err(error) => {
            remove(&host.context, record.id).await;
            Err(error)
        }
    }
}

/// Opens the template snapshot of a key, unless the template has changed.
async fn snapshot(context: &Arc<AgentContext>, key: &Key, kind: &Kind) -> Result<Snapshot, Error> {
    let (context, key, kind) = (Arc::clone(context), key.clone(), kind.clone());
    let open = move || match is_current(&context, &key, &kind) {
        true => template_snapshot::open(&context, &key.snapshot),
        false => Err(io::Error::other("the template has changed")),
    };
    blocking(open).await.map_err(template_snapshot::error)
}

/// Reports whether the template of a key is still as it was.
fn is_current(context: &AgentContext, key: &Key, kind: &Kind) -> bool {
    let Kind { template, version, resources } = kind;
    let now = template_snapshot::key(context, template, version.as_ref(), *resources);
    now.is_ok_and(|now| now == key.snapshot)
}

/// Makes a machine that stands still after one command.
async fn prepare(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    snapshot: Snapshot,
    cancel: &CancellationToken,
) -> Result<Running, Error> {
    let made = fs::create_dir_all(files::folder(context, record.id));
    made.map_err(io_error("cannot create the folder of a ready capsule"))?;
    let running = Box::pin(boot::boot_ahead(context, record, snapshot, cancel)).await?;
    until(cancel, warm(&running.guest, &record.envd_token)).await??;
    daemon::failpoint("ready.warmed").map_err(io_error("a failpoint failed"))?;
    until(cancel, running.machine.freeze()).await??;
    Ok(running)
}

/// Runs commands that do nothing, by the way of all commands, and the guest's own warm step, which
/// runs code in a code interpreter's contexts and leaves them as new. So the capsule's first
/// commands and code find their files in memory, and an emulator has translated them. An image
/// without a shell has less to warm.
///
/// # Errors
/// [`Error::Silent`] when a command fails and envd does not answer either. A create would wait for
/// such a guest too.
pub(super) async fn warm(guest: &Guest, token: &str) -> Result<(), Error> {
    for argv in WARMING.iter().flat_map(|argv| [argv; ROUNDS]) {
        match tokio::time::timeout(2 * WARM, Box::pin(run(guest, token, argv))).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => tracing::debug!(%error, ?argv, "cannot warm a ready capsule"),
            Err(_) => {
                tracing::debug!(?argv, "a command that warms a ready capsule did not end");
                return check(guest).await;
            }
        }
        check(guest).await?;
    }
    if let Err(error) = guest.warm(token).await {
        tracing::debug!(%error, "a ready capsule did not warm itself");
    }
    check(guest).await
}

/// Checks that a guest answers.
async fn check(guest: &Guest) -> Result<(), Error> {
    if guest.answers(WARM).await { Ok(()) } else { Err(Error::Silent) }
}

/// Runs a command to its end.
async fn run(guest: &Guest, token: &str, argv: &[&str]) -> Result<(), ConnectError> {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    let program = Program { argv, limit: Some(WARM), ..Program::default() };
    let mut events = guest.start(token, program).await?;
    while let Some(event) = events.next().await {
        event?;
    }
    Ok(())
}

/// Adds a capsule to the pool, and watches it.
async fn put(host: &Host, key: &Key, capsule: ReadyCapsule) {
    let (id, machine) = (capsule.record.id, Arc::clone(&capsule.running.machine));
    let (lost, taken) = (capsule.lease.token().clone(), capsule.taken.clone());
    match host.ready.put(key, capsule) {
        Some(capsule) => end(host, capsule, "outdated").await,
        None => watch(host, key.clone(), id, machine, lost, taken),
    }
}

/// Ends a capsule of the pool when its machine dies, when `lost` is cancelled, or when the agent
/// stops. Does nothing more once `taken` is cancelled.
fn watch(
    host: &Host,
    key: Key,
    id: CapsuleId,
    machine: Arc<dyn Machine>,
    lost: CancellationToken,
    taken: CancellationToken,
) {
    let this = host.clone();
    host.context.tasks.spawn(async move {
        let reason = tokio::select! {
            () = taken.cancelled() => return,
            _ = machine.ended() => "died",
            () = lost.cancelled() => "memory",
            () = this.context.tasks.stopping() => "stopped",
        };
        drop(machine);
        let Some(capsule) = this.ready.remove(&key, id) else { return };
        if reason == "died" {
            this.ready.note_failure(&key);
        }
        end(&this, capsule, reason).await;
    });
}

/// Ends the capsules of templates that have changed.
pub(super) async fn end_outdated(host: &Host) {
    let (context, kinds) = (Arc::clone(&host.context), host.ready.kinds());
    let find = move || {
        let outdated = kinds.into_iter().filter(|(key, kind)| !is_current(&context, key, kind));
        Ok(outdated.map(|(key, _)| key).collect::<Vec<_>>())
    };
    for key in blocking(find).await.unwrap_or_default() {
        for capsule in host.ready.forget(&key) {
            end(host, capsule, "outdated").await;
        }
    }
}

/// Removes a capsule that the pool has no longer.
async fn end(host: &Host, capsule: ReadyCapsule, reason: &'static str) {
    let ReadyCapsule { record, running, lease, .. } = capsule;
    running.guest.close();
    // The network is removed only when nobody holds it.
    drop(running);
    metrics::counter!("wrenn_host_ready_dropped_total", "reason" => reason).increment(1);
    tracing::debug!(id = %record.id, reason, "ending a ready capsule");
    remove(&host.context, record.id).await;
    drop(lease);
}

/// Removes all parts of a ready capsule. The next agent removes what this one cannot.
async fn remove(context: &AgentContext, id: CapsuleId) {
    if let Err(error) = teardown::remove(context, id).await {
        tracing::error!(%id, error = chain(&error), "cannot remove a ready capsule");
    }
}
