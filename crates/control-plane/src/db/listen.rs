//! Changes that any replica made, told by PostgreSQL as they are committed.

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use types::{CapsuleId, HostId};
use uuid::Uuid;

const CHANNEL: &str = "wrenn_changed";

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Capsule(CapsuleId),
    /// By the key's hash.
    Key([u8; 32]),
    Host(HostId),
    /// More than can be named.
    All,
}

/// Hears of changes from the moment it is made.
pub(crate) struct Changes(PgListener);

impl Changes {
    pub(crate) async fn listen(db: &PgPool) -> sqlx::Result<Self> {
        let mut listener = PgListener::connect_with(db).await?;
        // A connection that is lost is told of, since changes may be missed meanwhile.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// The next change; none when the connection is lost.
    pub(crate) async fn next(&mut self) -> Option<Change> {
        let told = self.0.try_recv().await.ok()??;
        Some(parse(told.payload()))
    }
}

/// What cannot be read may be anything.
fn parse(payload: &str) -> Change {
    let named = match payload.split_once(':') {
        Some(("capsule", id)) => Uuid::parse_str(id).ok().map(|id| Change::Capsule(CapsuleId(id))),
        Some(("host", id)) => Uuid::parse_str(id).ok().map(|id| Change::Host(HostId(id))),
        Some(("key", hash)) => unhex(hash).map(Change::Key),
        _ => None,
    };
    named.unwrap_or(Change::All)
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_taken_for_everything() {
        let id = CapsuleId::new();
        assert_eq!(parse(&format!("capsule:{}", id.0)), Change::Capsule(id));
        let host = HostId::new();
        assert_eq!(parse(&format!("host:{}", host.0)), Change::Host(host));
        let hash = crate::auth::hash("x");
        let text: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(parse(&format!("key:{text}")), Change::Key(hash));
        for odd in ["", "all", "capsule:1", "key:12", "key:+1", &format!("key:é{}", &text[2..])] {
            assert_eq!(parse(odd), Change::All, "{odd}");
        }
    }
}
