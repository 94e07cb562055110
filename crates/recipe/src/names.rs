//! Names of templates and what follows them: `name`, `name:tag` and `name@build` for Wrenn,
//! `namespace/name:tag` for E2B. The module checks forms and looks nothing up.

use crate::fault::shorten;
use std::fmt;
use std::str::FromStr;
use types::BuildId;
use uuid::Uuid;

/// Tag of a build that names none.
pub const DEFAULT_TAG: &str = "default";
/// Longest name that E2B's clients may give, in bytes.
pub const E2B_NAME_MAX: usize = 128;
/// Longest tag and namespace, in bytes.
pub const TAG_MAX: usize = 128;

/// A version of a template, as a caller chooses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Newest ready assignment of a tag.
    Tag(String),
    /// A build itself.
    Build(BuildId),
}

/// A template, and perhaps one of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Short name of the owning team; the caller's team if absent.
    pub namespace: Option<String>,
    /// Name of the template.
    pub name: String,
    /// Version; the tag `default` if absent.
    pub selector: Option<Selector>,
}

/// A name or tag that is refused. The texts begin as E2B's do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is missing.
    #[error("Name is required")]
    Missing,
    /// The name breaks a rule.
    #[error("Invalid name: {0}")]
    Name(String),
    /// The namespace breaks a rule.
    #[error("Invalid name: the namespace {0}")]
    Namespace(String),
    /// The tag breaks a rule.
    #[error("Invalid tag: {0}")]
    Tag(String),
    /// The build's id has another form.
    #[error("Invalid build: `{0}` is no id of a build")]
    Build(String),
}

impl Reference {
    /// Reads a reference of Wrenn's own clients. Nothing is trimmed or lowered.
    ///
    /// # Errors
    /// Names the broken rule.
    pub fn native(text: &str) -> Result<Self, Error> {
        let (path, selector) = match text.split_once('@') {
            Some((path, build)) => (path, Some(Selector::Build(build_id(build)?))),
            None => match text.split_once(':') {
                Some((path, tag)) => (path, Some(Selector::Tag(native_tag(tag)?))),
                None => (text, None),
            },
        };
        let (namespace, name) = split_namespace(path)?;
        native_name(name)?;
        Ok(Self { namespace, name: name.to_owned(), selector })
    }

    /// Reads a reference of E2B's clients, after trimming and lowering it. The UUID of a build may
    /// stand in place of a tag.
    ///
    /// # Errors
    /// Names the broken rule.
    pub fn e2b(text: &str) -> Result<Self, Error> {
        let text = text.trim().to_lowercase();
        let (path, selector) = match text.split_once(':') {
            Some((path, tag)) => match tag.parse::<Uuid>() {
                Ok(build) if is_uuid(tag) => (path, Some(Selector::Build(build.into()))),
                _ => (path, Some(Selector::Tag(e2b_tag(tag)?))),
            },
            None => (text.as_str(), None),
        };
        let (namespace, name) = split_namespace(path)?;
        e2b_name(name)?;
        Ok(Self { namespace, name: name.to_owned(), selector })
    }

    /// Returns the tag that a build of this reference gets, or `None` for a build's id.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            None => Some(DEFAULT_TAG),
            Some(Selector::Tag(tag)) => Some(tag),
            Some(Selector::Build(_)) => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        match &self.selector {
            None => Ok(()),
            Some(Selector::Tag(tag)) => write!(f, ":{tag}"),
            Some(Selector::Build(build)) => write!(f, "@{build}"),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::native(text)
    }
}

fn split_namespace(path: &str) -> Result<(Option<String>, &str), Error> {
    let Some((namespace, name)) = path.split_once('/') else { return Ok((None, path)) };
    let rule = || Error::Namespace("has 1 to 128 characters of a-z, 0-9, `_` and `-`".to_owned());
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all = namespace.bytes().all(|byte| is_part(byte) || matches!(byte, b'_' | b'-'));
    if namespace.is_empty() || namespace.len() > TAG_MAX || !all {
        return Err(rule());
    }
    Ok((Some(namespace.to_owned()), name))
}

/// Checks a name of Wrenn's own.
///
/// # Errors
/// Names the broken rule.
pub fn native_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Missing);
    }
    types::names::check_name("name", name).map_err(|error| Error::Name(error.message))
}

/// Checks a name of E2B's, in lower case.
///
/// # Errors
/// Names the broken rule.
pub fn e2b_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Missing);
    }
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all = name.bytes().all(|byte| is_part(byte) || matches!(byte, b'_' | b'-'));
    if !all || name.len() > E2B_NAME_MAX {
        let text = shorten(name);
        return Err(Error::Name(format!("`{text}` must be 1 to 128 of a-z, 0-9, `_` and `-`")));
    }
    Ok(())
}

