//! A connection with limits of time that cost a request nothing. Only while nothing moves, the
//! clock is read and the connection's single timer is armed.

use crate::activity::Activity;
use crate::timer::{SILENCE, Still};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that fails when nothing has moved on it for too long. An accepted connection is
/// timed while its client takes nothing. [`crate::activity`] times it between requests.
pub(crate) struct Timed<I> {
    io: I,
    /// State of an accepted connection. `None` for a dialled one, where an answer is always
    /// awaited.
    activity: Option<Arc<Activity>>,
    still: Still,
}

impl<I> Timed<I> {
    /// Wraps a connection that this process dialled.
    pub(crate) fn dialled(io: I) -> Self {
        Self { io, activity: None, still: Still::default() }
    }

    /// Wraps a connection that this process accepted.
    pub(crate) fn accepted(io: I, activity: Arc<Activity>) -> Self {
        Self { io, activity: Some(activity), still: Still::default() }
    }

    /// Returns the connection without its limits.
    pub(crate) fn into_inner(self) -> I {
        self.io
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.still.poll(cx, SILENCE).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Timed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        match (&read, &self.activity) {
            (Poll::Ready(_), Some(activity)) => activity.read(),
            (Poll::Ready(_), None) => self.still.moved(),
            // A client that waits for its answer sends nothing meanwhile.
            (Poll::Pending, Some(_)) => {}
            (Poll::Pending, None) => return self.check(cx).map(Err),
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> Timed<I> {
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_pending() {
            return self.check(cx).map(Err);
        }
        self.still.moved();
        written
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Timed<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(cx, written)
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
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn dialled_connection_times_out_ten_minutes_after_last_byte() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut io = Timed::dialled(server);
        let started = Instant::now();
        let mut all = Vec::new();
        let (read, _client) = tokio::join!(io.read_to_end(&mut all), async {
            tokio::time::sleep(Duration::from_secs(500)).await;
            client.write_all(b"x").await.unwrap();
            client
        });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), Duration::from_secs(500) + SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_nothing_is_disconnected() {
        let (_client, server) = tokio::io::duplex(8);
        let mut io = Timed::accepted(server, Arc::default());
        tokio::time::sleep(SILENCE * 2).await;
        let started = Instant::now();
        // A server checks in the same manner, at each write, that its client is still there.
        let error = std::future::poll_fn(|cx| {
            let mut byte = [0];
            assert!(Pin::new(&mut io).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending());
            loop {
                match std::task::ready!(Pin::new(&mut io).poll_write(cx, &[0; 100])) {
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(error),
                }
            }
        });
        assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), SILENCE);
    }
}
