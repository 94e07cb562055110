//! `.dockerignore` by Docker's rules. The last matching pattern decides, `!` makes an exception,
//! and a pattern also matches all that is below its match. These are not gitignore's rules.
//!
//! Source: the section on `.dockerignore` files in Docker's documentation of build contexts.

use crate::fault::shorten;
use crate::glob::{self, Glob};

/// Largest file, in bytes.
pub const BYTES_MAX: usize = 1 << 20;
/// Most patterns of a file.
pub const PATTERNS_MAX: usize = 10_000;

/// An ignore file that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(".dockerignore, line {line}: {message}")]
pub struct Error {
    /// Line of the pattern, from 1.
    pub line: usize,
    /// Reason, with the pattern.
    pub message: String,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    glob: Glob,
    is_exception: bool,
    /// Leading names without wildcards. They tell which folders an exception can reach.
    fixed: Vec<String>,
    /// Count of names, or `None` where the pattern spans folders.
    depth: Option<usize>,
}

/// The patterns of an ignore file, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

/// Result for one path: each pattern's match, which the path hands on to all below it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    matches: Vec<bool>,
    /// Tells that the path is left out of the context.
    pub is_ignored: bool,
}

/// Returns the names of the ignore file that belongs to a Dockerfile, in order of preference.
#[must_use]
pub fn file_names(dockerfile: &str) -> [String; 2] {
    [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()]
}

impl Ignore {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// Names the line of a malformed pattern, or the limit that the file passes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > BYTES_MAX {
            return Err(Error { line: 1, message: "the file has over 1 MiB".to_owned() });
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            if let Some(pattern) = pattern(line).map_err(|rule| {
                let message = format!("{rule}: `{}`", shorten(line));
                Error { line: number, message }
            })? {
                patterns.push(pattern);
            }
            if patterns.len() > PATTERNS_MAX {
                let message = format!("the file has over {PATTERNS_MAX} patterns");
                return Err(Error { line: number, message });
            }
        }
        Ok(Self { patterns })
    }

    /// Judges a path of the context by its parent's verdict. The path has `/` between its names,
    /// and neither begins nor ends with `/`. The verdict of the context's top is the default.
    #[must_use]
    pub fn judge(&self, path: &str, parent: &Verdict) -> Verdict {
        let mut verdict =
            Verdict { matches: Vec::with_capacity(self.patterns.len()), ..Verdict::default() };
        for (index, pattern) in self.patterns.iter().enumerate() {
            let above = parent.matches.get(index).copied().unwrap_or(false);
            let matches = above || pattern.glob.matches(path);
            verdict.matches.push(matches);
            if matches {
                verdict.is_ignored = !pattern.is_exception;
            }
        }
        verdict
    }

    /// Reports whether a path is left out. Looks at each folder above the path too.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        let mut verdict = Verdict::default();
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            verdict = self.judge(path.get(..end).unwrap_or_default(), &verdict);
        }
        verdict.is_ignored
    }

    /// Reports whether an exception may reach below an ignored folder. Without such an exception,
    /// nobody needs to read the folder.
    #[must_use]
    pub fn may_except_below(&self, folder: &str) -> bool {
        let depth = folder.split('/').count();
        self.patterns.iter().filter(|pattern| pattern.is_exception).any(|pattern| {
            let reaches = pattern.depth.is_none_or(|names| names > depth);
            reaches && pattern.fixed.iter().zip(folder.split('/')).all(|(a, b)| a == b)
        })
    }
}

/// Reads a line. Returns `None` for a comment or an empty line.
fn pattern(line: &str) -> Result<Option<Pattern>, &'static str> {
    if line.starts_with('#') {
        return Ok(None);
    }
    let line = line.trim();
    let (is_exception, text) = match line.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, line),
    };
    if text.is_empty() {
        return if is_exception { Err("an exception names no path") } else { Ok(None) };
    }
    let path = clean(text);
    // The top of the context is never left out.
    if path.is_empty() {
        return Ok(None);
    }
    let glob = Glob::across(&path)?;
    let names = path.split('/');
    let fixed = names.clone().take_while(|name| !glob::has_wildcards(name)).map(str::to_owned);
    let depth = (!path.contains("**")).then(|| names.clone().count());
    Ok(Some(Pattern { glob, is_exception, fixed: fixed.collect(), depth }))
}

