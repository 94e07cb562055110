//! The user that runs kernels: variables of its programs, and paths that begin in its home.

use crate::process::User;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Folders of programs, for a capsule whose template sets none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the variables of a user's programs.
pub(crate) fn variables(user: &User) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let pairs = [
        ("HOME", text(&user.home)),
        ("LOGNAME", user.name.clone()),
        ("PATH", PATH.to_owned()),
        ("SHELL", text(&user.shell)),
        ("USER", user.name.clone()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Makes a path absolute. `~` and relative paths begin in the user's home.
pub(crate) fn resolve(path: &str, home: &Path) -> PathBuf {
    let below = match path.strip_prefix('~') {
        Some("") => "",
        Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    };
    home.join(below).components().filter(|part| *part != Component::CurDir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_describe_the_user() {
        let mut user = User::current();
        (user.name, user.home, user.shell) = ("u".to_owned(), "/h".into(), "/bin/zsh".into());
        let variables = variables(&user);
        assert_eq!((&*variables["HOME"], &*variables["USER"]), ("/h", "u"));
        assert_eq!((&*variables["LOGNAME"], &*variables["SHELL"]), ("u", "/bin/zsh"));
        assert!(variables["PATH"].contains("/usr/bin"));
    }

    #[test]
    fn paths_begin_in_the_home_unless_absolute() {
        for (given, path) in [
            ("~", "/home/u"),
            ("~/a", "/home/u/a"),
            ("~x", "/home/u/~x"),
            ("a/./b", "/home/u/a/b"),
            (".", "/home/u"),
            ("/tmp/../x", "/tmp/../x"),
        ] {
            assert_eq!(resolve(given, Path::new("/home/u")), Path::new(path), "{given}");
        }
    }
}
