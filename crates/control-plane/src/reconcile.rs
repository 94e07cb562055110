//! Compares what the database says with what the host has, both ways, and repairs the
//! difference through the functions that the API uses.
//!
//! Rows are read before the host is asked and again before a stranger is removed, so that a
//! create which finishes in between is never taken for an orphan.

use crate::app::App;
use crate::db;
use crate::db::capsules::Capsule;
use crate::{capsules, error::Result};
use protocol::host::CapsuleState as OnHost;
use std::collections::HashMap;
use time::{Duration, OffsetDateTime};
use types::{CapsuleId, CapsuleState};

/// A row that is `starting` for longer, and that its host does not know, was left by a control
/// plane that died before it asked the host, or is one whose host died and undid the boot.
const UNKNOWN_MAX: Duration = Duration::seconds(15);

/// What to do with one capsule.
#[derive(Debug, PartialEq, Eq)]
enum Repair {
    Nothing,
    /// Its machine runs and the row does not say so yet.
    MarkRunning,
    /// Its machine is gone.
    MarkError(String),
    /// Bring the removal, or a create that died, to its end.
    Remove,
}

/// Decides on a row, given how the host sees it. Pure.
fn decide(row: CapsuleState, age: Duration, host: Option<(OnHost, &str)>) -> Repair {
    use CapsuleState::{Missing, Running, Starting, Stopping};
    let runs = matches!(host, Some((OnHost::CAPSULE_STATE_RUNNING, _)));
    match (row, host) {
        (Stopping, _) => Repair::Remove,
        (Starting | Missing, _) if runs => Repair::MarkRunning,
        (Starting, None | Some((OnHost::CAPSULE_STATE_DEAD, _))) if age > UNKNOWN_MAX => {
            Repair::Remove
        }
        (Running, None) => Repair::MarkError("the host has no such machine".to_owned()),
        (Running, Some((OnHost::CAPSULE_STATE_DEAD, why))) => Repair::MarkError(why.to_owned()),
        _ => Repair::Nothing,
    }
}

/// One round; what fails is logged and tried again in the next.
pub(crate) async fn run(app: &App) {
    if let Err(error) = round(app).await {
        tracing::warn!(%error, "reconciling");
    }
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
    Ok(())
}

async fn repair(app: &App, row: &Capsule, repair: Repair) -> Result<()> {
    let (id, seen) = (row.id(), row.generation);
    match repair {
        Repair::Nothing => {}
        Repair::Remove => capsules::remove(app, row).await?,
        Repair::MarkRunning => {
            capsules::transition(app, id, seen, CapsuleState::Running, None).await?;
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

    const OLD: Duration = Duration::minutes(10);
    const RUNS: Option<(OnHost, &str)> = Some((OnHost::CAPSULE_STATE_RUNNING, ""));

    #[test]
    fn a_create_under_way_is_left_alone_and_one_that_died_is_not() {
        use CapsuleState::Starting;
        let boots = Some((OnHost::CAPSULE_STATE_STARTING, ""));
        assert_eq!(decide(Starting, Duration::ZERO, None), Repair::Nothing);
        assert_eq!(decide(Starting, OLD, boots), Repair::Nothing);
        assert_eq!(decide(Starting, OLD, None), Repair::Remove);
        assert_eq!(decide(Starting, Duration::ZERO, RUNS), Repair::MarkRunning);
    }

    #[test]
    fn every_repair_is_a_legal_move() {
        let hosts = [None, RUNS, Some((OnHost::CAPSULE_STATE_DEAD, "x"))];
        for row in CapsuleState::ALL {
            for host in hosts {
                let to = match decide(row, OLD, host) {
                    Repair::Nothing => continue,
                    Repair::MarkRunning => CapsuleState::Running,
                    Repair::MarkError(_) => CapsuleState::Error,
                    Repair::Remove if row == CapsuleState::Stopping => continue,
                    Repair::Remove => CapsuleState::Stopping,
                };
                assert!(row.may_become(to), "{row} to {to}");
            }
        }
    }

    #[test]
    fn a_lost_machine_is_told() {
        let dead = Some((OnHost::CAPSULE_STATE_DEAD, "the VMM ended"));
        let told = Repair::MarkError("the VMM ended".to_owned());
        assert_eq!(decide(CapsuleState::Running, Duration::ZERO, dead), told);
        assert_eq!(decide(CapsuleState::Stopping, Duration::ZERO, None), Repair::Remove);
        assert_eq!(decide(CapsuleState::Stopped, OLD, None), Repair::Nothing);
    }
}
