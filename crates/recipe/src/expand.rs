//! Variables, quotes and escapes in the words of a recipe. `word` follows Dockerfiles, `literal`
//! follows E2B's values, and `document` follows the shell's here-documents. All are pure.
//!
//! Source: the section on environment replacement in Docker's Dockerfile reference.

use crate::fault::shorten;
use serde::{Deserialize, Serialize};

/// Largest result of one expansion, in bytes.
pub const VALUE_MAX: usize = 64 * 1024;
/// Deepest nesting of `${A:-${B:-…}}`.
const DEPTH_MAX: usize = 16;

/// The character that takes the meaning from the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Escape {
    /// `\`
    #[default]
    Backslash,
    /// `` ` ``, set by the directive `# escape`.
    Backtick,
}

impl Escape {
    /// Returns the character itself.
    #[must_use]
    pub fn char(self) -> char {
        match self {
            Self::Backslash => '\\',
            Self::Backtick => '`',
        }
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::Backslash
    }
}

/// Reasons why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A quote is open at the end of the word.
    #[error("the quote {0} is not closed")]
    Quote(char),
    /// A `${` is open at the end of the word.
    #[error("`${{` is not closed")]
    Brace,
    /// The text between `${` and `}` names no variable.
    #[error("`${{` is followed by no name of a variable")]
    Name,
    /// The operator is not known.
    #[error("`${{{0}…}}` has an operator other than `-`, `+` and `?`: `{1}`")]
    Operator(String, char),
    /// The word demands a variable that is not set.
    #[error("the variable `{0}` is not set: {1}")]
    Unset(String, String),
    /// Defaults are nested too deep.
    #[error("`${{` is nested over {DEPTH_MAX} deep")]
    Depth,
    /// The result is too large.
    #[error("the expanded text has over {VALUE_MAX} bytes")]
    Size,
}

/// Look-up of a variable's value.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands a word as a Dockerfile does. Removes quotes and escapes. Unset variables are empty.
///
/// # Errors
/// Names the first broken rule.
pub fn word(text: &str, escape: Escape, lookup: Lookup<'_>) -> Result<String, Error> {
    run(text, escape, lookup, Form::Word)
}

/// Expands a word and splits it at blanks outside of quotes, as EXPOSE does.
///
/// # Errors
/// Names the first broken rule.
pub fn words(text: &str, escape: Escape, lookup: Lookup<'_>) -> Result<Vec<String>, Error> {
    let whole = word(text, escape, lookup)?;
    Ok(whole.split_whitespace().map(str::to_owned).collect())
}

/// Expands a here-document as a shell does: quotes stay, and `\` escapes `$`, `` ` `` and itself.
/// BuildKit differs, since it drops every other `\` too.
///
/// # Errors
/// Names the first broken rule.
pub fn document(text: &str, lookup: Lookup<'_>) -> Result<String, Error> {
    run(text, Escape::Backslash, lookup, Form::Document)
}

/// Expands `$V`, `${V}`, `${V:-d}` and `${V:+d}` alone. Every other character stays, also quotes,
/// `\`, backticks, `$(` and a `${` that names no variable.
///
/// # Errors
/// Returns `Size` or `Unset` only.
pub fn literal(text: &str, lookup: Lookup<'_>) -> Result<String, Error> {
    run(text, Escape::Backslash, lookup, Form::Literal)
}

/// Rules of quotes and escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Word,
    Document,
    Literal,
}

fn run(text: &str, escape: Escape, lookup: Lookup<'_>, form: Form) -> Result<String, Error> {
    let mut expander = Expander { rest: text, escape: escape.char(), lookup, form };
    expander.until(None, 0)
}

struct Expander<'a> {
    rest: &'a str,
    escape: char,
    lookup: Lookup<'a>,
    form: Form,
}

