//! Gauges of this replica: round trip and connections of the database, and the hosts as this
//! replica knows them. They are measured periodically.

use crate::app::App;
use crate::db;
use std::time::{Duration, Instant};

/// Time between two measurements.
const PERIOD: Duration = Duration::from_secs(10);

/// Measures for as long as the process lives.
pub(crate) fn spawn(app: &App) {
    let at = app.clone();
    app.tasks.every(PERIOD, move || {
        let app = at.clone();
        async move {
            report_hosts(&app);
            probe_database(&app).await;
        }
    });
}

fn report_hosts(app: &App) {
    let (mut online, mut draining, mut away) = (0_u32, 0_u32, 0_u32);
    for host in app.fleet.all() {
        match (host.online, host.draining) {
            (false, _) => away += 1,
            (true, true) => draining += 1,
            (true, false) => online += 1,
        }
    }
    for (state, count) in [("online", online), ("draining", draining), ("unreachable", away)] {
        metrics::gauge!("wrenn_hosts", "state" => state).set(f64::from(count));
    }
    let waiting = u32::try_from(app.audit_buffer.waiting()).unwrap_or(u32::MAX);
    metrics::gauge!("wrenn_audit_entries_waiting").set(f64::from(waiting));
}

/// Measures a statement without work, with its wait for a connection.
async fn probe_database(app: &App) {
    let idle = u32::try_from(app.db.num_idle()).unwrap_or(u32::MAX);
    let used = app.db.size().saturating_sub(idle);
    for (state, count) in [("idle", idle), ("used", used)] {
        metrics::gauge!("wrenn_database_connections", "state" => state).set(f64::from(count));
    }
    let began = Instant::now();
    match db::pool::probe(&app.db).await {
        Ok(()) => metrics::histogram!("wrenn_database_probe_seconds")
            .record(began.elapsed().as_secs_f64()),
        Err(error) => {
            metrics::counter!("wrenn_database_probes_failed_total").increment(1);
            tracing::debug!(%error, "the database does not answer a probe");
        }
    }
}
