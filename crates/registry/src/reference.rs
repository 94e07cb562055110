//! References to images, such as `ubuntu`, `ghcr.io/team/app:1.2` or `app@sha256:…`.
//!
//! A reference is parsed once and normalized. All of its parts are safe in a URL afterwards.

use crate::digest::Digest;
use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// Registry of references that name none.
pub const DOCKER_HUB: &str = "docker.io";
/// Longest reference, in bytes: the longest host, repository, tag and digest together.
const REFERENCE_MAX: usize = 1024;
/// Longest host name, by RFC 1035, with a port.
const HOST_MAX: usize = 253 + 6;
/// Longest repository. Docker's registries take no longer one.
const REPOSITORY_MAX: usize = 255;
/// Longest tag, by the OCI distribution specification.
const TAG_MAX: usize = 128;
/// Longest part of a reference that an error repeats, in characters.
const SHOWN_MAX: usize = 128;

/// A normalized reference: registry, repository, and a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the registry's host, in lower case, with its port if one was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository, such as `library/ubuntu`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag. A reference with a digest alone has none.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest. Where it is given, the tag has no effect.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns registry and repository, such as `docker.io/library/ubuntu`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns the reference with another registry and repository, and with the same tag and
    /// digest.
    ///
    /// # Errors
    /// Returns `Reference` when `name` is no registry and repository.
    pub(crate) fn renamed(&self, name: &str) -> Result<Self, Error> {
        let renamed: Self = name.parse()?;
        if renamed.digest.is_some() || name.rsplit('/').next().is_some_and(|end| end.contains(':'))
        {
            return Err(invalid(name, "a name without tag and digest is needed here"));
        }
        Ok(Self { tag: self.tag.clone(), digest: self.digest.clone(), ..renamed })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |why| Err(invalid(text, why));
        if text.is_empty() {
            return fail("it is empty");
        }
        if text.len() > REFERENCE_MAX {
            return fail("it is longer than 1024 bytes");
        }
        if text.contains("://") {
            return fail("leave out the scheme, such as `https://`");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => match digest.parse() {
                Ok(digest) => (name, Some(digest)),
                Err(_) => return fail("its digest must be sha256 or sha512, in lower case"),
            },
            None => (text, None),
        };
        let (registry, path) = split_host(name);
        let Some(registry) = host(registry) else {
            return fail("its registry is no host name with an optional port");
        };
        // The tag's colon stands after the last slash; one before it belongs to a port.
        let start = path.rfind('/').map_or(0, |slash| slash + 1);
        let colon = path.get(start..).and_then(|end| end.find(':')).map(|at| start + at);
        let (path, tag) = match colon.and_then(|at| path.split_at_checked(at)) {
            Some((path, tag)) => (path, Some(tag.trim_start_matches(':'))),
            None => (path, None),
        };
        if let Err(why) = repository(path) {
            return fail(why);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return fail("its tag may have 128 letters, digits, `_`, `.` and `-`");
        }
        let on_hub = registry == DOCKER_HUB && !path.contains('/');
        let repository = if on_hub { format!("library/{path}") } else { path.to_owned() };
        if repository.len() > REPOSITORY_MAX {
            return fail("its repository is longer than 255 bytes");
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Splits a name into host and path. A first part is a host if it has a dot or a colon, or is
/// `localhost`.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => (DOCKER_HUB, name),
    }
}

/// Normalizes a registry's host with its optional port. Returns `None` for any other text.
pub(crate) fn host(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text.len() > HOST_MAX {
        return None;
    }
    let (name, port) = match text.strip_prefix('[') {
        // An IPv6 address stands in brackets.
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (None, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(text.as_str()), None),
        },
    };
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.is_none_or(|name| name.split('.').all(is_label)) {
        return None;
    }
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || port.parse::<u16>().ok()? == 0 {
            return None;
        }
    }
    Some(if text == "index.docker.io" { DOCKER_HUB.to_owned() } else { text })
}

/// Checks a repository's path.
fn repository(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it names no repository");
    }
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("a repository is written in lower case");
    }
    if path.split('/').all(is_component) {
        Ok(())
    } else {
        Err("parts of a repository are lower-case letters and digits, joined by `.`, `_` or `-`")
    }
}

/// Reports whether a part of a repository consists of words, with separators between them alone.
fn is_component(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = part.starts_with(is_word) && part.ends_with(is_word);
    let separators = part.split(is_word).all(|between| {
        matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
    });
    ends && separators
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_MAX
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

fn invalid(text: &str, why: &'static str) -> Error {
    let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect();
    Error::Reference { text: shown, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn reference_is_normalized() {
        for (text, normal) in [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
            ("e2bdev/base", "docker.io/e2bdev/base:latest"),
            ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
            ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("GHCR.io/team/app:V1", "ghcr.io/team/app:V1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("a.example/b/c__d/e--f.g", "a.example/b/c__d/e--f.g:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), normal, "{text}");
        }
    }

    #[test]
    fn digest_replaces_the_default_tag() {
        let pinned: Reference = format!("a@{DIGEST}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.digest().is_some()), (None, true));
        let both: Reference = format!("a:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/a:1@{DIGEST}"));
    }

    #[test]
    fn malformed_reference_is_refused() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            "A/b",
            "a//b",
            "/a",
            "a/",
            "a:",
            ":a",
            "a:b:c",
            "a@",
            "a@md5:00",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "../a",
            "a/../b",
            "a b",
            "a\n",
            "a?x=y",
            "a%2f",
            "https://ghcr.io/a",
            "host.example:0/a",
            "host.example:99999/a",
            "host.example:/a",
            "user@host.example/a",
            "-host.example/a",
            "[::1/a",
            "[x]:1/a",
            "é.example/a",
            &long,
            &tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn renamed_reference_keeps_tag_and_digest() {
        let from: Reference = format!("ubuntu:22.04@{DIGEST}").parse().unwrap();
        let to = from.renamed("mirror.example/hub/ubuntu").unwrap();
        assert_eq!(to.to_string(), format!("mirror.example/hub/ubuntu:22.04@{DIGEST}"));
        assert!(from.renamed("mirror.example/hub/ubuntu:x").is_err());
    }

    proptest! {
        #[test]
        fn parsed_reference_parses_again_to_itself(text in "[a-z.:/@_-]{0,40}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
