//! Connection pool to PostgreSQL, with its size and the time limits of its connections.

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgPool};
use std::time::Duration;

/// Number of connections of one control plane.
const CONNECTIONS: u32 = 16;
/// Time that a request waits for a connection before it is refused.
const ACQUIRE: Duration = Duration::from_secs(5);
/// Idle time after which a connection is tested before its next use. A test is a round trip, so
/// busy connections do without. A database that restarts is away for longer than this.
const UNTESTED: Duration = Duration::from_millis(100);
/// Time limits of a pool's connection: for a statement, for a lock, and for idleness in a
/// transaction. A statement sets them, since a pooler in between may reject options at the start.
const LIMITS: &str = "SET statement_timeout = '20s'; SET lock_timeout = '10s'; \
                      SET idle_in_transaction_session_timeout = '60s'";
/// Statement that raises the time limit for the rest of a transaction that nobody waits for.
pub(crate) const UNHURRIED: &str = "SET LOCAL statement_timeout = '10min'";

/// Runs a statement without work.
pub(crate) async fn probe(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("SELECT 1").execute(db).await.map(|_| ())
}

/// Connects and migrates. A migration has no time limit and waits for another replica's, so it has
/// a connection of its own.
pub(crate) async fn connect(options: PgConnectOptions) -> anyhow::Result<PgPool> {
    let connecting = "cannot connect to the database (DATABASE_URL)";
    let mut alone = options.connect().await.context(connecting)?;
    super::schema::migrate(&mut alone).await?;
    alone.close().await.context(connecting)?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE);
    let pool = pool.after_connect(|connection, _| {
        Box::pin(async move { connection.execute(LIMITS).await.map(|_| ()) })
    });
    let pool = pool.test_before_acquire(false).before_acquire(|connection, seen| {
        Box::pin(async move {
            if seen.idle_for >= UNTESTED {
                connection.ping().await?;
            }
            Ok(true)
        })
    });
    pool.connect_with(options).await.context(connecting)
}
