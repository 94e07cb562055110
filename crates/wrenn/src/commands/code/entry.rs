//! Decides whether the lines typed so far are a whole piece of code. Pure. A wrong guess costs an
//! empty line: two of them end every entry.

/// Reports whether an entry is complete. `text` has all lines, without the last line feed.
pub(super) fn is_complete(language: &str, text: &str) -> bool {
    let lines: Vec<&str> = text.split('\n').collect();
    let blanks = lines.iter().rev().take_while(|line| line.trim().is_empty()).count();
    if blanks >= lines.len() || blanks >= 2 {
        return true;
    }
    let scan = Scan::of(language, text);
    if scan.is_open() || text.ends_with('\\') {
        return false;
    }
    match language {
        "python" => blanks > 0 || !is_block(&lines),
        "bash" => blanks > 0 || scan.blocks <= 0,
        _ => true,
    }
}

/// Reports whether lines of Python are, or begin, a block. A block ends with an empty line.
fn is_block(lines: &[&str]) -> bool {
    let first = lines.first().map_or("", |line| line.trim_start());
    let last = lines.last().map_or("", |line| code_of(line).trim_end());
    let opens = |line: &str| code_of(line).trim_end().ends_with(':');
    let indented = lines.len() > 1 && lines.iter().any(|line| line.starts_with([' ', '\t']));
    last.ends_with(':') || first.starts_with('@') || (indented && lines.iter().any(|l| opens(l)))
}

/// Returns a line of Python without its comment, if no string precedes the comment.
fn code_of(line: &str) -> &str {
    match line.find(['#', '"', '\'']) {
        Some(at) if line[at..].starts_with('#') => &line[..at],
        _ => line,
    }
}

/// Brackets and strings that are open at the end of a text.
struct Scan {
    /// Open brackets less closed ones.
    depth: i32,
    /// Set inside a string that may span lines, or a comment that does.
    spans: bool,
    /// Words of a shell that open a block, less those that close one.
    blocks: i32,
}

/// Part of a text that is no code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    /// String with its quote, and whether it may span lines.
    Text(&'static str, bool),
    /// Comment up to the line's end.
    Comment,
    /// Comment up to `*/`.
    Long,
}

impl Scan {
    fn of(language: &str, text: &str) -> Self {
        let quotes: &[(&'static str, bool)] = match language {
            "python" => &[("\"\"\"", true), ("'''", true), ("\"", false), ("'", false)],
            "bash" => &[("\"", true), ("'", true), ("`", true)],
            _ => &[("`", true), ("\"", false), ("'", false)],
        };
        let mut scan = Self { depth: 0, spans: false, blocks: 0 };
        let (mut inside, mut rest, mut word) = (Inside::Code, text, String::new());
        while let Some(c) = rest.chars().next() {
            let mut taken = c.len_utf8();
            match inside {
                Inside::Code => {
                    let quote = quotes.iter().find(|(quote, _)| rest.starts_with(quote));
                    let at_word = word.is_empty();
                    if let Some(&(quote, spans)) = quote {
                        (inside, taken) = (Inside::Text(quote, spans), quote.len());
                    } else if let Some((comment, length)) = comment(language, rest, at_word) {
                        (inside, taken) = (comment, length);
                    } else if c == '\\' {
                        taken += rest[1..].chars().next().map_or(0, char::len_utf8);
                    } else {
                        scan.depth += bracket(c);
                    }
                    if c.is_alphanumeric() || c == '_' || c == '$' {
                        word.push(c);
                    } else {
                        scan.blocks += keyword(&std::mem::take(&mut word));
                    }
                }
                Inside::Text(quote, spans) => {
                    // A shell's string in single quotes has no escapes.
                    if c == '\\' && !(language == "bash" && quote == "'") {
                        taken += rest[1..].chars().next().map_or(0, char::len_utf8);
                    } else if rest.starts_with(quote) {
                        (inside, taken) = (Inside::Code, quote.len());
                    } else if c == '\n' && !spans {
                        inside = Inside::Code;
                    }
                }
                Inside::Comment if c == '\n' => inside = Inside::Code,
                Inside::Long if rest.starts_with("*/") => (inside, taken) = (Inside::Code, 2),
                Inside::Comment | Inside::Long => {}
            }
            rest = &rest[taken..];
        }
        scan.blocks += keyword(&word);
        scan.spans = matches!(inside, Inside::Text(_, true) | Inside::Long);
        scan
    }

    fn is_open(&self) -> bool {
        self.depth > 0 || self.spans
    }
}

/// Returns the comment that begins here, with the length of its mark.
fn comment(language: &str, rest: &str, at_word: bool) -> Option<(Inside, usize)> {
    match language {
        "javascript" | "typescript" | "java" if rest.starts_with("//") => {
            Some((Inside::Comment, 2))
        }
        "javascript" | "typescript" | "java" if rest.starts_with("/*") => Some((Inside::Long, 2)),
        "python" | "r" if rest.starts_with('#') => Some((Inside::Comment, 1)),
        "bash" if at_word && rest.starts_with('#') => Some((Inside::Comment, 1)),
        _ => None,
    }
}

fn bracket(c: char) -> i32 {
    match c {
        '(' | '[' | '{' => 1,
        ')' | ']' | '}' => -1,
        _ => 0,
    }
}

/// Counts a word of a shell: 1 if it opens a block, -1 if it closes one.
fn keyword(word: &str) -> i32 {
    match word {
        "if" | "for" | "while" | "until" | "case" | "select" => 1,
        "fi" | "done" | "esac" => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(language: &str, complete: &[&str], open: &[&str]) {
        for text in complete {
            assert!(is_complete(language, text), "{language}: {text:?} is complete");
        }
        for text in open {
            assert!(!is_complete(language, text), "{language}: {text:?} is not complete");
        }
    }

    #[test]
    fn python_block_ends_with_an_empty_line() {
        let complete = [
            "1 + 1",
            "x = {'a': 1}",
            "for i in x:\n    print(i)\n",
            "if a: # why\n    b\n",
            "print('a:')",
            "s = '(' # (",
            "@f\ndef g():\n    pass\n",
            "x = (1,\n  2)",
            "",
            "'it\\'s'",
        ];
        let open = [
            "for i in x:",
            "for i in x:\n    print(i)",
            "if a: # why",
            "x = (1,",
            "x = (1,\n",
            "s = \"\"\"a",
            "s = '''a\n'b'",
            "@f",
            "x = 1 + \\",
            "d = {",
        ];
        check("python", &complete, &open);
    }

    #[test]
    fn brackets_strings_and_comments_of_javascript_are_known() {
        let complete =
            ["f({a: [1]})", "'('", "// (", "/* ( */ 1", "`a`", "/* a\n( */", "\"\\\"(\""];
        let open = ["f(", "function f() {", "`a", "`a\n", "/* (", "[1,"];
        check("javascript", &complete, &open);
        check("typescript", &complete, &open);
    }

    #[test]
    fn bash_block_ends_with_its_word() {
        let complete =
            ["ls", "for i in a; do\necho $i\ndone", "echo 'a'", "echo a#b", "if x; then y; fi"];
        let open = ["for i in a; do", "echo 'a", "echo \"a", "f() {", "ls \\", "if x; then"];
        check("bash", &complete, &open);
    }

    #[test]
    fn two_empty_lines_end_every_entry() {
        for text in ["x = (1,\n\n", "s = \"\"\"\n\n", "f(\n\n", "\n"] {
            assert!(is_complete("python", text), "{text:?}");
        }
        assert!(!is_complete("python", "x = (1,\n"));
    }
}
