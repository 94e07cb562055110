//! How often somebody may fail to sign in, or have mail sent: by account and by address, shared by
//! all replicas through the database. Attempts of one account are one after the other, so that
//! many at once do not all count as the first.

use crate::app::App;
use crate::audit::By;
use crate::auth::hash;
use crate::db;
use crate::error::{Error, Result};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// Failures that are nothing yet: of an account, and of an address, behind which there may be many.
const FREE_ACCOUNT: i32 = 5;
const FREE_ADDRESS: i32 = 50;
/// Mails that an account, or an address, has sent at once.
const FREE_MAILS: i32 = 5;
/// The longest wait, and after how long without a failure all are forgotten, in seconds.
const WAIT_MAX: u64 = 900;
const FORGOTTEN: f64 = 3600.0;

/// How long to wait after so many failures: a second, then twice as long each time. Pure.
fn wait(failures: i32, free: i32) -> Duration {
    let over = u32::try_from(failures - free).unwrap_or(0);
    match over {
        0 => Duration::ZERO,
        n => Duration::from_secs(1_u64.checked_shl(n - 1).unwrap_or(WAIT_MAX).min(WAIT_MAX)),
    }
}

/// What failures are counted by.
fn subjects(by: By, email: &str) -> [([u8; 32], i32); 2] {
    let address = by.from.map(|ip| ip.to_string()).unwrap_or_default();
    [
        (hash(&format!("account:{email}")), FREE_ACCOUNT),
        (hash(&format!("address:{address}")), FREE_ADDRESS),
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

/// Lets an attempt begin, or says how long to wait. Held until it is over.
pub(super) async fn turn(app: &App, by: By, email: &str) -> Result<OwnedMutexGuard<()>> {
    let turn = app.accounts.turns.of(&hash(email)).lock_owned().await;
    for (subject, free) in subjects(by, email) {
        check(app, "failures to sign in", &subject, free).await?;
    }
    Ok(turn)
}

pub(super) async fn failed(app: &App, by: By, email: &str) -> Result<()> {
    for (subject, _) in subjects(by, email) {
        db::sessions::failed(&app.db, &subject, FORGOTTEN).await?;
    }
    Ok(())
}

/// Forgets the failures of an account whose owner came in; those of the address stay.
pub(super) async fn forgive(app: &App, email: &str) -> Result<()> {
    Ok(db::sessions::forgive(&app.db, &hash(&format!("account:{email}"))).await?)
}

/// Counts a mail to somebody; the same whether there is an account or not.
pub(crate) async fn mail_to(app: &App, email: &str) -> Result<()> {
    count(app, &hash(&format!("mail:{email}")), FREE_MAILS).await
}

/// Counts a mail that a stranger has sent.
pub(super) async fn mail(app: &App, by: By, email: &str) -> Result<()> {
    let address = by.from.map(|ip| ip.to_string()).unwrap_or_default();
    count(app, &hash(&format!("mails:{address}")), FREE_ADDRESS).await?;
    mail_to(app, email).await
}

async fn count(app: &App, subject: &[u8; 32], free: i32) -> Result<()> {
    check(app, "mails", subject, free).await?;
    Ok(db::sessions::failed(&app.db, subject, FORGOTTEN).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end_at_a_quarter_of_an_hour() {
        let seconds = |failures| wait(failures, 5).as_secs();
        assert_eq!(
            [0, 5, 6, 7, 8, 15, 16, 17, 1000].map(seconds),
            [0, 0, 1, 2, 4, 512, 900, 900, 900]
        );
    }
}
