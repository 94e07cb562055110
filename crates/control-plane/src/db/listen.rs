//! Changes that any replica made. PostgreSQL announces each change when it is committed.

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use types::{BuildId, CapsuleId, HostId, TeamId, UserId, hex};
use uuid::Uuid;

const CHANNEL: &str = "wrenn_changed";

/// Subject of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Capsule(CapsuleId),
    /// A build's status, log or wish to end.
    Build(BuildId),
    /// A key, by its hash.
    Key([u8; 32]),
    Host(HostId),
    User(UserId),
    /// A session, by the hash of its token.
    Session([u8; 32]),
    /// A team's limits.
    Team(TeamId),
    /// A new event of a team.
    Events(TeamId),
    /// No change. A replica sends it to test that changes arrive.
    Nothing,
    /// More changes than the message can name.
    All,
}

/// Subscription to changes, from the moment of its creation.
pub(crate) struct Changes(PgListener);

impl Changes {
    pub(crate) async fn listen(db: &PgPool) -> sqlx::Result<Self> {
        let mut listener = PgListener::connect_with(db).await?;
        // A lost connection is reported to the caller, since changes may be missed meanwhile.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// Waits for the next change; `None` when the connection is lost.
    pub(crate) async fn next(&mut self) -> Option<Change> {
        let told = self.0.try_recv().await.ok()??;
        Some(parse(told.payload()))
    }
}

/// Sends `Change::Nothing` to every replica, including this one.
pub(crate) async fn ping(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_notify($1, 'nothing')").bind(CHANNEL).execute(db).await.map(|_| ())
}

/// Reads a message. An unreadable message may mean any change, so it becomes `Change::All`.
fn parse(payload: &str) -> Change {
    if payload == "nothing" {
        return Change::Nothing;
    }
    let id = |text: &str| Uuid::parse_str(text).ok();
    let named = match payload.split_once(':') {
        Some(("capsule", text)) => id(text).map(|id| Change::Capsule(CapsuleId(id))),
        Some(("build", text)) => id(text).map(|id| Change::Build(BuildId(id))),
        Some(("host", text)) => id(text).map(|id| Change::Host(HostId(id))),
        Some(("user", text)) => id(text).map(|id| Change::User(UserId(id))),
        Some(("team", text)) => id(text).map(|id| Change::Team(TeamId(id))),
        Some(("events", text)) => id(text).map(|id| Change::Events(TeamId(id))),
        Some(("key", hash)) => hex::decode(hash).map(Change::Key),
        Some(("session", hash)) => hex::decode(hash).map(Change::Session),
        _ => None,
    };
    named.unwrap_or(Change::All)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_notification_invalidates_everything() {
        let id = CapsuleId::new();
        assert_eq!(parse(&format!("capsule:{}", id.0)), Change::Capsule(id));
        let build = BuildId::new();
        assert_eq!(parse(&format!("build:{}", build.0)), Change::Build(build));
        let host = HostId::new();
        assert_eq!(parse(&format!("host:{}", host.0)), Change::Host(host));
        let hash = crate::secret::hash("x");
        let text = hex::encode(&hash);
        assert_eq!(parse(&format!("key:{text}")), Change::Key(hash));
        assert_eq!(parse(&format!("session:{text}")), Change::Session(hash));
        let user = UserId::new();
        assert_eq!(parse(&format!("user:{}", user.0)), Change::User(user));
        assert_eq!(parse("nothing"), Change::Nothing);
        for odd in ["", "all", "capsule:1", "key:12", "key:+1", &format!("key:é{}", &text[2..])] {
            assert_eq!(parse(odd), Change::All, "{odd}");
        }
    }
}
