//! The beginnings of sentences in doc comments. A sentence that begins with a word such as `What`
//! has its subject elsewhere, and nobody finds the subject in an editor's hover.

/// Beginnings that no sentence may have.
const BEGINNINGS: [&str; 9] =
    ["What", "Whether", "How", "That", "Those", "One", "And", "The same", "Of"];

/// Returns the wrong beginnings of a file's doc comments, with their lines. Pure.
pub(super) fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut block, mut fenced) = (String::new(), false);
    for (number, line) in text.lines().chain([""]).enumerate() {
        let line = line.trim_start();
        match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
            Some(comment) if comment.trim_start().starts_with("```") => fenced = !fenced,
            Some(_) if fenced => {}
            Some(comment) => {
                block.push_str(comment);
                block.push('\n');
            }
            None => {
                let wrong = sentences(&block).filter_map(beginning);
                faults.extend(wrong.map(|wrong| {
                    format!(
                        "the comment above line {} begins a sentence with `{wrong}`",
                        number + 1
                    )
                }));
                block.clear();
                fenced = false;
            }
        }
    }
    faults
}

/// Splits a comment into sentences and items of lists.
fn sentences(block: &str) -> impl Iterator<Item = &str> {
    let (mut at, mut begins) = (0, true);
    block.split_inclusive([' ', '\n']).filter_map(move |piece| {
        let rest = &block[at..];
        at += piece.len();
        let word = piece.trim();
        if word.is_empty() {
            return None;
        }
        let number = word.strip_suffix('.').is_some_and(|number| number.parse::<u8>().is_ok());
        let is_mark = number || matches!(word, "-" | "*");
        let begun = std::mem::replace(&mut begins, is_mark || word.ends_with(['.', '!', '?', ':']));
        (begun && !is_mark).then_some(rest)
    })
}

fn beginning(sentence: &str) -> Option<&'static str> {
    let is_next = |word: &str| {
        let rest = sentence.strip_prefix(word)?;
        rest.starts_with(|c: char| !c.is_alphanumeric() && c != '_').then_some(())
    };
    BEGINNINGS.into_iter().find(|word| is_next(word).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_sentence_start_is_found_anywhere_in_doc_comment() {
        for wrong in [
            "/// What a name stands for.\nfn f() {}\n",
            "/// Fine. Of a capsule.\nfn f() {}\n",
            "//! Fine.\n//!\n//! - Whether it runs.\n",
            "/// Fine: it is. The same\n/// again.\nfn f() {}\n",
        ] {
            assert_eq!(faults(wrong).len(), 1, "{wrong}");
        }
        for right in [
            "/// Whatever comes.\nfn f() {}\n",
            "/// Returns what a name stands for.\nfn f() {}\n",
            "// What a comment inside of code may say.\n",
            "/// Fine.\n/// ```\n/// What(1)\n/// ```\nfn f() {}\n",
            "/// Onerous work of `One::of`.\nfn f() {}\n",
        ] {
            assert_eq!(faults(right), [""; 0], "{right}");
        }
    }
}
