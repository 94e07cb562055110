//! Paths as callers write them: absolute, relative to the user's home, or with `~`.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::users::{self, User};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use std::path::{Component, Path, PathBuf};

/// The user that a request acts as, by name alone, and the folder where relative paths begin.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    name: String,
    workdir: Option<String>,
}

impl Caller {
    /// Reads the user: `username`, else the user of the headers, else the capsule's default.
    pub(crate) fn of(guest: &Guest, headers: &HeaderMap, username: Option<&str>) -> Self {
        let settings = guest.settings();
        let named = username.filter(|name| !name.is_empty()).map(str::to_owned);
        let name = named.or_else(|| requested_user(headers)).unwrap_or(settings.default_user);
        Self { name, workdir: settings.default_workdir }
    }

    /// Looks the user up. Reads files of the guest, so only threads that may block call it.
    pub(crate) fn user(&self) -> Result<User> {
        users::get(&self.name)
    }

    /// Makes `path` absolute for the caller's user.
    pub(crate) fn resolve(&self, path: &str, user: &User) -> Result<PathBuf> {
        resolve(path, user, self.workdir.as_deref())
    }

    /// Makes a file's path absolute for the caller's user.
    ///
    /// # Errors
    /// Returns `invalid_argument` for an empty path too, since it names no file.
    pub(crate) fn resolve_file(&self, path: &str, user: &User) -> Result<PathBuf> {
        if path.is_empty() {
            return Err(Error::invalid("path is required"));
        }
        self.resolve(path, user)
    }
}

/// Returns the account that a request asks to act as, from its `Authorization: Basic` header. With
/// an empty password, the account may name a group after a colon. A password is ignored.
pub(crate) fn requested_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let decoded = STANDARD.decode(value.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let name = text.strip_suffix(':').or_else(|| text.split(':').next())?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Makes `path` absolute for `user`. An empty path is `workdir` or, without it, the user's home.
///
/// # Errors
/// Returns `invalid_argument` for a NUL, or a text longer than a path can be.
pub(crate) fn resolve(path: &str, user: &User, workdir: Option<&str>) -> Result<PathBuf> {
    if path.contains('\0') {
        return Err(Error::invalid("path must not contain NUL characters"));
    }
    if path.len() > 4095 {
        return Err(Error::invalid("path must be at most 4095 bytes"));
    }
    let base = workdir.map_or_else(|| user.home.clone(), PathBuf::from);
    let joined = if path.is_empty() {
        base
    } else if path == "~" {
        user.home.clone()
    } else if let Some(rest) = path.strip_prefix("~/") {
        user.home.join(rest)
    } else {
        base.join(path)
    };
    Ok(normalize(&joined))
}

/// Resolves `.` and `..` by the text alone, as shells show paths.
fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_user_is_read_from_basic_auth() {
        let mut headers = HeaderMap::new();
        assert_eq!(requested_user(&headers), None);
        headers.insert(header::AUTHORIZATION, "Basic dXNlcjo=".parse().unwrap());
        assert_eq!(requested_user(&headers).as_deref(), Some("user"));
        for (text, wanted) in [
            ("user", Some("user")),
            ("user:secret", Some("user")),
            ("user:staff:", Some("user:staff")),
            ("1000:50:", Some("1000:50")),
            (":", None),
            ("", None),
        ] {
            let value = format!("Basic {}", STANDARD.encode(text));
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(requested_user(&headers).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn every_path_spelling_resolves_to_absolute() {
        let user =
            User { name: "u".into(), uid: 1, gid: 1, groups: vec![], home: "/home/u".into() };
        let check = |path: &str, workdir, want: &str| {
            assert_eq!(resolve(path, &user, workdir).unwrap(), Path::new(want), "{path}");
        };
        check("", None, "/home/u");
        check("", Some("/w"), "/w");
        check("a/b", None, "/home/u/a/b");
        check("~/a", Some("/w"), "/home/u/a");
        check("/a/../../b/.", None, "/b");
        assert!(resolve("a\0", &user, None).is_err());
        assert!(resolve(&"a".repeat(5000), &user, None).is_err());
    }
}
