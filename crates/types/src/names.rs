//! Names that people give to things, and the keys and values of environments.

use crate::ids::CapsuleId;
use crate::resources::OutOfRange;

/// Longest name of a template, in bytes.
pub const MAX_NAME: usize = 64;

/// Checks the name of a template. It begins with a letter or digit, followed by letters, digits,
/// `.`, `_` and `-`. It has at most 64 characters.
///
/// # Errors
/// Names `field` and the rule.
pub fn check_name(field: &'static str, name: &str) -> Result<(), OutOfRange> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if first && rest && name.len() <= MAX_NAME {
        return Ok(());
    }
    let message = format!(
        "must be 1 to {MAX_NAME} letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
    );
    Err(OutOfRange { field, message })
}

/// Longest name of a capsule, in bytes.
pub const MAX_CAPSULE_NAME: usize = 63;

/// Words that stand in the place of a capsule in paths of the API.
const RESERVED: [&str; 3] = ["bulk", "metrics", "summary"];

/// Checks the name of a capsule. A name begins with a lower-case letter or digit, followed by
/// lower-case letters, digits and `-`. A name has at most 63 characters, and never begins like an
/// id.
///
/// # Errors
/// Names `field` and the rule.
pub fn check_capsule_name(field: &'static str, name: &str) -> Result<(), OutOfRange> {
    let fail = |message: String| Err(OutOfRange { field, message });
    let mut bytes = name.bytes();
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let first = bytes.next().is_some_and(is_word);
    if !first || !bytes.all(|b| is_word(b) || b == b'-') || name.len() > MAX_CAPSULE_NAME {
        return fail(format!(
            "must be 1 to {MAX_CAPSULE_NAME} small letters, digits and `-`, beginning with a \
             letter or digit"
        ));
    }
    let prefix = CapsuleId::PREFIX;
    // A copy of `cl` would be named `cl-2`.
    if name.starts_with(prefix) || name == prefix.trim_end_matches('-') {
        return fail(format!("must not begin with `{prefix}`, since ids do"));
    }
    if RESERVED.contains(&name) {
        return fail(format!("must not be `{name}`, which is a path of the API"));
    }
    Ok(())
}

/// Checks an environment. Names are C identifiers, values hold no NUL, and all of it fits 64 KiB.
///
/// # Errors
/// Names `field` and the broken rule.
pub fn check_envs<'a>(
    field: &'static str,
    envs: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), OutOfRange> {
    let fail = |message: String| Err(OutOfRange { field, message });
    let mut total = 0;
    for (key, value) in envs {
        let head = key.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !head || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return fail(format!(
                "contains `{}`, which is not a valid variable name",
                shorten(key)
            ));
        }
        if value.contains('\0') {
            return fail(format!("contains a NUL character in the value of `{}`", shorten(key)));
        }
        total += key.len() + value.len() + 2;
    }
    if total > 64 * 1024 {
        return fail("must be at most 64 KiB in total".to_owned());
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_validated() {
        for good in ["base", "a", "node-20.1_x", &"a".repeat(64)] {
            assert!(check_name("template", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", "..", "é", &"a".repeat(65), "a\0"] {
            assert!(check_name("template", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn capsule_name_is_a_label_and_never_like_an_id() {
        let check = |name: &str| check_capsule_name("name", name);
        for good in ["a", "0", "web", "web-2", "a-", "clean", "c", "x--y", &"a".repeat(63)] {
            assert!(check(good).is_ok(), "{good}");
        }
        let id = CapsuleId::new().to_string();
        let long = "a".repeat(64);
        for bad in ["", "-a", "Web", "a b", "a.b", "a_b", "é", "a\0", "cl", "cl-x", &id, &long] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(RESERVED.iter().all(|word| check(word).is_err()));
    }

    #[test]
    fn environment_variables_are_validated() {
        let check = |k: &str, v: &str| check_envs("envs", [(&k.to_owned(), &v.to_owned())]);
        assert!(check("PATH_1", "x y=ü").is_ok());
        for (k, v) in [("", "x"), ("1A", "x"), ("A=B", "x"), ("A", "\0")] {
            assert!(check(k, v).is_err(), "{k}={v}");
        }
        assert!(check("A", &"x".repeat(65 * 1024)).is_err());
    }
}
