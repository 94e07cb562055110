//! Which of the replicas does what one alone should: whoever holds a lock that PostgreSQL lets go
//! of when its connection ends, however that ends.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

/// `wrenn` as a number.
const LOCK: i64 = 0x0077_7265_6e6e;

/// The lead, as long as its connection stands.
pub(crate) struct Lead(PgConnection);

impl Lead {
    /// Takes it; none when another has it.
    pub(crate) async fn take(db: &PgPool) -> sqlx::Result<Option<Self>> {
        // A server that does not hear of us for half a minute lets go.
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

    /// Errs when it is lost.
    pub(crate) async fn stands(&mut self) -> sqlx::Result<()> {
        self.0.ping().await
    }
}
