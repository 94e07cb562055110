//! Lines from bytes that arrive in pieces, each of a bounded length.

/// Bytes of the longest line.
const LONGEST: usize = 64 * 1024 * 1024;

/// The error of a line that is longer than `LONGEST`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[derive(Debug)]
pub(super) struct Lines {
    rest: Vec<u8>,
    longest: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { rest: Vec::new(), longest: LONGEST }
    }
}

impl Lines {
    /// Returns the lines that end in a piece, without their line ends.
    ///
    /// # Errors
    /// Returns an error once a line is too long.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (line, is_whole) = match part.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (part, false),
            };
            if self.rest.len() + line.len() > self.longest {
                return Err(TooLong);
            }
            self.rest.extend_from_slice(line);
            if is_whole {
                lines.push(std::mem::take(&mut self.rest));
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_end_and_not_where_pieces_do() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"ab").unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(lines.push(b"c\n\nd").unwrap(), [b"abc".to_vec(), Vec::new()]);
        assert_eq!(lines.push(b"\n").unwrap(), [b"d".to_vec()]);
    }

    #[test]
    fn line_above_the_limit_is_refused() {
        let mut lines = Lines { rest: Vec::new(), longest: 4 };
        assert!(lines.push(b"abcd\nab").is_ok());
        assert_eq!(lines.push(b"cde"), Err(TooLong));
    }
}
