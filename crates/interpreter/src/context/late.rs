//! The last output of threads whose executions have ended.

use std::collections::VecDeque;

/// Most bytes that are kept.
const KEPT: usize = 64 << 10;

/// The last output.
#[derive(Debug, Default)]
pub(super) struct Late(VecDeque<u8>);

impl Late {
    pub(super) fn push(&mut self, text: &str) {
        let bytes = text.as_bytes();
        self.0.extend(&bytes[bytes.len().saturating_sub(KEPT)..]);
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    /// Returns the output. Its first character may be cut off.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_output_is_kept_within_its_limit() {
        let mut late = Late::default();
        late.push("first");
        assert_eq!(late.text(), "first");
        late.push(&"x".repeat(KEPT - 1));
        assert_eq!(late.text(), format!("t{}", "x".repeat(KEPT - 1)));
        late.push(&"y".repeat(2 * KEPT));
        assert_eq!(late.text(), "y".repeat(KEPT));
    }
}
