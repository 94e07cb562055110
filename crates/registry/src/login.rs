//! Logins of registries. The caller gives one for each pull, or the operator one for each registry.
//! Nothing is sent here.

use crate::error::{Error, Result};
use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// User of Google's registries whose password is the key file's text.
const GCP_USER: &str = "_json_key";
/// Longest secret of a login, in bytes: far above key files of about 2.5 KiB.
const SECRET_MAX: usize = 64 * 1024;

/// Credentials for one registry. `Debug` shows the kind alone.
#[derive(Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Login {
    /// User and password, or an access token in the password's place.
    Password { username: String, password: Secret },
    /// A key of AWS, which ECR exchanges for a password of 12 hours.
    Aws {
        access_key_id: Secret,
        secret_access_key: Secret,
        region: String,
        /// Token of temporary keys.
        #[serde(default)]
        session_token: Option<Secret>,
    },
    /// JSON text of a Google service account's key.
    Gcp { service_account_json: Secret },
    /// A refresh token, which the registry's token server exchanges for an access token.
    IdentityToken { token: Secret },
}

impl Login {
    /// Returns user and password as the `Basic` scheme sends them, without the scheme's name.
    /// AWS keys and identity tokens have no such form.
    pub(crate) fn basic(&self) -> Option<Secret> {
        match self {
            Self::Password { username, password } => Some(basic(username, password)),
            Self::Gcp { service_account_json } => Some(basic(GCP_USER, service_account_json)),
            Self::Aws { .. } | Self::IdentityToken { .. } => None,
        }
    }

    /// Checks that the login can be sent at all.
    ///
    /// # Errors
    /// Returns `Login` with the reason.
    pub(crate) fn check(&self, registry: &str) -> Result<()> {
        let fail = |why| Err(Error::Login { registry: registry.to_owned(), why });
        if self.secrets().iter().any(|secret| secret.expose().is_empty()) {
            return fail("a secret of it is empty");
        }
        if self.secrets().iter().any(|secret| secret.expose().len() > SECRET_MAX) {
            return fail("a secret of it is longer than 64 KiB");
        }
        match self {
            Self::Password { username, .. } if username.is_empty() => fail("its user is empty"),
            Self::Password { username, .. }
                if username.len() > 256 || username.chars().any(|c| c == ':' || c.is_control()) =>
            {
                fail("its user has a colon or a control character, or over 256 bytes")
            }
            Self::Aws { region, .. } if !is_region(region) => fail("its AWS region is malformed"),
            Self::Password { .. } | Self::Aws { .. } | Self::Gcp { .. } => Ok(()),
            Self::IdentityToken { .. } => Ok(()),
        }
    }

    /// Returns all secrets, for the search in answers.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let mut all = match self {
            Self::Password { password, .. } => vec![password.clone()],
            Self::Aws { access_key_id, secret_access_key, session_token, .. } => {
                let keys = [access_key_id, secret_access_key].into_iter().chain(session_token);
                keys.cloned().collect()
            }
            Self::Gcp { service_account_json } => vec![service_account_json.clone()],
            Self::IdentityToken { token } => vec![token.clone()],
        };
        all.extend(self.basic());
        all
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Login::Password",
            Self::Aws { .. } => "Login::Aws",
            Self::Gcp { .. } => "Login::Gcp",
            Self::IdentityToken { .. } => "Login::IdentityToken",
        })
    }
}

fn basic(user: &str, password: &Secret) -> Secret {
    let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
    Secret::from(STANDARD.encode(pair.as_bytes()))
}

/// Reports whether a text has the form of a region, such as `eu-central-1`. The region becomes a
/// part of a host name.
fn is_region(region: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=32).contains(&region.len())
        && region.chars().all(is_inner)
        && !region.starts_with('-')
        && !region.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_login_shows_its_kind_alone() {
        let login = Login::Password { username: "bob".into(), password: "hunter22".into() };
        assert_eq!(format!("{login:?}"), "Login::Password");
    }

    #[test]
    fn login_is_read_from_json() {
        let text = r#"{"type":"aws","access_key_id":"a","secret_access_key":"b","region":"r-1"}"#;
        let login: Login = serde_json::from_str(text).unwrap();
        assert!(login.check("x").is_ok() && login.basic().is_none());
        let text = r#"{"type":"gcp","service_account_json":"{}"}"#;
        let login: Login = serde_json::from_str(text).unwrap();
        assert_eq!(login.basic().unwrap().expose(), "X2pzb25fa2V5Ont9");
        assert!(serde_json::from_str::<Login>(r#"{"type":"password","username":"u"}"#).is_err());
    }

    #[test]
    fn login_that_cannot_be_sent_is_refused() {
        let password = |user: &str, password: &str| Login::Password {
            username: user.into(),
            password: password.into(),
        };
        for wrong in [password("", "p"), password("a:b", "p"), password("a\n", "p")] {
            assert!(wrong.check("x").is_err());
        }
        assert!(password("a", "").check("x").is_err());
        assert!(password("a", "p:q").check("x").is_ok());
        for region in ["", "evil.example/", "-a", "A"] {
            let login = Login::Aws {
                access_key_id: "a".into(),
                secret_access_key: "b".into(),
                region: region.into(),
                session_token: None,
            };
            assert!(login.check("x").is_err(), "{region}");
        }
    }
}