impl Expander<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let char = chars.next();
        self.rest = chars.as_str();
        char
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Expands up to `stop`, which is taken, or up to the text's end.
    fn until(&mut self, stop: Option<char>, depth: usize) -> Result<String, Error> {
        let mut out = String::new();
        while let Some(char) = self.next() {
            if Some(char) == stop {
                return Ok(out);
            }
            match char {
                '\'' if self.form == Form::Word => self.single(&mut out)?,
                '"' if self.form == Form::Word => self.double(&mut out, depth)?,
                '$' => out.push_str(&self.dollar(depth)?),
                char if char == self.escape && self.form != Form::Literal => self.escaped(&mut out),
                other => out.push(other),
            }
            bounded(&out)?;
        }
        match stop {
            Some(_) => Err(Error::Brace),
            None => Ok(out),
        }
    }

    /// Takes the character after an escape.
    fn escaped(&mut self, out: &mut String) {
        let next = self.peek();
        let keeps = match self.form {
            Form::Word | Form::Literal => false,
            Form::Document => !matches!(next, Some('$' | '`' | '\\' | '\n')),
        };
        if keeps {
            out.push(self.escape);
            return;
        }
        let _ = self.next();
        out.extend(next.filter(|char| self.form == Form::Word || *char != '\n'));
    }

    /// Takes the text between single quotes as it is.
    fn single(&mut self, out: &mut String) -> Result<(), Error> {
        let (text, rest) = self.rest.split_once('\'').ok_or(Error::Quote('\''))?;
        out.push_str(text);
        self.rest = rest;
        Ok(())
    }

    /// Takes the text between double quotes. There an escape stays unless it escapes something.
    fn double(&mut self, out: &mut String, depth: usize) -> Result<(), Error> {
        while let Some(char) = self.next() {
            match char {
                '"' => return Ok(()),
                '$' => out.push_str(&self.dollar(depth)?),
                char if char == self.escape => match self.peek() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        let _ = self.next();
                        out.push(next);
                    }
                    _ => out.push(char),
                },
                other => out.push(other),
            }
            bounded(out)?;
        }
        Err(Error::Quote('"'))
    }

    /// Expands a variable after its `$`.
    fn dollar(&mut self, depth: usize) -> Result<String, Error> {
        if self.peek() == Some('{') {
            return self.braces(depth);
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok((self.lookup)(&name).unwrap_or_default())
    }

    /// Takes a name: letters, digits and `_`, or digits, or one of the shell's special characters.
    /// Special characters name nothing in a literal text.
    fn name(&mut self) -> String {
        let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let end = match self.peek() {
            Some(first) if first.is_ascii_digit() && self.form != Form::Literal => {
                self.rest.find(|char: char| !char.is_ascii_digit())
            }
            Some(first) if first.is_ascii_digit() => Some(0),
            Some(first) if is_part(first) => self.rest.find(|char: char| !is_part(char)),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') if self.form == Form::Word => Some(1),
            _ => Some(0),
        };
        let (name, rest) =
            self.rest.split_at_checked(end.unwrap_or(self.rest.len())).unwrap_or_default();
        self.rest = rest;
        name.to_owned()
    }

    /// Expands `{…}` after its `$`.
    fn braces(&mut self, depth: usize) -> Result<String, Error> {
        if depth >= DEPTH_MAX {
            return Err(Error::Depth);
        }
        let whole = self.rest;
        let _ = self.next();
        let name = self.name();
        let result = if name.is_empty() { Err(Error::Name) } else { self.operator(&name, depth) };
        match result {
            Err(Error::Name | Error::Brace | Error::Operator(..)) if self.form == Form::Literal => {
                self.rest = whole;
                Ok("$".to_owned())
            }
            other => other,
        }
    }

    /// Expands the text up to the closing brace. In a literal text no braces nest, so an open brace
    /// never makes the rest be read again and again.
    fn default(&mut self, depth: usize) -> Result<String, Error> {
        if self.form != Form::Literal {
            return self.until(Some('}'), depth + 1);
        }
        let (text, rest) = self.rest.split_once('}').ok_or(Error::Brace)?;
        self.rest = rest;
        literal(text, self.lookup)
    }

    fn operator(&mut self, name: &str, depth: usize) -> Result<String, Error> {
        let mut operator = self.next().ok_or(Error::Brace)?;
        if operator == '}' {
            return Ok((self.lookup)(name).unwrap_or_default());
        }
        let also_empty = operator == ':';
        if also_empty {
            operator = self.next().ok_or(Error::Brace)?;
        }
        if !matches!(operator, '-' | '+' | '?') {
            return Err(Error::Operator(shorten(name), operator));
        }
        let other = self.default(depth)?;
        let value = (self.lookup)(name).filter(|value| !also_empty || !value.is_empty());
        match (operator, value) {
            ('+', Some(_)) => Ok(other),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            ('-', None) => Ok(other),
            (_, None) => {
                let reason = if other.is_empty() { "the word demands it" } else { &other };
                Err(Error::Unset(shorten(name), shorten(reason)))
            }
        }
    }
}

