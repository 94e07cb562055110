//! Checks the limits of a team and of the calling key. Each check runs in the transaction that
//! takes the room, one at a time for each team. Two concurrent requests therefore never both get
//! the last place. The insert of a capsule checks the team's limits itself, by [`Quota::most`].

use crate::app::App;
use crate::audit::Principal;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::limits::{Held, Limits, Per, Stored, beyond, beyond_storage, most_before};
use sqlx::PgConnection;
use types::{ApiKeyId, Isolation, LogPolicy};

/// Limits of a caller's team, and the caller. They are read before the transaction begins: waiting
/// for a second connection while holding one may never end.
pub(crate) struct Quota {
    caller: Caller,
    team: Limits,
}

impl Quota {
    pub(crate) async fn of(app: &App, caller: Caller) -> Result<Self> {
        Ok(Self { caller, team: app.directory.limits(caller.team).await? })
    }

    /// Returns the lowest isolation tier for the team's capsules.
    pub(crate) fn isolation(&self) -> Isolation {
        self.team.isolation
    }

    /// Returns the output that the logs of the team's new capsules keep.
    pub(crate) fn logs(&self) -> LogPolicy {
        self.team.logs
    }

    /// Counts a create against the rates of the key and the team.
    pub(crate) fn rate(&self, app: &App) -> Result<()> {
        let too_many = |wait| Error::TooManyRequests("creates", wait);
        if let Some(key) = self.caller.counted_as {
            let own = self.caller.limits.creates_per_sec;
            app.limiter.pass(key.0, Per::Create, own).map_err(too_many)?;
        }
        let (team, rate) = (self.caller.team.0, self.team.creates_per_sec);
        app.limiter.pass(team, Per::Create, rate).map_err(too_many)
    }

    /// Returns the most that the team may hold before a new capsule; `None` if nothing is counted.
    pub(crate) fn most(&self, capsule: &Capsule) -> Option<Held> {
        self.team.counts().then(|| most_before(&self.team, one_more(capsule)))
    }

    /// Makes the error of a new capsule beside which the team holds more than [`Self::most`].
    pub(crate) fn exceeded(&self, held: Held, capsule: &Capsule) -> Error {
        let over = beyond(&self.team, held, one_more(capsule));
        Error::LimitReached("the team", over.unwrap_or_else(|| "no room is left".to_owned()))
    }

    /// Returns the calling key, if its own limits bind a new capsule.
    pub(crate) fn bound_key(&self) -> Option<ApiKeyId> {
        self.caller.key().filter(|_| self.caller.limits.counts())
    }

    /// Checks that there is room for one more capsule, and holds it until the transaction ends.
    pub(crate) async fn admit(&self, tx: &mut PgConnection, capsule: &Capsule) -> Result<()> {
        self.check(tx, one_more(capsule), self.bound_key()).await
    }

    /// Checks that there is room for a capsule that works for a build. It counts for the key that
    /// asked for the build.
    pub(crate) async fn admit_for_build(
        &self,
        tx: &mut PgConnection,
        capsule: &Capsule,
    ) -> Result<()> {
        self.check(tx, one_more(capsule), capsule.created_by_key).await
    }

    /// Checks that there is room for the machine of a capsule that is brought back. The machine
    /// counts for the key that made the capsule. A user, or a key without such limits, is bound
    /// only by the team's limits.
    pub(crate) async fn admit_again(&self, tx: &mut PgConnection, capsule: &Capsule) -> Result<()> {
        let bound = match self.caller.by.principal {
            Principal::User(_) => false,
            Principal::Key(_) => self.caller.limits.counts(),
            // The platform wakes capsules for anybody's traffic, so the maker's limits apply.
            Principal::Host(_) | Principal::System | Principal::Nobody => true,
        };
        let key = capsule.created_by_key.filter(|_| bound);
        self.check(tx, machine(capsule), key).await
    }

    /// Checks that there is room for `more` named snapshots, and for more storage. Holds the room
    /// until the transaction ends.
    pub(crate) async fn admit_snapshot(&self, tx: &mut PgConnection, more: i64) -> Result<()> {
        self.hold_storage(tx).await?;
        let stored = db::limits::stored(&mut *tx, self.caller.team).await?;
        // A snapshot without a name, such as a fork's, is not refused for the number of named ones.
        let snapshots = if more > 0 { stored.snapshots + more } else { 0 };
        let storage_bytes = stored.storage_bytes + 1;
        refuse("the team", beyond_storage(&self.team, Stored { snapshots, storage_bytes }))
    }

    /// Makes others who would count the team's storage wait until the transaction ends, whose events
    /// name the caller.
    pub(crate) async fn hold_storage(&self, tx: &mut PgConnection) -> Result<()> {
        if !db::teams::hold(&mut *tx, self.caller.team).await? {
            return Err(Error::NotFound("team"));
        }
        Ok(db::limits::hold(tx, self.caller.team, &self.caller.by).await?)
    }

    /// Checks the team's storage, including the transaction's own changes.
    pub(crate) async fn check_storage(&self, tx: &mut PgConnection) -> Result<()> {
        let stored = db::limits::stored(&mut *tx, self.caller.team).await?;
        // The name was admitted before, and a limit lowered since then must take nothing away.
        let stored = Stored { snapshots: 0, ..stored };
        refuse("the team", beyond_storage(&self.team, stored))
    }

    async fn check(&self, tx: &mut PgConnection, more: Held, key: Option<ApiKeyId>) -> Result<()> {
        // The lock is as strong as a row's reference to the team: the team cannot be deleted
        // meanwhile.
        let counted = self.team.counts() || key.is_some();
        let held = db::limits::admit(&mut *tx, self.caller.team, counted).await?;
        let held = held.ok_or(Error::NotFound("team"))?;
        refuse("the team", beyond(&self.team, held, more))?;
        if let Some(key) = key {
            for line in db::limits::of_key(&mut *tx, key).await? {
                refuse("the key", beyond(&line.limits.limits(), line.held, more))?;
            }
        }
        Ok(())
    }
}

fn machine(capsule: &Capsule) -> Held {
    Held { capsules: 0, vcpus: capsule.vcpus.into(), memory_mib: capsule.memory_mib.into() }
}

/// Returns the holdings that a new capsule adds.
fn one_more(capsule: &Capsule) -> Held {
    Held { capsules: 1, ..machine(capsule) }
}

fn refuse(who: &'static str, over: Option<String>) -> Result<()> {
    over.map_or(Ok(()), |what| Err(Error::LimitReached(who, what)))
}
