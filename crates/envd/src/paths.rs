//! Paths as callers write them: absolute, relative to the user's home, or with `~`.

use crate::error::{Error, Result};
use crate::users::User;
use std::path::{Component, Path, PathBuf};

/// Makes `path` absolute for `user`; an empty one is `workdir`, or else the home.
///
/// # Errors
/// `invalid_argument` for a NUL, or a text longer than a path can be.
pub(crate) fn resolve(path: &str, user: &User, workdir: Option<&str>) -> Result<PathBuf> {
    if path.contains('\0') {
        return Err(Error::invalid("path must not contain a NUL"));
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
    fn every_spelling_becomes_absolute() {
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
