//! Health checks of a guest that takes long to answer.

use super::failure::classify_failure;
use crate::app::App;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use std::time::Duration;

/// Time between two health checks while a guest works.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits for work that a guest does. Gives up a guest that fails its health check.
pub(crate) async fn unless_silent<T>(
    app: &App,
    capsule: &Capsule,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let check = async {
            tokio::time::sleep(PATIENCE).await;
            is_alive(app, capsule).await
        };
        tokio::select! {
            done = &mut work => return done,
            alive = check => {
                if !alive {
                    return Err(classify_failure(app, capsule, Error::GuestUnavailable).await);
                }
            }
        }
    }
}

/// Reports whether the guest answers, or waits for room on its host's disk. Requests to a guest
/// that waits for room wait, too.
async fn is_alive(app: &App, capsule: &Capsule) -> bool {
    let Ok(agent) = app.agent_of(capsule) else { return false };
    if agent.lives(capsule.id, &capsule.envd_token).await {
        return true;
    }
    let found = db::capsules::find(&app.db, capsule.team_id, capsule.id).await;
    // A database that does not answer says nothing about the guest.
    found.map_or(true, |found| found.is_some_and(|capsule| capsule.disk_full))
}
