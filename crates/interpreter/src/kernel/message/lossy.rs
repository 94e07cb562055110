//! Repair of texts that are JSON to a kernel and none to a strict reader: bytes that are no UTF-8,
//! halves of surrogate pairs, bare control characters, NaN and infinities.

/// Character that stands for what cannot be shown.
const REPLACEMENT: &str = "\\ufffd";

/// Returns a text that a strict reader takes, if the bytes are close to JSON.
pub(super) fn repair(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut repaired = String::with_capacity(text.len());
    let mut rest: &str = &text;
    while let Some(at) = rest.find('"') {
        let (values, string) = rest.split_at(at);
        push_values(&mut repaired, values);
        rest = push_string(&mut repaired, string);
    }
    push_values(&mut repaired, rest);
    repaired
}

/// Copies text outside strings. Numbers that JSON has not become null.
fn push_values(repaired: &mut String, values: &str) {
    if !values.contains(['N', 'I']) {
        repaired.push_str(values);
        return;
    }
    let values = values.replace("-Infinity", "null").replace("Infinity", "null");
    repaired.push_str(&values.replace("NaN", "null"));
}

/// Copies a string with its quotes, and returns the text after it.
fn push_string<'a>(repaired: &mut String, string: &'a str) -> &'a str {
    repaired.push('"');
    let mut rest = string.get(1..).unwrap_or_default();
    while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') {
        let (plain, special) = rest.split_at(at);
        repaired.push_str(plain);
        match special.as_bytes() {
            [b'"', ..] => {
                repaired.push('"');
                return special.get(1..).unwrap_or_default();
            }
            [b'\\', ..] => rest = push_escape(repaired, special),
            [control, ..] => {
                repaired.push_str(&format!("\\u{control:04x}"));
                rest = special.get(1..).unwrap_or_default();
            }
            [] => rest = special,
        }
    }
    repaired.push_str(rest);
    ""
}

/// Copies an escape, and returns the text after it. Half of a surrogate pair is replaced.
fn push_escape<'a>(repaired: &mut String, escape: &'a str) -> &'a str {
    let size = match unit(escape) {
        None => escape.char_indices().nth(2).map_or(escape.len(), |(at, _)| at),
        Some(0xD800..=0xDBFF) => match escape.get(6..).and_then(unit) {
            Some(0xDC00..=0xDFFF) => 12,
            _ => return replace(repaired, escape),
        },
        Some(0xDC00..=0xDFFF) => return replace(repaired, escape),
        Some(_) => 6,
    };
    let (escape, rest) = escape.split_at(size);
    repaired.push_str(escape);
    rest
}

fn replace<'a>(repaired: &mut String, escape: &'a str) -> &'a str {
    repaired.push_str(REPLACEMENT);
    escape.get(6..).unwrap_or_default()
}

/// Reads an escape of the form `\u0000` at the start of a text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_str(&repair(bytes)).unwrap()
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced() {
        assert_eq!(read(br#""a\ud800""#), json!("a\u{fffd}"));
        assert_eq!(read(br#""\ud83d\ude00""#), json!("😀"));
        assert_eq!(read(br#""\ude00\ud83dx\ud83d\n""#), json!("\u{fffd}\u{fffd}x\u{fffd}\n"));
        assert_eq!(read(br#""\ud83d\ud83d\ude00""#), json!("\u{fffd}😀"));
        assert_eq!(read(br#""\\ud800""#), json!("\\ud800"), "an escaped backslash");
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        assert_eq!(read(b"[\"a\xffb\xed\xa0\x80\", 1]")[0].as_str().unwrap().chars().count(), 6);
        assert_eq!(read("\"é\\\"\u{2028}\"".as_bytes()), json!("é\"\u{2028}"));
    }

    #[test]
    fn numbers_that_json_lacks_become_null_outside_strings() {
        let given = br#"{"NaN": [NaN, -Infinity, Infinity, -1.5], "t": "NaN Infinity"}"#;
        let wanted = json!({"NaN": [null, null, null, -1.5], "t": "NaN Infinity"});
        assert_eq!(read(given), wanted);
    }

    #[test]
    fn control_characters_in_strings_are_escaped() {
        assert_eq!(read(b"\"a\x00\x1b[0m\nb\""), json!("a\0\u{1b}[0m\nb"));
    }

    #[test]
    fn text_cut_at_every_byte_is_repaired_without_a_panic() {
        let text = "{\"a\\ud83d\\ude00é\\u00\":[NaN,\"\\ud800\\\"]}";
        for at in 0..=text.len() {
            let _ = repair(&text.as_bytes()[..at]);
            let _ = repair(&text.as_bytes()[at..]);
        }
    }
}
