//! Names of templates and snapshots as E2B's clients write them. All functions are pure.

/// Removes the tag that names a build, since each template has only one build.
pub(crate) fn untagged(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, "default" | "latest")) => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn default_and_latest_tags_are_stripped_from_template_name() {
        let untagged = super::untagged;
        assert_eq!((untagged("base"), untagged("base:default")), ("base", "base"));
        assert_eq!((untagged("a:latest"), untagged("a:v2")), ("a", "a:v2"));
    }
}
