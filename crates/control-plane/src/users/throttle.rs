//! Limits on failed sign-ins and on mails, by account and by network. All replicas share them
//! through the database. An IPv6 network is a /64, since any client has a whole one. Attempts on
//! one account come one after the other. Otherwise many concurrent attempts would all count as the
//! first.

use crate::app::App;
use crate::audit::Actor;
use crate::db;
use crate::error::{Error, Result};
use crate::secret::hash;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use types::{ClientNetwork, TeamId};

/// Failures that cause no wait, for an account and for a network. A network may have many users.
const FREE_ACCOUNT: i32 = 5;
const FREE_ADDRESS: i32 = 50;
/// Mails to an e-mail that cause no wait; the wait begins after the next one.
const FREE_MAILS: i32 = 5;
/// Longest wait, and the time without a failure after which all failures are forgotten, in seconds.
const WAIT_MAX: u64 = 900;
const FORGOTTEN: f64 = 3600.0;

/// Returns the wait after a number of failures: a second, then twice as long each time. Pure.
fn wait(failures: i32, free: i32) -> Duration {
    let over = u32::try_from(failures - free).unwrap_or(0);
    match over {
        0 => Duration::ZERO,
        n => Duration::from_secs(1_u64.checked_shl(n - 1).unwrap_or(WAIT_MAX).min(WAIT_MAX)),
    }
}

/// Returns the network that a request comes from, as one client.
fn network(by: Actor) -> String {
    by.from.map(|ip| ClientNetwork::from(ip).to_string()).unwrap_or_default()
}

/// Returns the subjects that failures are counted by: an account's e-mail or another subject, and
/// the network.
fn subjects(by: Actor, subject: &str) -> [([u8; 32], i32); 2] {
    [
        (hash(&format!("account:{subject}")), FREE_ACCOUNT),
        (hash(&format!("address:{}", network(by))), FREE_ADDRESS),
    ]
}

async fn check(app: &App, what: &'static str, subject: &[u8], free: i32) -> Result<()> {
    let (failures, since) = db::sessions::failures(&app.db, subject).await?;
    let wait = wait(failures, free).as_secs_f64() - since;
    if wait > 0.0 && since < FORGOTTEN {
        return Err(Error::TooManyRequests(what, Duration::from_secs_f64(wait)));
    }
    Ok(())
}

/// Waits for the turn of a subject, and checks that no wait is due. The caller holds the guard
/// until the attempt is over.
pub(super) async fn lock_subject(
    app: &App,
    by: Actor,
    subject: &str,
) -> Result<OwnedMutexGuard<()>> {
    let lock = app.accounts.turns.of(&hash(subject)).lock_owned().await;
    for (subject, free) in subjects(by, subject) {
        check(app, "failed sign-ins", &subject, free).await?;
    }
    Ok(lock)
}

pub(super) async fn failed(app: &App, by: Actor, subject: &str) -> Result<()> {
    for (subject, _) in subjects(by, subject) {
        db::sessions::failed(&app.db, &subject, FORGOTTEN).await?;
    }
    Ok(())
}

/// Forgets the failures of an account whose owner has signed in. The network's failures stay.
pub(super) async fn forgive(app: &App, subject: &str) -> Result<()> {
    Ok(db::sessions::forgive(&app.db, &hash(&format!("account:{subject}"))).await?)
}

/// Counts a mail that a request without a credential causes, by its network.
async fn strangers_mail(app: &App, by: Actor) -> Result<()> {
    count_mail(app, &hash(&format!("mails:{}", network(by))), FREE_ADDRESS).await
}

/// Counts a mail to somebody who signs up, with or without an account. Each network has its own
/// share of an e-mail's mails, so that nobody uses up another's.
pub(super) async fn sign_up_mail(app: &App, by: Actor, email: &str) -> Result<()> {
    strangers_mail(app, by).await?;
    count_mail(app, &hash(&format!("sign-up:{}:{email}", network(by))), FREE_MAILS).await?;
    count_mail(app, &hash(&format!("sign-up:{email}")), FREE_ADDRESS).await
}

/// Counts a mail that resets a password, with or without an account. Returns `false` when too many
/// were sent lately to send another. The last of those is then less than `WAIT_MAX` old. Its code
/// is good for longer, so nobody can keep the owner from a good code.
pub(super) async fn reset_mail(app: &App, by: Actor, email: &str) -> Result<bool> {
    strangers_mail(app, by).await?;
    count(app, &hash(&format!("reset:{email}")), FREE_MAILS).await
}

/// Forgets the mails for resetting a password, since none of their codes is good any more.
pub(super) async fn forgive_reset(app: &App, email: &str) -> Result<()> {
    Ok(db::sessions::forgive(&app.db, &hash(&format!("reset:{email}"))).await?)
}

/// Counts an invitation by mail: by the inviter, and by the team and the invited e-mail.
pub(crate) async fn invitation(app: &App, team: TeamId, by: Actor, email: &str) -> Result<()> {
    count_mail(app, &hash(&format!("inviter:{}", by.principal.id())), FREE_ADDRESS).await?;
    count_mail(app, &hash(&format!("invitation:{team}:{email}")), FREE_MAILS).await
}

/// Counts a mail, or returns an error with the time to wait.
async fn count_mail(app: &App, subject: &[u8; 32], free: i32) -> Result<()> {
    if count(app, subject, free).await? {
        return Ok(());
    }
    check(app, "mails", subject, free).await?;
    // The wait has ended meanwhile, so the next try may pass.
    Err(Error::TooManyRequests("mails", Duration::ZERO))
}

async fn count(app: &App, subject: &[u8; 32], free: i32) -> Result<bool> {
    let longest = Duration::from_secs(WAIT_MAX).as_secs_f64();
    Ok(db::sessions::count(&app.db, subject, free, longest, FORGOTTEN).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_wait_doubles_up_to_fifteen_minutes() {
        let seconds = |failures| wait(failures, 5).as_secs();
        assert_eq!(
            [0, 5, 6, 7, 8, 15, 16, 17, 1000].map(seconds),
            [0, 0, 1, 2, 4, 512, 900, 900, 900]
        );
    }
}
