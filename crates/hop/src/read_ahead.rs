//! A connection that is read in large pieces below TLS.
//!
//! rustls reads 4 KiB at a time, so each record of a large body would take five system calls. A
//! connection that rests, or carries small messages, holds no buffer.

use bytes::{Buf, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Most bytes of one read: four records of TLS.
const AHEAD: usize = 64 * 1024;

/// A connection whose bytes are read ahead of their reader while they come in bulk.
pub struct ReadAhead<S> {
    io: S,
    ahead: BytesMut,
    /// Set if the last read filled its buffer, so that more bytes are to be expected.
    expects: bool,
}

impl<S> ReadAhead<S> {
    /// Wraps a connection.
    #[must_use]
    pub fn new(io: S) -> Self {
        Self { io, ahead: BytesMut::new(), expects: false }
    }

    /// Gives the buffer back once it is empty and nothing more is expected.
    fn rest(&mut self) {
        if self.ahead.is_empty() && !self.expects {
            self.ahead = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Reads into the reader's own buffer.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.expects = buf.remaining() == 0;
        Poll::Ready(Ok(()))
    }

    /// Fills the empty buffer. Leaves it empty at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ahead.reserve(AHEAD);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.ahead);
        self.expects = matches!(read, Poll::Ready(Ok(count)) if count >= AHEAD);
        read.map_ok(|_| ())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if !this.expects {
                return this.poll_direct(cx, buf);
            }
            let filled = this.poll_fill(cx);
            this.rest();
            ready!(filled)?;
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        this.rest();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts the reads of a slice, and fills each buffer as far as it can.
    struct Counted<'a>(&'a [u8], usize);

    impl AsyncRead for Counted<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn bulk_data_arrives_complete_in_few_reads_and_leaves_no_buffer() {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut io = ReadAhead::new(Counted(&sent, 0));
        let (mut got, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let count = io.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
        }
        assert!(got == sent, "the bytes differ");
        assert!(io.io.1 <= 1_000_000 / AHEAD + 4, "{} reads", io.io.1);
        assert_eq!(io.ahead.capacity(), 0);
    }

    #[tokio::test]
    async fn small_messages_and_pauses_hold_no_buffer() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut io = ReadAhead::new(server);
        let mut piece = [0; 4096];
        client.write_all(b"small").await.unwrap();
        assert_eq!(io.read(&mut piece).await.unwrap(), 5);
        assert_eq!(io.ahead.capacity(), 0);
        // A full piece makes the reader expect more, which does not come.
        client.write_all(&[7; 4096]).await.unwrap();
        assert_eq!(io.read(&mut piece).await.unwrap(), 4096);
        {
            let mut waiting = std::pin::pin!(io.read(&mut piece));
            assert!(futures::poll!(&mut waiting).is_pending());
            client.write_all(b"late").await.unwrap();
            assert_eq!(waiting.await.unwrap(), 4);
        }
        assert_eq!(io.ahead.capacity(), 0);
        drop(client);
        assert_eq!(io.read(&mut piece).await.unwrap(), 0);
    }
}
