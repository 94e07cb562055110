//! Compares what the database says with what the host has, both ways, and repairs the
//! difference through the functions that the API uses.
//!
//! Rows are read before the host is asked and again before a stranger is removed, so that a
//! create which finishes in between is never taken for an orphan.

use crate::app::App;
use crate::db;
use crate::db::capsules::Capsule;
use crate::{capsules, error::Result, snapshots};
use protocol::host::CapsuleState as OnHost;
use std::collections::HashMap;
use time::{Duration, OffsetDateTime};
use types::{CapsuleId, CapsuleState};

/// A row that is `starting` for longer, and that its host does not know, was left by a control
/// plane that died before it asked the host, or is one whose host died and undid the boot.
const UNKNOWN_MAX: Duration = Duration::seconds(15);
/// The same of a pause or a resume, which a host knows of at once.
const UNHEARD_MAX: Duration = Duration::seconds(5);

/// Before a host that does not answer is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What to do with one capsule.
#[derive(Debug, PartialEq, Eq)]
enum Repair {
    Nothing,
    /// Its host is further than the row: these states, one after the other.
    Follow(&'static [CapsuleState]),
    /// Its machine is gone.
    MarkError(String),
    /// Bring the removal, or a create that died, to its end.
    Remove,
}

/// Decides on a row, given how the host sees it. Pure.
fn decide(row: CapsuleState, age: Duration, host: Option<(OnHost, &str)>) -> Repair {
    use CapsuleState::{Error, Missing, Paused, Pausing, Resuming, Running, Starting, Stopping};
    let limit = if row == Starting { UNKNOWN_MAX } else { UNHEARD_MAX };
    let left = age > limit;
    let Some((host, why)) = host else {
        return match row {
            Stopping => Repair::Remove,
            Starting if left => Repair::Remove,
            Running | Pausing | Paused => {
                Repair::MarkError("the host has no such machine".to_owned())
            }
            Resuming if left => Repair::MarkError("the host has no such machine".to_owned()),
            Starting | Resuming | Missing | Error | CapsuleState::Stopped => Repair::Nothing,
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

/// One round; what fails is logged and tried again in the next.
pub(crate) async fn run(app: &App) {
    // One at a time: they would repair the same things twice.
    let _turn = app.reconciling.lock().await;
    if let Err(error) = round(app).await {
        tracing::warn!(%error, "reconciling");
    }
}

/// Reconciles at once whenever the host says that something has changed that nobody asked for.
pub(crate) fn follow(app: &App) {
    let (app, tasks) = (app.clone(), app.tasks.clone());
    app.tasks.clone().spawn(async move {
        let mut seen = 0;
        loop {
            let waited = tokio::select! {
                waited = app.agent.wait_change(seen) => waited,
                () = tasks.stopping() => return,
            };
            match waited {
                Ok(count) if count != seen => {
                    seen = count;
                    run(&app).await;
                }
                Ok(_) => {}
                // The rounds go on meanwhile.
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    });
}

async fn round(app: &App) -> Result<()> {
    let rows = db::capsules::list_by_host(&app.db, app.host).await?;
    let on_host = app.agent.list().await;
    db::hosts::heard(&app.db, app.host, on_host.is_ok()).await?;
    let on_host = on_host?;
    let mut seen: HashMap<CapsuleId, (OnHost, String)> = HashMap::new();
    for info in on_host {
        if let (Ok(id), Some(state)) = (info.capsule_id.parse(), info.state.as_known()) {
            seen.insert(id, (state, info.reason));
        }
    }
    metrics::gauge!("wrenn_capsules").set(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    for row in &rows {
        let host = seen.remove(&row.id());
        let host = host.as_ref().map(|(state, why)| (*state, why.as_str()));
        let age = OffsetDateTime::now_utc() - row.updated_at;
        if let Err(error) = repair(app, row, decide(row.state(), age, host)).await {
            tracing::warn!(id = %row.id(), %error, "repairing a capsule");
        }
    }
    for id in seen.into_keys() {
        // Made since the rows were read, unless there still is none.
        if db::capsules::is_wanted(&app.db, id).await? {
            continue;
        }
        tracing::info!(%id, "removing a machine that no capsule owns");
        app.agent.destroy(id).await?;
    }
    snapshots::reconcile(app).await
}

async fn repair(app: &App, row: &Capsule, repair: Repair) -> Result<()> {
    let (id, seen) = (row.id(), row.generation);
    match repair {
        Repair::Nothing => {}
        Repair::Remove => capsules::remove(app, row).await?,
        Repair::Follow(states) => {
            let mut seen = seen;
            for state in states {
                match capsules::transition(app, id, seen, *state, None).await? {
                    Some(generation) => seen = generation,
                    None => break,
                }
            }
        }
        Repair::MarkError(why) => {
            tracing::warn!(%id, why, "a capsule was lost");
            capsules::transition(app, id, seen, CapsuleState::Error, Some(&why)).await?;
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
    fn work_under_way_is_left_alone_and_what_died_is_not() {
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
    fn every_repair_is_a_legal_move() {
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

    /// Whatever died: when the host is done with a capsule, the row comes to say what it says.
    #[test]
    fn a_row_comes_to_say_what_the_host_says() {
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
                    // A create that failed is not kept.
                    Repair::Remove => wanted,
                };
                assert_eq!(end, wanted, "of {row} and {host:?}");
            }
        }
    }

    #[test]
    fn a_lost_machine_is_told() {
        let dead = Some((OnHost::CAPSULE_STATE_DEAD, "the VMM ended"));
        let told = Repair::MarkError("the VMM ended".to_owned());
        assert_eq!(decide(Running, Duration::ZERO, dead), told);
        assert_eq!(decide(Stopping, Duration::ZERO, None), Repair::Remove);
        assert_eq!(decide(Stopped, OLD, None), Repair::Nothing);
        let expired = on_host(OnHost::CAPSULE_STATE_EXPIRED);
        assert_eq!(decide(Running, Duration::ZERO, expired), Repair::Remove);
    }
}
