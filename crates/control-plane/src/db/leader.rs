//! Leader election among the replicas. The leader holds an advisory lock, which PostgreSQL releases
//! when the leader's connection ends for any reason.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

/// The text `wrenn` as a number.
const LOCK: i64 = 0x0077_7265_6e6e;

/// Leadership, which lasts as long as its connection.
pub(crate) struct LeaderLease(PgConnection);

impl LeaderLease {
    /// Takes the lock; `None` when another replica holds it.
    pub(crate) async fn try_acquire(db: &PgPool) -> sqlx::Result<Option<Self>> {
        // A server that does not hear from this process for half a minute releases the lock.
        let options: PgConnectOptions = db.connect_options().as_ref().clone();
        let mut connection = options
            .options([
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "4"),
            ])
            .connect()
            .await?;
        let sql = "SELECT pg_try_advisory_lock($1)";
        let taken: bool = sqlx::query_scalar(sql).bind(LOCK).fetch_one(&mut connection).await?;
        if taken {
            return Ok(Some(Self(connection)));
        }
        connection.close().await?;
        Ok(None)
    }

    /// Checks the connection. Fails when leadership is lost.
    pub(crate) async fn check(&mut self) -> sqlx::Result<()> {
        self.0.ping().await
    }
}
