//! Checks of single arguments, which parser and resolver share: modes, users, sources and paths.

use crate::fault::shorten;

/// Largest user or group id: 2^32 − 2, since the largest number means "no change" to the kernel.
const ID_MAX: u64 = 0xffff_fffe;

/// Longest reference of an image or a template, in bytes.
const REFERENCE_MAX: usize = 512;

/// Reports whether a text can be a reference: 1 to 512 bytes without blanks and control characters.
pub(crate) fn is_reference(text: &str) -> bool {
    let is_bad = |char: char| char.is_whitespace() || char.is_control();
    !text.is_empty() && text.len() <= REFERENCE_MAX && !text.contains(is_bad)
}

/// Reads permission bits, as up to four octal digits.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    let is_octal = matches!(text.len(), 1..=4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = if is_octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.ok_or_else(|| format!("the mode `{}` is not 1 to 4 octal digits", shorten(text)))
}

/// Checks a user: `name`, `uid`, `name:group` or `uid:gid`. Returns whether the user is a number.
pub(crate) fn user(text: &str) -> Result<bool, String> {
    let bad = |reason: &str| Err(format!("the user `{}` {reason}", shorten(text)));
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    for part in [Some(name), group].into_iter().flatten() {
        if part.is_empty() {
            return bad("has an empty name");
        }
        if part.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/')) {
            return bad("holds a character that no name has");
        }
        if is_number(part) && !part.parse::<u64>().is_ok_and(|id| id <= ID_MAX) {
            return bad("has an id above 4294967294");
        }
        if part.starts_with('-') {
            return bad("begins with `-`");
        }
    }
    Ok(is_number(name))
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks that a source is a path of the context, or of another stage.
pub(crate) fn local(source: &str, instruction: &str) -> Result<(), String> {
    let text = shorten(source);
    if source.contains("://") || source.starts_with("git@") {
        return Err(match instruction {
            "ADD" => format!("`{text}` is remote; ADD takes files of the context alone"),
            _ => format!("`{text}` is remote; COPY takes files alone"),
        });
    }
    if source.is_empty() {
        return Err("a source is empty".to_owned());
    }
    if relative(source).is_none() {
        return Err(format!("`{text}` is outside of the context"));
    }
    Ok(())
}

/// Returns the names of a source, from the top of the context. Returns `None` for a path above it.
pub(crate) fn relative(source: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for name in source.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            other => names.push(other),
        }
    }
    Some(names)
}

/// Reports whether a destination names a folder.
pub(crate) fn is_folder(dest: &str) -> bool {
    let last = dest.rsplit('/').next().unwrap_or_default();
    matches!(last, "" | "." | "..")
}

/// Joins a path to a working directory, and removes `.`, `..` and doubled `/`.
pub(crate) fn join(workdir: &str, path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    let begin = if path.starts_with('/') { "" } else { workdir };
    for name in begin.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => {
                let _ = names.pop();
            }
            other => names.push(other),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_digits_alone() {
        assert_eq!((mode("0755"), mode("7"), mode("4777")), (Ok(0o755), Ok(7), Ok(0o4777)));
        for bad in ["", "8", "07777 ", "01777 1", "u=rw", "+7", "-1", "00755", "0x7"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_names_or_ids() {
        for (good, is_number) in [
            ("root", false),
            ("0", true),
            ("1000:1000", true),
            ("app:staff", false),
            ("1a", false),
            ("4294967294", true),
            ("app:0", false),
            ("00", true),
        ] {
            assert_eq!(user(good), Ok(is_number), "{good}");
        }
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "a:b:c",
            "-1",
            "4294967295",
            "4294967296",
            "a b",
            "a\n",
            "a/b",
            "99999999999999999999999",
            "0:4294967295",
        ] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_joined_and_stay_below_the_top() {
        for (workdir, path, wanted) in [
            ("/a", "b", "/a/b"),
            ("/a", "/b", "/b"),
            ("/a", "../b/./c/", "/b/c"),
            ("/", "../../x", "/x"),
            ("/a", ".", "/a"),
            ("", "x", "/x"),
        ] {
            assert_eq!(join(workdir, path), wanted);
        }
        assert_eq!(relative("a/../b"), Some(vec!["b"]));
        assert_eq!(relative("/a/./b/"), Some(vec!["a", "b"]));
        assert_eq!((relative("../a"), relative("a/../..")), (None, None));
    }
}
