//! The words of an instruction: flags, lists in JSON, words with quotes, and pairs. Nothing is
//! expanded here.

use crate::expand::{self, Escape};
use crate::fault::shorten;

/// A flag: its name and its value.
pub(super) type Flag<'a> = (&'a str, Option<&'a str>);

/// Splits a text at blanks outside of quotes. Quotes and escapes stay.
pub(super) fn raw(text: &str, escape: Escape) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        let (word, after) = first(rest, escape);
        if word.is_empty() {
            return words;
        }
        words.push(word);
        rest = after;
    }
}

/// Splits the first word from a text.
fn first(text: &str, escape: Escape) -> (&str, &str) {
    let text = text.trim_start();
    let (mut quote, mut is_escaped) = (None, false);
    for (at, char) in text.char_indices() {
        if std::mem::take(&mut is_escaped) {
            continue;
        }
        match quote {
            Some(open) if char == open => quote = None,
            Some('\'') => {}
            _ if char == escape.char() => is_escaped = true,
            Some(_) => {}
            None if matches!(char, '"' | '\'') => quote = Some(char),
            None if char.is_whitespace() => return text.split_at_checked(at).unwrap_or((text, "")),
            None => {}
        }
    }
    (text, "")
}

/// Splits leading flags such as `--from=x` from a text.
pub(super) fn flags(text: &str, escape: Escape) -> (Vec<Flag<'_>>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    loop {
        let (word, after) = first(rest, escape);
        let Some(flag) = word.strip_prefix("--") else { return (flags, rest) };
        rest = after.trim_start();
        if flag.is_empty() {
            return (flags, rest);
        }
        flags.push(match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        });
    }
}

/// Reads a list in JSON. Returns `None` for a text that is no list, which is then plain words.
///
/// # Errors
/// Refuses a list that holds other values than texts.
pub(super) fn list(text: &str) -> Result<Option<Vec<String>>, String> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Ok(values) => {
            let texts = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
            let texts: Option<Vec<String>> = texts;
            texts.map(Some).ok_or_else(|| "the list holds a value that is no text".to_owned())
        }
        Err(_) => Ok(None),
    }
}

/// Reads pairs `name=value`, or the old form `name value`. Values keep quotes and escapes.
///
/// # Errors
/// Names the word without `=`, or the malformed name.
pub(super) fn pairs(text: &str, escape: Escape) -> Result<Vec<(String, String)>, String> {
    let (word, rest) = first(text, escape);
    if word.is_empty() {
        return Err("takes at least one argument".to_owned());
    }
    if !word.contains('=') {
        let value = rest.trim();
        if value.is_empty() {
            return Err(format!("`{}` has no value", shorten(word)));
        }
        return Ok(vec![(name(word, escape)?, value.to_owned())]);
    }
    let pair = |word: &str| {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("`{}` is not of the form name=value", shorten(word)))?;
        Ok((name(key, escape)?, value.to_owned()))
    };
    raw(text, escape).into_iter().map(pair).collect()
}

/// Removes the quotes of a name, and checks it.
///
/// # Errors
/// Refuses names that are empty or hold `=`, blanks, `$` or control characters.
pub(super) fn name(text: &str, escape: Escape) -> Result<String, String> {
    let bad = || format!("`{}` is no name", shorten(text));
    let name = expand::word(text, escape, &|_| None).map_err(|_| bad())?;
    let is_bad = |char: char| char.is_whitespace() || char.is_control() || char == '=';
    if name.is_empty() || text.contains('$') || name.contains(is_bad) {
        return Err(bad());
    }
    Ok(name)
}
