//! Bytes that come chunk by chunk, as the tar reader takes them.

use crate::error::Fault;

/// A stream of bytes with a buffer of its own.
pub(crate) trait Source {
    /// Returns bytes that are not yet consumed. An empty chunk is the end.
    ///
    /// # Errors
    /// Fails for a broken stream and at a limit.
    fn chunk(&mut self) -> Result<&[u8], Fault>;

    /// Marks the first bytes of the last chunk as consumed.
    fn consume(&mut self, bytes: usize);
}

impl Source for &[u8] {
    fn chunk(&mut self) -> Result<&[u8], Fault> {
        Ok(self)
    }

    fn consume(&mut self, bytes: usize) {
        *self = self.get(bytes..).unwrap_or_default();
    }
}
