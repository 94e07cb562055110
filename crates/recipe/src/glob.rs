//! Patterns of paths with the wildcards of Docker: `*`, `?`, `[…]`, `\` and `**`. The module knows
//! neither files nor exceptions. A match takes time in proportion to pattern × path, at most.

/// Longest pattern, in bytes; the longest path of Linux.
pub(crate) const PATTERN_MAX: usize = 4096;

/// A part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// Any character but `/`.
    One,
    /// Any number of characters but `/`.
    Many,
    /// Any number of whole folders, each with its `/`.
    Folders,
    /// Anything, also `/`.
    All,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A pattern of whole paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Glob {
    /// The path itself.
    Exact(String),
    /// Any path that ends so. A suffix that begins with `/` also matches without this `/`.
    Suffix(String),
    /// A pattern with other wildcards.
    Pattern(Pattern),
}

/// The parts of a pattern, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Token>);

impl Glob {
    /// Reads a pattern of `.dockerignore`, in which `**` spans folders.
    ///
    /// # Errors
    /// Names the broken rule.
    pub(crate) fn across(pattern: &str) -> Result<Self, &'static str> {
        let tokens = tokens(pattern, true)?;
        let literal = |tokens: &[Token]| -> Option<String> {
            let char = |token: &Token| match token {
                Token::Char(char) => Some(*char),
                Token::One | Token::Many | Token::Folders | Token::All | Token::Class { .. } => {
                    None
                }
            };
            tokens.iter().map(char).collect()
        };
        if let Some(exact) = literal(&tokens) {
            return Ok(Self::Exact(exact));
        }
        if let [Token::Folders, rest @ ..] = &tokens[..]
            && let Some(rest) = literal(rest)
        {
            // Docker takes `**/a` as whole names, but `**a` as any end of a path.
            let slash = if pattern.starts_with("**/") { "/" } else { "" };
            return Ok(Self::Suffix(format!("{slash}{rest}")));
        }
        Ok(Self::Pattern(Pattern(tokens)))
    }

    /// Reads a pattern of one name, in which `**` is no more than `*`.
    ///
    /// # Errors
    /// Names the broken rule.
    pub(crate) fn within(pattern: &str) -> Result<Self, &'static str> {
        tokens(pattern, false).map(Pattern).map(Self::Pattern)
    }

    /// Reports whether the pattern matches the whole path.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Self::Pattern(pattern) => pattern.matches(path),
        }
    }
}

/// Reports whether a text has wildcards.
pub(crate) fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

fn tokens(pattern: &str, across: bool) -> Result<Vec<Token>, &'static str> {
    if pattern.len() > PATTERN_MAX {
        return Err("the pattern has over 4096 bytes");
    }
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(char) = chars.next() {
        let token = match char {
            '*' if across && chars.next_if_eq(&'*').is_some() => {
                let _ = chars.next_if_eq(&'/');
                if chars.peek().is_none() { Token::All } else { Token::Folders }
            }
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => Token::Char(chars.next().ok_or("the pattern ends in `\\`")?),
            '[' => class(&mut chars)?,
            other => Token::Char(other),
        };
        tokens.push(token);
    }
    Ok(tokens)
}

/// Reads a class of characters after its `[`.
fn class(chars: &mut impl Iterator<Item = char>) -> Result<Token, &'static str> {
    const OPEN: &str = "the pattern has a `[` without its `]`";
    let mut next = || chars.next().ok_or(OPEN);
    let mut char = next()?;
    let negated = char == '^';
    if negated {
        char = next()?;
    }
    let mut ranges = Vec::new();
    while char != ']' || ranges.is_empty() {
        if matches!(char, ']' | '-') {
            return Err("the pattern has an empty class or range");
        }
        let low = if char == '\\' { next()? } else { char };
        let (mut high, mut after) = (low, next()?);
        if after == '-' {
            high = match next()? {
                ']' => return Err("the pattern has an empty class or range"),
                '\\' => next()?,
                other => other,
            };
            after = next()?;
        }
        if high < low {
            return Err("the pattern has a range that ends before its begin");
        }
        ranges.push((low, high));
        char = after;
    }
    Ok(Token::Class { negated, ranges })
}

impl Pattern {
    /// Follows all ways through the pattern at once, so no input makes it search.
    fn matches(&self, path: &str) -> bool {
        let count = self.0.len();
        let (mut states, mut next) = (vec![false; count + 1], vec![false; count + 1]);
        self.enter(&mut states, 0);
        for char in path.chars() {
            next.fill(false);
            for (index, (token, active)) in self.0.iter().zip(&states).enumerate() {
                if *active {
                    self.advance(&mut next, index, token, char);
                }
            }
            if !next.contains(&true) {
                return false;
            }
            std::mem::swap(&mut states, &mut next);
        }
        states.last().copied().unwrap_or(false)
    }

