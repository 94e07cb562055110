//! The texts of a build's log, which tell steps from output, and their form for a terminal.

/// Columns between the stops of tabs.
const TAB: usize = 4;

/// Meaning of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A line that a program wrote.
    Output(&'a str),
    /// A step, as `[2/6] RUN make`.
    Step { title: String, is_cached: bool },
    /// The last line of a build.
    End,
    /// Any other line, free of control characters.
    Other(String),
}

/// Reads the text of a line. A program cannot forge a step, since its lines all have a prefix.
pub(super) fn read(text: &str) -> Kind<'_> {
    let (rest, is_cached) = match text.strip_prefix("CACHED ") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if let Some((name, rest)) = bracketed(rest) {
        if name == "start" || name == "ready" {
            if let Some(output) = output(rest) {
                return Kind::Output(output);
            }
        } else if let Some(title) = title(name) {
            return match output(rest) {
                Some(output) => Kind::Output(output),
                None => Kind::Step { title: format!("{title} {}", step(rest)), is_cached },
            };
        }
    }
    if text.starts_with("Build finished") || text.starts_with("Build failed") {
        return Kind::End;
    }
    Kind::Other(first_line(text))
}

/// Splits `[name] rest`.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('[')?.split_once("] ")
}

/// Returns the text after `[stdout]: ` or `[stderr]: `.
fn output(text: &str) -> Option<&str> {
    ["[stdout]:", "[stderr]:"].into_iter().find_map(|prefix| {
        let rest = text.strip_prefix(prefix)?;
        Some(rest.strip_prefix(' ').unwrap_or(rest))
    })
}

/// Turns `builder 2/6` to `[2/6]`, and `other 2/6` to `[other 2/6]`.
fn title(name: &str) -> Option<String> {
    let (stage, count) = name.rsplit_once(' ')?;
    let (number, steps) = count.split_once('/')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(number) || !is_number(steps) {
        return None;
    }
    let stage = if stage == "builder" { String::new() } else { format!("{} ", clean(stage)) };
    Some(format!("[{stage}{number}/{steps}]"))
}

/// Returns the first line of a step, without the hash at its end.
fn step(text: &str) -> String {
    let is_hash = |hash: &str| hash.len() >= 8 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    let hash = text.strip_suffix(']').and_then(|text| text.rsplit_once(" ["));
    first_line(hash.filter(|(_, hash)| is_hash(hash)).map_or(text, |(text, _)| text))
}

fn first_line(text: &str) -> String {
    let text = text.trim_end();
    match text.split_once('\n') {
        Some((first, _)) => format!("{} …", clean(first)),
        None => clean(text),
    }
}

/// Makes a line safe for a terminal. Colours and moves of the cursor go. Other control characters
/// are written as escapes, as are characters that turn the direction of text.
pub(crate) fn clean(line: &str) -> String {
    // A program draws its progress over itself. The last drawing counts.
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default();
    let mut out = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(char) = rest.next() {
        match char {
            '\u{1b}' => match sequence(rest.as_str()) {
                Some(length) => rest = rest.as_str().get(length..).unwrap_or_default().chars(),
                None => out.push_str("\\x1b"),
            },
            '\t' => out.extend(std::iter::repeat_n(' ', TAB - out.chars().count() % TAB)),
            char if char.is_control() => out.extend(char.escape_unicode()),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(char.escape_unicode());
            }
            char => out.push(char),
        }
    }
    out
}

/// Returns the length of a sequence such as `[1;31m` after an escape.
fn sequence(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix('[')?;
    let is_middle = |byte: &u8| (0x20..0x40).contains(byte);
    let length = parameters.bytes().take_while(is_middle).count();
    let last = *parameters.as_bytes().get(length)?;
    (0x40..0x7f).contains(&last).then_some(length + 2)
}

/// Shortens a text to a number of columns. Characters beyond ASCII count as two, so that no line
/// is wider than it is thought to be.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let width = |char: char| if char.is_ascii() || "│…".contains(char) { 1 } else { 2 };
    let total: usize = text.chars().map(width).sum();
    if total <= columns {
        return text.to_owned();
    }
    let mut used = 1;
    let fits = |char: &char| {
        used += width(*char);
        used <= columns
    };
    let mut short: String = text.chars().take_while(fits).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_log_have_their_meaning() {
        let step = |title: &str, is_cached| Kind::Step { title: title.to_owned(), is_cached };
        for (text, kind) in [
            ("[builder 2/6] RUN make [0a1b2c3d4e5f]", step("[2/6] RUN make", false)),
            ("CACHED [builder 1/2] ENV A b [abcdef0123]", step("[1/2] ENV A b", true)),
            ("[web 1/2] RUN [ -f x ]", step("[web 1/2] RUN [ -f x ]", false)),
            ("[builder 1/1] RUN a <<E\nx\nE [0a1b2c3d4e5f]", step("[1/1] RUN a <<E …", false)),
            (
                "[builder 2/6] [stdout]: CACHED [builder 1/9] x",
                Kind::Output("CACHED [builder 1/9] x"),
            ),
            ("[builder 2/6] [stderr]:", Kind::Output("")),
            ("[start] [stdout]:  two", Kind::Output(" two")),
            ("FROM a\u{1b}b", Kind::Other("FROM a\\x1bb".to_owned())),
            ("[what] ever", Kind::Other("[what] ever".to_owned())),
            ("Build finished, took 3s", Kind::End),
        ] {
            assert_eq!(read(text), kind, "{text}");
        }
    }

    #[test]
    fn control_characters_of_output_are_escaped() {
        for (line, safe) in [
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}x", "\\x1b]0;title\\u{7}x"),
            ("\u{1b}[2", "\\x1b[2"),
            ("\u{9b}2Jx\0", "\\u{9b}2Jx\\u{0}"),
            ("10%\r 50%\r100%\r", "100%"),
            ("a\tb", "a   b"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("ü", "ü"),
        ] {
            assert_eq!(clean(line), safe);
        }
    }

    #[test]
    fn long_text_is_cut_to_the_columns() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("ab defg", 4), "ab…");
        assert_eq!(cut("日本語テキスト", 6), "日本…");
    }
}
