//! Names of templates and snapshots as E2B's clients write them. All functions are pure.

use crate::error::{Error, Result};
use recipe::names::{self, Reference, Selector};
use types::BuildId;

/// Names of E2B's own base, which stand for this platform's template `base`.
const BASES: [&str; 2] = [recipe::e2b::BASE_IMAGE, "base"];

/// Removes the tag of a snapshot's name, since each snapshot has only one build.
pub(crate) fn untagged(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, "default" | "latest")) => name,
        _ => name,
    }
}

/// Converts the name in a create to this system's own form: `name:tag`, `name@build`. A name that
/// E2B's rules refuse may be one of this system's own, and stays as it is.
pub(crate) fn template(name: &str) -> String {
    let name = name.trim();
    if BASES.contains(&name) {
        return "base".to_owned();
    }
    match Reference::e2b(name) {
        Ok(reference) => reference.to_string(),
        Err(_) => untagged(name).to_owned(),
    }
}

/// Reports whether an image is E2B's own base.
pub(super) fn is_base(image: &str) -> bool {
    BASES.contains(&untagged(image))
}

/// Reads a name in a request about a template.
pub(super) fn read(name: &str) -> Result<Reference> {
    Reference::e2b(name).map_err(|error| refused(&error))
}

/// Reads a tag.
pub(super) fn read_tag(tag: &str) -> Result<String> {
    names::e2b_tag(tag).map_err(|error| refused(&error))
}

/// Returns a template's name or id without its tag, as paths have it. Ids and names of this system
/// pass as they are.
pub(super) fn plain(name: &str) -> String {
    match Reference::e2b(name) {
        Ok(Reference { namespace: Some(namespace), name, .. }) => format!("{namespace}/{name}"),
        Ok(reference) => reference.name,
        Err(_) => name.to_owned(),
    }
}

/// Returns the tag that a reference names, or the id of a build.
pub(super) fn selector(reference: &Reference) -> Selector {
    reference.selector.clone().unwrap_or_else(|| Selector::Tag(names::DEFAULT_TAG.to_owned()))
}

/// Keeps the text of the error as it is, since clients look for its begin.
fn refused(error: &names::Error) -> Error {
    let text = error.to_string();
    let (field, message) = text.split_once(' ').unwrap_or(("Invalid", &text));
    Error::invalid(field, message)
}

/// Reads the id of a build: its UUID, or this system's own form.
pub(super) fn build_id(text: &str) -> Result<BuildId> {
    let uuid = text.parse::<uuid::Uuid>().ok().map(BuildId::from);
    let id = uuid.or_else(|| text.parse().ok());
    id.ok_or_else(|| Error::invalid_as_e2b(format!("build ID: {}", text.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_and_latest_tags_are_stripped_from_snapshot_name() {
        assert_eq!((untagged("base"), untagged("base:default")), ("base", "base"));
        assert_eq!((untagged("a:latest"), untagged("a:v2")), ("a", "a:v2"));
    }

    #[test]
    fn name_of_a_create_becomes_the_native_form() {
        let uuid = "123e4567-e89b-42d3-a456-426614174000";
        let build: BuildId = uuid.parse::<uuid::Uuid>().unwrap().into();
        for (name, wanted) in [
            ("base", "base".to_owned()),
            ("e2bdev/base", "base".to_owned()),
            ("My-Tpl:V1", "my-tpl:v1".to_owned()),
            ("team/x", "team/x".to_owned()),
            ("My.Tpl", "My.Tpl".to_owned()),
            (&format!("a:{uuid}"), format!("a@{build}")),
        ] {
            assert_eq!(template(name), wanted);
        }
        assert!(is_base("e2bdev/base:latest") && !is_base("debian"));
    }

    #[test]
    fn refusals_begin_as_the_clients_expect() {
        for (name, text) in
            [("", "Name is required"), ("a b", "Invalid name: "), ("a:x/y", "Invalid tag: ")]
        {
            assert!(read(name).unwrap_err().to_string().starts_with(text), "{name}");
        }
        let text = build_id("x").unwrap_err().to_string();
        assert_eq!(text, "Invalid build ID: x");
        assert_eq!(
            (plain("a:v1"), plain("n/a:v1"), plain("A.b")),
            ("a".into(), "n/a".into(), "A.b".into())
        );
    }
}
