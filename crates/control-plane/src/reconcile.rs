//! Compares the rows of the database with the machines of the hosts, and repairs differences in
//! both directions. Repairs use the same functions as the API.
//!
//! Rows are read before the host is asked, and again before an unknown machine is removed. A create
//! that finishes in between is therefore never taken for an orphan.

use crate::agent::Agent;
use crate::app::App;
use crate::audit::{Actor, Principal};
use crate::db::capsules::Capsule;
use crate::db::leader::LeaderLease;
use crate::error::Result;
use crate::hosts::lifecycle;
use crate::rounds::Request;
use crate::{builds, capsules, db, snapshots, versions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use protocol::host::{CapsuleInfo, CapsuleState as OnHost};
use std::collections::{BTreeSet, HashMap, HashSet};
use time::{Duration, OffsetDateTime};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::{CapsuleId, CapsuleState, HostId};

/// Age at which a `starting` row that its host does not know counts as abandoned. Its control plane
/// died before it asked the host, or its host died and undid the boot.
const UNKNOWN_MAX: Duration = Duration::seconds(15);
/// Age at which the same holds for a pause or a resume, which a host knows of at once.
const UNHEARD_MAX: Duration = Duration::seconds(5);

/// Time by which a row's last activity may lag behind.
const USE_LAG: Duration = Duration::MINUTE;
/// Least step of a row's last activity. Clocks and the way to a host differ by less.
const USE_STEP: Duration = Duration::seconds(2);

/// Time between two rounds.
const ROUND: std::time::Duration = std::time::Duration::from_secs(5);
/// Hosts that have their turn in one round, beside the hosts with something unsettled.
const PER_ROUND: usize = 250;
/// Most hosts that are reconciled at once.
const AT_ONCE: usize = 16;
/// Time before another attempt: to become the leader, to check the lease, to find new hosts, or to
/// ask a silent host.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Repair of one capsule.
#[derive(Debug, PartialEq, Eq)]
enum Repair {
    Nothing,
    /// Moves the row through these states, since the host is further than the row.
    Follow(&'static [CapsuleState]),
    /// Marks the row, since its machine is gone.
    MarkError(String),
    /// Completes a removal, or removes a create that died.
    Remove,
}

/// Decides on the repair of a row, from its state, its age and the host's view of the capsule.
/// Pure.
fn decide(row: CapsuleState, age: Duration, host: Option<(OnHost, &str)>) -> Repair {
    use CapsuleState::{Error, Missing, Paused, Pausing, Resuming, Running, Starting, Stopping};
    let limit = if row == Starting { UNKNOWN_MAX } else { UNHEARD_MAX };
    let left = age > limit;
    let Some((host, why)) = host else {
        return match row {
            Stopping => Repair::Remove,
            Starting if left => Repair::Remove,
            Running | Pausing | Paused | Missing => {
                Repair::MarkError("the host no longer has the capsule's machine".to_owned())
            }
            Resuming if left => {
                Repair::MarkError("the host no longer has the capsule's machine".to_owned())
            }
            Starting | Resuming | Error | CapsuleState::Stopped => Repair::Nothing,
        };
    };
    match (row, host) {
        (Stopping, _) => Repair::Remove,
        (Error | CapsuleState::Stopped, _) => Repair::Nothing,
        (_, OnHost::CAPSULE_STATE_EXPIRED) => Repair::Remove,
        (Starting | Missing | Resuming, OnHost::CAPSULE_STATE_RUNNING) => {
            Repair::Follow(&[Running])
        }
        (Pausing, OnHost::CAPSULE_STATE_RUNNING) if left => Repair::Follow(&[Running]),
        (Paused, OnHost::CAPSULE_STATE_RUNNING) if left => Repair::Follow(&[Resuming, Running]),
        (Starting, OnHost::CAPSULE_STATE_PAUSED) => Repair::Follow(&[Running, Pausing, Paused]),
        (Running, OnHost::CAPSULE_STATE_PAUSED) => Repair::Follow(&[Pausing, Paused]),
        (Pausing | Missing, OnHost::CAPSULE_STATE_PAUSED) => Repair::Follow(&[Paused]),
        (Resuming, OnHost::CAPSULE_STATE_PAUSED) if left => Repair::Follow(&[Paused]),
        (Starting, OnHost::CAPSULE_STATE_DEAD) if left => Repair::Remove,
        (Running | Pausing | Paused | Missing, OnHost::CAPSULE_STATE_DEAD) => {
            Repair::MarkError(why.to_owned())
        }
        (Resuming, OnHost::CAPSULE_STATE_DEAD) if left => Repair::MarkError(why.to_owned()),
        _ => Repair::Nothing,
    }
}

/// Reconciles hosts and rows whenever this replica is the leader, and hosts that its requests name.
pub(crate) fn spawn(app: &App, requests: mpsc::Receiver<Request>) {
    let at = app.clone();
    app.tasks.spawn(async move {
        tokio::select! {
            () = serve(&at, requests) => {}
            () = at.tasks.stopping() => {}
        }
    });
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mut stop = app.tasks.stop_signal().wait();
        loop {
            tokio::select! {
                () = Box::pin(reconcile_as_leader(&app)) => {}
                () = &mut stop => return,
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = &mut stop => return,
            }
        }
    });
}

