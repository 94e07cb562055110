//! Sources of a COPY and the places of their files. The command line asks which files a source
//! names, and the guest asks where a member of the archive belongs. Both sides ask this module.
//!
//! Docker: a source that is a folder gives its contents, a file gives itself. E2B: a source with
//! wildcards gives everything below its last folder without wildcards.

use crate::fault::shorten;
use crate::glob::{self, Glob};
use crate::prepare;

/// A source that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the source `{source_text}`: {message}")]
pub struct Error {
    /// Source, as it was given.
    pub source_text: String,
    /// Reason.
    pub message: String,
}

/// Sources of one COPY.
#[derive(Debug, Clone)]
pub struct Sources {
    patterns: Vec<Vec<Name>>,
}

/// A name of a source's path.
#[derive(Debug, Clone)]
enum Name {
    Plain(String),
    Wild(Glob),
}

impl Name {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Plain(plain) => plain == name,
            Self::Wild(glob) => glob.matches(name),
        }
    }
}

/// Place of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed<'m> {
    /// Index of the source that names the member.
    pub source: usize,
    /// Path of the file or folder that the source names. Empty for the top.
    pub top: &'m str,
    /// Path below `top`. Empty for the file or folder itself.
    pub below: &'m str,
}

impl<'m> Placed<'m> {
    /// Returns the path below the destination. A file that a source names keeps its name in a
    /// folder. Elsewhere it takes the destination's name.
    #[must_use]
    pub fn path(&self, top_is_folder: bool, dest_is_folder: bool) -> &'m str {
        if !self.below.is_empty() || top_is_folder || !dest_is_folder {
            return self.below;
        }
        self.top.rsplit('/').next().unwrap_or_default()
    }
}

impl Sources {
    /// Reads the sources of a Dockerfile's COPY.
    ///
    /// # Errors
    /// Names a source with a malformed pattern, or one outside of the context.
    pub fn docker<S: AsRef<str>>(sources: &[S]) -> Result<Self, Error> {
        let patterns = sources.iter().map(|source| names(source.as_ref()));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// Reads the source of E2B's COPY. Its client has applied all wildcards.
    ///
    /// # Errors
    /// Names a source outside of the context.
    pub fn e2b(source: &str) -> Result<Self, Error> {
        let parts = prepare::relative(source).ok_or_else(|| outside(source))?;
        let plain = parts.into_iter().take_while(|name| !name.contains(['*', '?', '[']));
        Ok(Self { patterns: vec![plain.map(|name| Name::Plain(name.to_owned())).collect()] })
    }

    /// Returns the places of a member, one for each source that names it. A member has the form
    /// that `member` returns.
    pub fn places<'m>(&self, member: &'m str) -> impl Iterator<Item = Placed<'m>> {
        self.patterns.iter().enumerate().filter_map(move |(source, pattern)| {
            let end = end_of_match(pattern, member)?;
            let (top, below) = member.split_at_checked(end)?;
            Some(Placed { source, top, below: below.trim_start_matches('/') })
        })
    }

    /// Reports whether any source names a member.
    #[must_use]
    pub fn names(&self, member: &str) -> bool {
        self.places(member).next().is_some()
    }

    /// Reports whether a source is the top itself.
    pub(crate) fn is_top(&self, source: usize) -> bool {
        self.patterns.get(source).is_some_and(Vec::is_empty)
    }

    /// Reports whether a folder may hold something that a source names.
    pub(crate) fn may_hold(&self, folder: &str) -> bool {
        self.patterns.iter().any(|pattern| {
            let mut names = folder.split('/').filter(|name| !name.is_empty());
            pattern.iter().all(|wanted| names.next().is_none_or(|name| wanted.matches(name)))
        })
    }
}

/// Brings the name of an archive's member to the form of a path below the top. Returns `None` for a
/// path above the top.
#[must_use]
pub fn member(name: &str) -> Option<String> {
    prepare::relative(name).map(|names| names.join("/"))
}

