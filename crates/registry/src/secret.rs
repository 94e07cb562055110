//! Text that must appear in no log and no error: passwords, tokens and headers made of them.

use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// A secret text. `Debug` shows nothing of it, and its memory is overwritten when it is dropped.
/// Copies inside the HTTP client live until their request ends, and are not overwritten.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Returns the text itself, for the request that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Shortest secret that `scrub` looks for. Shorter ones would blot out ordinary words.
const SCRUB_MIN: usize = 4;

/// Replaces each secret in a text by `***`. A registry may repeat a request's header in its answer.
pub(crate) fn scrub(text: &str, secrets: &[Secret]) -> String {
    let mut out = text.to_owned();
    for secret in secrets {
        if secret.expose().len() >= SCRUB_MIN {
            out = out.replace(secret.expose(), "***");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_secret_shows_nothing() {
        let secret = Secret::from("hunter22");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret Some(Secret)");
        assert_eq!(secret.expose(), "hunter22");
    }

    #[test]
    fn scrub_removes_each_occurrence_of_each_secret() {
        let secrets = [Secret::from("hunter22"), Secret::from("x")];
        assert_eq!(scrub("x hunter22, hunter22", &secrets), "x ***, ***");
    }
}