/// Becomes the leader and reconciles until the lease is lost. Returns at once when another replica
/// leads.
async fn reconcile_as_leader(app: &App) {
    let mut lease = match LeaderLease::try_acquire(&app.db).await {
        Ok(Some(lease)) => lease,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot take part in the leader election");
            return;
        }
    };
    let holding = async {
        while lease.check().await.is_ok() {
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = holding => tracing::warn!("lost the leadership"),
        () = rounds(app) => {}
        () = follow_all(app) => {}
        () = watch(app) => {}
        () = crate::retention::rounds(app) => {}
        () = crate::retention::add_up_counts(app) => {}
        () = crate::retention::erase_logs(app) => {}
        () = builds::run::rounds(app) => {}
        () = crate::channels::expire::rounds(app) => {}
        () = crate::stats::collect::rounds(app) => {}
    }
}

/// Runs the rounds that requests of this replica ask for.
async fn serve(app: &App, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { host, done }) = requests.recv().await {
        let at = app.clone();
        // The round goes on when its request leaves, since others may wait for it.
        app.tasks.spawn(async move {
            run(&at, host).await;
            let _ = done.send(());
        });
    }
}

/// Reconciles one host. Logs a failure.
async fn run(app: &App, host: HostId) {
    let turn = app.rounds.turn(host);
    let _turn = turn.lock().await;
    if let Err(error) = round(app, host).await {
        tracing::warn!(%host, %error, "cannot reconcile a host");
    }
}

/// Runs rounds for ever. A failure is logged, and the next round tries again.
async fn rounds(app: &App) {
    let mut next = 0;
    loop {
        let unsettled = db::capsules::unsettled_hosts(&app.db).await.unwrap_or_default();
        let online = app.fleet.all().into_iter().filter(|host| host.online).map(|host| host.id);
        let mut online: Vec<HostId> = online.collect();
        online.sort_unstable();
        let due = due(&online, &unsettled, &mut next);
        let running = due.into_iter().map(|host| run(app, host));
        futures::stream::iter(running).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        tokio::time::sleep(ROUND).await;
    }
}

/// Marks silent hosts, once their silence counts. `from` is the moment from which it counts.
async fn look_for_silent(app: &App, from: &mut Option<Instant>) -> Result<()> {
    let counts = match *from {
        Some(counts) => counts,
        None => *from.insert(Instant::now() + lifecycle::grace(app).await?),
    };
    if Instant::now() < counts { Ok(()) } else { lifecycle::watch(app).await }
}