fn outside(source: &str) -> Error {
    let message = "the path is outside of the context".to_owned();
    Error { source_text: shorten(source), message }
}

fn names(source: &str) -> Result<Vec<Name>, Error> {
    let name = |name: &str| {
        if !glob::has_wildcards(name) {
            return Ok(Name::Plain(name.to_owned()));
        }
        let error =
            |message: &str| Error { source_text: shorten(source), message: message.to_owned() };
        Glob::within(name).map(Name::Wild).map_err(error)
    };
    let names = prepare::relative(source).ok_or_else(|| outside(source))?;
    names.into_iter().map(name).collect()
}

/// Returns the end of the part of a path that a pattern matches.
fn end_of_match(pattern: &[Name], member: &str) -> Option<usize> {
    let mut end = 0;
    let mut names = member.split('/').filter(|name| !name.is_empty());
    for (index, wanted) in pattern.iter().enumerate() {
        let name = names.next()?;
        if !wanted.matches(name) {
            return None;
        }
        end += name.len() + usize::from(index > 0);
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_placed_as_docker_does() {
        for (sources, member, wanted) in [
            (&["."][..], "a/b", Some(("", "a/b"))),
            (&["/"], "a", Some(("", "a"))),
            (&["a"], "a", Some(("a", ""))),
            (&["a/"], "a/b/c", Some(("a", "b/c"))),
            (&["a"], "ab", None),
            (&["a/b"], "a", None),
            (&["*.txt"], "x.txt", Some(("x.txt", ""))),
            (&["*.txt"], "d/x.txt", None),
            (&["*/x"], "d/x/y", Some(("d/x", "y"))),
            (&["a", "b"], "b/c", Some(("b", "c"))),
            (&["d/*"], "d/e/f", Some(("d/e", "f"))),
            (&["./a/../b"], "b", Some(("b", ""))),
            (&["[ab]"], "b", Some(("b", ""))),
        ] {
            let placed = Sources::docker(sources).unwrap();
            let placed = placed.places(member).next().map(|placed| (placed.top, placed.below));
            assert_eq!(placed, wanted, "{sources:?} {member}");
        }
        for bad in ["../a", "a/../..", "[", "a\\"] {
            assert!(Sources::docker(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn members_are_placed_as_e2b_does() {
        for (source, member, wanted) in [
            (".", "a/b", Some("a/b")),
            ("folder", "folder/a.txt", Some("a.txt")),
            ("folder/*", "folder/a.txt", Some("a.txt")),
            ("**/*.txt", "d/x.txt", Some("d/x.txt")),
            ("folder", "other", None),
        ] {
            let sources = Sources::e2b(source).unwrap();
            assert_eq!(sources.places(member).next().map(|at| at.below), wanted, "{source}");
        }
        assert!(Sources::e2b("../x").is_err());
    }

    #[test]
    fn member_of_two_sources_has_two_places() {
        let sources = Sources::docker(&[".", "a/b"]).unwrap();
        let places: Vec<_> = sources.places("a/b").map(|at| (at.source, at.below)).collect();
        assert_eq!(places, [(0, "a/b"), (1, "")]);
    }

    #[test]
    fn named_file_takes_or_keeps_its_name() {
        let file = Placed { source: 0, top: "d/x", below: "" };
        assert_eq!((file.path(false, true), file.path(false, false)), ("x", ""));
        assert_eq!(file.path(true, true), "");
        let below = Placed { source: 0, top: "d", below: "x/y" };
        assert_eq!((below.path(true, true), below.path(true, false)), ("x/y", "x/y"));
    }

    #[test]
    fn folders_above_a_source_may_hold_it() {
        let sources = Sources::docker(&["a/*/c"]).unwrap();
        for (folder, wanted) in [("a", true), ("a/x", true), ("a/x/c/d", true), ("b", false)] {
            assert_eq!(sources.may_hold(folder), wanted, "{folder}");
        }
        assert_eq!(member("./a//b/"), Some("a/b".to_owned()));
        assert_eq!((member("."), member("../a")), (Some(String::new()), None));
    }
}
