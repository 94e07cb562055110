//! Names that people give to things, and the keys and values of environments.

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
    fn environment_variables_are_validated() {
        let check = |k: &str, v: &str| check_envs("envs", [(&k.to_owned(), &v.to_owned())]);
        assert!(check("PATH_1", "x y=ü").is_ok());
        for (k, v) in [("", "x"), ("1A", "x"), ("A=B", "x"), ("A", "\0")] {
            assert!(check(k, v).is_err(), "{k}={v}");
        }
        assert!(check("A", &"x".repeat(65 * 1024)).is_err());
    }
}