/// Checks a tag of Wrenn's own. The rules are E2B's, but nothing is changed.
///
/// # Errors
/// Names the broken rule.
pub fn native_tag(tag: &str) -> Result<String, Error> {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all = tag.bytes().all(|byte| is_part(byte) || matches!(byte, b'_' | b'-' | b'.'));
    if tag.is_empty() || tag.len() > TAG_MAX || !all {
        let text = shorten(tag);
        return Err(Error::Tag(format!("`{text}` must be 1 to 128 of a-z, 0-9, `_`, `-` and `.`")));
    }
    if is_uuid(tag) || tag.parse::<BuildId>().is_ok() {
        return Err(Error::Tag(format!("`{tag}` has the form of a build's id")));
    }
    Ok(tag.to_owned())
}

/// Checks a tag of E2B's, after trimming and lowering it.
///
/// # Errors
/// Names the broken rule.
pub fn e2b_tag(tag: &str) -> Result<String, Error> {
    native_tag(&tag.trim().to_lowercase())
}

/// Reports whether a text has the usual form of a UUID, with four hyphens.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.parse::<Uuid>().is_ok()
}

fn build_id(text: &str) -> Result<BuildId, Error> {
    match text.parse::<Uuid>() {
        Ok(build) if is_uuid(text) => Ok(build.into()),
        _ => text.parse().map_err(|_| Error::Build(shorten(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "123e4567-e89b-42d3-a456-426614174000";

    #[test]
    fn references_of_both_kinds_are_read() {
        for text in ["base", "My.Tpl_1", "a:v1.0", "team-1/a:v1", "a:latest"] {
            assert_eq!(Reference::native(text).unwrap().to_string(), text);
        }
        for (text, wanted) in [
            (" My-Tpl:V1 ", "my-tpl:v1"),
            ("Team/x", "team/x"),
            ("a_b-c", "a_b-c"),
            ("-a", "-a"),
            ("a:.x", "a:.x"),
        ] {
            assert_eq!(Reference::e2b(text).unwrap().to_string(), wanted);
        }
        let build: BuildId = UUID.parse::<Uuid>().unwrap().into();
        let selector = Some(Selector::Build(build));
        assert_eq!(Reference::e2b(&format!("a:{UUID}")).unwrap().selector, selector);
        assert_eq!(Reference::native(&format!("a@{build}")).unwrap().selector, selector);
        assert_eq!(Reference::native(&format!("a@{UUID}")).unwrap().selector, selector);
        assert_eq!(Reference::native("a").unwrap().tag(), Some(DEFAULT_TAG));
        assert_eq!(Reference::native(&format!("a@{build}")).unwrap().tag(), None);
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "", ":x", "a:", "a:B", "a b", "a/b/c", "/a", "a/", "A/b", "a:b:c", "a@", "a@b",
            "a:b@c", "é", "-a", "a:x y", "a\n",
        ] {
            assert!(Reference::native(bad).is_err(), "{bad}");
        }
        for bad in
            ["", " ", ":x", "name:", "a.b", "a b", "a/b/c", "/a", "a:b:c", "a@b", "é", "a:x/y"]
        {
            assert!(Reference::e2b(bad).is_err(), "{bad}");
        }
        assert_eq!(Reference::e2b(":x"), Err(Error::Missing));
        assert!(Reference::native(&format!("a:{UUID}")).is_err());
        assert!(
            Reference::e2b(&"a".repeat(128)).is_ok() && Reference::e2b(&"a".repeat(129)).is_err()
        );
        assert!(native_tag(&"a".repeat(129)).is_err());
        assert!(e2b_tag(UUID).is_err() && e2b_tag(" V1 ").is_ok());
        assert!(Error::Tag("x".to_owned()).to_string().starts_with("Invalid tag: "));
    }

    proptest! {
        #[test]
        fn native_reference_round_trips(text in "[a-zA-Z0-9:@/._ -]{0,24}") {
            if let Ok(reference) = Reference::native(&text) {
                prop_assert_eq!(Reference::native(&reference.to_string()), Ok(reference));
            }
        }

        #[test]
        fn e2b_reference_is_in_lower_case(text in ".{0,24}") {
            if let Ok(reference) = Reference::e2b(&text) {
                prop_assert_eq!(reference.name.to_lowercase(), reference.name.clone());
                prop_assert_eq!(Reference::e2b(&reference.name).unwrap().name, reference.name);
            }
        }
    }
}