    /// Takes one character at a token.
    fn advance(&self, next: &mut [bool], index: usize, token: &Token, char: char) {
        let goes = match token {
            Token::Char(wanted) => *wanted == char,
            Token::One => char != '/',
            Token::Class { negated, ranges } => {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&char));
                char != '/' && within != *negated
            }
            Token::Many | Token::All => {
                if char != '/' || *token == Token::All {
                    self.enter(next, index);
                }
                false
            }
            Token::Folders => {
                // Folders end at a `/` alone, so the token after them stays closed here.
                if let Some(state) = next.get_mut(index) {
                    *state = true;
                }
                char == '/'
            }
        };
        if goes {
            self.enter(next, index + 1);
        }
    }

    /// Opens a token, and the tokens after it while they may match nothing.
    fn enter(&self, states: &mut [bool], index: usize) {
        for (state, at) in states.iter_mut().skip(index).zip(index..) {
            *state = true;
            let passable = match self.0.get(at) {
                Some(Token::Many | Token::All | Token::Folders) => true,
                Some(Token::Char(_) | Token::One | Token::Class { .. }) | None => false,
            };
            if !passable {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_as_docker_does() {
        for (pattern, yes, no) in [
            ("a", "a", "b"),
            ("a/b", "a/b", "a"),
            ("*", "abc", "a/b"),
            ("*.go", "x.go", "d/x.go"),
            ("a*b", "ab", "a/b"),
            ("a*b", "axxb", "axxbc"),
            ("?", "é", ""),
            ("a?c", "abc", "a/c"),
            ("*/x", "d/x", "d/e/x"),
            ("**", "a/b/c", ""),
            ("**/x", "x", "yx"),
            ("**/x", "a/b/x", "a/xb"),
            ("**x", "ax", "xa"),
            ("a/**", "a/b/c", "a"),
            ("a/**/b", "a/b", "ab"),
            ("a/**/b", "a/x/y/b", "a/xb"),
            ("a**b", "ab", "axb"),
            ("a**b", "ax/b", "axyb"),
            ("**/*.txt", "a/b.txt", "a/b.tx"),
            ("**/*.txt", "b.txt", "b.txt/c"),
            ("[a-c]x", "bx", "dx"),
            ("[^a-c]x", "dx", "ax"),
            ("[^a]", "b", "/"),
            ("[\\]]", "]", "x"),
            ("\\*", "*", "a"),
            ("a\\?b", "a?b", "axb"),
        ] {
            let glob = Glob::across(pattern).unwrap();
            assert!(glob.matches(yes), "{pattern} does not match {yes}");
            if pattern != "**" {
                assert!(!glob.matches(no), "{pattern} matches {no}");
            }
        }
        assert!(!Glob::within("**").unwrap().matches("a/b"));
        assert!(Glob::within("a**b").unwrap().matches("axyb"));
    }

    #[test]
    fn malformed_pattern_is_refused() {
        for bad in ["[", "[]", "[a", "a\\", "[^", "[a-]", "[-a]", "[z-a]", "[\\"] {
            assert!(Glob::across(bad).is_err(), "{bad}");
            assert!(Glob::within(bad).is_err(), "{bad}");
        }
        assert!(Glob::across(&"a".repeat(PATTERN_MAX + 1)).is_err());
    }

    #[test]
    fn nested_wildcards_take_no_exponential_time() {
        let glob = Glob::across(&"*a".repeat(500)).unwrap();
        assert!(!glob.matches(&"a".repeat(499)));
        let glob = Glob::across(&"a**".repeat(500)).unwrap();
        assert!(!glob.matches(&"a/".repeat(400)));
    }

    proptest! {
        #[test]
        fn globs_never_panic(pattern in "[ab*?\\[\\]^/\\\\-]{0,12}", path in "[ab/]{0,12}") {
            for glob in [Glob::across(&pattern), Glob::within(&pattern)].into_iter().flatten() {
                let _ = glob.matches(&path);
            }
        }

        #[test]
        fn plain_pattern_matches_itself_alone(a in "[ab/]{1,6}", b in "[ab/]{1,6}") {
            prop_assert_eq!(Glob::across(&a).unwrap().matches(&b), a == b);
        }
    }
}
