//! The end of what a program writes to standard error. It explains a failed start.

use crate::lock::lock;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Most bytes that are kept.
const TAIL: usize = 2048;
/// Time for the last bytes of an ended program to be read.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Keeps the last bytes that a program wrote.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

/// Ends of a pipe for a program. The program gets both: with a reader of its own, it survives the
/// end of the interpreter. The writer never waits.
pub(super) struct Ends {
    pub writer: OwnedFd,
    pub reader: OwnedFd,
}

impl Tail {
    /// Makes a pipe, and a task that reads it until its end.
    pub(super) fn pipe() -> io::Result<(Self, Ends)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let ends = Ends { writer, reader: reader.try_clone()? };
        let tail = Self::default();
        tokio::spawn(tail.clone().read(pipe::Receiver::from_owned_fd(reader)?));
        Ok((tail, ends))
    }

    async fn read(self, mut reader: pipe::Receiver) {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            self.push(buffer.get(..read).unwrap_or_default());
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = lock(&self.0);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
    }

    /// Waits a moment for last words, and returns an addition to an error's text: nothing, or the
    /// program's last lines.
    pub(super) async fn explain(&self) -> String {
        tokio::time::sleep(LAST_WORDS).await;
        self.text()
    }

    fn text(&self) -> String {
        let kept = lock(&self.0);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        match String::from_utf8_lossy(&bytes).trim() {
            "" => String::new(),
            text => format!("; it wrote: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn tail_keeps_the_last_lines() {
        let (tail, ends) = Tail::pipe().unwrap();
        assert_eq!(tail.text(), "");
        let mut writer = std::fs::File::from(ends.writer);
        writer.write_all("x".repeat(2 * TAIL).as_bytes()).unwrap();
        writer.write_all(b"\nlast words\n").unwrap();
        while !tail.text().ends_with("last words") {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(tail.text().starts_with("; it wrote: x"));
        assert!(tail.text().len() < TAIL + 20);
    }
}
