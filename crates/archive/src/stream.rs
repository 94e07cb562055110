//! Joins a thread that blocks with an async task: bytes go through a bounded channel of chunks.

use crate::CHUNK;
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Chunks that may wait in a channel.
pub const BACKLOG: usize = 4;
/// Time after which a chunk is sent even if it is not full, so that slow progress is seen.
const AGE: Duration = Duration::from_secs(1);

/// Reads the chunks of a channel on a thread that may block. A closed channel marks the end.
pub struct ChunkReader {
    from: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
    taken: Arc<AtomicU64>,
}

impl ChunkReader {
    #[must_use]
    pub fn new(from: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { from, rest: Bytes::new(), taken: Arc::default() }
    }

    /// Returns the counter of read bytes, for a watcher of the thread.
    #[must_use]
    pub fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.from.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.rest.split_to(buffer.len().min(self.rest.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        self.taken.fetch_add(taken.len() as u64, Ordering::Relaxed);
        Ok(taken.len())
    }
}

/// Writes chunks into a channel from a thread that may block. A flush sends the last chunk.
pub struct ChunkWriter<E> {
    to: mpsc::Sender<Result<Bytes, E>>,
    buffer: Vec<u8>,
    sent: Instant,
}

impl<E> ChunkWriter<E> {
    #[must_use]
    pub fn new(to: mpsc::Sender<Result<Bytes, E>>) -> Self {
        Self { to, buffer: Vec::with_capacity(CHUNK), sent: Instant::now() }
    }
}

impl<E> Write for ChunkWriter<E> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= CHUNK || self.sent.elapsed() > AGE {
            self.flush()?;
        }
        let taken = data.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        let sent = self.to.blocking_send(Ok(Bytes::from(chunk)));
        self.sent = Instant::now();
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_reader_returns_bytes_in_order_then_the_error() {
        let (to, from) = mpsc::channel::<io::Result<Bytes>>(BACKLOG);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let data = sent.clone();
        let writing = std::thread::spawn(move || {
            let mut writer = ChunkWriter::new(to.clone());
            writer.write_all(&data).unwrap();
            writer.flush().unwrap();
            to.blocking_send(Err(io::Error::other("gone"))).unwrap();
        });
        let mut reader = ChunkReader::new(from);
        let mut got = Vec::new();
        let error = reader.read_to_end(&mut got).unwrap_err();
        writing.join().unwrap();
        assert_eq!(error.to_string(), "gone");
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn chunk_writer_without_reader_fails_with_broken_pipe() {
        let (to, from) = mpsc::channel::<Result<Bytes, ()>>(BACKLOG);
        drop(from);
        let mut writer = ChunkWriter::new(to);
        writer.write_all(b"x").unwrap();
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
