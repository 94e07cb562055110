//! The life of a program: its start, its output, its end, and the processes that outlive it.

use super::child::Child;
use super::exit::Exit;
use super::hub::{Hub, Subscription};
use super::log::{Presence, Writer};
use super::{Process, Source, Spec, start};
use crate::clock;
use crate::error::Result;
use crate::guest::Guest;
use futures::future::join_all;
use std::sync::{Arc, Mutex};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

/// Starts a program as the user called `account`. Returns it with a first subscription, which is
/// made before any output is read, so that none is lost.
///
/// At the deadline, the program is killed with its control group, even if nobody listens. `vars`
/// are the variables from the guest's metadata.
pub(crate) async fn start(
    guest: &Arc<Guest>,
    account: String,
    spec: Spec,
    vars: Vec<(&'static str, String)>,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, Subscription)> {
    let spec = Arc::new(spec);
    let started = start::start(guest, account, &spec, vars, deadline).await?;
    let pid = started.child.pid();
    let log = guest.processes.log().writer(pid, &spec);
    let process = Arc::new(Process {
        pid,
        // The threads that start programs have dropped theirs.
        spec: Arc::unwrap_or_clone(spec).shorten(),
        hub: match started.pty.is_some() {
            true => guest.processes.hub_of_terminal(),
            false => guest.processes.hub(),
        },
        started_ms: clock::unix_ms(),
        log: Arc::clone(&log),
        stdin: AsyncMutex::new(started.stdin),
        pty: started.pty,
        leaf: Mutex::new(started.leaf),
        gone: watch::Sender::new(false),
    });
    let events = process.hub.subscribe()?.of_starter(Presence(log));
    guest.processes.insert(&process);
    let (guest, followed) = (Arc::clone(guest), Arc::clone(&process));
    tokio::spawn(follow(guest, followed, started.child, started.sources, deadline));
    Ok((process, events))
}

/// Carries output to the hub until the program's end, and reports the end. Afterwards reads on for
/// processes that outlive the program.
async fn follow(
    guest: Arc<Guest>,
    process: Arc<Process>,
    child: Child,
    sources: Vec<Source>,
    deadline: Option<Instant>,
) {
    let pumps = join_all(sources.iter().map(|source| process.pump(source)));
    let (status, open) = tokio::join!(process.wait(&child, deadline), pumps);
    drop(child);
    let exit = Exit::from(status);
    // The log has the end only of a program in the background. Other processes of this program
    // may outlive it, and nobody waits for their output.
    process.log.exit(&exit);
    process.log.leave();
    process.hub.end(&exit);
    if let Some(leaf) = process.leaf().take() {
        guest.cgroups.end(leaf);
    }
    let open = sources.into_iter().zip(open).filter_map(|(source, open)| open.then_some(source));
    let open: Vec<Source> = open.collect();
    if !open.is_empty()
        && let Some(place) = guest.processes.drain()
    {
        guest.processes.linger(&process.hub);
        let (hub, log) = (Arc::clone(&process.hub), Arc::clone(&process.log));
        tokio::spawn(async move {
            drain(&hub, &log, &open).await;
            drop(place);
        });
    }
    // No write is under way, since writers give up when the leader ends.
    process.stdin.lock().await.take();
    guest.processes.forget_later(process).await;
}

/// Reads the pipes of an ended program until no process holds them. So no process that outlives the
/// program waits or gets `SIGPIPE`.
async fn drain(hub: &Hub, log: &Writer, sources: &[Source]) {
    join_all(sources.iter().map(|source| drain_one(hub, log, source))).await;
    hub.drained();
}

async fn drain_one(hub: &Hub, log: &Writer, source: &Source) {
    while let Ok(data) = source.end.read(source.most).await {
        if data.is_empty() {
            return;
        }
        log.add(source.output, &data);
        hub.keep(source.output, &data);
        // A process that never pauses must leave the thread to others between two pieces.
        tokio::task::yield_now().await;
    }
}