/// Marks silent hosts, and pauses the capsules of hosts that are being drained. It runs beside the
/// rounds, since those wait for hosts.
async fn watch(app: &App) {
    let mut emptying = FuturesUnordered::new();
    let mut under_way = HashSet::new();
    let mut from = None;
    loop {
        if let Err(error) = look_for_silent(app, &mut from).await {
            tracing::warn!(%error, "cannot find the unreachable hosts");
        }
        let drained = app.fleet.all().into_iter().filter(|host| host.draining && host.online);
        for host in drained.map(|host| host.id) {
            if under_way.insert(host) {
                emptying.push(async move { (host, lifecycle::empty(app, host).await) });
            }
        }
        let look = async {
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = app.wake.notified() => {}
            }
        };
        let mut look = std::pin::pin!(look);
        loop {
            tokio::select! {
                () = &mut look => break,
                Some((host, emptied)) = emptying.next(), if !emptying.is_empty() => {
                    under_way.remove(&host);
                    if let Err(error) = emptied {
                        tracing::warn!(%host, %error, "cannot drain a host");
                    }
                }
            }
        }
    }
}

/// Returns the hosts of one round: all hosts with something unsettled, and the next `PER_ROUND`
/// hosts in turn.
fn due(online: &[HostId], unsettled: &[HostId], next: &mut usize) -> BTreeSet<HostId> {
    let turns = online.iter().cycle().skip(*next).take(online.len().min(PER_ROUND));
    let due = turns.chain(online.iter().filter(|host| unsettled.contains(host))).copied();
    let due = due.collect();
    *next = if online.is_empty() { 0 } else { (*next + PER_ROUND) % online.len() };
    due
}

