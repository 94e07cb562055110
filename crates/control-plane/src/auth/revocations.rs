//! Ends open exchanges when the credential that opened them ends: terminals, streams, transfers,
//! tunnels. Every change that may take a right away wakes the exchanges that rest on it. Each of
//! them then repeats the check that admitted it, from the caches.

use crate::db::listen::Change;
use crate::error::{Error, Result};
use bytes::Bytes;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Notify;
use types::{CapsuleId, UserId};

/// Groups of subjects that are woken together.
const SHARDS: usize = 256;
/// Time before another check when the database did not answer, or a clock disagrees.
const RETRY: Duration = Duration::from_secs(1);

/// Key, session, user or capsule whose change may take a right away.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject {
    /// A key, by its hash.
    Key([u8; 32]),
    /// A session, by the hash of its token.
    Session([u8; 32]),
    User(UserId),
    Capsule(CapsuleId),
}

impl Subject {
    fn shard(&self) -> usize {
        let last = match self {
            Self::Key(hash) | Self::Session(hash) => hash[31],
            Self::User(id) => id.0.as_bytes()[15],
            Self::Capsule(id) => id.0.as_bytes()[15],
        };
        usize::from(last)
    }
}

/// Subjects and end of an admission.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Basis {
    pub subjects: [Option<Subject>; 3],
    /// Time at which the admission ends by itself.
    pub until: Option<OffsetDateTime>,
}

/// An admission that can be checked again.
pub(crate) trait Recheck: Send + Sync {
    /// Checks the admission as it stands now.
    ///
    /// # Errors
    /// When the admission would be refused, or cannot be checked.
    fn check(&self) -> impl Future<Output = Result<Basis>> + Send;
}

/// Makes the error of a body whose admission no longer holds.
pub(crate) fn broken_off(error: Error) -> std::result::Result<Bytes, hop::BoxError> {
    Err(error.into())
}

/// The count of changes, and the exchanges that wait for a change.
pub(crate) struct Revocations {
    count: AtomicU64,
    shards: [Notify; SHARDS],
}

impl Revocations {
    pub(crate) fn new() -> Self {
        Self { count: AtomicU64::new(0), shards: std::array::from_fn(|_| Notify::new()) }
    }

    /// Returns the count of changes so far. An admission takes the count before its first look-up,
    /// so that a change during the admission is not missed.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Has the exchanges that a change concerns checked again. The caches must have dropped the
    /// changed subject already.
    pub(crate) fn apply(&self, change: &Change) {
        let subject = match change {
            Change::Key(hash) => Subject::Key(*hash),
            Change::Session(hash) => Subject::Session(*hash),
            Change::User(id) => Subject::User(*id),
            Change::Capsule(id) => Subject::Capsule(*id),
            Change::All => return self.check_all(),
            Change::Build(_)
            | Change::Host(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => return,
        };
        self.count.fetch_add(1, Ordering::AcqRel);
        self.shards[subject.shard()].notify_waiters();
    }

    /// Has all exchanges checked again, since changes may have been missed.
    pub(crate) fn check_all(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.shards.iter().for_each(Notify::notify_waiters);
    }

    fn changed(&self, of: Option<Subject>) -> OptionNotified<'_> {
        of.map(|subject| self.shards[subject.shard()].notified()).into()
    }

    /// Completes when an admission no longer holds. `seen` is the count from before its check.
    pub(crate) async fn revoked(
        &self,
        of: &impl Recheck,
        mut basis: Basis,
        mut seen: u64,
    ) -> Error {
        let mut failed = false;
        loop {
            // The waits begin before the count is read, so that no change falls in between.
            let [one, two, three] = basis.subjects.map(|subject| self.changed(subject));
            let count = self.count();
            let over = basis.until.is_some_and(|until| until <= OffsetDateTime::now_utc());
            let due = failed || over || count != seen;
            if due {
                // The check is boxed, so that a waiting exchange holds little memory.
                match Box::pin(of.check()).await {
                    Ok(now) => (basis, seen, failed) = (now, count, false),
                    Err(error) if error.status().is_client_error() => return Error::AccessRevoked,
                    Err(_) => failed = true,
                }
                if !failed && !over {
                    continue;
                }
            }
            let left = basis.until.map(|until| until - OffsetDateTime::now_utc());
            let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
            let wait = if due { Some(RETRY) } else { left };
            tokio::select! {
                Some(()) = one => {}
                Some(()) = two => {}
                Some(()) = three => {}
                () = sleep(wait) => {}
            }
        }
    }
}

type OptionNotified<'a> = futures::future::OptionFuture<tokio::sync::futures::Notified<'a>>;

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// An admission that answers its next checks from a list, the last answer for ever.
    struct Script(Mutex<Vec<Result<Basis>>>);

    impl Script {
        fn new(checks: Vec<Result<Basis>>) -> Self {
            Self(Mutex::new(checks))
        }
    }

    impl Recheck for Script {
        async fn check(&self) -> Result<Basis> {
            self.0.lock().unwrap().remove(0)
        }
    }

    fn basis(user: UserId) -> Basis {
        Basis { subjects: [None, Some(Subject::User(user)), None], until: None }
    }

    /// Lets the time pass that a task may need, on a paused clock.
    async fn pending(future: &mut (impl Future<Output = Error> + Unpin)) -> bool {
        tokio::time::timeout(Duration::from_secs(100), future).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn change_of_subject_revokes_access_once_check_refuses() {
        let (all, user) = (Revocations::new(), UserId::new());
        let script = Script::new(vec![Ok(basis(user)), Err(Error::Unauthenticated)]);
        let mut revoked = Box::pin(all.revoked(&script, basis(user), all.count()));
        assert!(pending(&mut revoked).await, "nothing changed");
        all.apply(&Change::User(user));
        assert!(pending(&mut revoked).await, "the first check admits");
        all.apply(&Change::User(user));
        assert!(matches!(revoked.await, Error::AccessRevoked));
    }

    #[tokio::test(start_paused = true)]
    async fn change_before_first_wait_is_not_missed() {
        let (all, user) = (Revocations::new(), UserId::new());
        let script = Script::new(vec![Err(Error::NotFound("team"))]);
        let seen = all.count();
        all.apply(&Change::User(user));
        assert!(matches!(all.revoked(&script, basis(user), seen).await, Error::AccessRevoked));
    }

    #[tokio::test(start_paused = true)]
    async fn unavailable_database_revokes_nothing_and_check_is_retried() {
        let (all, user) = (Revocations::new(), UserId::new());
        let script = Script::new(vec![
            Err(Error::DatabaseUnavailable),
            Ok(basis(user)),
            Err(Error::Forbidden("capsules:exec")),
        ]);
        let mut revoked = Box::pin(all.revoked(&script, basis(user), all.count()));
        assert!(pending(&mut revoked).await);
        all.check_all();
        assert!(pending(&mut revoked).await, "it was asked again and admitted");
        all.check_all();
        assert!(matches!(revoked.await, Error::AccessRevoked));
    }

    #[tokio::test(start_paused = true)]
    async fn expiry_revokes_access_without_a_change() {
        let (all, user) = (Revocations::new(), UserId::new());
        let script = Script::new(vec![Err(Error::LinkExpired)]);
        let ends = Basis { until: Some(OffsetDateTime::now_utc()), ..basis(user) };
        assert!(matches!(all.revoked(&script, ends, all.count()).await, Error::AccessRevoked));
    }
}
