//! Caches of the data that callers are admitted by: users with their teams, sessions, and limits of
//! teams. Every change drops the entries that it concerns within a second, on every replica. A role
//! or session that has ended then admits nobody. No entry is kept for long.

use crate::cache::{Cache, CacheEntry, InvalidationHealth};
use crate::db;
use crate::db::listen::Change;
use crate::db::sessions::SessionRow;
use crate::db::users::Person;
use crate::error::Result;
use crate::limits::Limits;
use crate::load::Load;
use sqlx::PgPool;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use types::{TeamId, UserId};

/// Longest time that an entry is kept.
const KEPT: Duration = Duration::from_secs(15);

/// Caches of users, sessions and limits.
pub(crate) struct Directory {
    db: PgPool,
    load: Arc<Load>,
    health: InvalidationHealth,
    users: Cache<UserId, Arc<Person>>,
    sessions: Cache<[u8; 32], Arc<SessionRow>>,
    limits: Cache<TeamId, Limits>,
}

impl Directory {
    pub(crate) fn new(db: PgPool, load: Arc<Load>, health: InvalidationHealth) -> Self {
        let (users, sessions) = (Cache::new(), Cache::new());
        Self { db, load, health, users, sessions, limits: Cache::new() }
    }

    /// Finds an active user.
    pub(crate) async fn person(&self, id: UserId) -> Result<Option<Arc<Person>>> {
        let look = async {
            let found = db::users::person(&self.db, id).await?;
            Ok(CacheEntry::new(found.map(Arc::new), Some(KEPT)))
        };
        self.users.get(&self.health, &id, look).await
    }

    /// Finds a session by its token's hash, for a client at `from`.
    pub(crate) async fn session(
        &self,
        hash: &[u8; 32],
        from: Option<IpAddr>,
    ) -> Result<Option<Arc<SessionRow>>> {
        let look = async {
            let _place = self.load.lookup(from).await?;
            let found = db::sessions::find(&self.db, hash).await?;
            let left = found.as_ref().map(|s| s.expires_at - time::OffsetDateTime::now_utc());
            let left = left.map(|left| Duration::try_from(left).unwrap_or_default().min(KEPT));
            Ok(CacheEntry::new(found.map(Arc::new), left))
        };
        self.sessions.get(&self.health, hash, look).await
    }

    /// Returns a team's limits.
    pub(crate) async fn limits(&self, team: TeamId) -> Result<Limits> {
        let look = async {
            Ok(CacheEntry::new(Some(db::limits::of(&self.db, team).await?.limits()), Some(KEPT)))
        };
        let found = self.limits.get(&self.health, &team, look).await?;
        Ok(found.unwrap_or(Limits::DEFAULT))
    }

    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::User(id) => self.users.forget(id),
            Change::Session(hash) => self.sessions.forget(hash),
            // The platform team's limits are the default of every team.
            Change::Team(id) if *id == types::PLATFORM_TEAM => self.limits.forget_all(),
            Change::Team(id) => self.limits.forget(id),
            Change::All => self.forget_all(),
            Change::Capsule(_)
            | Change::Build(_)
            | Change::Key(_)
            | Change::Host(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }

    pub(crate) fn forget_all(&self) {
        self.users.forget_all();
        self.sessions.forget_all();
        self.limits.forget_all();
    }
}
