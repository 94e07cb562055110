//! Checks of request fields that several resources share.

use crate::error::{Error, Result};

/// Longest name of a team, a user, a key or a channel, in characters.
const NAME_MAX: usize = 100;

/// Checks a name that people give to something. Returns it without spaces at its ends.
pub(crate) fn check_title(field: &str, name: &str) -> Result<String> {
    let name = name.trim();
    let count = name.chars().count();
    if !(1..=NAME_MAX).contains(&count) || name.chars().any(char::is_control) {
        let message = format!("must be 1 to {NAME_MAX} characters without control characters");
        return Err(Error::invalid(field, message));
    }
    Ok(name.to_owned())
}

/// Checks an e-mail address and returns its stored form, in lower case.
pub(crate) fn check_email(email: &str) -> Result<String> {
    let email = email.trim().to_lowercase();
    let valid = email.len() <= 254 && email.parse::<lettre::Address>().is_ok();
    if valid { Ok(email) } else { Err(Error::invalid("email", "is not a valid e-mail address")) }
}
