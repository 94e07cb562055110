//! Joins two connections byte for byte, as after a WebSocket's handshake. An idle tunnel holds no
//! buffer.

use crate::timer::SILENCE;
use bytes::{Buf, Bytes};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Bytes per read.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// Buffer of all reads. Bytes are kept beyond a poll only when they cannot be written.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// A direction of a tunnel.
#[derive(Debug, Default)]
struct Way {
    /// Bytes that are read and not yet written.
    kept: Bytes,
    flushed: bool,
    read_all: bool,
    ended: bool,
}

impl Way {
    fn holding(kept: Bytes) -> Self {
        Self { kept, ..Self::default() }
    }

    /// Moves bytes until a side has to wait, or all is done. At the end of the bytes, passes the
    /// end on. The other direction goes on by itself.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.ended {
            while !self.kept.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.kept.advance(count);
                *moved = true;
                self.flushed = false;
            }
            // An empty slice of a large buffer would keep the whole buffer.
            self.kept = Bytes::new();
            if self.read_all {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.ended = true;
                break;
            }
            match self.pass(cx, from, to)? {
                Poll::Ready(()) => *moved = true,
                Poll::Pending => {
                    if !self.flushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.flushed = true;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes as much of it as possible.
    fn pass<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(from).poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(read) => read?,
            }
            let mut read = buf.filled();
            self.read_all = read.is_empty();
            self.flushed = false;
            while !read.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, read) {
                    Poll::Ready(count) => match count? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        count => read = &read[count..],
                    },
                    Poll::Pending => {
                        self.kept = Bytes::copy_from_slice(read);
                        break;
                    }
                }
            }
            Ok(Poll::Ready(()))
        })
    }
}

/// Passes all bytes between `one` and `other`, until both have ended, either has failed, or nothing
/// has moved for [`SILENCE`]. `first` holds bytes that were already read from `other`.
///
/// # Errors
/// Returns the error that ended the tunnel before both sides had ended.
pub(crate) async fn tunnel<A, B>(one: &mut A, other: &mut B, first: Bytes) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::holding(first));
    let mut timer = Box::pin(tokio::time::sleep(SILENCE));
    let mut last = Instant::now();
    std::future::poll_fn(|cx| {
        let mut moved = false;
        let to = there.poll(cx, one, other, &mut moved)?;
        let from = back.poll(cx, other, one, &mut moved)?;
        if to.is_ready() && from.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if moved {
            last = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= SILENCE {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(last + SILENCE);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// Runs a tunnel and returns both of its far ends.
    fn running(first: &'static [u8], room: usize) -> (DuplexStream, DuplexStream) {
        let ((here, mut one), (there, mut other)) = (duplex(room), duplex(room));
        tokio::spawn(async move {
            let _ = tunnel(&mut one, &mut other, Bytes::from_static(first)).await;
        });
        (here, there)
    }

    #[tokio::test]
    async fn tunnel_passes_all_bytes_in_order_through_small_buffers() {
        let (mut here, mut there) = running(b"first", 7);
        let sent: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            here.write_all(&copy).await.unwrap();
            here.shutdown().await.unwrap();
            let mut back = Vec::new();
            here.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut got = Vec::new();
        there.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
        // The other direction outlives the end of the first.
        there.write_all(b" and more").await.unwrap();
        drop(there);
        assert_eq!(writer.await.unwrap(), b"first and more");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_tunnel_times_out() {
        let ((here, mut one), (there, mut other)) = (duplex(8), duplex(8));
        let started = Instant::now();
        let ended = tunnel(&mut one, &mut other, Bytes::new()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), SILENCE);
        drop((here, there));
    }
}
