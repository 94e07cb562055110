//! Keeps this replica's view of the database up to date. PostgreSQL announces the changes of every
//! replica. Each change drops cache entries, has open exchanges checked again, and wakes waiters.
//! Every other second, the replica tests that announcements arrive.

use crate::app::App;
use crate::db;
use crate::db::listen::{Change, Changes};
use std::time::{Duration, Instant};

/// Time before another attempt to listen for changes.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two test announcements, and the silence after which the connection counts as lost.
const LOOK: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_secs(5);

/// Listens for changes until the connection is lost or silent. Changes that were still on their way
/// are then lost.
async fn hear(app: &App) -> sqlx::Result<()> {
    let mut changes = Changes::listen(&app.db).await?;
    app.invalidation_health.set(true);
    // Changes that were not heard may have revoked open exchanges.
    app.revocations.check_all();
    let mut look = tokio::time::interval(LOOK);
    let mut heard = Instant::now();
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            _ = look.tick() => {
                if heard.elapsed() > SILENT {
                    return Err(sqlx::Error::PoolTimedOut);
                }
                let db = app.db.clone();
                app.tasks.spawn(async move {
                    // A ping that fails needs no handling, since its silence is noticed.
                    let _ = tokio::time::timeout(LOOK, db::listen::ping(&db)).await;
                });
                continue;
            }
        };
        let Some(change) = change else { return Ok(()) };
        heard = Instant::now();
        app.changed(&change);
        match change {
            Change::Host(_) => app.fleet.tell(),
            Change::Events(team) => app.streams.wake(Some(team)),
            Change::All => {
                app.fleet.tell();
                app.streams.wake(None);
            }
            Change::Capsule(_)
            | Change::Build(_)
            | Change::Key(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Nothing => {}
        }
    }
}

/// Keeps the caches valid for as long as the process lives.
pub(crate) fn spawn(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mut stop = app.tasks.stop_signal().wait();
        loop {
            let heard = tokio::select! {
                heard = hear(&app) => heard,
                () = &mut stop => return,
            };
            // Caching ends first, so that no entry is kept after the caches are cleared.
            app.invalidation_health.set(false);
            app.routes.forget_all();
            app.key_cache.forget_all();
            app.directory.forget_all();
            if let Err(error) = heard {
                tracing::warn!(%error, "cannot listen for database changes; caching is off");
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = &mut stop => return,
            }
        }
    });
}