/// Removes `.`, `..`, empty names and the leading `/`. A path above the top keeps its `..`, so it
/// matches nothing.
fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match (name, names.last()) {
            ("" | ".", _) => {}
            ("..", Some(last)) if *last != ".." => {
                let _ = names.pop();
            }
            ("..", None) if is_rooted => {}
            (other, _) => names.push(other),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_judged_as_docker_does() {
        for (file, ignored, kept) in [
            ("", "", "a"),
            ("# a\n#b", "", "a #b"),
            ("a", "a a/b a/b/c", "b b/a ab"),
            ("/a", "a a/b", "b/a"),
            ("a/", "a a/b", "ab"),
            ("./a", "a", "b"),
            ("x/../a", "a", "x"),
            ("  a  ", "a", "b"),
            ("*", "a a/b .git", ""),
            (".", "", "a"),
            ("/", "", "a"),
            ("*.md", "a.md", "d/a.md a.mdx"),
            ("*/temp*", "x/temp x/temporary.txt x/temp/y", "temp x/y/temp"),
            ("*/*/temp*", "x/y/tempa", "x/temp"),
            ("temp?", "tempa tempb/x", "temp tempab"),
            ("**/*.go", "a.go x/a.go x/y/a.go", "a.gox"),
            ("**/node_modules", "node_modules a/node_modules a/node_modules/b", "xnode_modules"),
            ("**", "a a/b", ""),
            ("a/**", "a/b a/b/c", "a b"),
            ("a/**/z", "a/z a/b/z a/b/c/z/q", "a/b z"),
            ("*.md\n!README.md", "a.md", "README.md"),
            ("*.md\n!README*.md\nREADME-secret.md", "a.md README-secret.md", "README-x.md"),
            ("*.md\nREADME-secret.md\n!README*.md", "a.md", "README-secret.md"),
            ("*\n!src", "a srcx", "src src/a src/b/c"),
            ("*\n!src/**/*.rs", "src/a.c src src/d", "src/a.rs src/d/e.rs"),
            ("a\n!a/b\na/b/c", "a a/x a/b/c a/b/c/d", "a/b a/b/d"),
            ("! a\na", "a", "b"),
            ("!a", "", "a b"),
            ("[ab]", "a b", "c"),
            ("[^a]*", "b bc", "a ab"),
            ("a\\*", "a*", "ab"),
            ("\\#a", "#a", "a"),
            ("é?", "éx", "é"),
            ("\u{feff}a", "a", "b"),
            ("a\r\nb\r\n", "a b", "c"),
            ("a b", "", "a b"),
            ("..", "", "a"),
            ("../a", "", "a b"),
            ("/../a", "a", "b"),
        ] {
            let ignore = Ignore::parse(file).unwrap();
            for path in ignored.split_whitespace() {
                assert!(ignore.ignores(path), "{file:?} keeps {path}");
            }
            for path in kept.split_whitespace() {
                assert!(!ignore.ignores(path), "{file:?} ignores {path}");
            }
        }
        assert!(Ignore::parse("a b").unwrap().ignores("a b"));
    }

    #[test]
    fn malformed_line_is_named() {
        for (file, line) in [("a\n[", 2), ("!", 1), ("a\n\n! ", 3), ("a\\", 1), ("[b-a]", 1)] {
            assert_eq!(Ignore::parse(file).unwrap_err().line, line, "{file:?}");
        }
        let many = "a\n".repeat(PATTERNS_MAX + 1);
        assert!(Ignore::parse(&many).unwrap_err().message.contains("10000"));
        assert!(Ignore::parse(&" ".repeat(BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn only_reachable_exceptions_keep_an_ignored_folder_open() {
        let ignore = Ignore::parse("*\n!src/lib/*.rs\n!top").unwrap();
        for (folder, open) in [("src", true), ("src/lib", true), ("doc", false), ("top", false)] {
            assert_eq!(ignore.may_except_below(folder), open, "{folder}");
        }
        assert!(!ignore.may_except_below("src/bin"));
        assert!(Ignore::parse("*\n!**/a").unwrap().may_except_below("x/y/z"));
    }

    proptest! {
        /// A folder that is closed to exceptions holds nothing that is kept.
        #[test]
        fn closed_folder_holds_nothing_that_is_kept(
            lines in proptest::collection::vec("!?[ab*]{1,2}(/[ab*]{1,2}){0,2}", 0..6),
            folder in "[ab](/[ab]){0,1}",
            below in "[ab]{1,2}(/[ab]){0,1}",
        ) {
            let Ok(ignore) = Ignore::parse(&lines.join("\n")) else { return Ok(()) };
            if ignore.ignores(&folder) && !ignore.may_except_below(&folder) {
                let path = format!("{folder}/{below}");
                prop_assert!(ignore.ignores(&path), "{} in {:?}", path, lines);
            }
        }

        #[test]
        fn parser_never_panics(text in "[!#ab*?/\\\\\\[\\]. \n-]{0,60}", path in "[ab/]{0,10}") {
            if let Ok(ignore) = Ignore::parse(&text) {
                let _ = ignore.ignores(&path);
            }
        }
    }
}
