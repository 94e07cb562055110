//! Text from bytes that arrive in pieces.

/// Turns bytes into text. Bytes that are no UTF-8 become U+FFFD, and a character that is split
/// between two pieces waits for its rest.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    rest: Vec<u8>,
}

impl Utf8 {
    /// Returns the text of all whole characters up to the end of a piece.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - begun(&self.rest);
        let tail = self.rest.split_off(whole);
        let head = std::mem::replace(&mut self.rest, tail);
        lossy(head)
    }

    /// Returns the text of a character that has not become whole.
    pub(super) fn finish(&mut self) -> String {
        lossy(std::mem::take(&mut self.rest))
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Counts the bytes at the end that begin a character without ending it.
fn begun(bytes: &[u8]) -> usize {
    for (count, byte) in (1..=3).zip(bytes.iter().rev()) {
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 0,
        };
        return if length > count { count } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_split_at_every_byte_is_whole() {
        let text = "aé€😀\u{2028}\0z";
        for at in 0..=text.len() {
            let mut utf8 = Utf8::default();
            let (head, tail) = text.as_bytes().split_at(at);
            let joined = utf8.push(head) + &utf8.push(tail) + &utf8.finish();
            assert_eq!(joined, text, "split at {at}");
        }
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.push(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(utf8.push(b"\xf0\x9f"), "");
        assert_eq!(utf8.finish(), "\u{fffd}");
        assert_eq!(utf8.push(b"\x80\x80\x80\x80"), "\u{fffd}".repeat(4));
    }
}
