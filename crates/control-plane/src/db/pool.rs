//! The connections to PostgreSQL: how many, and how long each may be kept from the others.

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Executor, PgPool};
use std::time::Duration;

/// Connections of one control plane.
const CONNECTIONS: u32 = 16;
/// How long a request waits for a connection before it is refused.
const ACQUIRE: Duration = Duration::from_secs(5);
/// Limits of a connection of the pool: of a statement, of the wait for a lock, and of a transaction
/// that waits for its next statement. A pooler in between may take no options at the start, so
/// they are set by a statement.
const LIMITS: &str = "SET statement_timeout = '20s'; SET lock_timeout = '10s'; \
                      SET idle_in_transaction_session_timeout = '60s'";
/// Lifts the limits of a statement for the rest of a transaction that nobody waits for.
pub(crate) const UNHURRIED: &str = "SET LOCAL statement_timeout = '10min'";

/// Connects and migrates. A migration may take as long as it takes, and waits for another
/// replica's, so it has a connection of its own.
pub(crate) async fn connect(options: PgConnectOptions) -> anyhow::Result<PgPool> {
    let connecting = "connecting to the database (DATABASE_URL)";
    let mut alone = options.connect().await.context(connecting)?;
    super::schema::migrate(&mut alone).await?;
    sqlx::Connection::close(alone).await.context(connecting)?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE);
    let pool = pool.after_connect(|connection, _| {
        Box::pin(async move { connection.execute(LIMITS).await.map(|_| ()) })
    });
    pool.connect_with(options).await.context(connecting)
}
