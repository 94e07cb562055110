//! Rules for passwords, and their hashes with argon2id. A hash takes tens of milliseconds and
//! megabytes by intent, so few are computed at once.

use crate::error::{Error, Result};
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use std::sync::OnceLock;
use tokio::sync::Semaphore;

/// Shortest and longest password, in characters.
const SHORTEST: usize = 8;
const LONGEST: usize = 256;
/// Most hashes that are computed at once.
const AT_ONCE: usize = 4;
/// Memory in KiB, passes and lanes: OWASP's first choice for argon2id.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Checks a new password: its length, and that it is hard to guess. Common passwords and passwords
/// made of the user's own words are easy to guess.
pub(crate) fn check(field: &str, password: &str, own: &[&str]) -> Result<()> {
    let count = password.chars().count();
    if !(SHORTEST..=LONGEST).contains(&count) {
        let message = format!("must be {SHORTEST} to {LONGEST} characters");
        return Err(Error::invalid(field, message));
    }
    // Later characters cannot make a password easier to guess.
    let start: String = password.chars().take(100).collect();
    if zxcvbn::zxcvbn(&start, own).score() < zxcvbn::Score::Two {
        return Err(Error::invalid(
            field,
            "is too easy to guess; do not use or combine common passwords",
        ));
    }
    Ok(())
}

fn argon2() -> Argon2<'static> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Runs work on a blocking thread, where it holds up nobody else. The thread owns the place, since
/// the caller may leave before the work is done.
async fn apart<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let place = places.acquire().await.map_err(|e| Error::Internal(e.into()))?;
    let work = move || {
        let _place = place;
        Ok(work())
    };
    daemon::blocking(work).await.map_err(|e| Error::Internal(e.into()))
}

/// Hashes a password with a salt of its own.
pub(crate) async fn hash(password: &str) -> Result<String> {
    let password = password.to_owned();
    let work = move || argon2().hash_password(password.as_bytes()).map(|hash| hash.to_string());
    apart(&PLACES, work)
        .await?
        .map_err(|e| Error::Internal(anyhow::anyhow!("hashing a password: {e}")))
}

/// Reports whether a password matches a hash. Without a hash, takes as long and returns `false`.
pub(crate) async fn verify(password: &str, hash: Option<&str>) -> Result<bool> {
    static NOBODYS: OnceLock<String> = OnceLock::new();
    // No password is this long, and hashing it would take long.
    if password.len() > 4 * LONGEST {
        return Ok(false);
    }
    let (password, known) = (password.to_owned(), hash.is_some());
    let hash = hash.map(str::to_owned);
    let matches = apart(&PLACES, move || {
        let nobodys = || {
            NOBODYS.get_or_init(|| {
                let hash = argon2().hash_password(b"nobody's").map(|hash| hash.to_string());
                hash.unwrap_or_default()
            })
        };
        let hash = hash.unwrap_or_else(|| nobodys().clone());
        let Ok(hash) = PasswordHash::new(&hash) else { return false };
        argon2().verify_password(password.as_bytes(), &hash).is_ok()
    });
    Ok(matches.await? && known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn common_and_personal_passwords_are_refused() {
        let own = ["maria.lopez@example.com", "Maria Lopez"];
        for bad in ["short", "password", "12345678", "qwertyuiop", "Password1", "marialopez"] {
            assert!(check("password", bad, &own).is_err(), "{bad}");
        }
        assert!(check("password", &"é".repeat(257), &own).is_err());
        for good in ["correct horse battery", "Tz8#kkw0!q", "ünïcödé und lang"] {
            assert!(check("password", good, &own).is_ok(), "{good}");
        }
    }

    #[tokio::test]
    async fn abandoned_hashing_keeps_its_permit_until_it_ends() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = apart(&ONE, move || ended.recv());
        let left = tokio::time::timeout(Duration::from_millis(20), work).await.is_err();
        let free = ONE.available_permits();
        end.send(()).unwrap();
        assert!(left);
        assert_eq!(free, 0);
        // The end of the work frees the place.
        drop(ONE.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn hash_verifies_only_its_own_password() {
        let hash = hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify("correct horse", Some(&hash)).await.unwrap());
        assert!(!verify("correct house", Some(&hash)).await.unwrap());
        assert!(!verify("nobody's", None).await.unwrap());
        assert!(!verify("x", Some("no hash")).await.unwrap());
        assert!(!verify(&"x".repeat(1 << 20), Some(&hash)).await.unwrap());
    }
}