/// Reconciles each host as soon as it reports a change that nobody requested.
async fn follow_all(app: &App) {
    let mut following = FuturesUnordered::new();
    let mut known = HashSet::new();
    loop {
        for host in app.fleet.all() {
            if host.online && known.insert(host.id) {
                following.push(follow(app, host.id));
            }
        }
        let ended = async {
            match following.next().await {
                Some(host) => host,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            host = ended => drop(known.remove(&host)),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Follows one host until it cannot be reached.
async fn follow(app: &App, host: HostId) -> HostId {
    let mut seen = None;
    while app.fleet.known(host).is_some_and(|known| known.online) {
        match app.agent(host).wait_change(seen).await {
            Ok(count) if seen != Some(count) => {
                seen = Some(count);
                run(app, host).await;
            }
            Ok(_) => {}
            // The rounds reconcile the host meanwhile.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    host
}

async fn round(app: &App, host: HostId) -> Result<()> {
    let rows = db::capsules::list_by_host(&app.db, host).await?;
    let agent = app.agent(host);
    let (now, mut used) = (OffsetDateTime::now_utc(), Vec::new());
    let mut seen: HashMap<CapsuleId, (OnHost, CapsuleInfo)> = HashMap::new();
    for info in agent.list().await? {
        if let (Ok(id), Some(state)) = (info.capsule_id.parse(), info.state.as_known()) {
            seen.insert(id, (state, info));
        }
    }
    for row in &rows {
        let on_host = seen.remove(&row.id);
        let (on_host, leftover) = if on_host.as_ref().is_some_and(|it| is_leftover(row, &it.1)) {
            (None, on_host)
        } else {
            (on_host, None)
        };
        if let Some((_, info)) = leftover {
            remove_leftover(&agent, row.id, &info).await;
        }
        let idle_ms = on_host.as_ref().and_then(|(_, info)| info.idle_ms);
        used.extend(unknown_use(row.last_active_at, idle_ms, now).map(|idle| (row.id, idle)));
        // The host has lost the capsule, but the store has it.
        if on_host.is_none() && row.is_safe() {
            continue;
        }
        if let Err(error) = settle(app, row, on_host.as_ref()).await {
            tracing::warn!(id = %row.id, %error, "cannot repair a capsule");
        }
    }
    for (id, (_, info)) in seen {
        // If a row exists now, the capsule was made after the rows were read.
        if db::capsules::is_wanted(&app.db, id, host).await? {
            continue;
        }
        remove_leftover(&agent, id, &info).await;
    }
    if !used.is_empty() {
        db::capsules::note_use(&app.db, &used).await?;
    }
    snapshots::reconcile(app, host).await?;
    versions::reconcile(app, host).await
}

/// Returns the seconds since the last activity in a capsule, if its row is to learn of the activity.
/// A busy capsule's row learns of it once a minute, and the row of another one of its end. Pure.
fn unknown_use(known: OffsetDateTime, idle_ms: Option<u64>, now: OffsetDateTime) -> Option<f64> {
    let idle = Duration::milliseconds(i64::try_from(idle_ms?).ok()?);
    let newer = now.checked_sub(idle)? - known;
    let tells = newer >= USE_LAG || (newer >= USE_STEP && idle >= USE_LAG);
    tells.then(|| idle.as_seconds_f64())
}

/// Reports whether a host's copy of a capsule dates from before the capsule was placed there. Such
/// a capsule has run elsewhere since, and all of it is in the store. Pure.
fn is_leftover(row: &Capsule, info: &CapsuleInfo) -> bool {
    // An agent that cannot read its own record of a capsule lists it without a generation.
    info.generation.is_some_and(|known| row.placed.is_some_and(|placed| known < placed))
}

/// Removes a machine, or its remains, that no row places on its host. A machine of a later
/// generation than the host's list stays.
async fn remove_leftover(agent: &Agent, id: CapsuleId, info: &CapsuleInfo) {
    // Any command is later than a capsule whose record its agent cannot read.
    let newest = info.generation.unwrap_or(0);
    tracing::info!(%id, generation = newest, "removing an orphaned machine");
    if let Err(error) = agent.destroy(id, newest, None).await {
        tracing::warn!(%id, %error, "cannot remove an orphaned machine");
    }
}

/// Reconciles one row with the host's view of the capsule.
async fn settle(app: &App, row: &Capsule, on_host: Option<&(OnHost, CapsuleInfo)>) -> Result<()> {
    if let Some((state, info)) = on_host {
        note_stored(app, row, info).await?;
        let storage = info.storage_bytes;
        let waits = info.waits_for_room && row.state == CapsuleState::Running;
        if (storage, waits) != (row.storage_bytes, row.disk_full) {
            db::capsules::set_usage(&app.db, row.id, row.generation, storage, waits).await?;
        }
        // The host lacks the last change of the rules. The request that made it did not reach the
        // host, or its control plane died.
        let runs = row.state == CapsuleState::Running && *state == OnHost::CAPSULE_STATE_RUNNING;
        if runs && info.egress_revision < row.egress.revision {
            capsules::network::apply(app, row).await?;
        }
        if runs && !info.logs.is_empty() && info.logs != row.logs.as_str() {
            correct_logs(app, row, info).await?;
        }
    }
    // No request caused this change, so the host is the actor.
    let principal = row.host_id.map_or(Principal::System, Principal::Host);
    let is_over = row.ends_at.is_some_and(|end| end <= OffsetDateTime::now_utc());
    let reason = reason(row.state, on_host.map(|(state, _)| *state), is_over);
    let by = Actor { principal, reason, ..Actor::SYSTEM };
    let on_host = on_host.map(|(state, info)| (*state, info.reason.as_deref().unwrap_or_default()));
    let age = Duration::seconds_f64(row.age);
    repair(app, row, decide(row.state, age, on_host), by).await
}

/// Returns the reason for a change that no request caused, for its event; `None` when the change
/// completes a request. `is_over` is true after the end of the capsule's lifetime. Pure.
fn reason(row: CapsuleState, host: Option<OnHost>, is_over: bool) -> Option<&'static str> {
    use CapsuleState::{Missing, Running, Starting, Stopping};
    match (row, host) {
        (Stopping, _) => None,
        (_, Some(OnHost::CAPSULE_STATE_EXPIRED)) => Some("lifetime_over"),
        (Running, Some(OnHost::CAPSULE_STATE_PAUSED)) if is_over => Some("lifetime_over"),
        (Running, Some(OnHost::CAPSULE_STATE_PAUSED)) => Some("idle"),
        (_, Some(OnHost::CAPSULE_STATE_DEAD)) => Some("machine_ended"),
        (Missing, Some(_)) => Some("host_reachable"),
        (Starting, None) => Some("create_abandoned"),
        (_, None) => Some("machine_lost"),
        (_, Some(_)) => None,
    }
}

/// Has the host apply the row's choice of output for the log, unless the row has changed since it
/// was read.
async fn correct_logs(app: &App, row: &Capsule, info: &CapsuleInfo) -> Result<()> {
    match db::capsules::find_of(&app.db, row.team_id, row.id, row.build_id).await? {
        Some(now) if now.logs.as_str() != info.logs => capsules::apply_logs(app, &now).await,
        _ => Ok(()),
    }
}

/// Notes that the store has the snapshot of a paused capsule. Then removes older snapshots, since
/// the row named one of them until now.
async fn note_stored(app: &App, row: &Capsule, info: &CapsuleInfo) -> Result<()> {
    let Some(stored) = info.stored.as_option() else { return Ok(()) };
    let (number, name) = (stored.number, &stored.name);
    let known = row.stored_newest && Some(number) == row.stored && *name == row.stored_tree;
    if known || !db::capsules::set_stored(&app.db, row, number, name).await? {
        return Ok(());
    }
    if let Some(host) = row.host_id {
        let pruned = app.agent(host).prune_stored(row.id, row.team_id, stored.clone()).await;
        if let Err(error) = pruned {
            // The next snapshot, or the capsule's end, removes the remaining ones.
            tracing::warn!(id = %row.id, %error, "cannot remove older snapshots from the store");
        }
    }
    Ok(())
}

async fn repair(app: &App, row: &Capsule, repair: Repair, by: Actor) -> Result<()> {
    let (id, seen) = (row.id, row.generation);
    match repair {
        Repair::Nothing => {}
        Repair::Remove => capsules::remove(app, row, by).await?,
        Repair::Follow(states) => {
            let mut seen = seen;
            for state in states {
                match capsules::transition(app, id, seen, *state, None, by).await? {
                    Some(generation) => seen = generation,
                    None => break,
                }
            }
        }
        Repair::MarkError(why) => {
            tracing::warn!(%id, why, "marked a capsule as lost");
            capsules::transition(app, id, seen, CapsuleState::Error, Some(&why), by).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use CapsuleState::{Error, Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping};

    const OLD: Duration = Duration::minutes(10);
    const HOST: [OnHost; 8] = [
        OnHost::CAPSULE_STATE_STARTING,
        OnHost::CAPSULE_STATE_RUNNING,
        OnHost::CAPSULE_STATE_STOPPING,
        OnHost::CAPSULE_STATE_DEAD,
        OnHost::CAPSULE_STATE_PAUSING,
        OnHost::CAPSULE_STATE_PAUSED,
        OnHost::CAPSULE_STATE_RESUMING,
        OnHost::CAPSULE_STATE_EXPIRED,
    ];

    fn on_host(state: OnHost) -> Option<(OnHost, &'static str)> {
        Some((state, "x"))
    }

    #[test]
    fn reconcile_leaves_recent_work_and_repairs_abandoned_work() {
        let (starting, runs) =
            (on_host(OnHost::CAPSULE_STATE_STARTING), on_host(OnHost::CAPSULE_STATE_RUNNING));
        let paused = on_host(OnHost::CAPSULE_STATE_PAUSED);
        assert_eq!(decide(Starting, Duration::ZERO, None), Repair::Nothing);
        assert_eq!(decide(Starting, OLD, starting), Repair::Nothing);
        assert_eq!(decide(Starting, OLD, None), Repair::Remove);
        assert_eq!(decide(Starting, Duration::ZERO, runs), Repair::Follow(&[Running]));
        assert_eq!(decide(Pausing, Duration::ZERO, runs), Repair::Nothing);
        assert_eq!(decide(Pausing, OLD, runs), Repair::Follow(&[Running]));
        assert_eq!(decide(Pausing, OLD, on_host(OnHost::CAPSULE_STATE_PAUSING)), Repair::Nothing);
        assert_eq!(decide(Pausing, Duration::ZERO, paused), Repair::Follow(&[Paused]));
        assert_eq!(decide(Resuming, Duration::ZERO, paused), Repair::Nothing);
        assert_eq!(decide(Resuming, OLD, paused), Repair::Follow(&[Paused]));
        assert_eq!(decide(Running, Duration::ZERO, paused), Repair::Follow(&[Pausing, Paused]));
        assert_eq!(decide(Paused, OLD, paused), Repair::Nothing);
    }

    #[test]
    fn row_learns_of_activity_each_minute_and_of_its_end() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(1);
        let told =
            |known: Duration, idle_sec: u64| unknown_use(now - known, Some(idle_sec * 1000), now);
        let minute = Duration::MINUTE;
        assert_eq!(told(minute, 0), Some(0.0));
        assert_eq!(told(Duration::seconds(30), 0), None);
        assert_eq!(told(Duration::seconds(120), 90), Some(90.0));
        // The row knows of this activity.
        assert_eq!(told(Duration::seconds(120), 119), None);
        assert_eq!(told(minute, 3600), None);
        assert_eq!(unknown_use(now - minute, None, now), None);
        assert_eq!(unknown_use(now - minute, Some(u64::MAX), now), None);
    }

    #[test]
    fn change_that_no_request_caused_has_a_reason() {
        let paused = Some(OnHost::CAPSULE_STATE_PAUSED);
        assert_eq!(reason(Running, paused, false), Some("idle"));
        assert_eq!(reason(Running, paused, true), Some("lifetime_over"));
        assert_eq!(reason(Pausing, paused, true), None);
        let expired = Some(OnHost::CAPSULE_STATE_EXPIRED);
        assert_eq!(reason(Running, expired, false), Some("lifetime_over"));
        assert_eq!(reason(Stopping, expired, true), None);
        assert_eq!(reason(Running, None, false), Some("machine_lost"));
        let dead = Some(OnHost::CAPSULE_STATE_DEAD);
        assert_eq!(reason(Running, dead, false), Some("machine_ended"));
    }

    #[test]
    fn every_repair_is_a_legal_state_transition() {
        for row in CapsuleState::ALL {
            for host in std::iter::once(None).chain(HOST.map(on_host)) {
                for age in [Duration::ZERO, OLD] {
                    let to = match decide(row, age, host) {
                        Repair::Nothing => continue,
                        Repair::Follow(states) => states.to_vec(),
                        Repair::MarkError(_) => vec![Error],
                        Repair::Remove if row == Stopping => continue,
                        Repair::Remove => vec![Stopping],
                    };
                    let mut from = row;
                    for to in to {
                        assert!(from.may_become(to), "{from} to {to}, of {row} and {host:?}");
                        from = to;
                    }
                }
            }
        }
    }

    /// Property: when the host has finished with a capsule, its row ends in the host's state. This
    /// holds for whatever process died.
    #[test]
    fn repaired_row_ends_in_the_hosts_state() {
        let ends = [
            (OnHost::CAPSULE_STATE_RUNNING, Running),
            (OnHost::CAPSULE_STATE_PAUSED, Paused),
            (OnHost::CAPSULE_STATE_DEAD, Error),
        ];
        for row in [Starting, Running, Pausing, Paused, Resuming] {
            for (host, wanted) in ends {
                let end = match decide(row, OLD, on_host(host)) {
                    Repair::Nothing => row,
                    Repair::Follow(states) => *states.last().unwrap(),
                    Repair::MarkError(_) => Error,
                    // A failed create leaves no capsule.
                    Repair::Remove => wanted,
                };
                assert_eq!(end, wanted, "of {row} and {host:?}");
            }
        }
    }

    #[test]
    fn lost_vm_is_marked_error_or_removed() {
        let dead = Some((OnHost::CAPSULE_STATE_DEAD, "the VMM ended"));
        let told = Repair::MarkError("the VMM ended".to_owned());
        assert_eq!(decide(Running, Duration::ZERO, dead), told);
        assert_eq!(decide(Stopping, Duration::ZERO, None), Repair::Remove);
        assert_eq!(decide(Stopped, OLD, None), Repair::Nothing);
        let expired = on_host(OnHost::CAPSULE_STATE_EXPIRED);
        assert_eq!(decide(Running, Duration::ZERO, expired), Repair::Remove);
    }
}