fn bounded(text: &str) -> Result<(), Error> {
    if text.len() > VALUE_MAX { Err(Error::Size) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".to_owned()),
            "P" => Some("/bin:/usr/bin".to_owned()),
            "E" => Some(String::new()),
            "BIG" => Some("x".repeat(40_000)),
            _ => None,
        }
    }

    #[test]
    fn words_are_expanded_as_in_dockerfiles() {
        for (text, wanted) in [
            ("", ""),
            ("abc", "abc"),
            ("$A", "a"),
            ("${A}", "a"),
            ("${A}b$A/c", "aba/c"),
            ("$Ab", ""),
            ("$A-b", "a-b"),
            ("$", "$"),
            ("$ ", "$ "),
            ("a$", "a$"),
            ("$/x", "$/x"),
            ("\\$A", "$A"),
            ("\\${A}", "${A}"),
            ("\\\\$A", "\\a"),
            ("\\n", "n"),
            ("a\\", "a"),
            ("'$A'", "$A"),
            ("\"$A\"", "a"),
            ("\"a\\\"b\"", "a\"b"),
            ("\"\\$A\"", "$A"),
            ("\"\\n\"", "\\n"),
            ("'a\\'", "a\\"),
            ("x'y'z\"w\"", "xyzw"),
            ("${N}", ""),
            ("${N:-d}", "d"),
            ("${E:-d}", "d"),
            ("${E-d}", ""),
            ("${N-d}", "d"),
            ("${A:-d}", "a"),
            ("${A:+d}", "d"),
            ("${E:+d}", ""),
            ("${E+d}", "d"),
            ("${N:+d}", ""),
            ("${N:-${A}}", "a"),
            ("${N:-${N:-x}y}", "xy"),
            ("${N:-'}'}", "}"),
            ("${N:-a b}", "a b"),
            ("${N:-\\}}", "}"),
            ("${A:?gone}", "a"),
            ("$P:/x", "/bin:/usr/bin:/x"),
            ("$1", ""),
            ("$12x", "x"),
            ("$$", ""),
            ("é$A", "éa"),
        ] {
            assert_eq!(word(text, Escape::Backslash, &lookup).as_deref(), Ok(wanted), "{text}");
        }
        assert_eq!(word("`$A\\$A", Escape::Backtick, &lookup).as_deref(), Ok("$A\\a"));
        let ports = words("$P '80 81'", Escape::Backslash, &lookup).unwrap();
        assert_eq!(ports, ["/bin:/usr/bin", "80", "81"]);
    }

    #[test]
    fn broken_words_are_refused_by_rule() {
        for (text, wanted) in [
            ("'a", Error::Quote('\'')),
            ("\"a", Error::Quote('"')),
            ("${A", Error::Brace),
            ("${A:", Error::Brace),
            ("${A:-x", Error::Brace),
            ("${}", Error::Name),
            ("${ A}", Error::Name),
            ("${A%x}", Error::Operator("A".to_owned(), '%')),
            ("${A:x}", Error::Operator("A".to_owned(), 'x')),
            ("${N:?it is gone}", Error::Unset("N".to_owned(), "it is gone".to_owned())),
            ("$BIG$BIG", Error::Size),
        ] {
            assert_eq!(word(text, Escape::Backslash, &lookup), Err(wanted), "{text}");
        }
        let deep = "${N:-".repeat(10_000);
        assert_eq!(word(&deep, Escape::Backslash, &lookup), Err(Error::Depth));
        assert_eq!(literal(&deep, &lookup), Ok(deep));
    }

    #[test]
    fn literal_values_expand_variables_alone() {
        for (text, wanted) in [
            ("Hello, World!", "Hello, World!"),
            ("${P}:/x", "/bin:/usr/bin:/x"),
            ("`whoami`", "`whoami`"),
            ("$(whoami)", "$(whoami)"),
            ("\"a\" 'b'", "\"a\" 'b'"),
            ("'$A'", "'a'"),
            ("a\\nb", "a\\nb"),
            ("\\$A", "\\a"),
            ("a\nb", "a\nb"),
            ("${}", "${}"),
            ("${A", "${A"),
            ("${A b}", "${A b}"),
            ("${A%x}", "${A%x}"),
            ("$1 $$ $", "$1 $$ $"),
            ("${N:-$A}", "a"),
            ("${A:+b}", "b"),
        ] {
            assert_eq!(literal(text, &lookup).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn here_documents_keep_quotes_and_other_escapes() {
        for (text, wanted) in [
            ("\"$A\" '$A'\n", "\"a\" 'a'\n"),
            ("\\$A \\\\ \\` \\n", "$A \\ ` \\n"),
            ("a\\\nb", "ab"),
            ("it's", "it's"),
        ] {
            assert_eq!(document(text, &lookup).as_deref(), Ok(wanted), "{text}");
        }
    }

    proptest! {
        #[test]
        fn expansion_never_panics_and_is_bounded(text in "[$${}:+?'\"\\\\ABNE x-]{0,40}") {
            for result in [
                word(&text, Escape::Backslash, &lookup),
                word(&text, Escape::Backtick, &lookup),
                document(&text, &lookup),
                literal(&text, &lookup),
            ] {
                prop_assert!(result.map_or(0, |text| text.len()) <= VALUE_MAX);
            }
        }

        #[test]
        fn text_without_dollar_is_literal(text in "[^$]{0,40}") {
            prop_assert_eq!(literal(&text, &lookup), Ok(text));
        }

        #[test]
        fn single_quoted_text_is_kept(text in "[^']{0,40}") {
            let quoted = format!("'{text}'");
            prop_assert_eq!(word(&quoted, Escape::Backslash, &lookup), Ok(text));
        }
    }
}
